"""ONNX and ExecuTorch forms give the logits of the bundle's programs, and no form that differs is kept."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import tokenizers
import torch

from chainfed.core.cli import run
from chainfed.core.errors import BadInputError, VerificationError
from chainfed.core.examples import Example
from chainfed.core.manifest import Bundle, ProgramEntry
from chainfed.core.tensors import Tensors, encode
from chainfed.runtime.prediction import predict
from chainfed.runtime.program import Program
from chainfed.toolchain.export import export_bundle
from chainfed.toolchain.export_settings import ExportSettings
from chainfed.toolchain.merge_formats import agreement, executorch, onnx
from chainfed.toolchain.merge_formats.merging import MergeSettings, merge_as
from chainfed.toolchain.merge_formats.tuned_model import LogitsModel
from tests.toolchain.model_states import random_state

_TEXTS = ("the cat saw a dog", "bread and cheese", "one old engine near the new pump and a small crane", "owl")


@pytest.fixture(scope="module")
def state(tiny_bundle: Bundle) -> Tensors:
    """A model state in which nothing is trivial."""
    return random_state(tiny_bundle.manifest.state_shapes())


@pytest.fixture(scope="module")
def adapters(state: Tensors, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its file."""
    path = tmp_path_factory.mktemp("tuned") / "adapters.safetensors"
    path.write_bytes(encode(state))
    return path


@pytest.fixture(scope="module")
def expected(tiny_bundle: Bundle, state: Tensors) -> np.ndarray[Any, Any]:
    """The logits of the bundle's own programs."""
    return predict(tiny_bundle, state, [Example(text, 0) for text in _TEXTS]).logits


@pytest.fixture(scope="module")
def onnx_folder(tiny_bundle: Bundle, adapters: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tuned model as ONNX."""
    folder = tmp_path_factory.mktemp("onnx") / "tuned"
    held = merge_as(tiny_bundle, MergeSettings(adapters, folder, "onnx"))
    assert held is not None
    assert held.largest_difference < 2e-5
    assert held.batches == 4
    return folder


def test_onnx_gives_the_logits_of_the_programs_at_any_batch_and_length(
    onnx_folder: Path, expected: np.ndarray[Any, Any]
) -> None:
    tokenizer = tokenizers.Tokenizer.from_file(str(onnx_folder / "tokenizer.json"))
    session = onnxruntime.InferenceSession(str(onnx_folder / "model.onnx"))
    assert [(value.name, value.type, value.shape) for value in session.get_inputs()] == [
        (name, "tensor(int64)", ["batch", "sequence"]) for name in ("input_ids", "attention_mask")
    ]
    for text, logits in zip(_TEXTS, expected, strict=True):
        encoding = tokenizer.encode(text)
        feed = {"input_ids": np.array([encoding.ids]), "attention_mask": np.array([encoding.attention_mask])}
        assert np.abs(session.run(["logits"], feed)[0][0] - logits).max() < 1e-4
    tokenizer.enable_padding()
    rows = tokenizer.encode_batch(list(_TEXTS))
    feed = {"input_ids": np.array([row.ids for row in rows])}
    feed["attention_mask"] = np.array([row.attention_mask for row in rows])
    assert feed["attention_mask"].min() == 0
    assert np.abs(session.run(["logits"], feed)[0] - expected).max() < 1e-4


def test_an_onnx_folder_names_the_labels_and_nothing_of_this_machine(onnx_folder: Path, tiny_bundle: Bundle) -> None:
    assert sorted(path.name for path in onnx_folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.onnx",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    config = json.loads((onnx_folder / "config.json").read_text())
    assert config["model_type"] == "bert"
    assert tuple(config["id2label"].values()) == tiny_bundle.manifest.task.labels
    data = (onnx_folder / "model.onnx").read_bytes()
    assert str(Path(onnx.__file__).parents[3]).encode() not in data
    assert b"stack_trace" not in data


def test_the_card_of_an_onnx_folder_runs_as_it_stands(onnx_folder: Path) -> None:
    assert _run_card(onnx_folder).shape == (1, 3)


@pytest.mark.slow
def test_the_card_of_a_language_model_without_a_tokenizer_runs_too(tiny_language_model: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_language_model, tmp_path / "model"))
    for path in model.glob("tokenizer*"):
        path.unlink()
    sizes: dict[str, Any] = {"seq_len": 16, "batch_size": 4, "adapter_dim": 8, "windows": (1,), "max_target_tokens": 6}
    bundle = export_bundle(ExportSettings(str(model), (), tmp_path / "bundle", "language_modelling", **sizes))
    merge_as(bundle, MergeSettings(bundle.path("adapters.safetensors"), tmp_path / "tuned", "onnx"))
    assert _run_card(tmp_path / "tuned").shape == (1, 3, bundle.manifest.model.vocab_size)


def _run_card(folder: Path) -> Any:
    """What the code in the README of a folder prints, run in that folder."""
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0].replace("print(", "found = (")
    names: dict[str, Any] = {}
    with contextlib.chdir(folder):
        exec(code, names)
    return names["found"]


@pytest.mark.slow
def test_onnx_is_the_same_again_and_keeps_the_weights_of_a_large_model_beside_it(
    onnx_folder: Path, tiny_bundle: Bundle, adapters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge_as(tiny_bundle, MergeSettings(adapters, tmp_path / "again", "onnx"))
    assert (tmp_path / "again" / "model.onnx").read_bytes() == (onnx_folder / "model.onnx").read_bytes()
    monkeypatch.setattr(onnx, "_INLINE_BYTES", 1000)
    held = merge_as(tiny_bundle, MergeSettings(adapters, tmp_path / "large", "onnx"))
    assert held is not None
    assert held.largest_difference < 2e-5
    small, large = ((tmp_path / name / "model.onnx").stat().st_size for name in ("again", "large"))
    beside = (tmp_path / "large" / f"model.onnx{onnx.WEIGHTS_SUFFIX}").stat().st_size
    assert large < small / 2
    assert large + beside > small * 0.9


@pytest.mark.slow
def test_one_executorch_program_gives_the_logits_of_the_bundles_programs(
    tiny_bundle: Bundle, adapters: Path, expected: np.ndarray[Any, Any], tmp_path: Path
) -> None:
    out = tmp_path / "tuned"
    held = merge_as(tiny_bundle, MergeSettings(adapters, out, "executorch", seq_len=14))
    assert held is not None
    assert held.largest_difference < 2e-5
    assert sorted(path.name for path in out.iterdir()) == ["metadata.json", "model.pte", "tokenizer.json"]
    metadata = json.loads((out / "metadata.json").read_text())
    entry = ProgramEntry.model_validate(metadata["program"])
    assert [(spec.name, spec.shape, spec.dtype) for spec in entry.inputs] == [
        (name, (1, 14), "int64") for name in ("input_ids", "attention_mask")
    ]
    assert metadata["task"]["labels"] == list(tiny_bundle.manifest.task.labels)
    tokenizer = tokenizers.Tokenizer.from_file(str(out / "tokenizer.json"))
    with Program(out / "model.pte", entry) as program:
        for text, logits in zip(_TEXTS, expected, strict=True):
            encoding = tokenizer.encode(text)
            feed = {
                "input_ids": torch.tensor([encoding.ids]),
                "attention_mask": torch.tensor([encoding.attention_mask]),
            }
            assert np.abs(program.run(feed)["logits"].numpy()[0] - logits).max() < 1e-4
        told = {name: program._module.run_method(name, [])[0] for name in ("get_seq_len", "get_labels")}
    assert told["get_seq_len"] == 14
    assert tuple(json.loads(told["get_labels"])) == tiny_bundle.manifest.task.labels
    assert entry.file == executorch.MODEL_FILE


@pytest.fixture
def spoilt(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ONNX export that takes no time and writes a model whose logits are zeros."""
    import onnx as library

    def export(model: LogitsModel, path: Path) -> None:
        shape, tensor = library.helper.make_tensor_value_info, library.TensorProto
        inputs = [shape(name, tensor.INT64, ["batch", "sequence"]) for name in ("input_ids", "attention_mask")]
        zeros = library.helper.make_tensor("zeros", tensor.FLOAT, [1, 3], [0.0] * 3)
        node = library.helper.make_node("Constant", [], ["logits"], value=zeros)
        outputs = [shape("logits", tensor.FLOAT, [1, 3])]
        graph = library.helper.make_graph([node], "spoilt", inputs, outputs)
        opset = [library.helper.make_opsetid("", 20)]
        library.save(library.helper.make_model(graph, opset_imports=opset, ir_version=10), str(path))

    monkeypatch.setattr(onnx, "_export", export)


def test_a_form_that_differs_is_not_kept(
    spoilt: None, tiny_bundle: Bundle, adapters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tuned"
    given = ("merge", tiny_bundle.folder, "--adapters", adapters, "--out", out, "--format", "onnx")
    assert run([str(argument) for argument in given]) == VerificationError.exit_code
    sentence = " ".join(capsys.readouterr().err.split())
    assert "the ONNX model differs from the Hugging Face model by" in sentence
    assert "nothing was written" in sentence
    assert list(tmp_path.iterdir()) == []


def test_a_tolerance_for_larger_differences_keeps_it(
    monkeypatch: pytest.MonkeyPatch, tiny_bundle: Bundle, adapters: Path, tmp_path: Path
) -> None:
    differences = iter([3e-3, 3e-3])
    monkeypatch.setattr(agreement, "relative_error", lambda *_: next(differences))
    model = LogitsModel(_Ones())
    batch = (torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 3, dtype=torch.int64))
    with pytest.raises(VerificationError, match=r"differs .* by 0\.003, more than the tolerance 0\.001"):
        agreement.compare(model, model, [batch], 1e-3, "the form")
    assert agreement.compare(model, model, [batch], 1e-2, "the form").largest_difference == 3e-3


class _Ones(torch.nn.Module):
    """A model whose logits, one for each position, are ones."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return type("Output", (), {"logits": torch.ones(*input_ids.shape, 5)})


def test_logits_of_padding_do_not_count() -> None:
    model = LogitsModel(_Ones())
    mask = torch.tensor([[1, 1, 0]])

    def form(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return torch.where(mask > 0, 1.0, float("nan")).unsqueeze(-1).expand(-1, -1, 5)

    held = agreement.compare(model, form, [(torch.ones_like(mask), mask)], 1e-6, "the form")
    assert held == agreement.Agreement(0.0, 1.0, 1)
    wrong: Callable[..., torch.Tensor] = lambda ids, mask: form(ids, 1 - mask)  # noqa: E731
    with pytest.raises(VerificationError, match="differs from the Hugging Face model by inf"):
        agreement.compare(model, wrong, [(torch.ones_like(mask), mask)], 1e-6, "the form")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"merge_format": "onnx", "seq_len": 8}, "--seq-len has no meaning for --format onnx"),
        ({"merge_format": "executorch", "seq_len": 33}, "--seq-len 33 does not fit: give 1 to 32"),
    ],
)
def test_a_length_that_does_not_fit_is_refused(
    tiny_bundle: Bundle, adapters: Path, tmp_path: Path, settings: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(BadInputError, match=sentence):
        merge_as(tiny_bundle, MergeSettings(adapters, tmp_path / "out", **settings))
    assert not (tmp_path / "out").exists()
