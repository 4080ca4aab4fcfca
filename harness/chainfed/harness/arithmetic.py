"""The arithmetic that a device does outside its programs, in an order that every language can follow to the last bit.

`docs/device.md` is the specification: float64 unless said, one rounding an operation, sums from the first term to the
last. A library's own sum or product may take its terms in any order, so none is used where the order shows.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]


def sum_in_order(terms: Iterable[float]) -> float:
    """0 + first + second + ..., each sum rounded. Python's own `sum` carries the rounding errors along since 3.12."""
    total = 0.0
    for term in terms:
        total += term
    return total


def add_rows(total: Float64Array, rows: npt.NDArray[np.float32] | Float64Array) -> None:
    """Adds rows (rows, columns) to `total` (columns,), one row after the other."""
    for row in rows:
        total += row


def moments(rows: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Mean and population variance of each column, rounded to float32 at the end. rows: (rows, columns), at least 1."""
    values = rows.astype(np.float64)
    mean, squares = np.zeros(rows.shape[1]), np.zeros(rows.shape[1])
    add_rows(mean, values)
    mean /= len(rows)
    centred = values - mean
    add_rows(squares, centred * centred)
    return mean.astype(np.float32), (squares / len(rows)).astype(np.float32)
