"""The tiny bundles of tests/vectors through a reader of a page, written from docs/bundle.md alone.

It shares nothing with ChainFed: it is what a reader in another language would be.
"""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

Arrays = dict[str, npt.NDArray[Any]]

BUNDLES = Path(__file__).parents[1] / "vectors" / "bundles"
INDICES: dict[str, dict[str, Any]] = {
    name: json.loads((BUNDLES / name / "cases.json").read_text(encoding="utf-8"))
    for name in ("encoder", "decoder", "language")
}
CASES = [(name, case) for name, index in INDICES.items() for case in index["cases"]]
BY_ROW = ("h", "features", "logits")


def read_tensors(path: Path) -> Arrays:
    """A safetensors file as the document's section *Tensor files* describes it."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = (8 + length + offset for offset in entry["data_offsets"])
            dtype = {"F32": "<f4", "I64": "<i8"}[entry["dtype"]]
            tensors[name] = np.frombuffer(data[begin:end], dtype).reshape(entry["shape"])
    return tensors


def read_manifest(bundle: Path) -> dict[str, Any]:
    """The manifest of a bundle whose every file has the length and the hash that it names."""
    manifest: dict[str, Any] = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["format"] == "chainfed-bundle"
    assert manifest["format_version"] == 1
    for name, entry in manifest["files"].items():
        data = (bundle / name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (entry["bytes"], entry["sha256"]), name
    return manifest


def counted(name: str, array: npt.NDArray[Any], rows: int, manifest: dict[str, Any]) -> npt.NDArray[Any]:
    """What counts of an output: real rows, and of heads and logits what belongs to a label."""
    labels = len(manifest["task"]["labels"]) or None
    if "head." in name:
        return array[:labels]
    return array[:rows, :labels] if name == "logits" else array[:rows] if name in BY_ROW else array


class ProgramReader:
    """One program of a bundle on the ExecuTorch runtime."""

    def __init__(self, bundle: Path, entry: dict[str, Any]) -> None:
        # Takes seconds to import, which the other tests of this file need not wait for.
        import executorch.extension.pybindings._portable_lib as runtime

        self.entry = entry
        self._module: Any = runtime._load_for_executorch(str(bundle / entry["file"]))

    def run(self, inputs: Arrays) -> Arrays:
        import torch

        assert sorted(inputs) == sorted(spec["name"] for spec in self.entry["inputs"])
        arguments = []
        for spec in self.entry["inputs"]:
            array = inputs[spec["name"]]
            assert (list(array.shape), str(array.dtype)) == (spec["shape"], spec["dtype"]), spec["name"]
            arguments.append(torch.from_numpy(array.copy()))
        outputs = self._module.run_method("forward", arguments)
        assert [list(output.shape) for output in outputs] == [spec["shape"] for spec in self.entry["outputs"]]
        return {
            spec["name"]: output.numpy().copy() for spec, output in zip(self.entry["outputs"], outputs, strict=True)
        }


@pytest.mark.parametrize(("bundle", "case"), CASES, ids=[f"{name}-{case['name']}" for name, case in CASES])
def test_programs_give_the_expected_outputs(bundle: str, case: dict[str, Any]) -> None:
    folder = BUNDLES / bundle
    manifest = read_manifest(folder / "bundle")
    program = ProgramReader(folder / "bundle", manifest["programs"][case["program"]])
    tensors = read_tensors(folder / case["tensors"])
    given = {name.removeprefix("input/"): tensor for name, tensor in tensors.items() if name.startswith("input/")}
    for prefix, file in case["weights"].items():
        given |= {prefix + name: tensor for name, tensor in read_tensors(folder / "bundle" / file).items()}
    for step in range(1, case["steps"] + 1):
        outputs = program.run(given)
        start = f"expected/{step}/"
        expected = {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
        assert sorted(outputs) == sorted(expected)
        for name, tensor in expected.items():
            found, wanted = (counted(name, array, case["rows"], manifest) for array in (outputs[name], tensor))
            error, largest = np.abs(found - wanted).max(), np.abs(wanted).max()
            assert error <= INDICES[bundle]["tolerance"] * largest, f"step {step}, {name}"
        labels = len(manifest["task"]["labels"])
        for name in outputs.keys() & given.keys() if labels else ():
            if "head." in name:
                np.testing.assert_array_equal(outputs[name][labels:], given[name][labels:])
        given |= {name: tensor for name, tensor in outputs.items() if name in given}


@pytest.mark.parametrize("bundle", INDICES)
def test_every_program_has_a_case_and_no_case_is_trivial(bundle: str) -> None:
    manifest = read_manifest(BUNDLES / bundle / "bundle")
    assert {case["program"] for case in INDICES[bundle]["cases"]} == set(manifest["programs"])
    for case in INDICES[bundle]["cases"]:
        tensors = read_tensors(BUNDLES / bundle / case["tensors"])
        for name, tensor in tensors.items():
            assert np.isfinite(tensor).all()
            if name.startswith("expected/") and tensor.size > 1 and "final_head" not in name:
                assert tensor.any(), f"{case['name']}: {name}"
        for name in tensors:
            if name.startswith("input/trainable.") and "final_head" not in name:
                before, after = (
                    counted(name, tensors[place], case["rows"], manifest)
                    for place in (name, name.replace("input/", "expected/1/"))
                )
                change = np.abs(after - before).max()
                noticed = INDICES[bundle]["tolerance"] * np.abs(before).max()
                assert change > 5 * noticed, f"{case['name']}: the step of {name} is within the tolerance"


@pytest.mark.parametrize("bundle", INDICES)
def test_the_tokenizer_gives_the_expected_ids(bundle: str) -> None:
    from tokenizers import Tokenizer

    manifest = read_manifest(BUNDLES / bundle / "bundle")
    tokenizer = Tokenizer.from_file(str(BUNDLES / bundle / "bundle" / "tokenizer.json"))
    for entry in INDICES[bundle]["texts"]:
        ids = tokenizer.encode(entry["text"]).ids
        assert ids == entry["input_ids"]
        assert len(ids) == manifest["shapes"]["seq_len"]
        assert max(ids) < manifest["model"]["vocab_size"]


@pytest.mark.parametrize("bundle", INDICES)
def test_the_model_state_is_as_the_document_says(bundle: str) -> None:
    manifest = read_manifest(BUNDLES / bundle / "bundle")
    layers, size = manifest["model"]["num_layers"], manifest["model"]["hidden_size"]
    bottleneck, labels = manifest["adapter"]["bottleneck"], len(manifest["task"]["labels"])
    state = read_tensors(BUNDLES / bundle / "bundle" / "adapters.safetensors")
    shapes: dict[str, list[int]] = {}
    for layer in range(layers):
        shapes |= {f"adapters.{layer}.{part}": [bottleneck, size] for part in ("down", "up")}
        if not labels:
            continue
        shapes |= {f"heads.{layer}.weight": [labels, size], f"heads.{layer}.bias": [labels]}
        shapes |= {f"statistics.{layer}.{part}": [size] for part in ("mean", "rstd")}
    assert {name: list(tensor.shape) for name, tensor in state.items()} == shapes
    assert all((tensor == 0).all() for name, tensor in state.items() if name.endswith(("up", "bias", "mean")))
    assert all((tensor == 1).all() for name, tensor in state.items() if name.endswith("rstd"))


def test_the_vectors_stay_small() -> None:
    assert sum(path.stat().st_size for path in BUNDLES.rglob("*") if path.is_file()) < 1_500_000
