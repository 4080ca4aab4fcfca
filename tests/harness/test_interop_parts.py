"""The parts of `chainfed interop`: proxy, journal reader, processes, and the command's own words."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import grpc
import numpy as np
import pytest

from chainfed.coordinator.app import in_background
from chainfed.core import cli
from chainfed.core.errors import BadInputError, ConflictError, InteropError, NotFoundError, UnreachableError
from chainfed.core.tensors import encode, sha256_hex
from chainfed.harness.client import Coordinator, device_id_of
from chainfed.harness.interop.case import Case, Stand
from chainfed.harness.interop.device_process import DeviceProcess
from chainfed.harness.interop.ground import Ground, difference
from chainfed.harness.interop.proxy import PIECE_BYTES, LostConnection, Meddler, Proxy
from chainfed.harness.interop.runner import CASES, choose, run_cases
from chainfed.harness.interop.state_folder import halve, parse_journal, read_journal
from chainfed.harness.interop.traffic import Call
from chainfed.harness.interop.trial import CaseFailed, NotSetUp
from chainfed.harness.journal import Journal
from chainfed.harness.transfer import BlobFolder
from chainfed.v1 import blob_pb2
from chainfed.v1 import device_service_pb2 as pb

BLOB = bytes(range(256)) * 2000


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """A coordinator that has one blob."""
    with in_background(tmp_path / "coordinator") as address:
        sha256 = sha256_hex(BLOB)
        path = tmp_path / "coordinator" / "blobs" / sha256[:2] / sha256[2:4] / sha256
        path.parent.mkdir(parents=True)
        path.write_bytes(BLOB)
        yield address


def fetch(proxy: Proxy, folder: Path, patience_seconds: float = 10.0) -> tuple[Path, int]:
    """Is a device that fetches the blob."""
    with Coordinator(proxy.address, patience_seconds) as coordinator:
        coordinator.enrol("key", "test")
        ref = blob_pb2.BlobRef(sha256=sha256_hex(BLOB), size_bytes=len(BLOB))
        return BlobFolder(folder).fetch(coordinator, ref, "a file")


def test_calls_pass_and_are_noted(address: str, tmp_path: Path) -> None:
    with Proxy(address, Meddler()) as proxy:
        path, received = fetch(proxy, tmp_path / "files")
    assert path.read_bytes() == BLOB
    assert received == len(BLOB)
    enrolment, download = proxy.traffic.calls
    assert (enrolment.method, enrolment.answer.device_id) == ("Enrol", device_id_of("key"))
    assert (download.method, download.num_bytes, download.ending) == ("FetchBlob", len(BLOB), "answered")


class CutOnce(Meddler):
    """Loses the connection within the piece after so many bytes."""

    def __init__(self, position: int) -> None:
        self.position: int | None = position

    async def piece(self, call: Call, position: int, data: bytes) -> bytes:
        if self.position is not None and position >= self.position:
            self.position = None
            await asyncio.sleep(0.2)
            self.proxy.relay.cut_after(len(data) // 2)
        return data


def test_a_connection_is_lost_within_a_message(address: str, tmp_path: Path) -> None:
    with Proxy(address, CutOnce(4 * PIECE_BYTES)) as proxy:
        path, _ = fetch(proxy, tmp_path / "files")
        assert proxy.relay.cuts == 1
    assert path.read_bytes() == BLOB
    first, second = proxy.traffic.of("FetchBlob")
    assert (first.ending, second.ending) == ("lost", "answered")
    assert second.request.offset == 4 * PIECE_BYTES


class Refusing(Meddler):
    """Refuses downloads, and loses the answers to enrolments for a while."""

    def __init__(self, lost: int) -> None:
        self.lost = lost

    async def request(self, call: Call) -> None:
        if call.method == "FetchBlob":
            raise ConflictError("not now")

    async def answer(self, call: Call, message: Any) -> Any:
        if call.method == "Enrol" and self.lost:
            self.lost -= 1
            raise LostConnection
        return message


def test_a_lost_answer_and_a_refusal_reach_the_device_as_such(address: str, tmp_path: Path) -> None:
    with Proxy(address, Refusing(lost=2)) as proxy, pytest.raises(ConflictError, match="not now"):
        fetch(proxy, tmp_path / "files")
    assert [call.ending for call in proxy.traffic.of("Enrol")] == ["lost", "lost", "answered"]
    assert [call.ending for call in proxy.traffic.of("FetchBlob")] == ["refused"]


def test_what_the_coordinator_refuses_is_refused(address: str) -> None:
    with Proxy(address, Meddler()) as proxy, Coordinator(proxy.address, 5) as coordinator:
        coordinator.device_id = device_id_of("nobody")
        with pytest.raises(NotFoundError):
            coordinator.check_in(0, 1, 0)


def test_a_coordinator_that_is_gone_is_a_lost_connection() -> None:
    with Proxy("127.0.0.1:9", Meddler()) as proxy, Coordinator(proxy.address, 1) as coordinator:
        with pytest.raises(UnreachableError):
            coordinator.enrol("key", "test")
        assert proxy.relay.cuts > 0
    assert {call.ending for call in proxy.traffic.calls} == {"lost"}


def test_a_journal_is_read_as_the_device_writes_it(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "work", {"assignment": "a"})
    records: list[dict[str, Any]] = [{"pass": [0, 1]}, {"pass": [0, 2]}, {"step": ["window", [1.5, 2.0]]}]
    for record in records:
        journal.append(record)
    journal.close()
    path = tmp_path / "work" / "journal"
    whole = read_journal(path)
    assert whole.data == path.read_bytes()
    assert whole.passes == [(0, 1), (0, 2)]
    assert whole.steps == {"window": 1}
    assert parse_journal(whole.data[:-1]).steps == {}
    assert parse_journal(whole.data.replace(b"1.5", b"1.6")).passes == whole.passes
    assert parse_journal(whole.data.replace(b"1.5", b"1.6")).steps == {}
    assert read_journal(tmp_path / "none").records == ()
    halve(path)
    assert path.stat().st_size == len(whole.data) // 2


def test_tensors_that_differ_are_named() -> None:
    expected = {"a": np.ones((2, 3), np.float32), "b": np.zeros(2, np.float32)}
    found = expected | {"a": expected["a"] + np.float32(0.25)}
    assert "1 of 2 tensors, by up to 0.25 in a" in difference(encode(found), encode(expected))
    assert "with other tensors: a" in difference(encode({"a": expected["a"]}), encode(expected))


def test_a_process_and_what_it_started_are_killed(tmp_path: Path) -> None:
    program = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"
    device = DeviceProcess([sys.executable, "-c", program], tmp_path / "device.err")
    assert device.exit_code is None
    begin = time.monotonic()
    device.kill()
    assert device.exit_code == -9
    assert time.monotonic() - begin < 9


@pytest.mark.parametrize(
    ("said", "is_traceback"),
    [
        ("Error: the bundle is bad.", False),
        ("Traceback (most recent call last):\n  File ...\nValueError", True),
        ('Exception in thread "main" java.lang.IllegalStateException', True),
        ("Error: x\n\tat ai.chainfed.Device.run(Device.kt:12)", True),
    ],
)
def test_insides_are_told_from_sentences(said: str, is_traceback: bool, tmp_path: Path) -> None:
    device = DeviceProcess([sys.executable, "-c", f"import sys; sys.stderr.write({said!r})"], tmp_path / "device.err")
    while device.exit_code is None:
        time.sleep(0.01)
    assert device.has_traceback == is_traceback
    assert device.last_line == said.splitlines()[-1].strip()


class NeverSetUp(Case):
    name = "NEVER_SET_UP"
    sentence = "Nothing comes about."

    def run(self, stand: Stand) -> list[str]:
        raise NotSetUp("the kill came too late")


class SetUpAtLast(NeverSetUp):
    attempts = 0

    def run(self, stand: Stand) -> list[str]:
        self.attempts += 1
        if self.attempts < 3:
            raise NotSetUp("the kill came too late")
        return ["something"]


class Fails(NeverSetUp):
    def run(self, stand: Stand) -> list[str]:
        raise CaseFailed("this", "that")


def test_a_disturbance_that_does_not_come_about_is_no_pass(tmp_path: Path) -> None:
    cases = [NeverSetUp(), SetUpAtLast(), Fails()]
    results = run_cases(cases, cast(Ground, None), ["device"], tmp_path, 1)
    assert [(result.passed, result.attempts) for result in results] == [(False, 3), (True, 3), (False, 1)]
    assert "in 3 attempts it did not: the kill came too late" in results[0].seen
    assert (results[2].expected, results[2].seen) == ("this", "that")


def run_command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.run(["interop", *arguments])
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    return code, said.out, said.err


def test_the_cases_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run_command(capsys, "--list")
    assert code == 0
    assert [line.split(maxsplit=1) for line in out.splitlines()] == [[case.name, case.sentence] for case in CASES]
    _, out, _ = run_command(capsys, "--list", "--json", "--case", "BAD_SHARD")
    assert [case["name"] for case in json.loads(out)["cases"]] == ["BAD_SHARD"]
    assert [case.name for case in choose(["STALE_ROUND", "DROP_MID_UPLOAD"])] == ["DROP_MID_UPLOAD", "STALE_ROUND"]


def test_every_case_says_what_it_is_about_in_one_line() -> None:
    for case in CASES:
        assert case.sentence.endswith(".")
        assert 40 < len(case.sentence) < 120


def test_bad_input_is_one_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    cases = [
        ("--case NOTHING is not one of the cases", ("--case", "NOTHING")),
        ("give --bundle and --data together", ("--bundle", str(tmp_path))),
        ("is no command", ("--device", "an 'open quote")),
        ("--device is empty", ("--device", " ")),
        ("cannot be made", ("--keep", str(tmp_path / "there"))),
    ]
    for sentence, arguments in cases:
        code, _, error = run_command(capsys, *arguments)
        assert (code, sentence in error) == (BadInputError.exit_code, True), error


def test_a_bundle_that_is_too_small_is_refused(tiny_data: Any, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = Path(__file__).parents[1] / "vectors/bundles/encoder/bundle"
    code, _, error = run_command(capsys, "--bundle", str(bundle), "--data", str(tiny_data.train))
    assert code == BadInputError.exit_code
    assert "needs 524288" in error


def test_data_of_too_few_batches_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = Path(__file__).parents[1] / "vectors/bundles/encoder/bundle"
    few = tmp_path / "few.jsonl"
    few.write_text('{"text": "a", "label": 0}\n' * 10)
    code, _, error = run_command(capsys, "--bundle", str(bundle), "--data", str(few))
    assert code == BadInputError.exit_code
    assert "The data leave 8 rows" in error


def test_a_device_that_cannot_be_started_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="cannot be started"):
        DeviceProcess([str(tmp_path / "none")], tmp_path / "device.err")


@pytest.mark.parametrize("as_json", [False, True])
def test_failed_cases_end_with_their_own_exit_code(
    as_json: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from chainfed.harness.cli import interop

    monkeypatch.setattr(interop, "prepare", lambda *arguments: None)
    monkeypatch.setattr(interop, "choose", lambda names: [SetUpAtLast(), Fails()])
    code, out, error = run_command(capsys, *(["--json"] if as_json else []))
    assert code == InteropError.exit_code
    assert "failed 1 of 2 cases" in error
    assert "expected this; seen: that" in error
    if as_json:
        result = json.loads(out)
        assert (result["passed"], result["failed"]) == (1, 1)
        assert [case["passed"] for case in result["cases"]] == [True, False]
        assert result["cases"][1]["expected"] == "this"
    else:
        assert "failed" in out


def test_grpc_knows_every_method(address: str) -> None:
    """A proxy that lacked a method would fail every device."""
    with Proxy(address, Meddler()) as proxy, grpc.insecure_channel(proxy.address) as channel:
        for method in pb.DESCRIPTOR.services_by_name["DeviceService"].methods:
            if method.server_streaming or method.client_streaming:
                continue
            call = channel.unary_unary(f"/chainfed.v1.DeviceService/{method.name}")
            with pytest.raises(grpc.RpcError) as refused:
                call(b"", timeout=10)
            assert refused.value.code() is not grpc.StatusCode.UNIMPLEMENTED
