"""A device at a coordinator that speaks TLS, asks for a token and holds it to its key."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chainfed.coordinator.app import in_background
from chainfed.core import cli
from chainfed.core.errors import BadInputError, UnauthorizedError, UnreachableError
from chainfed.core.manifest import Bundle
from chainfed.core.signing import PublicKey, SigningKey, evaluation_text, profile_text, update_text
from chainfed.core.tensors import sha256_hex
from chainfed.core.transport import Transport
from chainfed.harness.client import Coordinator
from chainfed.harness.device import DeviceEvent, DeviceSettings, run_device
from chainfed.harness.outcome import EvaluationOutcome
from chainfed.harness.storage import DeviceStorage
from chainfed.harness.transfer import upload
from chainfed.v1 import device_service_pb2 as pb
from tests.admission import TOKEN, guarded_coordinator, rows, started
from tests.certificates import Authority

WORK = "a" * 32


@pytest.fixture(autouse=True)
def nothing_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CHAINFED_CA", "CHAINFED_ENROLMENT_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def ca(authority: Authority, tmp_path: Path) -> Path:
    return authority.write(tmp_path / "ca.pem")


@pytest.fixture
def guarded(authority: Authority, tmp_path: Path) -> Iterator[str]:
    with guarded_coordinator(authority, tmp_path) as address:
        yield address


def test_the_whole_way_with_tls_token_and_signatures_gives_the_same_bytes(
    guarded: str,
    authority: Authority,
    ca: Path,
    tiny_bundle: Bundle,
    tiny_data: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("CHAINFED_ENROLMENT_TOKEN", TOKEN)
    data = ["--key", "the device", *rows(tiny_data, tmp_path), "--json"]
    with started(guarded, tiny_bundle, Transport(True, authority.pem)) as (operator, run_id):
        command = ["device", "--coordinator", guarded, "--ca", str(ca), "--state", str(tmp_path / "signs"), *data]
        assert cli.run(command) == 0
        signed = operator.checkpoint(run_id)
    assert set(json.loads(capsys.readouterr().out)["assignments"]) == {"profile", "warmup", "train", "evaluate"}
    monkeypatch.setattr(DeviceStorage, "signing_key", lambda storage: None)
    with (
        in_background(tmp_path / "plain") as address,
        started(address, tiny_bundle) as (operator, run_id),
    ):
        assert cli.run(["device", "--coordinator", address, "--state", str(tmp_path / "does-not"), *data]) == 0
        assert sha256_hex(operator.checkpoint(run_id)) == sha256_hex(signed)
    assert not (tmp_path / "does-not" / "device-key.pem").exists()


def test_a_device_keeps_the_key_of_its_first_enrolment(tmp_path: Path) -> None:
    with DeviceStorage(tmp_path, None) as storage:
        first = storage.signing_key().public_key
    path = tmp_path / "device-key.pem"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with DeviceStorage(tmp_path, None) as storage:
        assert storage.signing_key().public_key == first
        path.write_text("another file")
        with pytest.raises(BadInputError, match="put the device's own key back"):
            storage.signing_key()


def test_without_the_token_a_device_ends_with_a_sentence(
    guarded: str, ca: Path, tiny_data: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["device", "--coordinator", guarded, "--state", str(tmp_path / "device"), *rows(tiny_data, tmp_path)]
    for token in ([], ["--enrolment-token", "autumn"]):
        assert cli.run([*command, "--ca", str(ca), *token]) == 17
        said = " ".join(capsys.readouterr().err.split())
        assert said.startswith("Error: This coordinator admits a new device only with a valid enrolment token")
        assert "Traceback" not in said


def test_a_known_device_comes_back_without_the_token(guarded: str, authority: Authority, tmp_path: Path) -> None:
    transport = Transport(True, authority.pem)
    key = SigningKey.kept(tmp_path / "key.pem")
    with Coordinator(guarded, 5, transport=transport, signing_key=key) as client:
        known = client.enrol("the device", "test", TOKEN)
    with Coordinator(guarded, 5, transport=transport, signing_key=key) as client:
        assert client.enrol("the device", "test") == known
    other = SigningKey.kept(tmp_path / "other.pem")
    with (
        Coordinator(guarded, 5, transport=transport, signing_key=other) as client,
        pytest.raises(UnauthorizedError, match="another public key before"),
    ):
        client.enrol("the device", "test", TOKEN)


def test_another_authority_is_named_at_once_and_in_the_end(guarded: str) -> None:
    heard: list[str] = []
    transport = Transport(True, Authority("another").pem)
    with (
        Coordinator(guarded, 0.5, heard.append, transport) as client,
        pytest.raises(UnreachableError, match=r"no valid certificate for that name .* trusted here"),
    ):
        client.enrol("the device", "test", TOKEN)
    assert len(heard) == 1
    assert "no valid certificate for that name" in heard[0]


def test_the_command_says_whom_it_does_not_trust(
    guarded: str, tiny_data: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = Authority("another").write(tmp_path / "wrong.pem")
    device = ["device", "--state", str(tmp_path / "device"), "--patience", "0.3", *rows(tiny_data, tmp_path)]
    for options, code, words in (
        (["--coordinator", guarded, "--ca", str(wrong)], 7, "no valid certificate for that name"),
        (["--coordinator", guarded, "--tls"], 7, "no valid certificate for that name"),
        (["--coordinator", guarded], 7, "closed the connection"),
        (["--coordinator", guarded, "--tls", "--insecure"], 3, "give only one of them"),
        (["--coordinator", guarded, "--ca", str(tmp_path / "none")], 3, "cannot be read"),
    ):
        assert cli.run([*device, *options]) == code
        said = " ".join(capsys.readouterr().err.split())
        assert words in said
        assert said.count("Error:") == 1
        assert "Traceback" not in said


class Recorder:
    """Stands in for the stub of a coordinator: keeps what it is sent."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def QueryUpload(self, request: Any, timeout: float) -> pb.QueryUploadResponse:  # noqa: N802
        return pb.QueryUploadResponse()

    def SubmitUpdate(self, requests: Iterator[Any], timeout: float) -> pb.SubmitUpdateResponse:  # noqa: N802
        self.sent.append(next(requests).header)
        assert b"".join(part.chunk for part in requests)
        return pb.SubmitUpdateResponse(counted=True)

    def SubmitProfile(self, request: Any, timeout: float) -> pb.SubmitProfileResponse:  # noqa: N802
        self.sent.append(request)
        return pb.SubmitProfileResponse()

    def SubmitEvaluation(self, request: Any, timeout: float) -> pb.SubmitEvaluationResponse:  # noqa: N802
        self.sent.append(request)
        return pb.SubmitEvaluationResponse()


@pytest.mark.parametrize("signs", [True, False])
def test_everything_that_is_handed_in_is_signed(tmp_path: Path, signs: bool) -> None:
    key = SigningKey.kept(tmp_path / "key.pem")
    path = tmp_path / "update"
    path.write_bytes(b"tensors")
    recorder = Recorder()
    with Coordinator("127.0.0.1:9", 1, signing_key=key if signs else None) as client:
        client.stub = recorder  # type: ignore[assignment]
        upload(client, WORK, path, sha256_hex(b"tensors"), pb.UpdateMetrics(num_examples=7))
        client.submit_profile(WORK, 7, (1.0, 1 / 3), b"statistics")
        client.submit_evaluation(WORK, EvaluationOutcome(9, 4, 0.1))
    texts = (
        update_text(WORK, sha256_hex(b"tensors"), 7),
        profile_text(WORK, sha256_hex(b"statistics"), 7, (1.0, 1 / 3)),
        evaluation_text(WORK, 9, 4, 0.1),
    )
    assert len(recorder.sent) == 3
    for message, text in zip(recorder.sent, texts, strict=True):
        assert PublicKey(key.public_key).verifies(message.signature, text) is signs
        assert bool(message.signature) is signs


def test_a_device_whose_signature_is_refused_gives_the_work_back_and_ends(
    tiny_bundle: Bundle, tiny_data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SigningKey, "sign", lambda key, text: b"no signature")
    events: list[DeviceEvent] = []
    files = dict(zip(("train_file", "test_file"), map(Path, rows(tiny_data, tmp_path)[1::2]), strict=True))
    with in_background(tmp_path / "state") as address, started(address, tiny_bundle) as (operator, run_id):
        with pytest.raises(UnauthorizedError, match="not that of device"):
            run_device(DeviceSettings(address, tmp_path / "device", **files), on_event=events.append)
        assert [event.kind for event in events][-1] == "abandoned"
        operator.cancel(run_id)
        failed = [event.device_failed for event in operator.watch(run_id) if event.HasField("device_failed")]
    assert [each.reason for each in failed] == [pb.ABANDON_REASON_INTERNAL]
    assert "signature" in failed[0].detail
