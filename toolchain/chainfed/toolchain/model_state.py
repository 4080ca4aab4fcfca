"""Adapters files: the model state, as the toolchain's commands are given it."""

from __future__ import annotations

from pathlib import Path

from chainfed.core.errors import BadInputError
from chainfed.core.manifest import ADAPTERS_FILE, Bundle
from chainfed.core.tensors import Tensors, check_finite, check_shapes, decode


def read_model_state(bundle: Bundle, adapters: Path | None) -> Tensors:
    """The model state in an adapters file, or the bundle's initial one when there is no such file to read.

    Raises BadInputError when the file does not exist, and BundleError when it is no safetensors file, was
    made for another model, adapter size or label set, or holds values that are not finite.
    """
    path = bundle.path(ADAPTERS_FILE) if adapters is None else adapters
    if not path.is_file():
        raise BadInputError(f"{path} does not exist; give the adapters file of a run (`chainfed run checkpoint`).")
    state = decode(path.read_bytes(), str(path))
    check_shapes(state, bundle.manifest.state_shapes(), str(path))
    check_finite(state, str(path))
    return state
