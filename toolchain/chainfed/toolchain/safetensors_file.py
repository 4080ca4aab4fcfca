"""Writing a safetensors file tensor by tensor, from arrays or other files, one tensor in memory at a time."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from chainfed.core.tensors import FloatArray, read_layout

_ALIGNMENT = 64
_COPY_BYTES = 1 << 22


@dataclass(frozen=True)
class TensorSource:
    """A tensor to write: dtype as safetensors names it, shape, and its bytes: given, a part of a file, or made when
    they are written."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    path: Path | None = None
    offset: int = 0
    data: bytes = b""
    read: Callable[[], FloatArray] | None = None

    @classmethod
    def of_array(cls, array: FloatArray) -> TensorSource:
        """A float32 array in memory."""
        return cls("F32", array.shape, array.nbytes, data=np.ascontiguousarray(array, dtype="<f4").tobytes())

    @classmethod
    def of_reader(cls, shape: tuple[int, ...], read: Callable[[], FloatArray]) -> TensorSource:
        """A float32 array that `read` returns when its turn comes."""
        return cls("F32", shape, 4 * math.prod(shape), read=read)


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
            _write(sources[name], out)


def _write(source: TensorSource, out: BinaryIO) -> None:
    if source.read is not None:
        array = np.asarray(source.read(), dtype="<f4", order="C")
        if array.shape != source.shape:
            raise ValueError(f"a tensor of shape {source.shape} was read as {array.shape}")
        out.write(array.reshape(-1).data)
    elif source.path is None:
        out.write(source.data)
    else:
        with source.path.open("rb") as file:
            file.seek(source.offset)
            for start in range(0, source.nbytes, _COPY_BYTES):
                out.write(file.read(min(_COPY_BYTES, source.nbytes - start)))
