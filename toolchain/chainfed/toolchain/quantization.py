"""How the frozen weights of a bundle are stored in fewer bits: exact formulas, in numpy, without chance.

Only matrices are narrowed: those of the layers, and the table of token embeddings. A row of a matrix is an output
channel of a layer, or a token. Halves of one are rounded to the even neighbour, as numpy does. With N rows and K
columns:

- `f16`: `<name>` [N, K] float16.
- `int8`: `<name>` [N, K] int8 and `<name>.scale` [N, 1] float32. The scale of a row is its largest magnitude / 127,
  a weight is `round(w / scale)`, between -127 and 127.
- `int4`: `<name>` [N, K / 2] int8 and `<name>.group_scale` [N, K / 32] float32. 32 neighbours in a row share a scale,
  their largest magnitude / 7 rounded to bfloat16, and a weight is `round(w / scale)`, between -8 and 7. The byte in
  column j holds the weight of column j plus 8 in its lower four bits and that of column j + K / 2, as a signed number,
  in its upper four. A matrix whose K is no multiple of 32 is stored as `int8` is.

A scale of zero (a row of zeros) is stored as 1.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from chainfed.core.manifest import WeightDtype
from chainfed.core.tensors import FloatArray

StoredDtype = Literal["float32", "float16", "int8"]
StoredArray = npt.NDArray[Any]

SCALE = ".scale"
GROUP_SCALE = ".group_scale"
GROUP_SIZE = 32


class NotStorableError(ValueError):
    """A tensor holds a value that the asked dtype cannot hold."""


class StoredTensor(NamedTuple):
    """A tensor of a weight file."""

    name: str
    shape: tuple[int, ...]
    dtype: StoredDtype


def matrices(shapes: Mapping[str, tuple[int, ...]]) -> frozenset[str]:
    """The names of all matrices: what is narrowed of a layer."""
    return frozenset(name for name, shape in shapes.items() if len(shape) == 2)


def token_table(shapes: Mapping[str, tuple[int, ...]], vocab_size: int) -> frozenset[str]:
    """The name of the table of tokens, the first matrix with a row for each: what is narrowed of the embeddings."""
    names = [name for name, shape in shapes.items() if len(shape) == 2 and shape[0] == vocab_size]
    return frozenset(names[:1])


def stored_tensors(
    shapes: Mapping[str, tuple[int, ...]], narrowed: Collection[str], dtype: WeightDtype
) -> tuple[StoredTensor, ...]:
    """What a weight file holds for tensors of these shapes, in their order, when those in `narrowed` are stored as
    `dtype`."""
    stored: list[StoredTensor] = []
    for name, shape in shapes.items():
        stored += _stored(name, shape, dtype if name in narrowed else "f32")
    return tuple(stored)


def narrow(tensors: Mapping[str, FloatArray], narrowed: Collection[str], dtype: WeightDtype) -> dict[str, StoredArray]:
    """The stored form of float32 tensors: those in `narrowed` as `dtype`, the others as they are.

    Raises NotStorableError when a value of a narrowed tensor is not finite or too large for float16.
    """
    stored: dict[str, StoredArray] = {}
    for name, tensor in tensors.items():
        if name not in narrowed or dtype == "f32":
            stored[name] = tensor
        elif not np.isfinite(tensor).all():
            raise NotStorableError(f"tensor {name} has values that are not finite")
        else:
            stored |= _narrow(name, tensor, dtype)
    return stored


def widen(stored: Mapping[str, StoredArray]) -> dict[str, StoredArray]:
    """The float32 tensors that stored ones stand for: what every program computes with. Others are handed on."""
    wide: dict[str, StoredArray] = {}
    for name, array in stored.items():
        if name + SCALE in stored:
            wide[name] = array.astype(np.float32) * stored[name + SCALE]
        elif name + GROUP_SCALE in stored:
            wide[name] = _ungroup(array, stored[name + GROUP_SCALE])
        elif not is_scale(name, stored):
            wide[name] = array.astype(np.float32) if array.dtype == np.float16 else array
    return wide


def is_scale(name: str, stored: Collection[str]) -> bool:
    """Whether a stored tensor is the scale of another one."""
    return any(name.endswith(suffix) and name.removesuffix(suffix) in stored for suffix in (SCALE, GROUP_SCALE))


def _grouped(shape: tuple[int, ...], dtype: WeightDtype) -> bool:
    return dtype == "int4" and shape[1] % GROUP_SIZE == 0


def _stored(name: str, shape: tuple[int, ...], dtype: WeightDtype) -> list[StoredTensor]:
    if dtype == "f32":
        return [StoredTensor(name, shape, "float32")]
    if dtype == "f16":
        return [StoredTensor(name, shape, "float16")]
    rows, columns = shape
    if _grouped(shape, dtype):
        scale = StoredTensor(name + GROUP_SCALE, (rows, columns // GROUP_SIZE), "float32")
        return [StoredTensor(name, (rows, columns // 2), "int8"), scale]
    return [StoredTensor(name, shape, "int8"), StoredTensor(name + SCALE, (rows, 1), "float32")]


def _narrow(name: str, tensor: FloatArray, dtype: WeightDtype) -> dict[str, StoredArray]:
    if dtype == "f16":
        if np.abs(tensor).max(initial=0.0) > np.finfo(np.float16).max:
            raise NotStorableError(f"tensor {name} has values beyond what float16 holds")
        return {name: tensor.astype(np.float16)}
    if _grouped(tensor.shape, dtype):
        groups = tensor.reshape(len(tensor), -1, GROUP_SIZE)
        scale = _nonzero(_to_bfloat16(np.abs(groups).max(axis=2) / np.float32(7)))
        codes = np.clip(np.rint(groups / scale[:, :, None]), -8, 7).astype(np.int8).reshape(tensor.shape)
        half = tensor.shape[1] // 2
        return {name: (codes[:, :half] + np.int8(8)) | (codes[:, half:] << 4), name + GROUP_SCALE: scale}
    scale = _nonzero(np.abs(tensor).max(axis=1, keepdims=True, initial=0.0) / np.float32(127))
    codes = np.clip(np.rint(tensor / scale), -127, 127).astype(np.int8)
    return {name: codes, name + SCALE: scale}


def _ungroup(packed: StoredArray, scale: FloatArray) -> FloatArray:
    codes = np.concatenate([(packed & 15) - 8, packed >> 4], axis=1).astype(np.float32)
    groups = codes.reshape(*scale.shape, GROUP_SIZE) * scale[:, :, None]
    wide: FloatArray = groups.reshape(codes.shape)
    return wide


def _nonzero(scale: FloatArray) -> FloatArray:
    return np.where(scale == 0, np.float32(1), scale)


def _to_bfloat16(values: FloatArray) -> FloatArray:
    """Rounded to the nearest number of eight significant bits, ties to even, still as float32."""
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return rounded.view(np.float32)
