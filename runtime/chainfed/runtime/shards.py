"""Weights as mapped files: safetensors whose tensors are used where they lie; the system can page them out any time."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import torch

from chainfed.core.errors import BundleError
from chainfed.core.tensor_layout import TensorRange
from chainfed.core.tensors import read_layout

# XNNPACK's kernels may read this far past a tensor's end; past the end of a mapping that would kill the process.
GUARD_BYTES = 128

_DTYPES = {"F32": torch.float32, "I64": torch.int64}


class Shard:
    """A safetensors file mapped into memory. `tensors` are views of the file: they count as RssFile, never as RssAnon.

    The mapping is private, so nothing written to a tensor could reach the file.
    """

    def __init__(self, path: Path) -> None:
        """Raises BundleError when the file is absent, truncated, or holds a dtype other than float32 and int64."""
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

    def prefetch(self) -> None:
        """Asks the system to read the file ahead (Appendix G.2); returns at once."""
        self._advise("MADV_WILLNEED")

    def evict(self) -> None:
        """Lets the pages go; the next access reads the file again (Appendix G.2)."""
        self._advise("MADV_DONTNEED")

    def close(self) -> None:
        """Lets the pages go and ends the mapping as soon as no tensor is in use any more."""
        self.evict()
        self.tensors = {}
        mapped, self._map = self._map, None
        if mapped is not None:
            with contextlib.suppress(BufferError):
                mapped.close()

    def __enter__(self) -> Shard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _advise(self, advice: str) -> None:
        flag = getattr(mmap, advice, None)
        if self._map is not None and flag is not None:
            self._map.madvise(flag)


def _view(mapped: mmap.mmap, place: TensorRange, mapped_bytes: int, what: str) -> torch.Tensor:
    dtype = _DTYPES.get(place.dtype)
    if dtype is None:
        raise BundleError(f"{what} is {place.dtype}, but programs take F32 and I64; export the bundle again.")
    if place.nbytes == 0:
        return torch.empty(place.shape, dtype=dtype)
    flat = torch.frombuffer(mapped, dtype=dtype, count=place.nbytes // dtype.itemsize, offset=place.offset)
    tensor = flat.view(place.shape)
    if place.offset + place.nbytes + GUARD_BYTES > mapped_bytes or place.offset % dtype.itemsize:
        return tensor.clone()
    return tensor
