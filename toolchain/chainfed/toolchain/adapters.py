"""Bottleneck adapters (paper Eq. 1) and the auxiliary branch made of them (Sec. 4.3).

Both matrices of an adapter are kept as (A, D), so that neither the forward nor the backward pass has to
transpose one of them. B batch, S sequence, D hidden size, A bottleneck; all float32.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def adapter(h: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """``h + gelu(h W_down) W_up``: the identity while ``up`` is zero (Eq. 1).

    Args:
        h: (..., D).
        down: (A, D), the transpose of the paper's W_down.
        up: (A, D), the paper's W_up.

    Returns:
        (..., D)
    """
    tokens = h.reshape(-1, h.shape[-1])
    bottleneck = functional.gelu(functional.linear(tokens, down))
    return (tokens + bottleneck @ up).reshape(h.shape)


def auxiliary_branch(h: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """Apply N adapters one after the other: the cheap stand-in for the layers after the window (Sec. 4.3).

    An all-zero adapter is the exact identity, so a shorter branch is padded with zeros.

    Args:
        h: (..., D).
        down: (N, A, D).
        up: (N, A, D).

    Returns:
        (..., D)
    """
    for index in range(down.shape[0]):
        h = adapter(h, down[index], up[index])
    return h
