"""The merged folder loads with transformers alone and gives the logits of the programs."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from chainfed.core.errors import BadInputError, BundleError
from chainfed.core.examples import read_examples
from chainfed.core.manifest import Bundle, layer_file
from chainfed.core.tensors import Tensors, encode
from chainfed.runtime.prediction import predict
from chainfed.toolchain.evaluate import evaluate_bundle
from chainfed.toolchain.merge import MODEL_CODE, classifier_of, merge_bundle
from chainfed.toolchain.model_state import read_model_state
from tests.toolchain.model_states import random_state


@pytest.fixture(scope="module")
def tuned(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tensors, Path]:
    """A model state in which everything differs from the start, and its file."""
    state = random_state(tiny_bundle.manifest.state_shapes())
    path = tmp_path_factory.mktemp("tuned") / "adapters.safetensors"
    path.write_bytes(encode(state))
    return state, path


@pytest.fixture(scope="module")
def merged(tiny_bundle: Bundle, tuned: tuple[Tensors, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The merged folder."""
    return merge_bundle(tiny_bundle, tuned[1], tmp_path_factory.mktemp("merged") / "model")


@pytest.fixture
def loaded(merged: Path, load_merged: Any) -> tuple[Any, Any]:
    """The tokenizer and the model, as transformers loads them."""
    result: tuple[Any, Any] = load_merged(merged)
    return result


def test_logits_accuracy_and_loss_are_those_of_the_programs(
    tiny_bundle: Bundle, tuned: tuple[Tensors, Path], loaded: tuple[Any, Any], tiny_data: Any
) -> None:
    tokenizer, model = loaded
    examples = read_examples(tiny_data.test, tiny_bundle.manifest.task.labels)
    batch = tokenizer([example.text for example in examples], truncation=True, padding=True, return_tensors="pt")
    labels = torch.tensor([example.label for example in examples])
    with torch.no_grad():
        output = model(**batch, labels=labels)
    programs = predict(tiny_bundle, tuned[0], examples)
    assert float(np.abs(output.logits.numpy() - programs.logits).max()) < 1e-4
    evaluation = evaluate_bundle(tiny_bundle, tiny_data.test, tuned[1])
    assert evaluation.examples == len(examples) == 60
    assert evaluation.loss == pytest.approx(output.loss.item(), abs=1e-5)
    assert round(evaluation.accuracy * 60) == int((output.logits.argmax(dim=1) == labels).sum())


def test_a_bfloat16_checkpoint_merges_into_a_float32_model(
    tiny_model: Path, tiny_data: Any, export_dtype: Any, tmp_path: Path, load_merged: Any
) -> None:
    """Its configuration says bfloat16, as those of most of today's models do; adapters and layers must be alike."""
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    transformers.AutoModel.from_pretrained(tiny_model, dtype=torch.bfloat16).save_pretrained(model)
    bundle = export_dtype("f32", model)
    assert json.loads(bundle.path("config.json").read_text())["dtype"] == "bfloat16"
    folder = merge_bundle(bundle, bundle.path("adapters.safetensors"), tmp_path / "merged")
    tokenizer, merged_model = load_merged(folder)
    assert {parameter.dtype for parameter in merged_model.parameters()} == {torch.float32}
    examples = read_examples(tiny_data.test, bundle.manifest.task.labels)
    batch = tokenizer([example.text for example in examples], truncation=True, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = merged_model(**batch).logits.numpy()
    programs = predict(bundle, read_model_state(bundle, None), examples)
    assert float(np.abs(logits - programs.logits).max()) < 1e-4
    narrow = type(merged_model).from_pretrained(folder, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in narrow.parameters()} == {torch.bfloat16}
    assert narrow(**batch).logits.dtype == torch.bfloat16


def test_the_model_is_a_whole_transformers_model(loaded: tuple[Any, Any], tiny_bundle: Bundle, tmp_path: Path) -> None:
    tokenizer, model = loaded
    assert model.config.id2label == dict(enumerate(tiny_bundle.manifest.task.labels))
    assert tokenizer.model_max_length == 16
    assert tokenizer.mask_token == "[MASK]"
    batch = tokenizer(["a cat"], return_tensors="pt")
    as_tuple = model(**batch, return_dict=False)
    assert torch.equal(as_tuple[0], model(**batch).logits)
    assert torch.equal(model(input_ids=batch["input_ids"]).logits, model(**batch).logits)
    model.save_pretrained(tmp_path / "again")
    again = type(model).from_pretrained(tmp_path / "again")
    assert torch.equal(again(**batch).logits, model(**batch).logits)


def test_the_loss_trains_the_merged_model(loaded: tuple[Any, Any]) -> None:
    tokenizer, model = loaded
    batch = tokenizer(["a cat"], return_tensors="pt")
    model(**batch, labels=torch.tensor([1])).loss.backward()
    assert all(parameter.grad is not None for name, parameter in model.named_parameters() if "adapter" in name)


def test_the_code_in_the_folder_needs_no_chainfed(merged: Path) -> None:
    for name in MODEL_CODE:
        tree = ast.parse((merged / name).read_text())
        imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level}
        imported |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        assert {str(module).split(".")[0] for module in imported} <= {"__future__", "typing", "torch", "transformers"}


def test_the_merged_model_pools_as_it_was_tuned(loaded: tuple[Any, Any]) -> None:
    tokenizer, model = loaded
    assert model.config.pooling == "mean"
    batch = tokenizer(["a cat", "the old engine and the pump"], padding=True, return_tensors="pt")
    hidden = model.model(**batch).last_hidden_state
    first_row = hidden[0, : int(batch["attention_mask"][0].sum())].mean(dim=0)
    assert torch.allclose(model(**batch).logits[0], model.classifier(first_row), atol=1e-6)
    model.config.pooling = "cls"
    assert torch.allclose(model(**batch).logits, model.classifier(hidden[:, 0]), atol=1e-6)


def test_the_standardisation_folds_into_the_classifier(tuned: tuple[Tensors, Path]) -> None:
    state = tuned[0]
    features = np.random.default_rng(0).normal(size=(5, 32))
    standardised = (features - state["statistics.2.mean"]) * state["statistics.2.rstd"]
    expected = standardised @ state["heads.2.weight"].T + state["heads.2.bias"]
    weight, bias = classifier_of(state, 2)
    assert np.allclose(features @ weight.T + bias, expected, atol=1e-5)


def test_adapters_of_another_model_or_label_set_are_refused(
    tiny_bundle: Bundle, tuned: tuple[Tensors, Path], tmp_path: Path
) -> None:
    state = tuned[0]
    other_labels = {name: tensor[:2] if name.startswith("heads.") else tensor for name, tensor in state.items()}
    fewer_layers = {name: tensor for name, tensor in state.items() if ".2." not in name}
    for wrong, sentence in (
        (other_labels, "another model, adapter size or label set"),
        (fewer_layers, "lacks adapters.2.down"),
    ):
        (tmp_path / "wrong").write_bytes(encode(wrong))
        with pytest.raises(BundleError, match=sentence):
            merge_bundle(tiny_bundle, tmp_path / "wrong", tmp_path / "out")
    (tmp_path / "wrong").write_bytes(b"nonsense")
    with pytest.raises(BundleError, match="is not a readable safetensors file"):
        merge_bundle(tiny_bundle, tmp_path / "wrong", tmp_path / "out")
    with pytest.raises(BadInputError, match="does not exist"):
        merge_bundle(tiny_bundle, tmp_path / "nothing", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_bundle_is_not_merged(tiny_bundle: Bundle, tuned: tuple[Tensors, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bundle.folder, tmp_path / "bundle"))
    path = folder / layer_file(1)
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(BundleError, match="does not have the SHA-256"):
        merge_bundle(Bundle(folder), tuned[1], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_existing_folder_is_replaced_only_when_it_was_merged(
    tiny_bundle: Bundle, tuned: tuple[Tensors, Path], tmp_path: Path
) -> None:
    merge_bundle(tiny_bundle, tuned[1], tmp_path / "out")
    with pytest.raises(BadInputError, match="exists already"):
        merge_bundle(tiny_bundle, tuned[1], tmp_path / "out")
    merge_bundle(tiny_bundle, tuned[1], tmp_path / "out", force=True)
    with pytest.raises(BadInputError, match="is not replaced"):
        merge_bundle(tiny_bundle, tuned[1], tiny_bundle.folder, force=True)
