"""Bundles of each weight dtype: programs against eager, and what becomes of the weights when they are merged."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

from chainfed.core.errors import BadInputError, ModelError
from chainfed.core.examples import Example
from chainfed.core.manifest import EMBEDDINGS_FILE, Bundle, layer_file
from chainfed.core.tensors import Tensors, encode
from chainfed.runtime.prediction import predict
from chainfed.toolchain.checkpoint import Checkpoint
from chainfed.toolchain.merge import merge_bundle
from chainfed.toolchain.quantization import matrices, narrow
from chainfed.toolchain.verify import verify_bundle
from tests.toolchain.model_states import random_state

_TEXTS = ("a cat and the dog", "pump", "the dog is on a tree and the cat is not on it")


@pytest.fixture
def tuned(int8_bundle: Bundle) -> Tensors:
    """A model state in which nothing is trivial."""
    return random_state(int8_bundle.manifest.state_shapes())


def test_int8_programs_agree_with_eager_on_widened_weights(int8_bundle: Bundle) -> None:
    verification = verify_bundle(int8_bundle)
    assert verification.ok
    errors = {name: report.max_error for name, report in verification.programs.items()}
    blocks = {name for name in errors if name.startswith("block_")}
    assert blocks == {"block_00", "block_01", "block_02"}
    assert max(error for name, error in errors.items() if name not in blocks) < 1e-5
    assert all(1e-5 < errors[name] < 0.05 for name in blocks)  # they round activations, so they are not exact


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["f16", "int4"])
def test_programs_of_the_other_dtypes_agree_too(dtype, export_dtype: Callable[[str], Bundle]) -> None:
    bundle = export_dtype(dtype)
    assert bundle.manifest.model.dtype == dtype
    assert bundle.manifest.blocks_hold_weights == (dtype == "int4")
    verification = verify_bundle(bundle)
    errors = {name: report.max_error for name, report in verification.programs.items()}
    assert verification.ok, errors
    assert max(error for name, error in errors.items() if not name.startswith("block_")) < 1e-5


def test_shards_hold_what_the_formulas_give_and_the_manifest_names(int8_bundle: Bundle, tiny_model: Path) -> None:
    checkpoint, manifest = Checkpoint(tiny_model), int8_bundle.manifest
    family = checkpoint.family
    for layer in range(family.num_layers):
        found = safetensors.numpy.load_file(int8_bundle.path(layer_file(layer)))
        expected = narrow(checkpoint.layer(layer), matrices(family.layer_shapes), "int8")
        assert set(found) == set(manifest.model.layer_tensors) == set(expected)
        assert all(np.array_equal(found[name], expected[name]) for name in expected)
    tables = safetensors.numpy.load_file(int8_bundle.path(EMBEDDINGS_FILE))
    assert tables["word_embeddings.weight"].dtype == np.int8
    assert tables["position_embeddings.weight"].dtype == np.float32


def test_the_plan_says_what_a_device_maps(int8_bundle: Bundle) -> None:
    manifest = int8_bundle.manifest
    assert manifest.model.dtype == "int8"
    shard = manifest.files[layer_file(0)].bytes
    assert manifest.windows[2].file_bytes < 3 * shard
    block = manifest.programs["block_00"]
    assert manifest.prefix.file_bytes >= manifest.files[block.file].bytes
    assert {spec.name for spec in block.inputs} == {"h", "mask", "adapter.down", "adapter.up"}


def test_merged_int8_weights_give_the_logits_of_the_programs(
    int8_bundle: Bundle, tuned: Tensors, tmp_path: Path, load_merged: Any
) -> None:
    (tmp_path / "adapters").write_bytes(encode(tuned))
    tokenizer, model = load_merged(merge_bundle(int8_bundle, tmp_path / "adapters", tmp_path / "merged"))
    batch = tokenizer(list(_TEXTS), truncation=True, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**batch).logits.numpy()
    programs = predict(int8_bundle, tuned, [Example(text, 0) for text in _TEXTS]).logits
    assert 0 < np.linalg.norm(logits - programs) / np.linalg.norm(logits) < 0.05


def test_merging_with_the_original_model_gives_its_own_weights(
    int8_bundle: Bundle, tiny_bundle: Bundle, tiny_model: Path, tuned: Tensors, tmp_path: Path
) -> None:
    (tmp_path / "adapters").write_bytes(encode(tuned))
    merged = merge_bundle(int8_bundle, tmp_path / "adapters", tmp_path / "a", model=str(tiny_model))
    expected = merge_bundle(tiny_bundle, tmp_path / "adapters", tmp_path / "b")
    assert (merged / "model.safetensors").read_bytes() == (expected / "model.safetensors").read_bytes()


def test_merging_with_another_model_is_refused(int8_bundle: Bundle, tuned: Tensors, tmp_path: Path) -> None:
    from tests.conftest import make_tiny_model

    (tmp_path / "adapters").write_bytes(encode(tuned))
    other = make_tiny_model(tmp_path / "other", seed=5)
    with pytest.raises(BadInputError, match=r"is not the model that .* was exported from: .* differs"):
        merge_bundle(int8_bundle, tmp_path / "adapters", tmp_path / "merged", model=str(other))
    assert not (tmp_path / "merged").exists()


def test_weights_that_a_dtype_cannot_hold_are_refused(
    tiny_model: Path, export_dtype: Callable[..., Bundle], tmp_path: Path
) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    tensors = safetensors.numpy.load_file(model / "model.safetensors")
    key = next(name for name in tensors if name.endswith("layer.1.attention.self.key.weight"))
    tensors[key][0, 0] = 1e6
    safetensors.numpy.save_file(tensors, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"key\.weight has values beyond what float16 holds .*--dtype f16 cannot"):
        export_dtype("f16", model)


def test_a_second_export_of_int8_gives_equal_bytes(int8_bundle: Bundle, export_dtype: Callable[..., Bundle]) -> None:
    assert export_dtype("int8").manifest_bytes == int8_bundle.manifest_bytes
