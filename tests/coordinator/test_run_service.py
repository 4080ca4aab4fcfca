"""Operators against a running coordinator over gRPC."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from chainfed.coordinator.app import in_background
from chainfed.coordinator.client import OperatorClient, require_success
from chainfed.coordinator.plain import plain
from chainfed.core.errors import (
    AddressInUseError,
    BadInputError,
    BundleError,
    ConflictError,
    NotFoundError,
    RunFailedError,
    UnreachableError,
)
from chainfed.core.manifest import Bundle
from chainfed.v1 import blob_pb2
from chainfed.v1 import run_service_pb2 as pb
from tests.coordinator.conftest import FakeDevice, config, living, make_bundle, raised


def fleet(address: str, count: int = 3) -> list[FakeDevice]:
    return [FakeDevice(address, f"device {index}", num_train=10 + index) for index in range(count)]


def test_a_bundle_is_uploaded_once(operator: OperatorClient, bundle: Bundle) -> None:
    sent: list[tuple[int, int]] = []
    reference = operator.upload_bundle(bundle, lambda done, total: sent.append((done, total)))
    total = sum(entry.bytes for entry in bundle.manifest.files.values()) + len(bundle.manifest_bytes)
    assert sent[-1] == (total, total)
    assert reference.sha256 == hashlib.sha256(bundle.manifest_bytes).hexdigest()
    sent.clear()
    assert operator.upload_bundle(bundle, lambda done, total: sent.append((done, total))) == reference
    assert sent == []


def test_a_changed_file_is_not_stored(operator: OperatorClient, bundle: Bundle) -> None:
    path = bundle.path("programs/block.pte")
    path.write_bytes(b"BLOCK")
    with pytest.raises(BadInputError, match="the file was changed"):
        operator.upload_bundle(bundle)


def test_a_run_needs_its_whole_bundle(operator: OperatorClient, bundle: Bundle, tmp_path: Path) -> None:
    manifest = blob_pb2.BlobRef(sha256="0" * 64, size_bytes=10)
    request = pb.CreateRunRequest(manifest=manifest, config=config(), request_id="x")
    with raised(NotFoundError):
        operator._service.CreateRun(request, timeout=10)
    other = make_bundle(tmp_path / "other", programs={})
    with pytest.raises(BundleError, match="lacks block, embed, head"):
        operator.create(other, config())
    with pytest.raises(BadInputError, match="rounds is 0"):
        operator.create(bundle, config(rounds=0))
    with pytest.raises(BadInputError, match="name has 200"):
        operator.create(bundle, config(), name="x" * 200)


def test_creating_again_with_the_same_request_gives_the_same_run(operator: OperatorClient, bundle: Bundle) -> None:
    manifest = operator.upload_bundle(bundle)
    request = pb.CreateRunRequest(manifest=manifest, config=config(), name="one", request_id="request")
    first = operator._service.CreateRun(request, timeout=10).run
    assert operator._service.CreateRun(request, timeout=10).run == first == operator.get(first.run_id)
    second = operator.create(bundle, config(), "two")
    assert {run.run_id for run in operator.list()} == {first.run_id, second.run_id}
    assert (first.state, first.foat_start, first.config.adapter_lr) == (pb.RUN_STATE_CREATED, -1, 1e-3)


def test_unknown_and_malformed_runs_are_told_apart(operator: OperatorClient) -> None:
    with pytest.raises(NotFoundError, match="chainfed run list"):
        operator.get("0" * 12)
    with pytest.raises(BadInputError, match="run_id is 'nonsense'"):
        operator.start("nonsense")
    with pytest.raises(NotFoundError):
        next(operator.watch("0" * 12))
    with pytest.raises(NotFoundError):
        operator.checkpoint("0" * 12)


def test_a_run_without_a_checkpoint_says_so(operator: OperatorClient, bundle: Bundle) -> None:
    run = operator.create(bundle, config())
    with pytest.raises(NotFoundError, match="none yet"):
        operator.checkpoint(run.run_id)
    with pytest.raises(ConflictError, match="CREATED and cannot be paused"):
        operator.pause(run.run_id)


def test_the_events_tell_the_whole_run(operator: OperatorClient, bundle: Bundle, address: str) -> None:
    run_id = operator.create(bundle, config(evaluate_every=2)).run_id
    operator.start(run_id)
    with living(*fleet(address)):
        events = list(operator.watch(run_id))
    assert [event.sequence for event in events] == list(range(len(events)))
    assert events == list(operator.watch(run_id))
    assert events[5:] == list(operator.watch(run_id, 5))
    states = [plain(event)["state_changed"]["to"] for event in events if event.HasField("state_changed")]
    assert states == ["PROFILING", "WARMING", "TRAINING", "COMPLETED"]
    profiled = next(event.profiled for event in events if event.HasField("profiled"))
    assert (profiled.foat_start, profiled.window_size, profiled.below_threshold_missing) == (1, 2, False)
    assert "Layer 1 is the first that scored below T = 0.8 (0.700)" in profiled.explanation
    walk = [event.round_opened for event in events if event.HasField("round_opened")]
    assert [(each.first_layer, each.window_size) for each in walk if each.kind == pb.ROUND_KIND_TRAIN] == [
        (2, 2),
        (1, 2),
        (2, 2),
    ]
    assert [event.evaluated.rounds_done for event in events if event.HasField("evaluated")] == [0, 2, 3]
    closed = [
        event.round_closed
        for event in events
        if event.HasField("round_closed") and event.round_closed.HasField("metrics")
    ]
    assert [each.rounds_done for each in closed] == [0, 1, 2, 3]
    assert {each.metrics.num_examples for each in closed} == {10 + 11 + 12}
    run = operator.get(run_id)
    assert run.checkpoint == closed[-1].checkpoint
    assert run.bytes_up > sum(each.bytes_up for each in closed) > 0
    assert [evaluation.accuracy for evaluation in run.evaluations] == [0.4, 0.4, 0.4]
    json.dumps([plain(event) for event in events])
    require_success(run)


def test_a_window_is_chosen_by_the_smallest_budget(operator: OperatorClient, bundle: Bundle, address: str) -> None:
    devices = fleet(address)
    devices[0].budget, devices[1].budget = 2_900_000, 1_100_000
    run_id = operator.create(bundle, config(window_size=0, rounds=1, warmup_rounds=0)).run_id
    operator.start(run_id)
    with living(*devices):
        events = list(operator.watch(run_id))
    profiled = next(event.profiled for event in events if event.HasField("profiled"))
    assert profiled.window_size == 1
    assert "smallest budget of 1.1 MB" in profiled.explanation


def test_no_score_below_the_threshold_is_said(operator: OperatorClient, bundle: Bundle, address: str) -> None:
    devices = fleet(address)
    for device in devices:
        device.scores = (0.99, 0.98, 0.95, 0.9)
    run_id = operator.create(bundle, config(rounds=1, warmup_rounds=0)).run_id
    operator.start(run_id)
    with living(*devices):
        events = list(operator.watch(run_id))
    profiled = next(event.profiled for event in events if event.HasField("profiled"))
    assert (profiled.below_threshold_missing, profiled.foat_start) == (True, 2)  # layer 3, but two layers must fit
    assert "layer 3 has the lowest score" in profiled.explanation


def test_a_waiting_run_says_what_it_waits_for(operator: OperatorClient, bundle: Bundle, address: str) -> None:
    run_id = operator.create(bundle, config()).run_id
    operator.start(run_id)
    device = fleet(address, 1)[0]
    assert device.check_in(timeout=3).HasField("wait")
    deadline = time.monotonic() + 10
    while operator.get(run_id).reason != "the run waits for 2 more devices with training examples":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert device.check_in(timeout=1).wait.reason == "the run waits for 2 more devices with training examples"


def test_a_paused_run_goes_on_in_the_same_round(operator: OperatorClient, bundle: Bundle, address: str) -> None:
    devices = fleet(address)
    reached, go = threading.Event(), threading.Event()

    def wait_in_second_round(assignment, update):  # type: ignore[no-untyped-def]
        if assignment.round == 4:
            reached.set()
            go.wait(20)
        return update

    devices[0].train = wait_in_second_round
    run_id = operator.create(bundle, config()).run_id
    operator.start(run_id)
    with living(*devices):
        assert reached.wait(20)
        assert operator.pause(run_id).state == pb.RUN_STATE_PAUSED
        go.set()
        time.sleep(0.5)
        paused = operator.get(run_id)
        assert (paused.open_round.number, paused.open_round.num_reported, paused.rounds_done) == (4, 3, 1)
        assert operator.resume(run_id).state == pb.RUN_STATE_TRAINING
        events = list(operator.watch(run_id))
    opened = [event.round_opened.number for event in events if event.HasField("round_opened")]
    assert opened == list(range(7))
    assert operator.get(run_id).state == pb.RUN_STATE_COMPLETED


def test_a_cancelled_run_ends(operator: OperatorClient, bundle: Bundle, address: str) -> None:
    device = fleet(address, 1)[0]
    run_id = operator.create(bundle, config(devices_per_round=1, min_devices=1)).run_id
    operator.start(run_id)
    assignment = device.assignment()
    assert operator.cancel(run_id).state == pb.RUN_STATE_CANCELLED
    device.work(assignment)  # too late, and nothing happens
    assert device.check_in().HasField("finished")
    assert operator.get(run_id).rounds_done == 0
    with pytest.raises(ConflictError, match="CANCELLED"):
        operator.resume(run_id)


def test_a_stopped_coordinator_ends_watches_and_goes_on_later(bundle: Bundle, tmp_path: Path) -> None:
    with in_background(tmp_path / "state") as address:
        operator = OperatorClient(address)
        run_id = operator.create(bundle, config(rounds=1)).run_id
        operator.start(run_id)
        watching = operator.watch(run_id)
        assert next(watching).state == pb.RUN_STATE_PROFILING
        ended: list[Exception] = []

        def follow() -> None:
            try:
                list(watching)
            except UnreachableError as error:
                ended.append(error)

        thread = threading.Thread(target=follow)
        thread.start()
        time.sleep(0.2)
    thread.join(10)
    operator.close()
    assert len(ended) == 1
    with in_background(tmp_path / "state") as address, OperatorClient(address) as operator:
        with living(*fleet(address)):
            list(operator.watch(run_id))
        assert operator.get(run_id).state == pb.RUN_STATE_COMPLETED


def test_a_failed_run_is_an_error() -> None:
    with pytest.raises(RunFailedError, match="because"):
        require_success(pb.Run(state=pb.RUN_STATE_FAILED, reason="because"))


def test_port_and_folder_belong_to_one_coordinator(address: str, tmp_path: Path) -> None:
    with (
        pytest.raises(AddressInUseError, match="another process holds the port"),
        in_background(tmp_path / "other", address),
    ):
        pass
    with pytest.raises(AddressInUseError, match="in use by another coordinator"), in_background(tmp_path / "state"):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInputError, match="cannot be used"), in_background(tmp_path / "file"):
        pass
    with pytest.raises(BadInputError, match="HOST:PORT"), in_background(tmp_path / "other", "nonsense"):
        pass


def test_nobody_there_is_said_with_the_address() -> None:
    with OperatorClient("127.0.0.1:1") as client, pytest.raises(UnreachableError, match=r"127\.0\.0\.1:1; start one"):
        client.list()


def test_two_runs_share_the_fleet(operator: OperatorClient, bundle: Bundle, address: str) -> None:
    run_ids = [operator.create(bundle, config(rounds=1, warmup_rounds=0, seed=seed)).run_id for seed in (1, 1, 2)]
    with living(*fleet(address)):
        for run_id in run_ids:
            operator.start(run_id)
        for run_id in run_ids:
            list(operator.watch(run_id))
    checkpoints = [operator.get(run_id).checkpoint.sha256 for run_id in run_ids]
    assert checkpoints[0] == checkpoints[1] != checkpoints[2]


def test_a_checkpoint_is_kept_for_every_round(operator: OperatorClient, bundle: Bundle, address: str) -> None:
    run_id = operator.create(bundle, config(rounds=2)).run_id
    operator.start(run_id)
    with living(*fleet(address)):
        list(operator.watch(run_id))
    kept = [operator.checkpoint(run_id, done) for done in range(3)]
    assert len(set(kept)) == 3
    assert operator.checkpoint(run_id) == kept[2]
    with pytest.raises(NotFoundError, match="its newest is that after 2"):
        operator.checkpoint(run_id, 3)
    assert (
        replace(fleet(address, 1)[0], key="later").check_in(timeout=1).HasField("wait")
    )  # it enrolled after the run's end
