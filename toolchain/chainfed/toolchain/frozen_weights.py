"""The frozen weights of a bundle as float32, tensor by tensor, for the models that are made of it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Literal

import numpy as np

from chainfed.core.errors import BadInputError
from chainfed.core.manifest import EMBEDDINGS_FILE, LANGUAGE_HEAD_FILE, OUTPUT_FILE, Bundle, layer_file
from chainfed.toolchain.checkpoint import Checkpoint
from chainfed.toolchain.quantization import GROUP_SCALE, SCALE, NotStorableError, StoredArray, is_scale, narrow, widen
from chainfed.toolchain.safetensors_file import TensorSource, sources_of

Part = Literal["embeddings", "output", "lm_head"] | int
"""The embeddings, a layer by its index, what follows the last layer, or a language head of its own."""

_FILES = {"embeddings": EMBEDDINGS_FILE, "output": OUTPUT_FILE, "lm_head": LANGUAGE_HEAD_FILE}


class FrozenWeights:
    """What the weight files of a bundle stand for; float32 numbers are read where they lie, others are widened."""

    def __init__(self, bundle: Bundle, original: Checkpoint | None = None) -> None:
        """`original`: the model that the bundle was exported from; its own numbers are given instead of widened
        ones."""
        self._bundle, self._original = bundle, original

    def sources(self, part: Part) -> dict[str, TensorSource]:
        """The float32 tensors of a part by the family's local names; bytes are read when they are asked for.

        Raises BundleError when the file is damaged. Reading one raises BadInputError when it is not the original of
        what the bundle holds.
        """
        stored = sources_of(self._bundle.path(_FILES[part] if isinstance(part, str) else layer_file(part)))
        return {
            name: source if source.dtype == "F32" else self._wide_source(part, name, stored)
            for name, source in stored.items()
            if not is_scale(name, stored)
        }

    def _wide_source(self, part: Part, name: str, stored: Mapping[str, TensorSource]) -> TensorSource:
        parts = {part: stored[part] for part in (name, name + SCALE, name + GROUP_SCALE) if part in stored}
        rows, columns = stored[name].shape
        shape = (rows, 2 * columns if name + GROUP_SCALE in parts else columns)
        read = partial(self._widened if self._original is None else self._original_tensor, part, name, parts)
        return TensorSource.of_reader(shape, read)

    def _widened(self, part: Part, name: str, parts: Mapping[str, TensorSource]) -> StoredArray:
        del part
        return widen({part: source.array() for part, source in parts.items()})[name]

    def _original_tensor(self, part: Part, name: str, parts: Mapping[str, TensorSource]) -> StoredArray:
        assert self._original is not None
        tensor = self._original.tensor(part, name)
        if not self._is_original(tensor, name, parts):
            raise BadInputError(
                f"{self._original.folder} is not the model that {self._bundle.folder} was exported from: {name} "
                f"({_name_of(part)}) differs. Give the right --model, or none to merge the weights that the bundle has."
            )
        return tensor

    def _is_original(self, tensor: StoredArray, name: str, parts: Mapping[str, TensorSource]) -> bool:
        try:
            again = narrow({name: tensor}, {name}, self._bundle.manifest.model.dtype)
        except NotStorableError:
            return False
        return again.keys() == parts.keys() and all(np.array_equal(again[part], parts[part].array()) for part in parts)


def _name_of(part: Part) -> str:
    return part if isinstance(part, str) else f"layer {part}"
