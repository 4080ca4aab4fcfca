"""An emulated device: the device algorithm of ChainFed on the real ExecuTorch runtime, over the real protocol.

Importing this module loads torch and ExecuTorch but starts no thread, no pool and no gRPC channel, so that a process
which has imported it can be forked many times.
"""

from __future__ import annotations

import errno
import gc
import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chainfed.core.data_files import count_rows
from chainfed.core.errors import (
    BadInputError,
    BundleError,
    ChainFedError,
    ConflictError,
    MemoryBudgetError,
    NotFiniteError,
    NotFoundError,
    UnauthorizedError,
    UpdateRejectedError,
)
from chainfed.core.manifest import parse_manifest
from chainfed.core.transport import Transport
from chainfed.harness.assignment import (
    EVALUATE,
    Finding,
    StopWork,
    compute,
    open_journal,
    require_usable,
    task_kind,
)
from chainfed.harness.bundle import DeviceBundle
from chainfed.harness.client import Coordinator
from chainfed.harness.data import TokenData, read_tokens
from chainfed.harness.journal import Journal
from chainfed.harness.outcome import EvaluationOutcome, ProfileOutcome, tensors_path
from chainfed.harness.storage import DeviceStorage
from chainfed.harness.transfer import upload
from chainfed.runtime.memory import trim
from chainfed.runtime.program import set_threads
from chainfed.v1 import device_service_pb2 as pb

_REFUSALS = (ConflictError, NotFoundError, UpdateRejectedError)


@dataclass(frozen=True)
class DeviceSettings:
    """What one device is.

    coordinator: HOST:PORT. state_folder: where it keeps its key, its files and its work; made when absent.
    train_file, test_file: JSON lines. memory_budget_bytes: anonymous memory that it may use; 0 means no limit.
    device_key: None takes the one that the state folder has, or makes one. patience_seconds: how long a silent
    coordinator is tried again. files_folder: bundle files shared with other devices of the machine. once: leave after
    one assignment. transport: None speaks in plain text to this machine and TLS to every other. enrolment_token: what
    the coordinator may ask of a new device.
    """

    coordinator: str
    state_folder: Path
    train_file: Path
    test_file: Path | None = None
    memory_budget_bytes: int = 0
    device_key: str | None = None
    model_name: str = "emulated"
    threads: int = 1
    patience_seconds: float = 30.0
    files_folder: Path | None = None
    once: bool = False
    transport: Transport | None = None
    enrolment_token: str = ""


@dataclass(frozen=True)
class DeviceEvent:
    """Something that a device did.

    kind: "enrolled", "waiting", "retrying", "assignment", "progress", "submitted", "abandoned" or "finished".
    """

    kind: str
    message: str
    round: int | None = None
    assignment_id: str = ""


@dataclass(frozen=True)
class DeviceReport:
    """What a device did in all.

    assignments: how many of each kind were handed in ("profile", "warmup", "train", "evaluate"), and "abandoned".
    bytes_down, bytes_up: blobs received and updates sent. peak_anonymous_bytes, peak_resident_bytes: the highest of any
    assignment.
    """

    device_id: str
    assignments: dict[str, int]
    bytes_down: int
    bytes_up: int
    peak_anonymous_bytes: int
    peak_resident_bytes: int
    cpu_seconds: float
    reason: str


OnEvent = Callable[[DeviceEvent], None]


def run_device(
    settings: DeviceSettings,
    compute_slot: AbstractContextManager[Any] | None = None,
    on_event: OnEvent = lambda event: None,
) -> DeviceReport:
    """Is a device until the coordinator says that nothing more will come.

    compute_slot: entered around all computing, never while waiting for the network; entered many times. Raises
    BadInputError for data that cannot be used, BundleError for a damaged bundle, UnreachableError when the
    coordinator is silent for longer than the patience, AddressInUseError when another device has the state folder,
    UnauthorizedError when the coordinator does not admit the device or its signature.
    """
    num_train = count_rows(settings.train_file)
    num_test = count_rows(settings.test_file) if settings.test_file is not None else 0
    set_threads(settings.threads)
    gc.freeze()  # What the imports made stays: collecting would walk and, in a fork, copy all of it every time.
    with DeviceStorage(settings.state_folder, settings.files_folder) as storage:
        key = storage.device_key(settings.device_key)

        def tell_retry(message: str) -> None:
            on_event(DeviceEvent("retrying", message))

        with Coordinator(
            settings.coordinator, settings.patience_seconds, tell_retry, settings.transport, storage.signing_key()
        ) as coordinator:
            slot = compute_slot if compute_slot is not None else nullcontext()
            device = _Device(settings, storage, coordinator, slot, on_event, key, num_train, num_test)
            return device.run()


@dataclass
class _Device:
    settings: DeviceSettings
    storage: DeviceStorage
    coordinator: Coordinator
    compute_slot: AbstractContextManager[Any]
    on_event: OnEvent
    key: str
    num_train: int
    num_test: int
    counts: Counter[str] = field(default_factory=Counter)
    bytes_down: int = 0
    bytes_up: int = 0
    peak_anonymous_bytes: int = 0
    peak_resident_bytes: int = 0
    cpu_seconds: float = 0.0
    tokens: dict[tuple[str, Path], TokenData] = field(default_factory=dict)

    def run(self) -> DeviceReport:
        """Checks in until there is nothing more to do."""
        self._enrol()
        reason = ""
        while True:
            answer = self._check_in()
            kind = answer.WhichOneof("answer")
            if kind == "finished":
                reason = answer.finished.reason
                self.on_event(DeviceEvent("finished", reason))
                break
            if kind == "assignment":
                self._work_on(answer.assignment)
                if self.settings.once:
                    reason = "One assignment was asked for."
                    break
            else:
                self.on_event(DeviceEvent("waiting", answer.wait.reason))
                time.sleep(max(answer.wait.retry_after_ms, 50) / 1000 * random.uniform(0.9, 1.1))
        return DeviceReport(
            device_id=self.coordinator.device_id,
            assignments=dict(self.counts),
            bytes_down=self.bytes_down,
            bytes_up=self.bytes_up,
            peak_anonymous_bytes=self.peak_anonymous_bytes,
            peak_resident_bytes=self.peak_resident_bytes,
            cpu_seconds=self.cpu_seconds,
            reason=reason,
        )

    def _enrol(self) -> None:
        device_id = self.coordinator.enrol(self.key, self.settings.model_name, self.settings.enrolment_token)
        self.on_event(DeviceEvent("enrolled", f"This is device {device_id}."))

    def _check_in(self) -> pb.CheckInResponse:
        """Asks for work; a coordinator that has forgotten the device gets to know it again."""
        numbers = (self.settings.memory_budget_bytes, self.num_train, self.num_test)
        try:
            return self.coordinator.check_in(*numbers)
        except NotFoundError:
            self._enrol()
            return self.coordinator.check_in(*numbers)

    def _work_on(self, assignment: pb.Assignment) -> None:
        """Does an assignment and hands it in, or gives it back with the reason.

        Raises what would fail the next assignment too: bad data, a damaged bundle, a defect.
        """
        try:
            require_usable(assignment)
            kind = task_kind(assignment)
            self._tell("assignment", f"Round {assignment.round}: {kind}.", assignment)
            self.storage.forget_other_work(assignment.assignment_id)
            bundle, pieces = self._sync(assignment)
            with self.compute_slot:
                data = self._data(bundle, kind)
                journal = open_journal(self.storage, assignment, data)
                finding = compute(
                    self.storage,
                    assignment,
                    bundle,
                    pieces,
                    data,
                    journal,
                    self.settings.memory_budget_bytes,
                    lambda message: self._tell("progress", message, assignment),
                )
            self._submit(assignment, finding, journal)
            journal.discard()
            self.storage.pieces.keep_only({path.name for path in pieces.values()})
            if self.settings.files_folder is None:
                hashes = {entry.sha256 for entry in bundle.manifest.files.values()}
                self.storage.files.keep_only(hashes | {bundle.manifest_sha256})
            self.counts[kind] += 1
            usage = finding.usage
            self.peak_anonymous_bytes = max(self.peak_anonymous_bytes, usage.peak_anonymous_bytes)
            self.peak_resident_bytes = max(self.peak_resident_bytes, usage.peak_resident_bytes)
            self.cpu_seconds += usage.cpu_seconds
        except StopWork as stop:
            self._abandon(assignment, stop.reason, str(stop))
        except NotFiniteError as error:
            self._abandon(assignment, pb.ABANDON_REASON_NOT_FINITE, str(error))
        except MemoryBudgetError as error:
            self._abandon(assignment, pb.ABANDON_REASON_MEMORY, str(error))
        except _REFUSALS as error:
            self._abandon(assignment, pb.ABANDON_REASON_INTERNAL, f"The coordinator refused: {error}")
        except UnauthorizedError as error:
            self._abandon(assignment, pb.ABANDON_REASON_INTERNAL, f"The coordinator refused: {error}")
            raise
        except BundleError as error:
            self._abandon(assignment, pb.ABANDON_REASON_BAD_BUNDLE, str(error))
            raise
        except BadInputError:
            self._abandon(assignment, pb.ABANDON_REASON_NO_EXAMPLES, "The device's data do not suit the task.")
            raise
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            self._abandon(assignment, pb.ABANDON_REASON_STORAGE, "The device's storage is full.")
            raise BadInputError(
                f"There is no room left in {self.settings.state_folder}; free some or give another --state folder."
            ) from error

    def _sync(self, assignment: pb.Assignment) -> tuple[DeviceBundle, dict[str, Path]]:
        """Fetches what is missing of the bundle's files and of the model state."""
        path, received = self.storage.files.fetch(self.coordinator, assignment.manifest, "the manifest")
        self.bytes_down += received
        manifest = parse_manifest(path.read_bytes(), "The run's manifest")
        files: dict[str, Path] = {}
        for named in assignment.files:
            entry = manifest.files.get(named.name)
            if entry is None or entry.sha256 != named.blob.sha256:
                raise BundleError(
                    f"The coordinator's {named.name} is not the one that the manifest names; create a new run."
                )
            files[named.name], received = self.storage.files.fetch(self.coordinator, named.blob, named.name)
            self.bytes_down += received
        pieces: dict[str, Path] = {}
        for named in assignment.state:
            pieces[named.name], received = self.storage.pieces.fetch(self.coordinator, named.blob, named.name)
            self.bytes_down += received
        return DeviceBundle(manifest, assignment.manifest.sha256, files), pieces

    def _data(self, bundle: DeviceBundle, kind: str) -> TokenData:
        """The training or held-out examples as token ids, made once for each bundle."""
        file = self.settings.test_file if kind == EVALUATE else self.settings.train_file
        if file is None:
            raise StopWork(pb.ABANDON_REASON_NO_EXAMPLES, "The device has no held-out examples.")
        place = (bundle.manifest_sha256, file)
        if place not in self.tokens:
            self.tokens[place] = read_tokens(bundle, file)
            trim()
        return self.tokens[place]

    def _submit(self, assignment: pb.Assignment, finding: Finding, journal: Journal) -> None:
        outcome, usage = finding.outcome, finding.usage
        counted = True
        if isinstance(outcome, EvaluationOutcome):
            self.coordinator.submit_evaluation(assignment.assignment_id, outcome)
        elif isinstance(outcome, ProfileOutcome):
            data = tensors_path(journal, outcome).read_bytes()
            self.coordinator.submit_profile(assignment.assignment_id, outcome.num_examples, outcome.scores, data)
            self.bytes_up += len(data)
        else:
            metrics = pb.UpdateMetrics(
                num_examples=outcome.num_examples,
                num_steps=outcome.num_steps,
                loss=outcome.loss,
                local_loss=outcome.local_loss,
                global_loss=outcome.global_loss,
                accuracy=outcome.accuracy,
                peak_anonymous_bytes=usage.peak_anonymous_bytes,
                cpu_seconds=usage.cpu_seconds,
            )
            path = tensors_path(journal, outcome)
            counted, sent = upload(self.coordinator, assignment.assignment_id, path, outcome.tensors_sha256, metrics)
            self.bytes_up += sent
        self._tell("submitted", "Handed in." if counted else "Handed in too late to count.", assignment)

    def _abandon(self, assignment: pb.Assignment, reason: pb.AbandonReason, detail: str) -> None:
        self.counts["abandoned"] += 1
        self._tell("abandoned", detail, assignment)
        try:
            self.coordinator.abandon(assignment.assignment_id, reason, detail)
        except ChainFedError as error:
            self._tell("retrying", f"The assignment could not be given back: {error}", assignment)
        self.storage.forget_other_work("")

    def _tell(self, kind: str, message: str, assignment: pb.Assignment) -> None:
        self.on_event(DeviceEvent(kind, message, assignment.round, assignment.assignment_id))
