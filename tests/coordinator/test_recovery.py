"""kill -9 of a real `chainfed coordinator` in the middle of rounds: nothing is lost, nothing counts twice, the result
is the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from chainfed.coordinator.app import in_background
from chainfed.coordinator.client import OperatorClient
from chainfed.core.manifest import Bundle
from chainfed.core.tensors import Tensors, encode
from chainfed.v1 import device_service_pb2 as pb
from chainfed.v1 import run_service_pb2 as run_pb
from tests.coordinator.conftest import FakeDevice, config, living

MAIN = "from chainfed.core.cli import main; main()"


class Process:
    """`chainfed coordinator` in a process of its own, on one port for all of its lives."""

    def __init__(self, state: Path, listen: str, *options: str) -> None:
        self._state, self.address, self._options = state, listen, options
        self.start()

    def start(self) -> None:
        """Starts it and waits until it listens."""
        arguments = [
            "coordinator",
            "--state",
            str(self._state),
            "--listen",
            self.address,
            "--json",
            "--log-format",
            "json",
            *self._options,
        ]
        self._process = subprocess.Popen(
            [sys.executable, "-c", MAIN, *arguments], stdout=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        assert self._process.stdout is not None
        self.address = json.loads(self._process.stdout.readline())["listening"]

    def kill(self) -> None:
        """kill -9."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        """SIGTERM; its exit code."""
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(60)


@contextmanager
def process(state: Path, listen: str = "127.0.0.1:0", *options: str) -> Iterator[Process]:
    running = Process(state, listen, *options)
    try:
        yield running
    finally:
        running.kill()


def fleet(address: str) -> list[FakeDevice]:
    return [FakeDevice(address, f"device {index}", num_train=10 + index) for index in range(4)]


def settings() -> run_pb.RunConfig:
    return config(rounds=3, devices_per_round=3, min_devices=4)


@pytest.fixture
def undisturbed(bundle: Bundle, tmp_path: Path) -> run_pb.Run:
    """The same run, left alone."""
    with in_background(tmp_path / "undisturbed") as address, OperatorClient(address) as operator:
        run_id = operator.create(bundle, settings()).run_id
        operator.start(run_id)
        with living(*fleet(address)):
            list(operator.watch(run_id))
        return operator.get(run_id)


class Assassin:
    """Kills the coordinator once in each of some rounds, while one update is half sent and others may have arrived."""

    def __init__(self, target: Process, rounds: set[int]) -> None:
        self._target, self._rounds, self._lock = target, rounds, threading.Lock()
        self.before: list[tuple[str, int]] = []

    def attach(self, device: FakeDevice) -> None:
        """Makes the device the one that sees it."""

        def train(assignment: pb.Assignment, update: Tensors) -> Tensors:
            if assignment.round in self._rounds:
                with self._lock:
                    if assignment.round in self._rounds:
                        self._rounds.discard(assignment.round)
                        self._strike(device, assignment, encode(update))
                self.resume(device, assignment, encode(update))
            return update

        device.train = train

    def _strike(self, device: FakeDevice, assignment: pb.Assignment, data: bytes) -> None:
        half_sent, done = threading.Event(), threading.Event()

        def half() -> Iterator[pb.SubmitUpdateRequest]:
            yield device.header(assignment, data)
            yield pb.SubmitUpdateRequest(chunk=data[: len(data) // 2])
            half_sent.set()
            done.wait(120)

        call = device.service.SubmitUpdate.future(half())
        half_sent.wait(10)
        for _ in range(500):
            if device.query(assignment, data).received_bytes == len(data) // 2:
                break
        self.before.append((assignment.assignment_id, device.query(assignment, data).received_bytes))
        self._target.kill()
        done.set()
        assert isinstance(call.exception(timeout=60), grpc.RpcError)
        self._target.start()

    def resume(self, device: FakeDevice, assignment: pb.Assignment, data: bytes) -> None:
        """Goes on where the coordinator says; the plain submission that follows is a repetition."""
        again = device.assignment()
        if again.assignment_id == assignment.assignment_id:
            assert again == assignment
            received = device.query(assignment, data).received_bytes
            assert device.submit(assignment, data, offset=received)


def test_killed_in_rounds_it_ends_with_the_same_bytes(bundle: Bundle, tmp_path: Path, undisturbed: run_pb.Run) -> None:
    with process(tmp_path / "state") as coordinator, OperatorClient(coordinator.address) as operator:
        run_id = operator.create(bundle, settings()).run_id
        operator.start(run_id)
        devices = fleet(coordinator.address)
        assassin = Assassin(coordinator, {2, 4})
        for device in devices:
            assassin.attach(device)
        with living(*devices):
            events = list(operator.watch(run_id, patience_seconds=120))
        run = operator.get(run_id)
        assert len(assassin.before) == 2
        assert all(received > 0 for _, received in assassin.before)
        assert run.state == run_pb.RUN_STATE_COMPLETED
        assert run.checkpoint == undisturbed.checkpoint
        assert run.bytes_up == undisturbed.bytes_up
        assert list(run.foat_scores) == list(undisturbed.foat_scores)
        opened = [event.round_opened.number for event in events if event.HasField("round_opened")]
        assert opened == list(range(7))
        assert [event.sequence for event in events] == list(range(len(events)))
        assert list(operator.watch(run_id)) == events
        assert not list((tmp_path / "state" / "uploads").iterdir())
        assert coordinator.stop() == 0


@pytest.mark.slow
def test_killed_while_the_fleet_gathers_it_goes_on(bundle: Bundle, tmp_path: Path, undisturbed: run_pb.Run) -> None:
    with process(tmp_path / "state") as coordinator, OperatorClient(coordinator.address) as operator:
        run_id = operator.create(bundle, settings()).run_id
        operator.start(run_id)
        coordinator.kill()
        coordinator.start()
        with living(*fleet(coordinator.address)):
            list(operator.watch(run_id, patience_seconds=120))
        assert operator.get(run_id).checkpoint == undisturbed.checkpoint
