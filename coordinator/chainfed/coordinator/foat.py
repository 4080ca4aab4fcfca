"""Functionality-Oriented Adaptive Tuning on the server (Sec. 4.4): mean scores, the first trained layer,
pooled statistics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from chainfed.core.manifest import Manifest
from chainfed.core.tensors import Tensors, statistics_names

VARIANCE_FLOOR = 1e-6
"""Added to a variance before its root is taken, so that a constant feature does not divide by zero."""


@dataclass(frozen=True)
class Start:
    """The first trained layer (L_start), 0-based, and whether no score was below the threshold."""

    layer: int
    below_threshold_missing: bool


def mean_scores(reports: Sequence[tuple[int, Sequence[float]]]) -> tuple[float, ...]:
    """The score of each layer: the mean over (examples, scores) of devices, weighted by examples, in
    float64 in the order given."""
    weights = np.array([examples for examples, _ in reports], np.float64)
    scores = np.array([values for _, values in reports], np.float64)
    return tuple(float(value) for value in (weights[:, None] * scores).sum(axis=0) / weights.sum())


def find_start(scores: Sequence[float], threshold: float) -> Start:
    """The first layer whose score is below the threshold T; when there is none, the (first) layer with the
    lowest score."""
    below = [layer for layer, score in enumerate(scores) if score < threshold]
    if below:
        return Start(below[0], False)
    return Start(min(range(len(scores)), key=lambda layer: scores[layer]), True)


def profile_shapes(manifest: Manifest) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a device's statistics; none for a language model, which has no heads."""
    layers = range(0 if manifest.is_language_model else manifest.model.num_layers)
    shape = (manifest.model.hidden_size,)
    return {f"statistics.{layer}.{name}": shape for layer in layers for name in ("mean", "variance")}


def pooled_statistics(parts: Iterable[tuple[int, Tensors]], num_layers: int) -> Tensors:
    """Mean and 1 / deviation of each layer's pooled features over all devices, as if one had seen all
    examples.

    `parts`: (examples, tensors named by `profile_shapes`) of each device. Exact combination of count, mean
    and population variance (Chan, Golub and LeVeque, 1979) in float64. Raises ValueError when there is no
    part.
    """
    count = 0
    means: dict[int, np.ndarray[tuple[int, ...], np.dtype[np.float64]]] = {}
    squares: dict[int, np.ndarray[tuple[int, ...], np.dtype[np.float64]]] = {}
    for examples, tensors in parts:
        total = count + examples
        for layer in range(num_layers):
            mean = tensors[f"statistics.{layer}.mean"].astype(np.float64)
            square = tensors[f"statistics.{layer}.variance"].astype(np.float64) * examples
            if count:
                step = mean - means[layer]
                square = squares[layer] + square + step * step * (count * examples / total)
                mean = means[layer] + step * (examples / total)
            means[layer], squares[layer] = mean, square
        count = total
    if not count:
        raise ValueError("statistics of no device")
    pooled: Tensors = {}
    for layer in range(num_layers):
        mean_name, rstd_name = statistics_names(layer)
        pooled[mean_name] = means[layer].astype(np.float32)
        pooled[rstd_name] = (1.0 / np.sqrt(squares[layer] / count + VARIANCE_FLOOR)).astype(np.float32)
    return pooled
