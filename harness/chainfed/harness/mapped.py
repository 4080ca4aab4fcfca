"""Files that tensors live in: what a device computes on the way lies here, not in its own memory."""

from __future__ import annotations

import math
import mmap
import os
from pathlib import Path

import torch

from chainfed.runtime.shards import GUARD_BYTES


class MappedFile:
    """A file of a fixed number of bytes mapped for reading and writing.

    A tensor over it is file-backed: its pages count as RssFile, and what was written survives the death of the
    process at any point (not the death of the machine: see `flush`).
    """

    def __init__(self, path: Path, num_bytes: int) -> None:
        """Opens the file, or makes it, zero-filled, with all its blocks reserved.

        Raises OSError when the disk has no room: better now than as a signal in the middle of a step.
        """
        self.path = path
        total = num_bytes + GUARD_BYTES
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if os.fstat(handle).st_size != total:
                os.ftruncate(handle, 0)
                os.ftruncate(handle, total)
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(handle, 0, total)
            self._map: mmap.mmap | None = mmap.mmap(handle, total, access=mmap.ACCESS_WRITE)
        finally:
            os.close(handle)

    def tensor(self, offset: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The bytes from `offset` on as a tensor of this shape; writing to it writes to the file."""
        if self._map is None:
            raise ValueError(f"{self.path} is closed")
        count = math.prod(shape)
        if count == 0:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(self._map, dtype=dtype, count=count, offset=offset).view(shape)

    def release(self) -> None:
        """Lets the pages go; their content stays in the file."""
        if self._map is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def flush(self) -> None:
        """Waits until the disk has the content, so that it survives the machine too."""
        if self._map is not None:
            self._map.flush()

    def close(self) -> None:
        """Lets the pages go. The mapping ends with the last tensor over it, which holds it."""
        self.release()
        self._map = None


def file_has(path: Path, num_bytes: int) -> bool:
    """True when `path` was made by `MappedFile` for this number of bytes."""
    return path.is_file() and path.stat().st_size == num_bytes + GUARD_BYTES
