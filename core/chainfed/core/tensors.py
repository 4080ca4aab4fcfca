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
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from chainfed.core.errors import BundleError
from chainfed.core.tensor_layout import DamagedTensorsError, TensorRange, layout_of_bytes, layout_of_file

FloatArray = npt.NDArray[np.float32]
Tensors = dict[str, FloatArray]

STATISTICS_PIECE = "statistics"

NO_LABEL = -1e4
"""The bias of a row of a head that stands for no label: its probability is 0 in float32."""

_FEWEST_HEAD_ROWS = 8


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


def head_rows(num_labels: int) -> int:
    """Rows that heads have in programs: a power of two, 8 or more, so that programs serve other sets of labels too.

    Rows after the labels have weights of 0 and a bias of `NO_LABEL`: they never win, and nothing flows back to them.
    """
    return max(_FEWEST_HEAD_ROWS, 1 << (num_labels - 1).bit_length())


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
    return safetensors.numpy.save({name: np.asarray(tensors[name], order="C") for name in sorted(tensors)})


def decode(data: bytes, what: str) -> Tensors:
    """The float32 tensors in safetensors bytes, as read-only views of them.

    Raises BundleError, naming `what`, when the bytes are no safetensors file or a tensor is not float32.
    """
    try:
        layout = layout_of_bytes(data)
    except DamagedTensorsError as error:
        raise BundleError(f"{what} is not a readable safetensors file: {error}. Fetch or make it again.") from error
    for name, place in layout.items():
        if place.dtype != "F32":
            raise BundleError(f"{what}: tensor {name!r} is {place.dtype}, but ChainFed expects float32 (F32).")
    return {name: _float32(data, place) for name, place in layout.items()}


def _float32(data: bytes, place: TensorRange) -> FloatArray:
    flat = np.frombuffer(data, "<f4", place.nbytes // 4, place.offset) if place.nbytes else np.zeros(0, np.float32)
    return np.require(flat, np.float32, ("A", "W")).reshape(place.shape)


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


def check_finite(tensors: Mapping[str, FloatArray], what: str) -> None:
    """Raises BundleError, naming `what` and the tensor, when a value is NaN or infinite."""
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            raise BundleError(f"{what}: tensor {name} holds values that are not finite; use an earlier one.")


def is_finite(tensor: FloatArray) -> bool:
    """Whether no value is NaN or infinite; takes no memory of the tensor's size."""
    return tensor.size == 0 or bool(np.isfinite(tensor.min()) and np.isfinite(tensor.max()))


def read_layout(path: Path) -> dict[str, TensorRange]:
    """The tensors of a safetensors file without their bytes.

    Raises BundleError when the header is damaged, or the tensors do not fill the rest of the file exactly.
    """
    try:
        return layout_of_file(path)
    except DamagedTensorsError as error:
        raise BundleError(f"{path.name} is no safetensors file: {error}; fetch or export it again.") from error


def sha256_hex(data: bytes) -> str:
    """SHA-256 of bytes as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file as 64 hexadecimal digits, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
