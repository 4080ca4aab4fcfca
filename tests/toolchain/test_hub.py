"""Models by their name on the Hugging Face hub, which a fake stands for: no test talks to a network."""

from __future__ import annotations

import fnmatch
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import errors

from chainfed.core.errors import ModelError
from chainfed.toolchain.checkpoint import Checkpoint, locate_model

RESPONSE: Any = SimpleNamespace(headers={}, request=None)
IN_THE_REPOSITORY = (
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-00001-of-00002.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "tf_model.h5",
    "flax_model.msgpack",
    "rust_model.ot",
    "modeling_custom.py",
    "onnx/model.onnx",
    "openvino/openvino_model.bin",
    "training_args.bin",
    "README.md",
)


class FakeHub:
    """Stands for `huggingface_hub.snapshot_download`; remembers what it was asked for."""

    def __init__(self, answer: Path | Exception) -> None:
        self.answer = answer
        self.asked: list[tuple[str, list[str]]] = []

    def __call__(self, name: str, allow_patterns: list[str]) -> str:
        self.asked.append((name, allow_patterns))
        if isinstance(self.answer, Exception):
            raise self.answer
        return str(self.answer)


@pytest.fixture
def fake_hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path | Exception], FakeHub]:
    """`fake_hub(answer)`: a hub that answers with a folder or an error from now on."""

    def install(answer: Path | Exception) -> FakeHub:
        hub = FakeHub(answer)
        monkeypatch.setattr("huggingface_hub.snapshot_download", hub)
        return hub

    return install


def test_a_name_is_fetched_and_read_like_a_folder(tiny_model: Path, fake_hub: Any) -> None:
    hub = fake_hub(tiny_model)
    Checkpoint(locate_model("some-owner/some-model")).check_weights()
    assert [name for name, _ in hub.asked] == ["some-owner/some-model"]


def test_only_configuration_tokenizer_and_safetensors_are_asked_for(tiny_model: Path, fake_hub: Any) -> None:
    hub = fake_hub(tiny_model)
    locate_model("bert-base-uncased")
    ((_, patterns),) = hub.asked
    fetched = [name for name in IN_THE_REPOSITORY if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]
    assert fetched == list(IN_THE_REPOSITORY[:8])


def test_a_folder_is_never_looked_up(tiny_model: Path, fake_hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = fake_hub(AssertionError("looked up"))
    monkeypatch.chdir(tiny_model.parent)
    assert locate_model("model") == Path("model")
    assert locate_model(str(tiny_model)) == tiny_model
    assert hub.asked == []


@pytest.mark.parametrize("name", ["nothing/of/this", "../nothing", "/nothing", "C:\\nothing", "-x/y", "a b", "a/", ""])
def test_what_is_no_name_is_never_looked_up(
    name: str, fake_hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = fake_hub(AssertionError("looked up"))
    monkeypatch.chdir(tmp_path)
    if name:
        with pytest.raises(ModelError, match="does not exist; give a Hugging Face model folder or a model's name"):
            locate_model(name)
    assert hub.asked == []


def test_a_file_is_no_model_folder(tmp_path: Path, fake_hub: Any) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="is a file, not a model folder"):
        locate_model(str(tmp_path / "file"))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            errors.RepositoryNotFoundError("404\nmuch more", response=RESPONSE),
            "the hub has no such model, or it is priv",
        ),
        (
            errors.GatedRepoError("403\nmuch more", response=RESPONSE),
            "its owner asks you to accept terms and to log in",
        ),
        (errors.LocalEntryNotFoundError("nothing in the cache\nand much more"), "nothing in the cache"),
        (errors.OfflineModeIsEnabled("offline mode is enabled"), "offline mode is enabled"),
        (errors.HTTPError("no route to host"), "no route to host"),  # of the HTTP client, and no OSError
        (errors.HTTPError(""), "HTTPError"),
        (OSError("no space left\nmore"), "no space left"),
    ],
)
def test_a_hub_that_does_not_give_the_model_is_one_sentence(error: Exception, reason: str, fake_hub: Any) -> None:
    fake_hub(error)
    with pytest.raises(ModelError) as raised:
        locate_model("some-owner/some-model")
    sentence = str(raised.value)
    assert sentence.startswith("some-owner/some-model is no folder here and could not be fetched from the Hugging Face")
    assert f"({reason}" in sentence
    assert sentence.isprintable()


def test_a_model_of_pickles_only_says_so(tiny_model: Path, fake_hub: Any, tmp_path: Path) -> None:
    """The hub's pickles are not asked for, so what is missing is said instead."""
    snapshot = Path(shutil.copytree(tiny_model, tmp_path / "snapshot"))
    (snapshot / "model.safetensors").unlink()
    fake_hub(snapshot)
    with pytest.raises(ModelError, match=r"has no model\.safetensors; give a folder with the model's weights"):
        Checkpoint(locate_model("some-owner/pickles"))
