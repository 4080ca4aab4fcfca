"""Linear centred kernel alignment of two sets of token vectors, a few columns at a time (Sec. 4.4, Eq. 3, Appendix A).

With a linear kernel HSIC(X, Y) is, but for a factor that cancels, the squared Frobenius norm of Xc' Yc, where Xc and
Yc are X and Y with centred columns. That needs no token-by-token matrix: memory does not grow with the tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

Tokens = Callable[[], Iterator[torch.Tensor]]
"""Gives the same token vectors every time it is called, in pieces of (tokens, hidden) float32."""

_PANEL = 256
_TILE = 256


@dataclass(frozen=True)
class Centred:
    """Token vectors and their column means, (hidden,) float64."""

    tokens: Tokens
    mean: torch.Tensor


def centre(tokens: Tokens) -> Centred:
    """Takes the column means in float64. Raises ValueError when there is no token."""
    total: torch.Tensor | None = None
    count = 0
    for piece in tokens():
        part = piece.sum(dim=0, dtype=torch.float64)
        total = part if total is None else total + part
        count += piece.shape[0]
    if total is None or count == 0:
        raise ValueError("no tokens")
    return Centred(tokens, total / count)


def squared_cross_norm(left: Centred, right: Centred) -> float:
    """The squared Frobenius norm of Lc' Rc, accumulated in float64.

    Both must give the same tokens in the same pieces. At most (hidden x 256) float64 numbers are held at a time.
    """
    width = right.mean.shape[0]
    norm = 0.0
    for start in range(0, width, _PANEL):
        columns = slice(start, min(start + _PANEL, width))
        product = torch.zeros((left.mean.shape[0], columns.stop - start), dtype=torch.float64)
        for a, b in zip(left.tokens(), right.tokens(), strict=True):
            for tile_a, tile_b in zip(torch.split(a, _TILE), torch.split(b, _TILE), strict=True):
                centred_a = tile_a.double() - left.mean
                centred_b = tile_b[:, columns].double() - right.mean[columns]
                product.addmm_(centred_a.T, centred_b)
        norm += product.square_().sum().item()
    return norm


def linear_cka(cross: float, left: float, right: float) -> float:
    """CKA (Eq. 3) from the squared norms of Xc' Yc, Xc' Xc and Yc' Yc: 0 to 1.

    It is 1 where one of the two does not vary at all, because nothing has been transformed that could be seen, and
    not a number where a norm is not finite.
    """
    if not all(math.isfinite(norm) for norm in (cross, left, right)):
        return math.nan
    if left == 0.0 or right == 0.0:
        return 1.0
    return min(1.0, max(0.0, cross / (math.sqrt(left) * math.sqrt(right))))
