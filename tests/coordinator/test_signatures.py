"""A device that enrolled with a public key signs what it hands in; whatever else comes in its name changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chainfed.coordinator.client import OperatorClient
from chainfed.core.errors import BadInputError, UnauthorizedError
from chainfed.core.manifest import Bundle
from chainfed.core.signing import SigningKey, evaluation_text, profile_text, update_text
from chainfed.core.tensors import encode, sha256_hex
from chainfed.v1 import device_service_pb2 as pb
from chainfed.v1 import run_service_pb2 as run_pb
from tests.coordinator.conftest import FakeDevice, config, living, raised

OTHER_WORK = "f" * 32


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    return SigningKey.kept(tmp_path / "device-key.pem")


@pytest.fixture
def another_key(tmp_path: Path) -> SigningKey:
    return SigningKey.kept(tmp_path / "another-key.pem")


@pytest.fixture
def device(address: str, key: SigningKey) -> FakeDevice:
    return FakeDevice(address, "the device", signing_key=key)


def begin(operator: OperatorClient, bundle: Bundle) -> str:
    settings = config(devices_per_round=1, min_devices=1, rounds=1, warmup_rounds=0)
    return operator.start(operator.create(bundle, settings).run_id).run_id


def reach(device: FakeDevice, task: str) -> pb.Assignment:
    while (assignment := device.assignment()).WhichOneof("task") != task:
        device.work(assignment)
    return assignment


def require_refused(device: FakeDevice, assignment: pb.Assignment, submit: Callable[[bytes], Any], good: bytes) -> None:
    """Hands in with signatures that are not the device's; the assignment stays open after each."""
    bad = {
        b"": "is missing",
        b"x": "not that of",
        good[:-1] + bytes([good[-1] ^ 1]): "not that of",
        good + b"\0": "not that of",
    }
    for signature, words in bad.items():
        with raised(UnauthorizedError) as found:
            submit(signature)
        found.match(words)
        assert device.assignment() == assignment


def finish(device: FakeDevice, operator: OperatorClient, run_id: str) -> None:
    """The run ends well, and nobody failed in it."""
    with living(device):
        events = list(operator.watch(run_id))
    assert operator.get(run_id).state == run_pb.RUN_STATE_COMPLETED
    assert not any(event.HasField("device_failed") for event in events)


def test_a_run_of_a_device_that_signs(device: FakeDevice, operator: OperatorClient, bundle: Bundle) -> None:
    run_id = begin(operator, bundle)
    finish(device, operator, run_id)
    assert {assignment.WhichOneof("task") for assignment in device.seen} == {"profile", "train", "evaluate"}


def test_a_forged_update_does_not_count(
    device: FakeDevice, another_key: SigningKey, operator: OperatorClient, bundle: Bundle
) -> None:
    run_id = begin(operator, bundle)
    assignment = reach(device, "train")
    data, forged = encode(device.draw(assignment)), encode({"adapters.2.down": np.zeros(3, np.float32)})
    mine, digest = assignment.assignment_id, sha256_hex(data)
    good = device.sign(update_text(mine, digest, device.num_train))
    require_refused(device, assignment, lambda signature: device.submit(assignment, data, signature=signature), good)
    others = {
        "another key": another_key.sign(update_text(mine, digest, device.num_train)),
        "another assignment": device.sign(update_text(OTHER_WORK, digest, device.num_train)),
        "another weight": device.sign(update_text(mine, digest, device.num_train + 1)),
        "another kind": device.sign(evaluation_text(mine, device.num_test, 2, 1.5)),
    }
    for why, signature in others.items():
        with raised(UnauthorizedError):
            device.submit(assignment, data, signature=signature)
        assert device.query(assignment, data).received_bytes == 0, why
    with raised(UnauthorizedError):
        device.submit(assignment, forged, signature=good)
    before = operator.get(run_id).bytes_up
    assert device.submit(assignment, data, signature=good)
    with raised(UnauthorizedError):
        device.submit(assignment, forged, signature=good)  # when it has been accepted too
    finish(device, operator, run_id)
    assert operator.get(run_id).bytes_up == before + len(data)


def test_the_same_signature_serves_every_part_of_an_upload(
    device: FakeDevice, operator: OperatorClient, bundle: Bundle
) -> None:
    run_id = begin(operator, bundle)
    assignment = reach(device, "train")
    data = encode(device.draw(assignment))
    good = device.sign(update_text(assignment.assignment_id, sha256_hex(data), device.num_train))
    first = iter([device.header(assignment, data, signature=good), pb.SubmitUpdateRequest(chunk=data[:100])])
    with pytest.raises(Exception, match="ended before all bytes"):
        device.service.SubmitUpdate(first, timeout=20)
    with raised(UnauthorizedError):
        device.submit(assignment, data, offset=100, signature=b"")
    assert device.query(assignment, data).received_bytes == 100
    assert device.submit(assignment, data, offset=100, signature=good)
    finish(device, operator, run_id)


def test_a_forged_profile_does_not_count(
    device: FakeDevice, another_key: SigningKey, operator: OperatorClient, bundle: Bundle
) -> None:
    run_id = begin(operator, bundle)
    assignment = device.assignment()
    good = device.profile(assignment, np.random.default_rng(0))

    def submit(signature: bytes, **changes: Any) -> None:
        request = pb.SubmitProfileRequest()
        request.CopyFrom(good)
        request.MergeFrom(pb.SubmitProfileRequest(**changes))
        request.signature = signature
        device.service.SubmitProfile(request, timeout=20)

    require_refused(device, assignment, submit, good.signature)
    digest, count = sha256_hex(good.statistics), good.num_examples
    for signature in (
        another_key.sign(profile_text(assignment.assignment_id, digest, count, device.scores)),
        device.sign(profile_text(OTHER_WORK, digest, count, device.scores)),
        device.sign(profile_text(assignment.assignment_id, digest, count, device.scores[::-1])),
    ):
        with raised(UnauthorizedError):
            submit(signature)
    for changes in ({"num_examples": 9}, {"scores": [0.5]}, {"statistics": b"other bytes"}):
        with raised(UnauthorizedError):
            submit(good.signature, **changes)
    assert device.assignment() == assignment
    submit(good.signature)
    finish(device, operator, run_id)


def test_a_forged_evaluation_does_not_count(
    device: FakeDevice, another_key: SigningKey, operator: OperatorClient, bundle: Bundle
) -> None:
    run_id = begin(operator, bundle)
    assignment = reach(device, "evaluate")
    good = device.evaluation(assignment)

    def submit(signature: bytes, **changes: Any) -> None:
        request = pb.SubmitEvaluationRequest()
        request.CopyFrom(good)
        request.MergeFrom(pb.SubmitEvaluationRequest(**changes))
        request.signature = signature
        device.service.SubmitEvaluation(request, timeout=20)

    require_refused(device, assignment, submit, good.signature)
    with raised(UnauthorizedError):
        submit(another_key.sign(evaluation_text(assignment.assignment_id, device.num_test, 2, 1.5)))
    for changes in ({"num_examples": 6}, {"num_correct": 5}, {"loss_sum": 1.25}, {"num_correct": 6}):
        with raised(UnauthorizedError):
            submit(good.signature, **changes)
    assert device.assignment() == assignment
    finish(device, operator, run_id)


def test_a_key_stays_the_devices_own(
    device: FakeDevice, address: str, key: SigningKey, another_key: SigningKey
) -> None:
    assert FakeDevice(address, "the device", signing_key=key).device_id == device.device_id
    for other in (another_key, None):
        with raised(UnauthorizedError) as found:
            FakeDevice(address, "the device", signing_key=other)
        found.match("another public key before")
    assert FakeDevice(address, "another device", signing_key=another_key).device_id != device.device_id


def test_a_device_that_did_not_sign_may_begin_to(
    address: str, key: SigningKey, another_key: SigningKey, operator: OperatorClient, bundle: Bundle
) -> None:
    old = FakeDevice(address, "old")
    run_id = begin(operator, bundle)
    old.work(old.assignment())
    new = FakeDevice(address, "old", signing_key=key)
    assert new.device_id == old.device_id
    for signing_key in (another_key, None):
        with raised(UnauthorizedError):
            FakeDevice(address, "old", signing_key=signing_key)
    with raised(UnauthorizedError):
        old.work(old.assignment())
    finish(new, operator, run_id)


def test_a_public_key_of_another_kind_is_refused(device: FakeDevice) -> None:
    for public_key in (b"key", b"x" * 5000):
        request = pb.EnrolRequest(device_key="new", bundle_format_version=1, public_key=public_key)
        with raised(BadInputError) as found:
            device.service.Enrol(request, timeout=20)
        found.match(rf"public_key \({len(public_key)} bytes\) is no ECDSA key on P-256")
