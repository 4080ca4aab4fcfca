"""The whole chain: a bundle, a coordinator process, device processes on the real runtime, and what comes out."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest

from chainfed.core import cli
from chainfed.core.manifest import Bundle
from chainfed.core.tensors import check_shapes, decode
from chainfed.harness import emulate as emulation
from chainfed.harness.emulate import EmulationResult, emulate
from chainfed.v1 import run_service_pb2 as pb


@pytest.fixture(scope="session")
def undisturbed(make_settings) -> EmulationResult:
    """A federation that nobody disturbs."""
    return emulate(make_settings())


def read_events(result: EmulationResult) -> list[dict]:
    return [json.loads(line) for line in (result.folder / "events.jsonl").read_text().splitlines()]


def test_the_chain_learns(undisturbed: EmulationResult) -> None:
    assert undisturbed.rounds == 3
    assert undisturbed.window_size == 2
    assert undisturbed.accuracy.after > undisturbed.accuracy.before + 0.1
    assert undisturbed.restarts == 0
    assert 0 < undisturbed.bytes_up < undisturbed.bytes_down


def test_only_adapters_in_windows_and_heads_change(undisturbed: EmulationResult, tiny_bundle: Bundle) -> None:
    before = decode(tiny_bundle.path("adapters.safetensors").read_bytes(), "the initial state")
    after = decode(undisturbed.adapters.read_bytes(), "the checkpoint")
    check_shapes(after, tiny_bundle.manifest.state_shapes(), "the checkpoint")
    assert all(np.isfinite(tensor).all() for tensor in after.values())
    changed = {name for name in after if not np.array_equal(before[name], after[name])}
    start = undisturbed.foat_start
    trained = range(start, tiny_bundle.manifest.model.num_layers)
    assert {name for name in changed if name.startswith("adapters.")} == {
        f"adapters.{layer}.{part}" for layer in trained for part in ("down", "up")
    }


def test_the_run_folder_tells_the_story(undisturbed: EmulationResult) -> None:
    events = read_events(undisturbed)
    assert [event["sequence"] for event in events] == list(range(len(events)))
    closed = [event["round_closed"]["round"] for event in events if "round_closed" in event]
    trained = [entry for entry in closed if entry["kind"] == "TRAIN"]
    starts = [entry["first_layer"] for entry in trained]
    positions = 3 - 2 - undisturbed.foat_start + 1
    assert starts == [undisturbed.foat_start + (number - 3) % positions for number in range(3)]
    assert (undisturbed.folder / "run.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (undisturbed.folder / "run.svg").read_text()
    stored = json.loads((undisturbed.folder / "result.json").read_text())
    assert stored["adapters_sha256"] == undisturbed.adapters_sha256
    for key in ("accuracy", "foat_scores", "bytes_up", "bytes_down", "device_peak_anon_mb", "planned_mb", "seconds"):
        assert key in stored


def test_killed_coordinator_and_device_change_nothing(
    undisturbed: EmulationResult, make_settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes: dict[str, object] = {}
    for name in ("CoordinatorProcess", "DeviceFleet"):
        original = getattr(emulation, name)

        def remember(*arguments, original=original, name=name):
            processes[name] = original(*arguments)
            return processes[name]

        monkeypatch.setattr(emulation, name, remember)
    trained: list[int] = []

    def disturb(event: pb.WatchRunResponse) -> None:
        if event.WhichOneof("event") != "round_opened" or event.round_opened.kind != pb.ROUND_KIND_TRAIN:
            return
        trained.append(event.round_opened.number)
        if len(trained) == 1:
            os.kill(processes["CoordinatorProcess"].pid, signal.SIGKILL)
        if len(trained) == 2:
            for delay, pid in enumerate(processes["DeviceFleet"].pids):
                threading.Timer(0.15 * delay, os.kill, (pid, signal.SIGKILL)).start()

    disturbed = emulate(make_settings(), disturb)
    assert len(trained) == 3
    assert disturbed.restarts >= 3
    assert disturbed.adapters_sha256 == undisturbed.adapters_sha256
    assert disturbed.accuracy == undisturbed.accuracy


def run_cli(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    code = cli.run([str(argument) for argument in arguments])
    return code, capsys.readouterr().err


def test_bad_input_is_one_sentence(
    tiny_bundle: Bundle, tiny_data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ("--train", tiny_data.train, "--test", tiny_data.test)
    bundle = tiny_bundle.folder
    (tmp_path / "exists").mkdir()
    unlabelled = tmp_path / "unlabelled.jsonl"
    unlabelled.write_text('{"text": "a"}\n')
    cases = [
        (3, "is neither a number of layers nor `auto`", (bundle, *data, "--window", "three")),
        (3, "write `iid` or `dirichlet:A`", (bundle, *data, "--partition", "some")),
        (3, "is no list of megabytes", (bundle, *data, "--memory-mb", "64;128")),
        (3, "exists already", (bundle, *data, "--out", tmp_path / "exists")),
        (3, "does not exist", (bundle, "--train", tmp_path / "none.jsonl", "--test", tiny_data.test)),
        (3, "line 1 has no `label`", (bundle, "--train", unlabelled, "--test", tiny_data.test)),
        (5, "is no bundle", (tmp_path / "exists", *data)),
        (9, "MB", (bundle, *data, "--memory-mb", "0.01")),
    ]
    for number, (code, sentence, arguments) in enumerate(cases):
        out = () if "--out" in arguments else ("--out", tmp_path / f"run-{number}")
        found, error = run_cli(capsys, "emulate", *arguments, *out)
        assert (found, sentence in error) == (code, True), error
        assert "Traceback" not in error
