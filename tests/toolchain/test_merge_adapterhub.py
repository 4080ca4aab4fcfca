"""The AdapterHub layout: as the library itself writes it, and, where the library is at hand, as it computes.

`adapters` 1.3.0 needs a transformers older than ChainFed's, so it cannot be installed beside it. The layout is held
against what that version wrote for the same models; with CHAINFED_ADAPTERS_PYTHON set to a Python of another
environment that has it, its own forward pass is held against ours too.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

from chainfed.core.cli import run
from chainfed.core.errors import BadInputError
from chainfed.core.manifest import Bundle, Manifest
from chainfed.core.tensors import Tensors, encode, state_shapes
from chainfed.toolchain.merge_formats.adapterhub import reduction_factor, write_layout
from chainfed.toolchain.new_folder import NewFolder
from tests.toolchain.family_models import family_config
from tests.toolchain.model_states import random_state

_LAYERS, _WIDTH, _BOTTLENECK = 2, 32, 8
_LAYER_LISTS = {"distilbert": "transformer.layer", "llama": "layers", "mistral": "layers"}

# What `save_adapter(..., use_safetensors=True)` of adapters 1.3.0 wrote: class, and where the adapter of layer 1 lies.
_WRITTEN_BY_THE_LIBRARY = {
    "bert": ("BertAdapterModel", "bert.encoder.layer.1.output.adapters.chainfed."),
    "electra": ("ElectraAdapterModel", "electra.encoder.layer.1.output.adapters.chainfed."),
    "roberta": ("RobertaAdapterModel", "roberta.encoder.layer.1.output.adapters.chainfed."),
    "xlm-roberta": ("XLMRobertaAdapterModel", "roberta.encoder.layer.1.output.adapters.chainfed."),
    "distilbert": ("DistilBertAdapterModel", "distilbert.transformer.layer.1.output_adapters.adapters.chainfed."),
    "llama": ("LlamaAdapterModel", "model.layers.1.output_adapters.adapters.chainfed."),
    "mistral": ("MistralAdapterModel", "model.layers.1.output_adapters.adapters.chainfed."),
}


@pytest.fixture(params=list(_WRITTEN_BY_THE_LIBRARY))
def family(request: pytest.FixtureRequest) -> str:
    """Every model type that the library and ChainFed share."""
    return str(request.param)


def _manifest(bundle: Bundle, family: str, pooling: str) -> Manifest:
    """The tiny bundle's manifest for another model and pooling."""
    manifest = bundle.manifest
    facts = {"family": family, "num_layers": _LAYERS, "hidden_size": _WIDTH}
    return manifest.model_copy(
        update={
            "model": manifest.model.model_copy(update=facts),
            "task": manifest.task.model_copy(update={"pooling": pooling}),
            "adapter": manifest.adapter.model_copy(update={"bottleneck": _BOTTLENECK}),
        }
    )


def _state() -> Tensors:
    return random_state(state_shapes(_LAYERS, _WIDTH, _BOTTLENECK, 3), seed=5, deviation=0.3)


def _write(bundle: Bundle, family: str, pooling: str, out: Path) -> Path:
    with NewFolder(out, False, "adapter_config.json") as folder:
        write_layout(_manifest(bundle, family, pooling), _state(), folder)
        folder.commit()
    return out


def test_the_layout_is_what_the_library_writes(family: str, tiny_bundle: Bundle, tmp_path: Path) -> None:
    pooling = "last" if family in ("llama", "mistral") else "cls"
    folder = _write(tiny_bundle, family, pooling, tmp_path / "adapters")
    model_class, prefix = _WRITTEN_BY_THE_LIBRARY[family]
    described = json.loads((folder / "adapter_config.json").read_text())
    assert (described["model_class"], described["model_type"], described["name"]) == (model_class, family, "chainfed")
    assert described["config"]["reduction_factor"] == 4.0
    tensors = safetensors.numpy.load_file(folder / "adapter.safetensors")
    assert len(tensors) == 4 * _LAYERS
    assert {name: tensor.shape for name, tensor in tensors.items() if name.startswith(prefix)} == {
        prefix + "adapter_down.0.bias": (8,),
        prefix + "adapter_down.0.weight": (8, 32),
        prefix + "adapter_up.bias": (32,),
        prefix + "adapter_up.weight": (32, 8),
    }
    assert np.array_equal(tensors[prefix + "adapter_up.weight"], _state()["adapters.1.up"].T)
    assert not any(tensor.any() for name, tensor in tensors.items() if name.endswith("bias"))
    head = safetensors.numpy.load_file(folder / "model_head.safetensors")
    assert {name: tensor.shape for name, tensor in head.items()} == {
        "heads.chainfed.1.bias": (3,),
        "heads.chainfed.1.weight": (3, 32),
    }
    settings = json.loads((folder / "head_config.json").read_text())["config"]
    assert settings["label2id"] == {"animals": 0, "food": 1, "machines": 2}
    assert (settings["layers"], settings["use_pooler"]) == (1, False)


def test_a_head_on_the_mean_has_no_configuration_for_the_library(tiny_bundle: Bundle, tmp_path: Path) -> None:
    folder = _write(tiny_bundle, "bert", "mean", tmp_path / "adapters")
    assert not (folder / "head_config.json").exists()
    assert (folder / "model_head.safetensors").is_file()
    assert "The library has no head on the mean of the tokens" in (folder / "README.md").read_text()


def test_any_bottleneck_comes_out_of_the_reduction_factor() -> None:
    for width in (32, 384, 768, 1000, 4096):
        for bottleneck in (*range(1, 130), 200, 333):
            assert int(width // reduction_factor(width, bottleneck)) == bottleneck
    assert reduction_factor(384, 32) == 12.0


def test_a_model_that_the_library_lacks_is_refused(
    tiny_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = Path(shutil.copytree(tiny_bundle.folder, tmp_path / "bundle"))
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["model"]["family"] = "modernbert"
    (copied / "manifest.json").write_text(json.dumps(manifest))
    given = ("merge", copied, "--adapters", copied / "adapters.safetensors", "--format", "adapters")
    out = tmp_path / "out"
    assert run([str(argument) for argument in (*given, "--out", out)]) == BadInputError.exit_code
    assert "`adapters` library has no models of type 'modernbert'" in " ".join(capsys.readouterr().err.split())
    assert not out.exists()


def test_the_command_writes_it(tiny_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, adapters = tmp_path / "out", tmp_path / "adapters.safetensors"
    shapes = tiny_bundle.manifest.state_shapes()
    adapters.write_bytes(encode({name: np.ones(shape, dtype=np.float32) for name, shape in shapes.items()}))
    given = ("merge", tiny_bundle.folder, "--adapters", adapters, "--format", "adapters", "--out", out, "--json")
    assert run([str(argument) for argument in given]) == 0
    assert json.loads(capsys.readouterr().out)["largest_difference"] is None
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md",
        "adapter.safetensors",
        "adapter_config.json",
        "model_head.safetensors",
    ]


@pytest.fixture
def library_python() -> str:
    """A Python that has the library."""
    found = os.environ.get("CHAINFED_ADAPTERS_PYTHON")
    if not found:
        pytest.skip(
            "needs AdapterHub's library in an environment of its own: set CHAINFED_ADAPTERS_PYTHON to its Python"
        )
    return found


@pytest.mark.slow
def test_the_library_computes_what_we_do(family: str, tiny_bundle: Bundle, library_python: str, tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModel.from_config(
            family_config(family, vocab_size=60), attn_implementation="eager"
        ).eval()
    model.save_pretrained(tmp_path / "base")
    pooling = "last" if family in ("llama", "mistral") else "cls"
    folder = _write(tiny_bundle, family, pooling, tmp_path / "adapters")
    ids = torch.randint(3, 60, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(9) < torch.tensor([9, 6, 2])[:, None]).to(torch.int64)
    batch = {"input_ids": ids * mask, "attention_mask": mask}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    finished = subprocess.run(
        [library_python, str(Path(__file__).with_name("adapterhub_oracle.py")), str(tmp_path / "base"), str(folder)],
        input=json.dumps({name: tensor.tolist() for name, tensor in batch.items()}),
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    theirs = json.loads(finished.stdout.strip().split("\n")[-1])
    hidden = _with_adapters(model, family, batch)
    tokens = mask.bool()
    assert float((torch.tensor(theirs["hidden"])[tokens] - hidden[tokens]).abs().max()) < 1e-4
    state = {name: torch.from_numpy(tensor) for name, tensor in _state().items()}
    pooled = hidden[:, 0] if pooling == "cls" else hidden[torch.arange(3), mask.sum(1) - 1]
    standardised = (pooled - state["statistics.1.mean"]) * state["statistics.1.rstd"]
    logits = standardised @ state["heads.1.weight"].T + state["heads.1.bias"]
    assert float((torch.tensor(theirs["logits"]) - logits).abs().max()) < 1e-4


def _with_adapters(model: Any, family: str, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The base model's last hidden states with the adapter formula applied to what each layer returns."""
    state = {name: torch.from_numpy(tensor) for name, tensor in _state().items()}

    def hook_of(index: int) -> Any:
        down, up = state[f"adapters.{index}.down"], state[f"adapters.{index}.up"]

        def hook(module: Any, arguments: Any, output: Any) -> Any:
            h = output[0] if isinstance(output, tuple) else output
            h = h + torch.nn.functional.gelu(h @ down.T) @ up
            return (h, *output[1:]) if isinstance(output, tuple) else h

        return hook

    layers = model.get_submodule(_LAYER_LISTS.get(family, "encoder.layer"))
    handles = [layer.register_forward_hook(hook_of(index)) for index, layer in enumerate(layers)]
    with torch.no_grad():
        hidden: torch.Tensor = model(**batch).last_hidden_state
    for handle in handles:
        handle.remove()
    return hidden
