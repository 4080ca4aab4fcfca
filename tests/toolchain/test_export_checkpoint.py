"""Reading Hugging Face folders: what is accepted, and the sentence for what is not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from chainfed.core.errors import ModelError
from chainfed.toolchain.checkpoint import Checkpoint, locate_model


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model to spoil."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def test_layers_are_read_by_local_name_as_float32(model: Path) -> None:
    stored = safetensors.torch.load_file(model / "model.safetensors")
    layer = Checkpoint(model).layer(2)
    key = "encoder.layer.2.attention.self.query.weight"
    assert np.array_equal(layer["attention.self.query.weight"], stored[key].numpy())
    assert set(layer) == {
        name.removeprefix("encoder.layer.2.") for name in stored if name.startswith("encoder.layer.2.")
    }


def test_half_precision_becomes_float32(model: Path) -> None:
    path = model / "model.safetensors"
    stored = safetensors.torch.load_file(path)
    half = {name: tensor.to(torch.bfloat16) for name, tensor in stored.items()}
    safetensors.torch.save_file(half, path)
    embeddings = Checkpoint(model).embeddings()
    assert embeddings["word_embeddings.weight"].dtype == np.float32
    expected = half["embeddings.word_embeddings.weight"].to(torch.float32).numpy()
    assert np.array_equal(embeddings["word_embeddings.weight"], expected)


def test_sharded_checkpoints_and_prefixed_keys_give_the_same_tensors(model: Path) -> None:
    expected = dict(Checkpoint(model).layer(0))
    path = model / "model.safetensors"
    stored = {f"bert.{name}": tensor for name, tensor in safetensors.torch.load_file(path).items()}
    path.unlink()
    names = sorted(stored)
    halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in halves.items():
        safetensors.torch.save_file({name: stored[name] for name in part}, model / file)
    weight_map = {name: file for file, part in halves.items() for name in part}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    actual = Checkpoint(model).layer(0)
    assert actual.keys() == expected.keys()
    assert all(np.array_equal(actual[name], expected[name]) for name in expected)


def test_a_vocabulary_alone_makes_a_tokenizer(model: Path) -> None:
    text = "The cat saw an engine"
    expected = Checkpoint(model).tokenizer().encode(text).ids
    words = json.loads((model / "tokenizer.json").read_text())["model"]["vocab"]
    (model / "vocab.txt").write_text("\n".join(sorted(words, key=words.__getitem__)) + "\n")
    (model / "tokenizer.json").unlink()
    assert Checkpoint(model).tokenizer().encode(text).ids == expected


def test_special_tokens_are_read_as_text_and_as_objects(model: Path) -> None:
    settings = {
        "mask_token": {"content": "[MASK]", "lstrip": False},
        "sep_token": "[SEP]",
        "bos_token": None,
        "other": 1,
    }
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    assert Checkpoint(model).special_tokens() == {"mask_token": "[MASK]", "sep_token": "[SEP]"}


def _without(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def _with_config(**changes: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    return change


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _truncated(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def _incomplete(folder: Path) -> None:
    stored = safetensors.torch.load_file(folder / "model.safetensors")
    del stored["encoder.layer.1.output.dense.weight"]
    safetensors.torch.save_file(stored, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (_without("config.json"), "is no model: it has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "is not readable JSON"),
        (_with_config(model_type=None), "names no `model_type`"),
        (_with_config(model_type="gpt2"), "type 'gpt2', which ChainFed cannot export; supported are: bert"),
        (_with_config(is_decoder=True), "configured as a decoder"),
        (_without("model.safetensors"), "has no model.safetensors"),
        (_pickled, r"as a pickle \(pytorch_model.bin\), which can run code"),
        (_truncated, "is truncated or no safetensors file"),
        (_incomplete, "is incomplete: .*output.dense.weight"),
    ],
)
def test_a_folder_that_cannot_be_exported_says_why(model: Path, spoil: Callable[[Path], object], sentence: str) -> None:
    spoil(model)
    with pytest.raises(ModelError, match=sentence):
        Checkpoint(model).check_weights(language_model=False)


def test_weights_that_do_not_fit_the_configuration_are_refused(model: Path) -> None:
    _with_config(intermediate_size=48)(model)
    with pytest.raises(ModelError, match=r"shape \[64, 32\], but config.json says \[48, 32\]"):
        Checkpoint(model).layer(0)


def test_a_missing_or_foreign_tokenizer_is_refused(model: Path) -> None:
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] |= {f"word{number}": 1000 + number for number in range(1000)}
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ModelError, match="tokens but the model embeds only"):
        Checkpoint(model).tokenizer()
    (model / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot be read"):
        Checkpoint(model).tokenizer()
    (model / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"has no tokenizer \(neither tokenizer.json nor vocab.txt\)"):
        Checkpoint(model).tokenizer()


def test_a_path_that_does_not_exist_is_not_looked_up_on_the_hub(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        locate_model(str(tmp_path / "nothing"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="is a file"):
        locate_model(str(tmp_path / "file"))


def test_a_hub_name_is_fetched_without_pickles(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}

    def download(name: str, allow_patterns: list[str]) -> str:
        asked.update(name=name, patterns=allow_patterns)
        return str(model)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert locate_model("some-owner/some-model") == model
    assert asked["name"] == "some-owner/some-model"
    assert not any(".bin" in str(pattern) for pattern in asked["patterns"])  # type: ignore[attr-defined]


def test_a_hub_that_does_not_answer_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(name: str, allow_patterns: list[str]) -> str:
        raise OSError("no route\nand much more")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(ModelError, match=r"could not be fetched from the Hugging Face hub \(no route\)"):
        locate_model("some-owner/some-model")
