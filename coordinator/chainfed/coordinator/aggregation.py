"""Checking updates and taking their mean (Algorithm 1, line 11), one update in memory at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from chainfed.core.errors import BundleError, UpdateRejectedError
from chainfed.core.tensors import Tensors, check_shapes, decode

Shapes = Mapping[str, tuple[int, ...]]

_HEADER_ALLOWANCE = 65_536


def largest_encoding(shapes: Shapes) -> int:
    """Bytes that float32 tensors of these shapes can take as safetensors; a longer file is no such update."""
    return 4 * sum(math.prod(shape) for shape in shapes.values()) + _HEADER_ALLOWANCE


def checked_tensors(data: bytes, shapes: Shapes, what: str, max_norm: float = 0.0) -> Tensors:
    """The tensors of a device's safetensors bytes.

    Raises UpdateRejectedError, naming `what`, unless names, shapes and dtype are exactly those expected,
    all values are finite and the L2 norm over all tensors is at most `max_norm` (0: no bound).
    """
    try:
        tensors = decode(data, what)
        check_shapes(tensors, shapes, what)
    except BundleError as error:
        raise UpdateRejectedError(str(error)) from error
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise UpdateRejectedError(f"{what}: tensor {name} holds values that are not finite; it does not count.")
    norm = math.sqrt(sum(float(np.square(tensor, dtype=np.float64).sum()) for tensor in tensors.values()))
    if max_norm and norm > max_norm:
        raise UpdateRejectedError(
            f"{what} has norm {norm:.4g}, above the run's bound of {max_norm:.4g}; it does not count."
        )
    return tensors


class WeightedMean:
    """The mean of tensors weighted by examples, summed in float64 in the order of `add`: the same order
    gives the same bytes."""

    def __init__(self, shapes: Shapes) -> None:
        self._sums = {name: np.zeros(shape, np.float64) for name, shape in shapes.items()}
        self._weight = 0

    def add(self, weight: int, tensors: Tensors) -> None:
        """Adds one device's tensors, which have the shapes given, with the weight of its examples (1 or
        more)."""
        self._weight += weight
        for name, total in self._sums.items():
            total += weight * tensors[name].astype(np.float64)

    def result(self) -> dict[str, npt.NDArray[np.float64]]:
        """The mean, float64. Raises ValueError when nothing was added."""
        if not self._weight:
            raise ValueError("a mean of no updates")
        return {name: total / self._weight for name, total in self._sums.items()}


def applied(before: Tensors, mean: Mapping[str, npt.NDArray[np.float64]]) -> Tensors:
    """The model state after a round: before + mean change, added in float64 and rounded once to float32."""
    return {name: (before[name].astype(np.float64) + change).astype(np.float32) for name, change in mean.items()}
