"""The header of a safetensors file: which tensors there are, and where their bytes lie. The one reader of it.

A file is eight bytes of header length (little-endian), the header as JSON, and the tensors' bytes. The file is taken to
come from anywhere: nothing outside it is ever read, and no more is allocated than a header of ten megabytes needs.
"""

from __future__ import annotations

import io
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

from chainfed.core.json_document import parse_document, shown

MAX_HEADER_BYTES = 10_000_000
MAX_DIMENSIONS = 8
MAX_NAME_LENGTH = 256

_LENGTH_BYTES = 8
_LARGEST = 2**63 - 1
_METADATA = "__metadata__"

ITEM_BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "I16": 16,
    "U16": 16,
    "I32": 32,
    "U32": 32,
    "I64": 64,
    "U64": 64,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "F16": 16,
    "BF16": 16,
    "F32": 32,
    "F64": 64,
    "C64": 64,
}
"""Bits of one element by dtype, as safetensors names them."""


class DamagedTensorsError(ValueError):
    """Bytes that are no safetensors file. The text is the reason, to stand in a sentence that names the file."""


@dataclass(frozen=True)
class TensorRange:
    """Where one tensor lies in a safetensors file: dtype as safetensors names it, shape, first byte and length in the
    file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def layout_of_file(path: Path) -> dict[str, TensorRange]:
    """The tensors of a file, in the order of its header, without their bytes.

    Raises DamagedTensorsError when it is no safetensors file, and OSError when it cannot be read.
    """
    with path.open("rb") as file:
        return _read_layout(file, file.seek(0, io.SEEK_END))


def layout_of_bytes(data: bytes) -> dict[str, TensorRange]:
    """The tensors of a file that is in memory. Raises DamagedTensorsError when it is no safetensors file."""
    return _read_layout(io.BytesIO(data), len(data))


def _read_layout(file: BinaryIO, size: int) -> dict[str, TensorRange]:
    file.seek(0)
    prefix = file.read(_LENGTH_BYTES)
    if len(prefix) < _LENGTH_BYTES:
        raise DamagedTensorsError(f"it ends after {len(prefix)} bytes")
    (header_bytes,) = struct.unpack("<Q", prefix)
    if header_bytes > size - _LENGTH_BYTES:
        raise DamagedTensorsError(f"it is truncated or no such file: a header of {header_bytes} bytes does not fit")
    if header_bytes > MAX_HEADER_BYTES:
        raise DamagedTensorsError(f"its header has {header_bytes} bytes, more than the {MAX_HEADER_BYTES} allowed")
    text = file.read(header_bytes)
    if not text.startswith(b"{"):
        raise DamagedTensorsError("its header does not begin with {")
    try:
        header = parse_document(text)
    except ValueError as error:
        raise DamagedTensorsError(f"its header is damaged ({error})") from error
    start = _LENGTH_BYTES + header_bytes
    layout = {name: _range(name, entry, start) for name, entry in header.items() if name != _METADATA}
    _check_cover(layout, start, size)
    return layout


def _range(name: str, entry: Any, start: int) -> TensorRange:
    if not 1 <= len(name) <= MAX_NAME_LENGTH or not name.isprintable():
        raise DamagedTensorsError(f"{shown(name)} is no name of a tensor")
    fields = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = (fields.get(field) for field in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in ITEM_BITS:
        what = f"the unknown dtype {shown(dtype)}" if isinstance(dtype, str) else "no dtype"
        raise DamagedTensorsError(f"tensor {shown(name)} has {what}")
    if not _are_sizes(shape) or len(shape) > MAX_DIMENSIONS:
        raise DamagedTensorsError(f"tensor {shown(name)} has no possible shape")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise DamagedTensorsError(f"tensor {shown(name)} has no possible offsets")
    if math.prod(extent or 1 for extent in shape) * ITEM_BITS[dtype] > _LARGEST:
        raise DamagedTensorsError(f"tensor {shown(name)} has a shape whose product is too large")
    begin, end = offsets
    if (end - begin) * 8 != math.prod(shape) * ITEM_BITS[dtype]:
        raise DamagedTensorsError(f"tensor {shown(name)} does not have as many bytes as its shape and dtype take")
    return TensorRange(dtype, tuple(shape), start + begin, end - begin)


def _are_sizes(value: Any) -> TypeGuard[list[int]]:
    """Whether it is a list of whole numbers from 0 to 2^63 - 1; true and 1.0 are none."""
    return isinstance(value, list) and all(type(item) is int and 0 <= item <= _LARGEST for item in value)


def _check_cover(layout: dict[str, TensorRange], start: int, size: int) -> None:
    """The tensors' bytes follow each other from the end of the header to the end of the file."""
    end = start
    for name, place in sorted(layout.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if place.offset != end:
            fault = "overlaps another" if place.offset < end else "follows a hole"
            raise DamagedTensorsError(f"tensor {shown(name)} {fault}")
        end += place.nbytes
        if end > size:
            raise DamagedTensorsError(f"tensor {shown(name)} does not lie inside the file, which is truncated")
    if end != size:
        raise DamagedTensorsError(f"{size - end} bytes follow its last tensor")
