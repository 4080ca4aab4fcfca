"""The tiny bundles of tests/vectors are what `make vectors` would write now, programs' bytes and measurements aside."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import safetensors.numpy

from chainfed.core.manifest import EMBEDDINGS_FILE, OUTPUT_FILE, Bundle, layer_file
from chainfed.core.tensors import decode
from chainfed.toolchain.checkpoint import Checkpoint
from chainfed.toolchain.initial_state import initial_state
from chainfed.toolchain.steps import build_programs
from chainfed.toolchain.verify import settings_of

FOLDER = Path(__file__).parents[1] / "vectors"
STALE = "the vectors are stale: run `make vectors`"


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    """The script that makes the vectors."""
    spec = importlib.util.spec_from_file_location("make_vectors", FOLDER / "make_vectors.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_the_weights_and_the_initial_state_are_those_of_the_script(
    maker: ModuleType, name: str, tmp_path: Path
) -> None:
    bundle = Bundle(FOLDER / "bundles" / name / "bundle")
    bundle.verify_files()
    vectors = next(vectors for vectors in maker.all_vectors() if vectors.name == name)
    checkpoint = Checkpoint(maker.write_model(vectors, tmp_path / "model"))
    parts = {EMBEDDINGS_FILE: checkpoint.embeddings(), OUTPUT_FILE: checkpoint.output()}
    parts |= {layer_file(layer): checkpoint.layer(layer) for layer in range(bundle.manifest.model.num_layers)}
    for file, tensors in parts.items():
        if tensors:
            stored = safetensors.numpy.load(bundle.path(file).read_bytes())
            assert stored.keys() == tensors.keys()
            assert all(stored[key].tobytes() == tensors[key].tobytes() for key in stored), f"{file}: {STALE}"
    model = bundle.manifest.model
    expected = initial_state(model.num_layers, model.hidden_size, bundle.manifest.adapter.bottleneck, 3, seed=0)
    state = decode(bundle.path("adapters.safetensors").read_bytes(), "the state")
    assert all(state[key].tobytes() == expected[key].tobytes() for key in expected), STALE


@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_the_programs_take_and_give_what_they_do_today(name: str) -> None:
    bundle = Bundle(FOLDER / "bundles" / name / "bundle")
    definitions = build_programs(settings_of(bundle))
    assert definitions.keys() == bundle.manifest.programs.keys(), STALE
    for program, entry in bundle.manifest.programs.items():
        for now, then in ((definitions[program].inputs, entry.inputs), (definitions[program].outputs, entry.outputs)):
            assert [asdict(spec) for spec in now] == [spec.model_dump() for spec in then], f"{program}: {STALE}"


@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_the_cases_come_out_the_same_again(maker: ModuleType, name: str, tmp_path: Path) -> None:
    folder = FOLDER / "bundles" / name
    vectors = next(vectors for vectors in maker.all_vectors() if vectors.name == name)
    maker.write_cases(vectors, Bundle(folder / "bundle"), tmp_path)
    index = json.loads((folder / "cases.json").read_text(encoding="utf-8"))
    assert json.loads((tmp_path / "cases.json").read_text(encoding="utf-8")) == index, STALE
    assert {path.name for path in (folder / "cases").iterdir()} == {
        Path(case["tensors"]).name for case in index["cases"]
    }
    for case in index["cases"]:
        now, then = (safetensors.numpy.load_file(place / case["tensors"]) for place in (tmp_path, folder))
        assert now.keys() == then.keys(), STALE
        for key, tensor in then.items():
            assert np.allclose(now[key], tensor, rtol=1e-5, atol=1e-5), f"{case['name']}, {key}: {STALE}"
