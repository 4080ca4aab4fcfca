"""Holding programs against PyTorch: a good bundle passes, a wrong program and values that are not finite do not."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch

from chainfed.core.errors import BundleError
from chainfed.core.examples import Example
from chainfed.core.manifest import Bundle, layer_file
from chainfed.core.tensors import sha256_hex
from chainfed.toolchain.reference import Reference
from chainfed.toolchain.verify import counted, relative_error, settings_of, verify_bundle
from chainfed.toolchain.verify_cases import Case, Cases, classified_rows


@pytest.fixture
def spoil(tiny_bundle: Bundle, tmp_path: Path) -> Callable[[Callable[[Path], object]], Bundle]:
    """A copy of the tiny bundle after a change to its files, with the manifest's hashes brought up to date."""

    def spoil_with(change: Callable[[Path], object]) -> Bundle:
        folder = Path(shutil.copytree(tiny_bundle.folder, tmp_path / "bundle"))
        change(folder)
        manifest = json.loads((folder / "manifest.json").read_text())
        for name in manifest["files"]:
            data = (folder / name).read_bytes()
            manifest["files"][name] = {"bytes": len(data), "sha256": sha256_hex(data)}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return Bundle(folder)

    return spoil_with


def test_every_program_agrees_with_eager(tiny_bundle: Bundle, tiny_data: object) -> None:
    seen: list[str] = []
    verification = verify_bundle(
        tiny_bundle, on_progress=lambda step, done, total: seen.append(f"{done}/{total} {step}")
    )
    assert verification.ok
    assert set(verification.programs) == set(tiny_bundle.manifest.programs)
    for report in verification.programs.values():
        assert 0 < report.max_error < 1e-5
        assert report.time_ratio > 0
    total = sum(report.cases for report in verification.programs.values())
    assert seen[-1].startswith(f"{total - 1}/{total} ")


def test_windows_are_compared_at_every_place_with_full_and_partial_batches(tiny_bundle: Bundle) -> None:
    examples = [Example("the cat", 0), Example("a pump", 2)]
    cases = list(Cases(tiny_bundle, Reference(settings_of(tiny_bundle)), classified_rows(tiny_bundle, examples)))
    first_layers = {case.description.split(",")[0] for case in cases if case.program == "window_q1"}
    assert first_layers == {"layers 0 to 0", "layers 1 to 1", "layers 2 to 2 (final stage)"}
    assert {case.rows for case in cases if case.program == "window_q2"} == {2, 4}
    assert {case.steps for case in cases if case.program.startswith("window")} == {3}
    final = next(case for case in cases if case.description.startswith("layers 2 to 2"))
    _assert_final_stage(final)


def _assert_final_stage(case: Case) -> None:
    assert case.inputs["global_loss_weight"] == 0
    assert case.inputs["final_head_lr"] == 0
    assert not case.inputs["aux.up"].any()
    assert torch.equal(case.inputs["trainable.local_head.weight"], case.inputs["trainable.final_head.weight"])


def test_a_program_that_does_something_else_is_found(spoil: Callable[..., Bundle]) -> None:
    def other_decay(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["optimizer"]["max_grad_norm"] = 1e-3
        manifest["optimizer"]["eps"] = 1e-2
        (folder / "manifest.json").write_text(json.dumps(manifest))

    verification = verify_bundle(spoil(other_decay))
    assert not verification.ok
    wrong = {name for name, report in verification.programs.items() if report.max_error > 1e-4}
    assert wrong == {"head", "window_q1", "window_q2", "window_q3"}
    assert "step " in verification.programs["window_q1"].worst


def test_values_that_are_not_finite_fail_even_when_both_sides_have_them(spoil: Callable[..., Bundle]) -> None:
    def not_a_number(folder: Path) -> None:
        path = folder / layer_file(1)
        tensors = safetensors.numpy.load_file(path)
        tensors["output.dense.bias"][0] = np.nan
        safetensors.numpy.save_file(tensors, path)

    verification = verify_bundle(spoil(not_a_number))
    assert not verification.ok
    assert math.isinf(verification.programs["block"].max_error)
    assert verification.programs["embed"].max_error < 1e-5


def test_a_changed_file_is_found_before_anything_runs(tiny_bundle: Bundle, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bundle.folder, tmp_path / "bundle"))
    path = folder / layer_file(0)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match="does not have the SHA-256"):
        verify_bundle(Bundle(folder))


def test_programs_of_another_version_are_refused(spoil: Callable[..., Bundle]) -> None:
    def rename_input(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["programs"]["pool"]["inputs"][0]["name"] = "hidden"
        (folder / "manifest.json").write_text(json.dumps(manifest))

    with pytest.raises(BundleError, match="tensors of program pool are not those of this ChainFed"):
        verify_bundle(spoil(rename_input))


def test_errors_are_relative_above_one_and_absolute_below() -> None:
    assert relative_error(torch.tensor([0.5]), torch.tensor([0.25])) == 0.25
    assert relative_error(torch.tensor([8.0]), torch.tensor([4.0])) == 1.0
    assert math.isinf(relative_error(torch.tensor([math.nan]), torch.tensor([math.nan])))
    assert math.isinf(relative_error(torch.zeros(2), torch.zeros(3)))


def test_hidden_states_count_where_there_is_a_token_and_must_be_finite_everywhere() -> None:
    mask = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 1.0]])
    case = Case("block", "anywhere", {"mask": mask}, rows=2)
    wanted = torch.ones(3, 2, 4)
    for row, position, counts in ((0, 0, True), (0, 1, False), (1, 1, True), (2, 0, False)):
        found = wanted.clone()
        found[row, position] += 0.5
        error = relative_error(counted(case, "h", found), counted(case, "h", wanted))
        assert error == (0.5 if counts else 0.0), (row, position)
    found = wanted.clone()
    found[0, 1] = math.nan
    assert relative_error(counted(case, "h", found), wanted) == math.inf
