"""The hidden states of all local batches in one file that every layer overwrites in place.

The file has one slot more than there are batches. A layer's pass reads batch k from slot k + 1 and writes it to slot
k, for ascending k; the next pass reads slot k and writes slot k + 1, for descending k; and so on in turn. So a pass
never writes the slot that it reads, and what a batch was computed from stays until that batch is journalled: a
process killed at any moment computes at most one batch again, from the same bytes to the same bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from chainfed.harness.mapped import MappedFile, file_has

_FLOAT_BYTES = 4


@dataclass(frozen=True)
class HiddenShape:
    """How many batches there are, and the shape of one: (batch, seq, hidden) float32."""

    num_batches: int
    batch: tuple[int, int, int]

    @property
    def slot_bytes(self) -> int:
        """Bytes of one batch."""
        return math.prod(self.batch) * _FLOAT_BYTES


class HiddenFile:
    """Slots of one batch each: `num_batches + spare` of them."""

    def __init__(self, path: Path, shape: HiddenShape, spare: int = 1) -> None:
        """Opens or makes the file. Raises OSError when the disk has no room."""
        self.shape = shape
        self.num_slots = shape.num_batches + spare
        self._file = MappedFile(path, self.num_slots * shape.slot_bytes)

    @staticmethod
    def exists(path: Path, shape: HiddenShape, spare: int = 1) -> bool:
        """True when the file is there in its full size."""
        return file_has(path, (shape.num_batches + spare) * shape.slot_bytes)

    def slot(self, index: int) -> torch.Tensor:
        """A view of one slot: (batch, seq, hidden) float32. Raises IndexError outside the file."""
        if not 0 <= index < self.num_slots:
            raise IndexError(f"slot {index} of {self.num_slots}")
        return self._file.tensor(index * self.shape.slot_bytes, self.shape.batch)

    def release(self) -> None:
        """Lets the pages go; the content stays."""
        self._file.release()

    def flush(self) -> None:
        """Waits until the disk has the content."""
        self._file.flush()

    def close(self) -> None:
        """Ends the mapping."""
        self._file.close()


@dataclass(frozen=True)
class HiddenView:
    """The output of one depth of the chain: batch k lies in slot k + `base` of `file`."""

    file: HiddenFile
    base: int

    def batch(self, index: int) -> torch.Tensor:
        """Hidden states of one batch: (batch, seq, hidden) float32, a view."""
        return self.file.slot(index + self.base)

    def row(self, index: int) -> torch.Tensor:
        """Hidden states of one example: (seq, hidden) float32, a view."""
        size = self.file.shape.batch[0]
        return self.batch(index // size)[index % size]


def batch_order(num_batches: int, destination_base: int) -> range:
    """The order in which a pass goes through the batches so that it never overwrites what it has still to read.

    A pass that writes to base 0 reads from base 1 and ascends; one that writes to base 1 descends.
    """
    return range(num_batches) if destination_base == 0 else range(num_batches - 1, -1, -1)
