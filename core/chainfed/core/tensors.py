"""Names and bytes of the model state: adapters, heads and feature statistics as safetensors.

For a model of L layers (0-based), hidden size D, bottleneck A and C labels the model state is, all float32:

- `adapters.{i}.down` [A, D] and `adapters.{i}.up` [A, D]: the adapter after layer i (Eq. 1);
- `heads.{i}.weight` [C, D] and `heads.{i}.bias` [C]: the local head of a window that ends at layer i; `heads.{L-1}`
  is the final head;
- `statistics.{i}.mean` [D] and `statistics.{i}.rstd` [D]: what standardises the pooled features of layer i before a
  head.

A language model (no labels) has the adapters alone.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from chainfed.core.errors import BundleError

FloatArray = npt.NDArray[np.float32]
Tensors = dict[str, FloatArray]

STATISTICS_PIECE = "statistics"


def adapter_names(layer: int) -> tuple[str, str]:
    """The two tensors of the adapter after `layer`."""
    return f"adapters.{layer}.down", f"adapters.{layer}.up"


def head_names(layer: int) -> tuple[str, str]:
    """The two tensors of the head at `layer`."""
    return f"heads.{layer}.weight", f"heads.{layer}.bias"


def statistics_names(layer: int) -> tuple[str, str]:
    """The two tensors that standardise the pooled features of `layer`."""
    return f"statistics.{layer}.mean", f"statistics.{layer}.rstd"


def state_shapes(num_layers: int, hidden_size: int, bottleneck: int, num_labels: int) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the model state; without labels it is the adapters alone."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(num_layers):
        shapes |= dict.fromkeys(adapter_names(layer), (bottleneck, hidden_size))
        if not num_labels:
            continue
        weight, bias = head_names(layer)
        shapes |= {weight: (num_labels, hidden_size), bias: (num_labels,)}
        shapes |= dict.fromkeys(statistics_names(layer), (hidden_size,))
    return shapes


def piece_of(name: str) -> str:
    """The piece of the model state in which a tensor travels: `adapters.{i}`, `heads.{i}` or `statistics`."""
    kind, layer, _ = name.split(".")
    return STATISTICS_PIECE if kind == STATISTICS_PIECE else f"{kind}.{layer}"


def split_pieces(state: Mapping[str, FloatArray]) -> dict[str, Tensors]:
    """The model state cut into the pieces in which it travels."""
    pieces: dict[str, Tensors] = {}
    for name in sorted(state):
        pieces.setdefault(piece_of(name), {})[name] = state[name]
    return pieces


def encode(tensors: Mapping[str, FloatArray]) -> bytes:
    """Safetensors bytes; equal tensors give equal bytes."""
    return safetensors.numpy.save({name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)})


def decode(data: bytes, what: str) -> Tensors:
    """The float32 tensors in safetensors bytes.

    Raises BundleError, naming `what`, when the bytes are no safetensors file or a tensor is not float32.
    """
    try:
        tensors = safetensors.numpy.load(data)
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise BundleError(f"{what} is not a readable safetensors file: {error}. Fetch or make it again.") from error
    for name, tensor in tensors.items():
        if tensor.dtype != np.float32:
            raise BundleError(f"{what}: tensor {name!r} is {tensor.dtype}, but ChainFed expects float32.")
    return tensors


def check_shapes(tensors: Mapping[str, FloatArray], expected: Mapping[str, tuple[int, ...]], what: str) -> None:
    """Raises BundleError unless `tensors` has exactly the names and shapes of `expected`."""
    missing = sorted(expected.keys() - tensors.keys())
    surplus = sorted(tensors.keys() - expected.keys())
    if missing or surplus:
        parts = [
            f"{label} {', '.join(names[:3])}"
            for label, names in (("lacks", missing), ("has unknown", surplus))
            if names
        ]
        raise BundleError(f"{what} {' and '.join(parts)}; it was made for another model or task.")
    for name, shape in expected.items():
        if tensors[name].shape != tuple(shape):
            raise BundleError(
                f"{what}: tensor {name} has shape {list(tensors[name].shape)}, expected {list(shape)}; it was "
                f"made for another "
                "model, adapter size or label set."
            )


@dataclass(frozen=True)
class TensorRange:
    """Where one tensor lies in a safetensors file: dtype as safetensors names it, shape, first byte and length in the
    file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


_ITEM_SIZE = {"F32": 4, "I64": 8, "F16": 2, "BF16": 2, "I32": 4, "I8": 1, "U8": 1, "BOOL": 1, "F64": 8}
_MAX_HEADER_BYTES = 100_000_000


def read_layout(path: Path) -> dict[str, TensorRange]:
    """The tensors of a safetensors file without their bytes.

    Raises BundleError when the header is damaged or a tensor reaches outside the file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        header_bytes = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        if header_bytes > min(size - 8, _MAX_HEADER_BYTES):
            raise BundleError(f"{path.name} is truncated or no safetensors file; fetch or export it again.")
        try:
            header = json.loads(file.read(header_bytes))
            layout = {
                str(name): TensorRange(
                    str(entry["dtype"]),
                    tuple(int(extent) for extent in entry["shape"]),
                    8 + header_bytes + int(entry["data_offsets"][0]),
                    int(entry["data_offsets"][1]) - int(entry["data_offsets"][0]),
                )
                for name, entry in header.items()
                if name != "__metadata__"
            }
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise BundleError(f"{path.name} has a damaged safetensors header; fetch or export it again.") from error
    for name, place in layout.items():
        expected = int(np.prod(place.shape, dtype=np.int64)) * _ITEM_SIZE.get(place.dtype, 0)
        inside = 8 + header_bytes <= place.offset and place.offset + place.nbytes <= size
        if min(place.shape, default=0) < 0 or place.nbytes != expected or not inside:
            raise BundleError(
                f"{path.name}: tensor {name} does not lie inside the file; it is truncated, fetch or export it again."
            )
    return layout


def sha256_hex(data: bytes) -> str:
    """SHA-256 of bytes as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file as 64 hexadecimal digits, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
