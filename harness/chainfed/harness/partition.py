"""How a labelled set is dealt to devices: evenly, or with label proportions drawn from a Dirichlet distribution
(paper, Sec. 5.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from chainfed.core.errors import BadInputError


@dataclass(frozen=True)
class PartitionSpec:
    """`alpha` is the Dirichlet concentration, the smaller the more uneven; None deals evenly (IID)."""

    alpha: float | None

    @classmethod
    def parse(cls, text: str) -> PartitionSpec:
        """From `iid` or `dirichlet:A`. Raises BadInputError for anything else."""
        if text == "iid":
            return cls(None)
        kind, _, value = text.partition(":")
        try:
            alpha = float(value)
        except ValueError:
            alpha = 0.0
        if kind != "dirichlet" or not 0 < alpha < float("inf"):
            raise BadInputError(
                f"Partition {text!r} is unknown; write `iid` or `dirichlet:A` with A above 0, such as dirichlet:1.0."
            )
        return cls(alpha)


def partition(labels: Sequence[int], num_devices: int, spec: PartitionSpec, seed: int) -> list[list[int]]:
    """The example indices of each device, ascending; every example goes to exactly one device and every device gets
    at least one.

    Raises BadInputError when there are fewer examples than devices.
    """
    if len(labels) < num_devices:
        raise BadInputError(
            f"{len(labels)} examples cannot be dealt to {num_devices} devices; give more data or fewer --devices."
        )
    generator = np.random.default_rng(seed)
    shares = (
        _even(len(labels), num_devices, generator)
        if spec.alpha is None
        else _dirichlet(labels, num_devices, spec.alpha, generator)
    )
    for share in shares:
        while not share:
            share.append(max(shares, key=len).pop())
    return [sorted(share) for share in shares]


def _even(count: int, num_devices: int, generator: np.random.Generator) -> list[list[int]]:
    order = generator.permutation(count)
    return [[int(index) for index in order[device::num_devices]] for device in range(num_devices)]


def _dirichlet(
    labels: Sequence[int], num_devices: int, alpha: float, generator: np.random.Generator
) -> list[list[int]]:
    """Each label's examples are cut in proportions drawn from Dirichlet(alpha) over the devices."""
    shares: list[list[int]] = [[] for _ in range(num_devices)]
    all_labels = np.asarray(labels)
    for label in np.unique(all_labels):
        members = generator.permutation(np.flatnonzero(all_labels == label))
        cuts = np.cumsum(generator.dirichlet(np.full(num_devices, alpha)))[:-1]
        for share, part in zip(shares, np.split(members, (cuts * len(members)).astype(int)), strict=True):
            share.extend(int(index) for index in part)
    return shares
