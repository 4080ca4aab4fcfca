"""Linear centred kernel alignment of two sets of token vectors, a few columns at a time (Sec. 4.4, Eq. 3, Appendix A).

With a linear kernel HSIC(X, Y) is, but for a factor that cancels, the squared Frobenius norm of Xc' Yc, where Xc and
Yc are X and Y with centred columns. That needs no token-by-token matrix: memory does not grow with the tokens.

Every language gives the same bits, however it multiplies: centred values are rounded to whole multiples of a power of
two, 2^22 of which cover the largest one. So a product of 256 tokens is a sum of whole numbers that stays below 2^53,
where float64 is exact and no order shows. The scores change by less than one part in a million.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from chainfed.harness.arithmetic import add_rows, sum_in_order

Tokens = Callable[[], Iterator[torch.Tensor]]
"""Gives the same token vectors every time it is called, in pieces of (tokens, hidden) float32."""

_BITS = 22
_TILE = 256  # tokens: 2 * 22 + 8 bits, which float64 holds
_PANEL = 256


@dataclass(frozen=True)
class Centred:
    """Token vectors, their column means, (hidden,) float64, and what turns a centred value into a whole number.

    scale: a power of two; 0 where nothing varies, not a number where a value is not finite.
    """

    tokens: Tokens
    mean: torch.Tensor
    scale: float

    def whole(self, tokens: torch.Tensor, columns: slice) -> torch.Tensor:
        """Some columns of token vectors, centred, scaled and rounded to the nearest (halves to even): float64."""
        return (tokens[:, columns].double() - self.mean[columns]).mul_(self.scale).round_()


def centre(tokens: Tokens) -> Centred:
    """Takes the column means and the scale. Raises ValueError when there is no token."""
    total: np.ndarray[tuple[int, ...], np.dtype[np.float64]] | None = None
    count = 0
    for piece in tokens():
        total = np.zeros(piece.shape[1]) if total is None else total
        add_rows(total, piece.numpy())
        count += piece.shape[0]
    if total is None or count == 0:
        raise ValueError("no tokens")
    mean = torch.from_numpy(total / count)
    largest = max((_largest(piece, mean) for piece in tokens() if len(piece)), key=_nan_first)
    return Centred(tokens, mean, _scale(largest))


def squared_cross_norm(left: Centred, right: Centred) -> float:
    """The squared Frobenius norm of Lc' Rc in units of both scales.

    Both must give the same tokens in the same pieces. At most (hidden x 256) float64 numbers are held at a time.
    Products of 256 tokens, counted from the beginning of a piece, are added in order; then the squares of each column,
    row after row; then the columns.
    """
    if not math.isfinite(left.scale) or not math.isfinite(right.scale):
        return math.nan
    height, width = left.mean.shape[0], right.mean.shape[0]
    sums: list[float] = []
    for start in range(0, width, _PANEL):
        columns = slice(start, min(start + _PANEL, width))
        product = torch.zeros((height, columns.stop - start), dtype=torch.float64)
        for a, b in zip(left.tokens(), right.tokens(), strict=True):
            for tile_a, tile_b in zip(torch.split(a, _TILE), torch.split(b, _TILE), strict=True):
                product += left.whole(tile_a, slice(0, height)).T @ right.whole(tile_b, columns)
        squares = np.zeros(columns.stop - start)
        add_rows(squares, product.square_().numpy())
        sums += squares.tolist()
    return sum_in_order(sums)


def linear_cka(cross: float, left: float, right: float) -> float:
    """CKA (Eq. 3) from the squared norms of Xc' Yc, Xc' Xc and Yc' Yc: 0 to 1.

    It is 1 where one of the two does not vary at all, because nothing has been transformed that could be seen, and
    not a number where a norm is not finite.
    """
    if not all(math.isfinite(norm) for norm in (cross, left, right)):
        return math.nan
    if left == 0.0 or right == 0.0:
        return 1.0
    return min(1.0, max(0.0, cross / math.sqrt(left * right)))


def _largest(piece: torch.Tensor, mean: torch.Tensor) -> float:
    return float((piece.double() - mean).abs_().max())


def _nan_first(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _scale(largest: float) -> float:
    if not math.isfinite(largest):
        return math.nan
    return math.ldexp(1.0, _BITS - math.frexp(largest)[1]) if largest else 0.0
