"""Devices against a running coordinator over gRPC: what counts, what is refused, and what is said."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from chainfed.coordinator.client import OperatorClient
from chainfed.core.errors import BadInputError, ConflictError, NotFoundError, UpdateRejectedError
from chainfed.core.manifest import Bundle
from chainfed.core.tensors import Tensors, decode, encode, sha256_hex
from chainfed.v1 import blob_pb2
from chainfed.v1 import device_service_pb2 as pb
from chainfed.v1 import run_service_pb2 as run_pb
from tests.coordinator.conftest import FakeDevice, config, living, raised


@pytest.fixture
def device(address: str) -> FakeDevice:
    return FakeDevice(address, "the device")


def begin(operator: OperatorClient, bundle: Bundle, **changes: Any) -> str:
    values = {"devices_per_round": 1, "min_devices": 1, "rounds": 2} | changes
    run_id = operator.create(bundle, config(**values)).run_id
    operator.start(run_id)
    return run_id


def reach(device: FakeDevice, task: str) -> pb.Assignment:
    """Works until the assignment has such a task."""
    while (assignment := device.assignment()).WhichOneof("task") != task:
        device.work(assignment)
    return assignment


def failures(operator: OperatorClient, run_id: str) -> list[run_pb.DeviceFailed]:
    """The device failures of a run that has ended."""
    return [event.device_failed for event in operator.watch(run_id) if event.HasField("device_failed")]


def test_enrolling_again_gives_the_same_identity(device: FakeDevice, address: str) -> None:
    assert FakeDevice(address, "the device").device_id == device.device_id
    assert device.device_id == sha256_hex(b"chainfed-device/the device")[:16]


def test_a_device_that_came_before_any_run_waits(device: FakeDevice) -> None:
    answer = device.check_in(timeout=1)
    assert answer.wait.reason == "there is no run yet"
    assert 50 <= answer.wait.retry_after_ms <= 1000


def test_a_waiting_device_hears_of_its_assignment_at_once(
    device: FakeDevice, operator: OperatorClient, bundle: Bundle
) -> None:
    call = device.service.CheckIn.future(
        pb.CheckInRequest(device_id=device.device_id, num_train_examples=10, num_test_examples=5), timeout=12
    )
    time.sleep(0.2)
    assert not call.done()
    begin(operator, bundle)
    started = time.monotonic()
    assert call.result(timeout=8).assignment.HasField("profile")
    assert time.monotonic() - started < 5


def test_the_open_assignment_is_given_again_unchanged(
    device: FakeDevice, operator: OperatorClient, bundle: Bundle
) -> None:
    begin(operator, bundle)
    first = device.assignment()
    assert device.assignment() == first == FakeDevice(device.address, device.key).assignment()


def test_assignments_name_what_a_task_needs(device: FakeDevice, operator: OperatorClient, bundle: Bundle) -> None:
    run_id = begin(operator, bundle)
    seen: dict[str, pb.Assignment] = {}
    with living(device):
        list(operator.watch(run_id))
    for assignment in device.seen:
        seen.setdefault(assignment.WhichOneof("task") or "", assignment)
    layers = [f"weights/layer_{layer:02d}.safetensors" for layer in range(4)]
    common = ["tokenizer.json", "programs/embed.pte", "programs/block.pte"]
    assert [each.name for each in seen["profile"].files] == [
        *common,
        "programs/pool.pte",
        "weights/embeddings.safetensors",
        *layers,
    ]
    assert [each.name for each in seen["train"].files] == [
        *common,
        "programs/window_q2.pte",
        "weights/embeddings.safetensors",
        *layers[:3],
    ]
    adapters = [f"adapters.{layer}" for layer in range(4)]
    assert [each.name for each in seen["profile"].state] == adapters
    assert [each.name for each in seen["train"].state] == [*adapters, "heads.2", "heads.3", "statistics"]
    assert [each.name for each in seen["warmup"].state] == [*adapters, "heads.2", "heads.3", "statistics"]
    assert [each.name for each in seen["evaluate"].state] == [*adapters, "heads.3", "statistics"]
    assert (seen["profile"].foat_start, seen["train"].foat_start) == (4, 1)
    assert list(seen["warmup"].warmup.head_layers) == [2, 3]
    assert (seen["train"].train.first_layer, seen["train"].train.window_size) == (1, 2)
    assert [each.round for each in device.seen] == list(range(6))


def test_an_update_is_added_to_the_state(device: FakeDevice, operator: OperatorClient, bundle: Bundle) -> None:
    run_id = begin(operator, bundle, rounds=1, warmup_rounds=0)
    sent: list[Tensors] = []
    device.train = lambda assignment, update: sent.append(update) or update
    with living(device):
        list(operator.watch(run_id))
    before = decode(bundle.path("adapters.safetensors").read_bytes(), "before")
    after = decode(operator.checkpoint(run_id), "after")
    assert sent[0].keys() == {
        "adapters.2.down",
        "adapters.2.up",
        "adapters.3.down",
        "adapters.3.up",
        "heads.3.weight",
        "heads.3.bias",
    }
    for name, tensor in after.items():
        if name.startswith("statistics"):
            continue
        change = sent[0].get(name, np.zeros_like(tensor))
        np.testing.assert_array_equal(tensor, (before[name].astype(np.float64) + change).astype(np.float32))
    run = operator.get(run_id)
    assert (
        run.checkpoint.sha256 == sha256_hex(operator.checkpoint(run_id)) == sha256_hex(operator.checkpoint(run_id, 1))
    )
    assert run.bytes_down > 0
    assert len(encode(sent[0])) < run.bytes_up < 3 * len(encode(sent[0]))


def test_a_blob_is_streamed_from_an_offset(device: FakeDevice, operator: OperatorClient, bundle: Bundle) -> None:
    begin(operator, bundle)
    blob = device.assignment().files[-1].blob
    data = bundle.path("weights/layer_03.safetensors").read_bytes()
    assert device.fetch(blob) == data
    assert device.fetch(blob, 300_001) == data[300_001:]
    assert device.fetch(blob, len(data)) == b""
    with raised(BadInputError) as found:
        device.fetch(blob, len(data) + 1)
    assert "lies outside" in str(found.value)
    with raised(NotFoundError):
        device.fetch(blob_pb2.BlobRef(sha256="0" * 64))


def test_submitting_twice_counts_once(device: FakeDevice, operator: OperatorClient, bundle: Bundle) -> None:
    run_id = begin(operator, bundle, devices_per_round=2, min_devices=2, warmup_rounds=0, rounds=1)
    other = FakeDevice(device.address, "the other")
    with living(other):
        assignment = reach(device, "train")
        data = encode(device.draw(assignment))
        before = operator.get(run_id).bytes_up
        assert device.submit(assignment, data)
        assert device.submit(assignment, data)
        assert device.query(assignment, data) == pb.QueryUploadResponse(received_bytes=len(data), accepted=True)
        assert device.submit(assignment, encode(device.draw(assignment)), len(data))
        with living(device):
            list(operator.watch(run_id))
    assert operator.get(run_id).bytes_up == before + 2 * len(data)  # the other device's and this one's


def test_an_upload_goes_on_where_it_stopped(device: FakeDevice, operator: OperatorClient, bundle: Bundle) -> None:
    run_id = begin(operator, bundle, warmup_rounds=0, rounds=1)
    assignment = reach(device, "train")
    data = encode(device.draw(assignment))
    assert device.query(assignment, data).received_bytes == 0

    def broken() -> Iterator[pb.SubmitUpdateRequest]:
        yield device.header(assignment, data)
        yield pb.SubmitUpdateRequest(chunk=data[:100])
        yield pb.SubmitUpdateRequest(chunk=data[100:250])

    with raised(ConflictError) as found:
        device.service.SubmitUpdate(broken(), timeout=10)
    assert "QueryUpload" in str(found.value)
    assert device.query(assignment, data) == pb.QueryUploadResponse(received_bytes=250, accepted=False)
    with raised(ConflictError):
        device.submit(assignment, data, offset=251)
    assert device.submit(assignment, data, offset=250)
    with living(device):
        list(operator.watch(run_id))
    assert operator.get(run_id).state == run_pb.RUN_STATE_COMPLETED


def test_a_result_that_comes_too_late_does_not_count(
    device: FakeDevice, operator: OperatorClient, bundle: Bundle
) -> None:
    run_id = begin(operator, bundle, devices_per_round=1, over_selection=2.0, min_devices=2, warmup_rounds=0, rounds=1)
    other = FakeDevice(device.address, "the other")
    with living(other):
        assignment = reach(device, "train")
        for event in operator.watch(run_id):
            if event.HasField("round_closed") and event.round_closed.rounds_done == 1:
                break
        data = encode(device.draw(assignment))
        assert not device.submit(assignment, data)
        assert not device.query(assignment, data).accepted
        with living(device):
            list(operator.watch(run_id))
    assert failures(operator, run_id) == []
    assert device.check_in().finished.reason == "every run has ended"


def nan_update(update: Tensors) -> Tensors:
    return update | {"heads.3.bias": np.full_like(update["heads.3.bias"], np.nan)}


def wrong_shape(update: Tensors) -> Tensors:
    return update | {"heads.3.bias": np.zeros(7, np.float32)}


def foreign_tensor(update: Tensors) -> Tensors:
    return update | {"adapters.0.down": update["adapters.2.down"]}


def too_large(update: Tensors) -> Tensors:
    return {name: tensor * 1e6 for name, tensor in update.items()}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (nan_update, "not finite"),
        (wrong_shape, r"shape \[7\]"),
        (foreign_tensor, "unknown adapters.0.down"),
        (too_large, "above the run's bound"),
    ],
)
def test_a_bad_update_is_refused_and_never_counts(
    device: FakeDevice, operator: OperatorClient, bundle: Bundle, spoil: Any, words: str
) -> None:
    run_id = begin(operator, bundle, devices_per_round=2, min_devices=2, warmup_rounds=0, rounds=1, max_update_norm=5.0)
    other = FakeDevice(device.address, "the other")
    with living(other):
        assignment = reach(device, "train")
        update = device.draw(assignment)
        with raised(UpdateRejectedError) as found:
            device.submit(assignment, encode(spoil(update)))
        found.match(words)
        assert not device.submit(assignment, encode(update))  # the assignment is closed
        with living(device):
            list(operator.watch(run_id))
    (failed,) = failures(operator, run_id)
    assert (failed.device_id, failed.reason) == (device.device_id, pb.ABANDON_REASON_UNSPECIFIED)
    closed = [event.round_closed for event in operator.watch(run_id) if event.HasField("round_closed")][-2]
    assert (closed.round.num_reported, closed.round.num_abandoned, closed.metrics.num_examples) == (1, 1, 10)


def test_a_wrong_hash_is_refused(device: FakeDevice, operator: OperatorClient, bundle: Bundle) -> None:
    begin(operator, bundle, warmup_rounds=0)
    assignment = reach(device, "train")
    data = encode(device.draw(assignment))
    with raised(UpdateRejectedError) as found:
        device.submit(assignment, data, update=blob_pb2.BlobRef(sha256="0" * 64, size_bytes=len(data)))
    found.match("SHA-256")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"metrics": pb.UpdateMetrics(num_examples=0)}, "num_examples is 0"),
        ({"metrics": pb.UpdateMetrics(num_examples=1, loss=float("nan"))}, "loss is nan"),
        ({"metrics": pb.UpdateMetrics(num_examples=1, accuracy=1.5)}, "accuracy is 1.5"),
        ({"update": blob_pb2.BlobRef(sha256="0" * 64, size_bytes=10**9)}, "1000000000 bytes"),
    ],
)
def test_an_impossible_header_is_refused(
    device: FakeDevice, operator: OperatorClient, bundle: Bundle, changes: dict[str, Any], words: str
) -> None:
    begin(operator, bundle, warmup_rounds=0)
    assignment = reach(device, "train")
    with raised(UpdateRejectedError) as found:
        device.submit(assignment, encode(device.draw(assignment)), **changes)
    found.match(words)


def test_a_run_fails_with_the_devices_reason_when_all_abandon(
    device: FakeDevice, operator: OperatorClient, bundle: Bundle
) -> None:
    run_id = begin(operator, bundle, warmup_rounds=0)
    device.train = lambda assignment, update: None
    with living(device):
        list(operator.watch(run_id))
    run = operator.get(run_id)
    assert run.state == run_pb.RUN_STATE_FAILED
    assert "Round 2 (train)" in run.reason
    assert f"{device.device_id}: not finite: the loss is nan" in run.reason
    assert [failed.reason for failed in failures(operator, run_id)] == [pb.ABANDON_REASON_NOT_FINITE] * 3
    assert len({each.assignment_id for each in device.seen}) == len(device.seen)


def test_a_round_at_its_deadline_closes_with_what_it_has(
    device: FakeDevice, operator: OperatorClient, bundle: Bundle
) -> None:
    run_id = begin(
        operator, bundle, devices_per_round=2, min_devices=2, warmup_rounds=0, rounds=1, round_deadline_seconds=2
    )
    other = FakeDevice(device.address, "the other")
    with living(other):
        assignment = reach(device, "train")
        for event in operator.watch(run_id):
            if event.HasField("round_closed") and event.round_closed.rounds_done == 1:
                break
        assert not device.submit(assignment, encode(device.draw(assignment)))
        with living(device):
            list(operator.watch(run_id))
    (late,) = failures(operator, run_id)
    assert (late.device_id, late.detail) == (device.device_id, "no result within the round's 2 seconds")


def test_too_small_a_budget_fails_the_run_with_the_one_that_would_do(
    device: FakeDevice, operator: OperatorClient, bundle: Bundle
) -> None:
    device.budget = 400_000
    run_id = begin(operator, bundle, window_size=0)
    with living(device):
        list(operator.watch(run_id))
    run = operator.get(run_id)
    assert run.state == run_pb.RUN_STATE_FAILED
    assert "at least 1000000 bytes" in run.reason


def test_profiles_and_evaluations_are_checked(device: FakeDevice, operator: OperatorClient, bundle: Bundle) -> None:
    begin(operator, bundle)
    assignment = device.assignment()
    good = device.profile(assignment, np.random.default_rng(0))
    with raised(BadInputError) as found:
        device.submit(assignment, b"an update")
    found.match("task is PROFILE")
    good.scores[2] = 1.5
    with raised(UpdateRejectedError) as found:
        device.service.SubmitProfile(good, timeout=10)
    found.match("score of layer 2")
    assignment = reach(device, "evaluate")
    request = pb.SubmitEvaluationRequest(
        device_id=device.device_id, assignment_id=assignment.assignment_id, num_examples=3, num_correct=4, loss_sum=1.0
    )
    with raised(UpdateRejectedError) as found:
        device.service.SubmitEvaluation(request, timeout=10)
    found.match("4 of 3")


def test_what_is_not_known_is_said(device: FakeDevice, operator: OperatorClient, bundle: Bundle) -> None:
    with raised(NotFoundError):
        device.service.Abandon(
            pb.AbandonRequest(device_id=device.device_id, assignment_id="0" * 32, reason=pb.ABANDON_REASON_POLICY),
            timeout=10,
        )
    begin(operator, bundle)
    stranger, assignment = FakeDevice(device.address, "stranger", num_train=0, num_test=0), device.assignment()
    with raised(NotFoundError) as found:
        stranger.query(assignment, b"")
    found.match("does not exist; check in")
    stranger.device_id = "f" * 16
    with raised(NotFoundError) as found:
        stranger.check_in()
    found.match("enrol first")


MALFORMED: list[tuple[str, Any, str]] = [
    ("Enrol", pb.EnrolRequest(device_key="", bundle_format_version=1), "device_key has 0 characters"),
    ("Enrol", pb.EnrolRequest(device_key="ü", bundle_format_version=1), "printable ASCII"),
    ("Enrol", pb.EnrolRequest(device_key="x"), "bundle_format_version is 0"),
    ("CheckIn", pb.CheckInRequest(device_id="../x"), "device_id is '../x'"),
    ("CheckIn", pb.CheckInRequest(device_id="0" * 16, memory_budget_bytes=-1), "memory_budget_bytes is -1"),
    ("QueryUpload", pb.QueryUploadRequest(device_id="0" * 16, assignment_id="0" * 32, sha256="X"), "sha256 is 'X'"),
    ("SubmitProfile", pb.SubmitProfileRequest(device_id="0" * 16, assignment_id="up"), "assignment_id is 'up'"),
    ("Abandon", pb.AbandonRequest(device_id="0" * 16, assignment_id="0" * 32), "reason is 0"),
    ("Abandon", pb.AbandonRequest(device_id="0" * 16, reason=1, detail="x" * 1025), "detail has 1025 characters"),
]


def test_a_malformed_request_is_refused_by_field(device: FakeDevice) -> None:
    for method, request, words in MALFORMED:
        with raised(BadInputError) as found:
            getattr(device.service, method)(request, timeout=10)
        assert words in str(found.value)


def test_a_stream_without_a_header_is_refused(device: FakeDevice) -> None:
    with raised(BadInputError) as found:
        device.service.SubmitUpdate(iter([pb.SubmitUpdateRequest(chunk=b"x")]), timeout=10)
    found.match("header first")
    with pytest.raises(grpc.RpcError):
        device.service.SubmitUpdate(iter([]), timeout=10)
