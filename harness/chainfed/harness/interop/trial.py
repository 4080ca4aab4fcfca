"""One attempt at a case: a coordinator, a proxy before it, and the device under test with a fresh state folder."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from chainfed.coordinator.client import OperatorClient
from chainfed.harness.fleet import CoordinatorProcess
from chainfed.harness.interop.device_process import DeviceProcess
from chainfed.harness.interop.proxy import Meddler, Proxy
from chainfed.harness.interop.state_folder import Progress, journal_path, read_journal
from chainfed.harness.interop.traffic import Call, Traffic
from chainfed.v1 import device_service_pb2 as pb

Found = TypeVar("Found")

DEVICE_KEY = "chainfed interop"
DEVICE_LOG = "device-{number}.err"
_LOOK_SECONDS = 0.002


class CaseFailed(Exception):  # noqa: N818 - it is the result of a case.
    """The device did not do what the case asks for."""

    def __init__(self, expected: str, seen: str) -> None:
        super().__init__(f"expected {expected}; seen: {seen}")
        self.expected, self.seen = expected, seen


class NotSetUp(Exception):  # noqa: N818 - it is the result of an attempt.
    """The disturbance that the case is about did not come about, so that nothing was tested."""


def require(holds: bool, expected: str, seen: object) -> None:
    """Raises CaseFailed unless `holds`."""
    if not holds:
        raise CaseFailed(expected, str(seen))


class Trial:
    """A context manager; everything that it starts ends with it. Files stay in its folder.

    journals, results: for each update the journal and the tensors' file at the moment when the device began to hand it
    in, as far as its state folder has them.
    """

    def __init__(
        self, command: Sequence[str], data: tuple[Path, Path], folder: Path, meddler: Meddler, limit_seconds: float
    ) -> None:
        """data: training and held-out examples. folder: `coordinator` in it is the coordinator's state, which may be
        there already. limit_seconds: how long the device may take for anything that is waited for."""
        self._command, self._data, self._folder, self._limit = command, data, folder, limit_seconds
        self._meddler = meddler
        self._num_devices = 0
        self.device: DeviceProcess | None = None
        self.state = folder / "device"
        self.journals: dict[str, Progress] = {}
        self.results: dict[str, bytes] = {}

    def __enter__(self) -> Trial:
        self._folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            self._coordinator = CoordinatorProcess(self._folder / "coordinator", self._folder / "coordinator.log")
            stack.callback(self._coordinator.stop)
            address = self._coordinator.address
            self._proxy = stack.enter_context(Proxy(address, self._meddler, self._keep_journal))
            self.operator = stack.enter_context(OperatorClient(address))
            self._ending = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.device is not None:
            self.device.kill()
        self._ending.close()

    @property
    def traffic(self) -> Traffic:
        """What has passed."""
        return self._proxy.traffic

    @property
    def last_words(self) -> str:
        """The last line that the device wrote to standard error."""
        return repr(self.device.last_line) if self.device is not None else "no device was started"

    def start_device(self, once: bool = False) -> DeviceProcess:
        """Starts the device, again with the state folder that it had."""
        self._num_devices += 1
        train, test = self._data
        options = {
            "--coordinator": self._proxy.address,
            "--state": self.state,
            "--data": train,
            "--test-data": test,
            "--key": DEVICE_KEY,
            "--patience": 60,
            "--threads": 1,
        }
        arguments = [str(part) for pair in options.items() for part in pair]
        log = self._folder / DEVICE_LOG.format(number=self._num_devices)
        self.device = DeviceProcess([*self._command, *arguments, *(["--once"] if once else [])], log)
        return self.device

    def restart_coordinator(self) -> None:
        """kill -9 of the coordinator, which is then started again with its state and on its port."""
        restarts = self._coordinator.restarts
        os.kill(self._coordinator.pid, signal.SIGKILL)
        while self._coordinator.restarts == restarts:
            self._coordinator.revive()
            time.sleep(_LOOK_SECONDS)

    def until(self, condition: Callable[[], Found | None], expected: str, alive: bool = True) -> Found:
        """Waits until `condition` gives something that is not None or False.

        alive: whether the device has to be running meanwhile. Raises CaseFailed when it ends, or when it takes too
        long.
        """
        limit = time.monotonic() + self._limit
        while True:
            ended = self.device.exit_code if self.device is not None and alive else None
            found = condition()
            if found is not None and found is not False:
                return found
            if ended is not None and self.device is not None:
                raise CaseFailed(expected, f"the device ended with exit code {ended}: {self.last_words}")
            if time.monotonic() > limit:
                raise CaseFailed(expected, f"nothing of the kind within {self._limit:g} seconds ({self._last_call()})")
            time.sleep(_LOOK_SECONDS)

    def exit_code(self, expected: str) -> int:
        """Waits until the device has ended by itself."""
        device = self.device
        assert device is not None
        return self.until(lambda: device.exit_code, expected, alive=False)

    def assignment(self, round_number: int, attempt: int = 0) -> pb.Assignment:
        """Waits until the device was given its assignment of a round, of the attempt at it that is counted from 0."""

        def given() -> pb.Assignment | None:
            found = {each.assignment_id: each for each in self.traffic.assignments() if each.round == round_number}
            return list(found.values())[attempt] if len(found) > attempt else None

        repeated = f", given out anew {attempt} times," if attempt else ""
        return self.until(given, f"the device to ask for work until it is given round {round_number}{repeated}")

    def update(self, assignment: pb.Assignment, alive: bool = True) -> pb.UpdateHeader:
        """Waits until an assignment's update is in and the device was told that it counts."""
        expected = f"an update for round {assignment.round} that counts"
        self.until(lambda: self.traffic.counted(assignment.assignment_id), expected, alive)
        header = self.traffic.update(assignment.assignment_id)
        assert header is not None
        return header

    def journal(self, assignment: pb.Assignment) -> Progress:
        """The journal as it is now."""
        return read_journal(self.journal_path(assignment))

    def journal_path(self, assignment: pb.Assignment) -> Path:
        """Where it lies."""
        return journal_path(self.state, assignment.assignment_id)

    def _keep_journal(self, call: Call) -> None:
        if call.method in ("QueryUpload", "SubmitUpdate") and call.request.assignment_id not in self.journals:
            path = journal_path(self.state, call.request.assignment_id)
            self.journals[call.request.assignment_id] = read_journal(path)
            with suppress(OSError):
                self.results[call.request.assignment_id] = path.with_name("tensors").read_bytes()

    def _last_call(self) -> str:
        calls = self.traffic.calls
        return f"its last call was {calls[-1].method}, {calls[-1].ending}" if calls else "it made no call"
