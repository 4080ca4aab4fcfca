"""Writing a safetensors file tensor by tensor, from arrays or other files, one tensor in memory at a time."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from chainfed.core.tensors import read_layout

_ALIGNMENT = 64
_DTYPES = {"float32": ("F32", "<f4"), "float16": ("F16", "<f2"), "int8": ("I8", "<i1")}


@dataclass(frozen=True)
class TensorSource:
    """A tensor to write: dtype as safetensors names it, shape, and its bytes: given, a part of a file, or made when
    they are needed."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    path: Path | None = None
    offset: int = 0
    data: bytes = b""
    make: Callable[[], bytes] | None = None

    @classmethod
    def of_array(cls, array: npt.NDArray[Any]) -> TensorSource:
        """An array in memory: float32, float16 or int8."""
        dtype, layout = _DTYPES[array.dtype.name]
        return cls(dtype, array.shape, array.nbytes, data=np.ascontiguousarray(array, dtype=layout).tobytes())

    def bytes(self) -> bytes:
        """The tensor's bytes."""
        if self.make is not None:
            return self.make()
        if self.path is None:
            return self.data
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.nbytes)

    def array(self) -> npt.NDArray[Any]:
        """The tensor as an array: float32, float16 or int8."""
        layout = next(layout for dtype, layout in _DTYPES.values() if dtype == self.dtype)
        return np.frombuffer(self.bytes(), layout).reshape(self.shape)


def sources_of(path: Path) -> dict[str, TensorSource]:
    """The tensors of a safetensors file, not read yet. Raises BundleError when the file is damaged."""
    return {
        name: TensorSource(place.dtype, place.shape, place.nbytes, path, place.offset)
        for name, place in read_layout(path).items()
    }


def write_tensors(path: Path, sources: Mapping[str, TensorSource], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file: large tensors first, then by name, the data at a multiple of 64 bytes.

    A small tensor thus stands last, and what a mapped reader must copy because it ends with the file stays
    small.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    order = sorted(sources, key=lambda name: (-sources[name].nbytes, name))
    end = 0
    for name in order:
        source = sources[name]
        begin, end = end, end + source.nbytes
        header[name] = {"dtype": source.dtype, "shape": list(source.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    with path.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            out.write(sources[name].bytes())
