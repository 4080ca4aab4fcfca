"""The tensors of a checkpoint: found by the headers of its safetensors files, read one at a time as float32.

A checkpoint is one `model.safetensors`, or several files and an index. The files may be links, as in the cache of the
Hugging Face hub.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import Any, BinaryIO

import numpy as np

from chainfed.core.errors import ModelError
from chainfed.core.json_document import parse_document, shown
from chainfed.core.tensor_layout import DamagedTensorsError, TensorRange, layout_of_file
from chainfed.core.tensors import FloatArray, is_finite
from chainfed.toolchain.safetensors_file import TensorSource

WEIGHTS_FILE = "model.safetensors"
WEIGHTS_INDEX_FILE = "model.safetensors.index.json"

_PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
_STORED_AS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_CHUNK_ELEMENTS = 1 << 20
_MAX_INDEX_BYTES = 50_000_000


@dataclass(frozen=True)
class _Place:
    """Where a tensor of the checkpoint lies."""

    file: Path
    range: TensorRange


class CheckpointWeights:
    """All tensors of a model folder by key. Opening reads headers only."""

    def __init__(self, folder: Path) -> None:
        """Raises ModelError when the weights are missing, damaged, pickles, or their index does not fit the files."""
        self._places = _find_places(folder)

    @property
    def keys(self) -> Collection[str]:
        """The keys of all tensors."""
        return self._places.keys()

    def select(self, keys: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> LazyTensors:
        """Some tensors under names of their own. `keys`: name -> key in the checkpoint. `shapes`: by name.

        Raises ModelError when a tensor has another shape, or a dtype that is no floating-point number.
        """
        for name, key in keys.items():
            _check_place(key, self._places[key], shapes[name])
        return LazyTensors({name: partial(_read_finite, self._places[key], key) for name, key in keys.items()}, shapes)


class LazyTensors(Mapping[str, FloatArray]):
    """Tensors by name, float32, each read from its file whenever it is asked for.

    Asking raises ModelError when a value is NaN or infinite, or the file has become shorter.
    """

    def __init__(self, readers: Mapping[str, Callable[[], FloatArray]], shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._readers = dict(readers)
        self._shapes = shapes

    def __getitem__(self, name: str) -> FloatArray:
        return self._readers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)

    def beside(self, constants: Mapping[str, FloatArray]) -> LazyTensors:
        """These tensors and some that are in memory."""
        readers = {name: partial(_itself, tensor) for name, tensor in constants.items()}
        return LazyTensors(
            readers | self._readers, {**{name: tensor.shape for name, tensor in constants.items()}, **self._shapes}
        )

    def sources(self) -> dict[str, TensorSource]:
        """The tensors as they are written to a file, each read when its turn comes."""
        return {name: TensorSource.of_reader(self._shapes[name], reader) for name, reader in self._readers.items()}


def _check_place(key: str, place: _Place, shape: tuple[int, ...]) -> None:
    if place.range.shape != tuple(shape):
        raise ModelError(
            f"{place.file}: tensor {key} has shape {list(place.range.shape)}, but config.json says {list(shape)}; "
            "the folder mixes two models."
        )
    if place.range.dtype not in _STORED_AS:
        raise ModelError(
            f"{place.file}: tensor {key} is {place.range.dtype}, but ChainFed reads {', '.join(_STORED_AS)}; "
            "save the model again without quantisation."
        )


def _itself(tensor: FloatArray) -> FloatArray:
    return tensor


def _read_finite(place: _Place, key: str) -> FloatArray:
    tensor = _read(place, key)
    if not is_finite(tensor):
        raise ModelError(
            f"{place.file}: tensor {key} holds values that are NaN or infinite, so nothing can be trained on it; "
            "download or save the model again."
        )
    return tensor


def _read(place: _Place, key: str) -> FloatArray:
    """A tensor as float32, converted a piece at a time."""
    tensor = np.empty(place.range.shape, np.float32)
    flat = tensor.reshape(-1)
    try:
        with place.file.open("rb") as file:
            file.seek(place.range.offset)
            for start in range(0, flat.size, _CHUNK_ELEMENTS):
                piece = flat[start : start + _CHUNK_ELEMENTS]
                piece[:] = _next_elements(file, len(piece), place.range.dtype)
    except (OSError, EOFError) as error:
        raise ModelError(
            f"{place.file}: tensor {key} cannot be read ({error}); download or save the model again."
        ) from error
    return tensor


def _next_elements(file: BinaryIO, count: int, dtype: str) -> FloatArray:
    stored = np.dtype(_STORED_AS[dtype])
    data = file.read(count * stored.itemsize)
    if len(data) < count * stored.itemsize:
        raise EOFError("the file ends before it")
    elements = np.frombuffer(data, stored)
    if dtype == "BF16":  # the upper half of a float32
        return (elements.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):  # what is beyond float32 becomes infinite, and is refused then
        return elements.astype(np.float32)


def _find_places(folder: Path) -> dict[str, _Place]:
    index_file = folder / WEIGHTS_INDEX_FILE
    index = _read_index(index_file) if index_file.is_file() else None
    names = sorted(set(index.values())) if index is not None else [WEIGHTS_FILE]
    found: dict[str, _Place] = {}
    for name in names:
        file = folder / name
        for key, place in _layout(folder, file).items():
            if key in found:
                raise ModelError(
                    f"{folder} has the tensor {key} both in {found[key].file.name} and in {name}; "
                    "download or save the model again."
                )
            found[key] = _Place(file, place)
    return found if index is None else _by_index(index_file, index, found)


def _by_index(index_file: Path, index: Mapping[str, str], found: Mapping[str, _Place]) -> dict[str, _Place]:
    """The tensors that an index names. Raises ModelError when one is not where the index says."""
    for key, name in index.items():
        where = found[key].file.name if key in found else "no file"
        if where != name:
            raise ModelError(
                f"{index_file} says that the tensor {shown(key)} is in {name}, but it is in {where}; "
                "download or save the model again."
            )
    return {key: found[key] for key in index}


def _read_index(path: Path) -> dict[str, str]:
    """Key -> file name. Raises ModelError when a name is none of a safetensors file in this folder."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_INDEX_BYTES + 1)
        if len(data) > _MAX_INDEX_BYTES:
            raise ValueError("it is too large")
        content: Any = parse_document(data)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is not readable JSON ({error}); download or save the model again.") from error
    mapping = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(mapping, dict) or not mapping:
        raise ModelError(f"{path} has no `weight_map`; download or save the model again.")
    for key, name in mapping.items():
        if not isinstance(name, str) or not _is_plain_name(name):
            what = shown(name) if isinstance(name, str) else "something that is no name"
            raise ModelError(
                f"{path} puts the tensor {shown(key)} into {what}, but weights lie in .safetensors files beside it; "
                "download or save the model again."
            )
    return dict(mapping)


def _is_plain_name(name: str) -> bool:
    """Whether it is the name of a safetensors file and no path, on any system."""
    return name.isprintable() and name.endswith(".safetensors") and PureWindowsPath(name).name == name


def _layout(folder: Path, file: Path) -> dict[str, TensorRange]:
    if not file.is_file():
        raise _missing_weights(folder, file)
    try:
        return layout_of_file(file)
    except (OSError, DamagedTensorsError) as error:
        raise ModelError(
            f"{file} is truncated or no safetensors file ({error}); download or save the model again."
        ) from error


def _missing_weights(folder: Path, file: Path) -> ModelError:
    pickles = sorted(found.name for pattern in _PICKLES for found in folder.glob(pattern))
    if pickles:
        return ModelError(
            f"{folder} holds its weights as a pickle ({pickles[0]}), which can run code when it is read, so ChainFed "
            "does not; save the model again with model.save_pretrained, which writes safetensors."
        )
    return ModelError(f"{folder} has no {file.name}; give a folder with the model's weights as safetensors.")
