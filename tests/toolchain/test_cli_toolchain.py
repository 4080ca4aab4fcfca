"""The toolchain's commands: results on standard output, one sentence and an exit code for what is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from chainfed.core.cli import run
from chainfed.core.errors import BadInputError, BundleError, ModelError, VerificationError
from chainfed.core.manifest import Bundle, layer_file
from chainfed.core.tensors import encode


def _run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error, each on one line."""
    code = run([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, " ".join(captured.err.split())


@pytest.fixture
def copy(tiny_bundle: Bundle, tmp_path: Path) -> Path:
    """A copy of the tiny bundle to spoil."""
    return Path(shutil.copytree(tiny_bundle.folder, tmp_path / "copy"))


_EXPORT = ("--labels", "3", "--seq-len", "16", "--batch-size", "4", "--adapter-dim", "8", "--windows", "1,2,3")


def test_export_inspect_verify_evaluate_and_merge_speak_json(
    tiny_model: Path, tiny_bundle: Bundle, tiny_data: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, merged = tmp_path / "bundle", tmp_path / "merged"
    exported = _json(capsys, "export", tiny_model, "--task", "classification", *_EXPORT, "--out", bundle)
    assert exported["manifest_sha256"] == Bundle(bundle).manifest_sha256
    inspected = _json(capsys, "inspect", bundle)
    assert inspected["windows"]["2"]["anonymous_bytes"] == tiny_bundle.manifest.windows[2].anonymous_bytes
    verified = _json(capsys, "verify", bundle, "--data", tiny_data.test)
    assert verified["ok"] is True
    assert verified["tolerance"] == 1e-4
    assert verified["programs"]["window_q2"]["max_error"] < 1e-4
    assert verified["programs"]["window_q2"]["time_ratio"] > 0
    evaluated = _json(capsys, "evaluate", bundle, "--data", tiny_data.test)
    assert set(evaluated) == {"accuracy", "loss", "examples"}
    _json(capsys, "merge", bundle, "--adapters", bundle / "adapters.safetensors", "--out", merged)
    assert (merged / "modeling_chainfed.py").is_file()


def _json(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    code, out, err = _run(capsys, *arguments, "--json")
    assert code == 0, err
    result: dict[str, Any] = json.loads(out)
    assert out.count("\n") == 1
    return result


def test_people_get_tables(tiny_bundle: Bundle, tiny_data: Any, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = _run(capsys, "inspect", tiny_bundle.folder)
    assert code == 0
    assert "window_q3" in out
    assert "The weights of the full model alone would take 0.1 MB" in " ".join(out.split())
    code, out, err = _run(capsys, "verify", tiny_bundle.folder)
    assert code == 0
    assert "largest error" in out
    assert "All 8 programs agree with PyTorch" in err
    code, out, _ = _run(capsys, "evaluate", tiny_bundle.folder, "--data", tiny_data.test)
    assert code == 0
    assert "on 60 examples" in out


@pytest.mark.parametrize("command", ["export", "inspect", "verify", "evaluate", "merge"])
def test_every_command_helps_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = _run(capsys, command, "--help")
    assert code == 0
    assert f"Example: chainfed {command} " in out


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        (("--labels", "labels.json"), BadInputError, "--labels labels.json is neither a number nor a file"),
        (
            ("--labels", "3", "--seq-len", "16", "--windows", "1,4"),
            BadInputError,
            "has 3 layers, so a window size lies between 1 and 3",
        ),
        (("--labels", "3", "--windows", "one"), BadInputError, "--windows 'one' is no list of numbers"),
        (("--labels", "3", "--seq-len", "64"), ModelError, "has 32 positions, fewer than --seq-len 64"),
    ],
)
def test_export_refuses_settings_that_do_not_fit(
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: Sequence[str],
    error: type[BadInputError] | type[ModelError],
    sentence: str,
) -> None:
    code, out, err = _run(capsys, "export", tiny_model, *arguments, "--out", tmp_path / "bundle")
    assert (code, out) == (error.exit_code, "")
    assert sentence in err
    assert not (tmp_path / "bundle").exists()


def test_export_refuses_what_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = _run(capsys, "export", tmp_path, "--labels", "3", "--out", tmp_path / "bundle")
    assert code == ModelError.exit_code
    assert err.startswith("Error:")
    assert "is no model: it has no config.json. Give a Hugging Face model folder." in err


def test_a_truncated_shard_is_named(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = copy / layer_file(1)
    path.write_bytes(path.read_bytes()[:100])
    code, _, err = _run(capsys, "inspect", copy)
    assert code == BundleError.exit_code
    assert "layer_01.safetensors has 100 bytes, the manifest says" in err


def test_a_wrong_hash_is_named(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"]["programs/pool.pte"]["sha256"] = "0" * 64
    (copy / "manifest.json").write_text(json.dumps(manifest))
    code, _, err = _run(capsys, "verify", copy)
    assert code == BundleError.exit_code
    assert "pool.pte does not have the SHA-256 that the manifest names" in err


def test_a_newer_version_is_refused(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | {"format_version": 2}))
    code, _, err = _run(capsys, "inspect", copy)
    assert code == BundleError.exit_code
    assert "has bundle format version 2, but this ChainFed reads up to 1; install a newer ChainFed" in err


def test_adapters_of_another_model_are_refused(
    tiny_bundle: Bundle, tiny_data: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "adapters").write_bytes(encode({}))
    arguments = ("evaluate", tiny_bundle.folder, "--adapters", tmp_path / "adapters", "--data", tiny_data.test)
    code, _, err = _run(capsys, *arguments)
    assert code == BundleError.exit_code
    assert "it was made for another model or task" in err


def test_programs_that_disagree_end_with_their_own_exit_code(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["optimizer"]["weight_decay"] = 1.0
    manifest["optimizer"]["eps"] = 0.5
    (copy / "manifest.json").write_text(json.dumps(manifest))
    code, out, err = _run(capsys, "verify", copy, "--json")
    assert code == VerificationError.exit_code
    assert json.loads(out)["ok"] is False
    assert "differ from PyTorch by more than 0.0001" in err
