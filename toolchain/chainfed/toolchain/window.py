"""The layers of a window: the pass through them, and the tensors that every window's program takes.

B batch, S sequence, D hidden size, A bottleneck, L layers, Q window size.
"""

from __future__ import annotations

from torch import Tensor

from chainfed.toolchain.adapters import adapter
from chainfed.toolchain.programs import Named, ProgramSettings, TensorSpec, below, specs


def window_output(settings: ProgramSettings, window_size: int, tensors: Named, trainable: Named) -> Tensor:
    """Run a window's layers, each with its adapter: (B, S, D) -> (B, S, D)."""
    h = tensors["h"]
    for index in range(window_size):
        h = settings.family.layer(below(tensors, f"window.{index}.layer."), h, tensors["mask"])
        h = adapter(h, trainable[f"window.{index}.down"], trainable[f"window.{index}.up"])
    return h


def adapter_shapes(settings: ProgramSettings, window_size: int) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the adapters of a window."""
    bottleneck = (settings.adapter_dim, settings.family.hidden_size)
    return {f"window.{index}.{part}": bottleneck for index in range(window_size) for part in ("down", "up")}


def layer_specs(settings: ProgramSettings, window_size: int) -> tuple[TensorSpec, ...]:
    """The frozen weights of a window's layers."""
    shapes = settings.family.layer_shapes
    return tuple(spec for index in range(window_size) for spec in specs(f"window.{index}.layer.", shapes))


def auxiliary_specs(settings: ProgramSettings, window_size: int) -> tuple[TensorSpec, ...]:
    """The adapters of the auxiliary branch as one stack of L - Q; none when the window is the whole model."""
    after = settings.family.num_layers - window_size
    if not after:
        return ()
    stack = (after, settings.adapter_dim, settings.family.hidden_size)
    return specs("aux.", {"down": stack, "up": stack})
