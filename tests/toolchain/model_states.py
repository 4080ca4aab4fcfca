"""Model states in which nothing is trivial."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from chainfed.core.tensors import Tensors


def random_state(shapes: Mapping[str, tuple[int, ...]], seed: int = 3, deviation: float = 0.2) -> Tensors:
    """Normal tensors of these names and shapes, float32; those that are factors of features (`rstd`) are above 1."""
    generator = np.random.default_rng(seed)
    state = {name: (generator.normal(size=shape) * deviation).astype(np.float32) for name, shape in shapes.items()}
    return state | {name: 1.0 + np.abs(tensor) for name, tensor in state.items() if name.endswith(".rstd")}
