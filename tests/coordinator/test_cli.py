"""`chainfed coordinator` and `chainfed run`: what they print, and each bad input with its sentence and exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from chainfed.coordinator.cli.coordinator import command as coordinator_command
from chainfed.coordinator.cli.run import command as run_command
from chainfed.core.cli import run
from chainfed.core.manifest import Bundle
from chainfed.core.tensors import sha256_hex
from tests.coordinator.conftest import FakeDevice, living, make_bundle


@pytest.fixture(autouse=True)
def coordinator_of_this_test(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "address" in request.fixturenames:
        monkeypatch.setenv("CHAINFED_COORDINATOR", request.getfixturevalue("address"))


def said(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    """Runs `chainfed run ...`; what it printed on standard output."""
    assert run(["run", *arguments]) == code
    return capsys.readouterr().out


def result(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """The one JSON object that it printed."""
    value: dict[str, Any] = json.loads(said(capsys, *arguments, "--json"))
    return value


def test_a_run_from_creation_to_checkpoint(
    capsys: pytest.CaptureFixture[str], bundle: Bundle, address: str, tmp_path: Path
) -> None:
    created = result(
        capsys, "create", str(bundle.folder), "--name", "first", "--rounds", "2", "--per-round", "2", "--window", "1"
    )
    run_id = created["run_id"]
    assert (created["state"], created["name"], created["config"]["min_devices"]) == ("CREATED", "first", 2)
    assert result(capsys, "start", run_id)["state"] == "PROFILING"
    assert result(capsys, "pause", run_id)["state"] == "PAUSED"
    assert result(capsys, "resume", run_id)["state"] == "PROFILING"
    with living(*(FakeDevice(address, f"device {index}") for index in range(2))):
        lines = said(capsys, "watch", run_id, "--json").splitlines()
    events = [json.loads(line) for line in lines]
    assert events[0]["state_changed"]["to"] == "PROFILING"
    assert events[-1]["state"] == "COMPLETED"
    text = said(capsys, "watch", run_id, "--from", "3")
    assert "opened round 0 (profile): 0 of 2 devices reported" in text
    assert "FOAT scores 0.950 0.700" in text
    target = tmp_path / "tuned.safetensors"
    fetched = result(capsys, "checkpoint", run_id, "--out", str(target))
    assert (
        fetched["sha256"] == sha256_hex(target.read_bytes()) == result(capsys, "show", run_id)["checkpoint"]["sha256"]
    )
    assert result(capsys, "checkpoint", run_id, "--out", str(target), "--round", "1")["sha256"] != fetched["sha256"]
    shown = said(capsys, "show", run_id)
    assert "2 of 2" in shown
    assert "accuracy after 2" in shown
    assert run_id in said(capsys, "list")
    assert [each["run_id"] for each in result(capsys, "list")["runs"]] == [run_id]


def test_a_failed_run_gives_its_code_and_reason(
    capsys: pytest.CaptureFixture[str], bundle: Bundle, address: str
) -> None:
    run_id = result(capsys, "create", str(bundle.folder), "--per-round", "1", "--start")["run_id"]
    with living(FakeDevice(address, "small", budget=1000)):
        assert run(["run", "watch", run_id]) == 10
    captured = capsys.readouterr()
    assert "FAILED: The largest memory budget" in captured.out
    assert "at least 1000000 bytes" in captured.err


def test_a_cancelled_run(capsys: pytest.CaptureFixture[str], bundle: Bundle, address: str) -> None:
    run_id = result(capsys, "create", str(bundle.folder))["run_id"]
    assert result(capsys, "cancel", run_id)["state"] == "CANCELLED"
    assert "CANCELLED: cancelled by the operator" in said(capsys, "watch", run_id)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["create", "BUNDLE", "--window", "many"], 3, "--window is 'many', but must be auto or a number"),
        (["create", "BUNDLE", "--window", "4"], 3, "programs for 1, 2, 3"),
        (["create", "BUNDLE", "--rounds", "0"], 3, "rounds is 0"),
        (["create", "BUNDLE", "--rounds", "-1"], 3, "--rounds is -1, which is out of range"),
        (["create", "BUNDLE", "--foat-threshold", "2"], 3, "foat_threshold is 2"),
        (["create", "nowhere"], 5, "is no bundle"),
        (["create", "NEWER"], 5, "format version 99"),
        (["show", "0123456789ab"], 12, "does not exist"),
        (["show", "nonsense"], 3, "12 lower-case hexadecimal digits"),
        (["start"], 2, "Missing argument 'RUN'"),
        (["show", "0123456789ab", "--coordinator", "127.0.0.1:1"], 7, "No coordinator answers at 127.0.0.1:1"),
    ],
)
def test_bad_input_is_one_sentence(
    capsys: pytest.CaptureFixture[str],
    bundle: Bundle,
    address: str,
    tmp_path: Path,
    arguments: list[str],
    code: int,
    words: str,
) -> None:
    newer = make_bundle(tmp_path / "newer").folder / "manifest.json"
    newer.write_text(newer.read_text().replace('"format_version": 1', '"format_version": 99'))
    places = {"BUNDLE": str(bundle.folder), "NEWER": str(newer.parent)}
    assert run(["run", *(places.get(argument, argument) for argument in arguments)]) == code
    captured = capsys.readouterr()
    assert words in " ".join(captured.err.split())
    assert "Traceback" not in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--listen", "0.0.0.0:0"], 3, "listen on 127.0.0.1, or give --insecure-listen"),
        (["--listen", "nonsense"], 3, "is not HOST:PORT"),
        (["--listen", "127.0.0.1:70000"], 3, "port of 0 to 65535"),
        (["--listen", "PORT"], 8, "another process holds the port"),
        (["--state", "TAKEN", "--listen", "127.0.0.1:0"], 8, "in use by another coordinator"),
    ],
)
def test_a_coordinator_that_cannot_start_says_why(
    capsys: pytest.CaptureFixture[str], address: str, tmp_path: Path, arguments: list[str], code: int, words: str
) -> None:
    places = {"PORT": address, "TAKEN": str(tmp_path / "state")}
    given = [places.get(argument, argument) for argument in arguments]
    state = [] if "--state" in given else ["--state", str(tmp_path / "fresh")]
    assert run(["coordinator", *state, *given]) == code
    assert words in " ".join(capsys.readouterr().err.split())


def test_every_command_ends_its_help_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["coordinator", "--help"]) == 0
    assert "Example: chainfed coordinator" in capsys.readouterr().out
    for name in run_command.commands:
        assert run(["run", name, "--help"]) == 0
        assert "Example: chainfed run" in capsys.readouterr().out
    assert coordinator_command.params
