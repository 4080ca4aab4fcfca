"""The weights of a checkpoint: read lazily, in every dtype, and one sentence for whatever is wrong with them."""

from __future__ import annotations

import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from chainfed.core.errors import ModelError
from chainfed.toolchain import checkpoint_weights
from chainfed.toolchain.checkpoint import Checkpoint
from chainfed.toolchain.checkpoint_weights import CheckpointWeights
from chainfed.toolchain.safetensors_file import write_tensors

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
NORM = "encoder.layer.2.output.LayerNorm.bias"


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model to spoil."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


@pytest.fixture
def sharded(model: Path) -> Path:
    """The same in two files with an index."""
    stored = safetensors.torch.load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    names = sorted(stored)
    halves = {FIRST: names[::2], SECOND: names[1::2]}
    for file, part in halves.items():
        safetensors.torch.save_file({name: stored[name] for name in part}, model / file)
    write_index(model, {name: file for file, part in halves.items() for name in part})
    return model


def write_index(folder: Path, weight_map: Any) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def weight_map(folder: Path) -> dict[str, Any]:
    mapping: dict[str, Any] = json.loads((folder / INDEX).read_text())["weight_map"]
    return mapping


def change_tensor(file: Path, key: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    stored = safetensors.torch.load_file(file)
    stored[key] = change(stored[key])
    safetensors.torch.save_file(stored, file)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_floating_point_dtype_is_widened_as_torch_does(
    tmp_path: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_weights, "_CHUNK_ELEMENTS", 100)  # so that a tensor takes several pieces
    stored = {
        "a": torch.randn(7, 61, generator=torch.Generator().manual_seed(0)).to(dtype),
        "subnormal": torch.tensor([0.0, -0.0, 6e-8, -1e-5, 65504.0]).to(dtype),
        "scalar": torch.tensor(2.5).to(dtype),
        "empty": torch.zeros(0, 3).to(dtype),
    }
    safetensors.torch.save_file(stored, tmp_path / "model.safetensors")
    shapes = {name: tuple(tensor.shape) for name, tensor in stored.items()}
    tensors = CheckpointWeights(tmp_path).select({name: name for name in stored}, shapes)
    for name, tensor in stored.items():
        assert tensors[name].dtype == np.float32
        assert tensors[name].tobytes() == tensor.to(torch.float32).numpy().tobytes()
        assert tensors[name].shape == shapes[name]


def test_nothing_is_read_before_it_is_written_and_one_tensor_at_a_time(
    sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[weakref.ref[np.ndarray[Any, Any]]] = []
    original = checkpoint_weights._read

    def watched(place: Any, key: str) -> Any:
        assert all(earlier() is None for earlier in seen), f"another tensor is still in memory when {key} is read"
        tensor = original(place, key)
        seen.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(checkpoint_weights, "_read", watched)
    tensors = Checkpoint(sharded).layer(1)
    assert not seen
    write_tensors(tmp_path / "layer", tensors.sources(), {})
    assert len(safetensors.torch.load_file(tmp_path / "layer")) == len(seen) == 16


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused_with_tensor_and_file(model: Path, value: float) -> None:
    def spoil(tensor: torch.Tensor) -> torch.Tensor:
        tensor[-1] = value
        return tensor

    change_tensor(model / "model.safetensors", NORM, spoil)
    layer = Checkpoint(model).layer(2)
    with pytest.raises(ModelError, match=rf"model\.safetensors: tensor {NORM} holds values that are NaN or infinite"):
        layer["output.LayerNorm.bias"]


def test_a_value_beyond_float32_is_refused(model: Path) -> None:
    change_tensor(model / "model.safetensors", NORM, lambda tensor: tensor.double() + 1e300)
    with pytest.raises(ModelError, match="NaN or infinite"):
        Checkpoint(model).layer(2)["output.LayerNorm.bias"]


def test_quantised_weights_are_refused(model: Path) -> None:
    change_tensor(model / "model.safetensors", NORM, lambda tensor: tensor.to(torch.int8))
    with pytest.raises(ModelError, match=rf"tensor {NORM} is I8, but ChainFed reads F64, F32, F16, BF16"):
        Checkpoint(model).check_weights()


def test_a_file_that_shrinks_after_it_was_opened_is_one_sentence(model: Path) -> None:
    layer = Checkpoint(model).layer(2)
    data = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(data[:2000])
    with pytest.raises(ModelError, match=r"cannot be read \(the file ends before it"):
        dict(layer)


def _put(key: str, file: Any) -> Callable[[Path], None]:
    return lambda folder: write_index(folder, weight_map(folder) | {key: file})


def _twice(folder: Path) -> None:
    first = safetensors.torch.load_file(folder / FIRST)
    second = safetensors.torch.load_file(folder / SECOND)
    safetensors.torch.save_file(second | {min(first): first[min(first)]}, folder / SECOND)


def _swapped(folder: Path) -> None:
    mapping = weight_map(folder)
    write_index(folder, mapping | {min(mapping): SECOND})


def _outside(folder: Path) -> None:
    shutil.copy(folder / FIRST, folder.parent / "x.safetensors")
    _put("a", "../x.safetensors")(folder)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (_put("a", "model-00003-of-00003.safetensors"), r"has no model-00003-of-00003\.safetensors"),
        (_outside, r"puts the tensor 'a' into '\.\./x\.safetensors', but weights lie in \.safetensors files beside it"),
        (_put("a", "/etc/x.safetensors"), r"puts the tensor 'a' into '/etc/x\.safetensors'"),
        (_put("a", "..\\x.safetensors"), "puts the tensor 'a' into"),
        (_put("a", "C:x.safetensors"), r"puts the tensor 'a' into 'C:x\.safetensors'"),
        (_put("a", "x\n.safetensors"), "puts the tensor 'a' into"),
        (_put("a", "pytorch_model.bin"), r"puts the tensor 'a' into 'pytorch_model\.bin'"),
        (_put("a", 7), "puts the tensor 'a' into something that is no name"),
        (_put("a", FIRST), rf"says that the tensor 'a' is in {FIRST}, but it is in no file"),
        (_swapped, rf"is in {SECOND}, but it is in {FIRST}"),
        (_twice, rf"both in {FIRST} and in {SECOND}"),
        (lambda folder: write_index(folder, []), "has no `weight_map`"),
        (lambda folder: write_index(folder, {}), "has no `weight_map`"),
        (lambda folder: (folder / INDEX).write_text("[" * 100_000), r"is not readable JSON \(it is nested too deeply"),
        (lambda folder: (folder / INDEX).write_text('{"a":1,"a":2}'), r"is not readable JSON \(it names 'a' twice"),
        (lambda folder: (folder / SECOND).write_bytes(b"\xff" * 100), rf"{SECOND} is truncated or no safetensors file"),
        (lambda folder: (folder / SECOND).unlink(), rf"has no {SECOND}"),
    ],
)
def test_an_index_that_does_not_fit_is_one_sentence(
    sharded: Path, spoil: Callable[[Path], None], sentence: str
) -> None:
    Checkpoint(sharded).check_weights()
    spoil(sharded)
    with pytest.raises(ModelError, match=sentence) as raised:
        Checkpoint(sharded)
    assert str(raised.value).isprintable()


def test_tensors_that_an_index_does_not_name_do_not_count(sharded: Path) -> None:
    mapping = weight_map(sharded)
    del mapping[NORM]
    write_index(sharded, mapping)
    with pytest.raises(ModelError, match=r"is incomplete: .*output\.LayerNorm\.bias"):
        Checkpoint(sharded).check_weights()


def test_links_are_followed_as_in_the_cache_of_the_hub(model: Path) -> None:
    blob = model.parent / "blob"
    (model / "model.safetensors").rename(blob)
    (model / "model.safetensors").symlink_to(blob)
    Checkpoint(model).check_weights()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt", "weights.pth"])
def test_pickles_are_refused_with_the_reason(model: Path, name: str) -> None:
    (model / "model.safetensors").unlink()
    torch.save({"a": torch.zeros(2)}, model / name)
    with pytest.raises(ModelError, match=rf"as a pickle \({name}\), which can run code when it is read.*safetensors"):
        Checkpoint(model)


def test_every_truncation_of_the_header_is_one_sentence(model: Path) -> None:
    file = model / "model.safetensors"
    data = file.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    for length in range(0, header + 1, 13):
        file.write_bytes(data[:length])
        with pytest.raises(ModelError, match=r"model\.safetensors is truncated or no safetensors file"):
            CheckpointWeights(model)


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": "x"},
        {"hidden_size": -32},
        {"hidden_size": 33},
        {"num_attention_heads": 0},
        {"num_hidden_layers": -1},
        {"hidden_act": "no such"},
        {"vocab_size": None},
        {"vocab_size": [1]},
        {"max_position_embeddings": 1e400},
    ],
)
def test_a_damaged_configuration_is_one_sentence(model: Path, change: dict[str, Any]) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ModelError) as raised:
        Checkpoint(model).check_weights()
    assert "\n" not in str(raised.value)


def test_a_configuration_nested_too_deeply_is_one_sentence(model: Path) -> None:
    (model / "config.json").write_text('{"a":' * 100_000)
    with pytest.raises(ModelError, match="is not readable JSON"):
        Checkpoint(model)
