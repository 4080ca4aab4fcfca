"""Weights as mapped files: safetensors whose tensors are used where they lie; the system can page them out any time."""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import torch

from chainfed.core.errors import BundleError
from chainfed.core.tensor_layout import TensorRange
from chainfed.core.tensors import read_layout
from chainfed.runtime.dtypes import SAFETENSORS_DTYPES

# XNNPACK's kernels may read this far past a tensor's end; past the end of a mapping that would kill the process.
GUARD_BYTES = 128


class Shard:
    """A safetensors file mapped into memory. `tensors` are views of the file: they count as RssFile, never as RssAnon.

    The mapping is private, so nothing written to a tensor could reach the file.
    """

    def __init__(self, path: Path) -> None:
        """Raises BundleError when the file is absent, truncated, or holds a dtype that no program takes."""
        if not path.is_file():
            raise BundleError(f"{path} does not exist; fetch or export the bundle again.")
        self.path = path
        layout = read_layout(path)
        with path.open("rb") as file:
            self._map: mmap.mmap | None = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        mapped_bytes = -(-len(self._map) // mmap.PAGESIZE) * mmap.PAGESIZE
        self.tensors: Mapping[str, torch.Tensor] = {
            name: _view(self._map, place, mapped_bytes, f"{path.name}: tensor {name}") for name, place in layout.items()
        }

    def evict(self) -> None:
        """Lets the pages go; the next access reads the file again (Appendix G.2)."""
        if self._map is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Lets the pages go. The mapping ends with the last tensor over it: each of them holds it, and only that.

        Closing it here would succeed, and whoever still has a tensor would read where no memory is.
        """
        self.evict()
        self.tensors = {}
        self._map = None

    def __enter__(self) -> Shard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def prefetch(path: Path) -> None:
    """Asks the system, where it can be asked, to read a file ahead (Appendix G.2); returns at once."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


def _view(mapped: mmap.mmap, place: TensorRange, mapped_bytes: int, what: str) -> torch.Tensor:
    dtype = SAFETENSORS_DTYPES.get(place.dtype)
    if dtype is None:
        known = ", ".join(SAFETENSORS_DTYPES)
        raise BundleError(f"{what} is {place.dtype}, but programs take {known}; export the bundle again.")
    if place.nbytes == 0:
        return torch.empty(place.shape, dtype=dtype)
    flat = torch.frombuffer(mapped, dtype=dtype, count=place.nbytes // dtype.itemsize, offset=place.offset)
    tensor = flat.view(place.shape)
    if place.offset + place.nbytes + GUARD_BYTES > mapped_bytes or place.offset % dtype.itemsize:
        return tensor.clone()
    return tensor
