"""The model state before any training."""

from __future__ import annotations

import numpy as np

from chainfed.core.order import derive_seed
from chainfed.core.tensors import FloatArray, Tensors, state_shapes

_DEVIATION = 0.02


def initial_state(num_layers: int, hidden_size: int, bottleneck: int, num_labels: int, seed: int) -> Tensors:
    """Adapters that are the identity, small random heads, and statistics that change nothing.

    Down-projections and head weights are normal with deviation 0.02, each drawn from a generator of its own
    that `seed` and the tensor's name determine; up-projections, biases and means are 0, reciprocal deviations
    1.
    """
    shapes = state_shapes(num_layers, hidden_size, bottleneck, num_labels)
    return {name: _initial_tensor(name, shape, seed) for name, shape in shapes.items()}


def _initial_tensor(name: str, shape: tuple[int, ...], seed: int) -> FloatArray:
    part = name.rsplit(".", 1)[1]
    if part in ("down", "weight"):
        generator = np.random.Generator(np.random.PCG64(derive_seed("initial", seed, name)))
        return (generator.standard_normal(shape) * _DEVIATION).astype(np.float32)
    return np.full(shape, 1.0 if part == "rstd" else 0.0, dtype=np.float32)
