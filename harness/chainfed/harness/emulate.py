"""A federation on one machine: a coordinator, a fleet of emulated devices, and a folder that tells what happened."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from chainfed.coordinator.admission import choose_window_size
from chainfed.coordinator.client import OperatorClient, require_success
from chainfed.coordinator.plain import plain
from chainfed.core.address import near_address
from chainfed.core.errors import BadInputError, ChainFedError
from chainfed.core.examples import read_examples
from chainfed.core.json_lines import read_objects
from chainfed.core.manifest import Bundle, Manifest
from chainfed.core.passages import FORMS, read_passages
from chainfed.core.tensors import sha256_file
from chainfed.harness.device import DeviceSettings
from chainfed.harness.fleet import LOOPBACK, OWN_DEVICE, CoordinatorProcess, DeviceFleet
from chainfed.harness.partition import PartitionSpec, partition
from chainfed.harness.plots import RunHistory, WindowStep, plot_run
from chainfed.v1 import run_service_pb2 as pb

Event = pb.WatchRunResponse
_LOOK_SECONDS = 0.5
_PATIENCE_SECONDS = 90.0


@dataclass(frozen=True)
class EmulationSettings:
    """What to emulate. `memory_budgets` (bytes, 0: no limit) are dealt to the devices in turn; `config` holds the
    run's other settings. `commands` start the devices, in turn; `listen` is where devices from elsewhere may join."""

    bundle: Path
    train_file: Path
    test_file: Path
    folder: Path
    devices: int
    workers: int
    partition: PartitionSpec
    memory_budgets: Sequence[int]
    seed: int
    config: pb.RunConfig
    commands: Sequence[str] = (OWN_DEVICE,)
    listen: str = LOOPBACK


@dataclass(frozen=True)
class BeforeAndAfter:
    """A figure over the held-out examples before the first and after the last round."""

    before: float
    after: float


@dataclass(frozen=True)
class EmulationResult:
    """What an emulation found; `as_json` is the object that `chainfed emulate --json` prints.

    `accuracy` lies between 0 and 1, `loss` is the mean cross-entropy in nats.
    """

    accuracy: BeforeAndAfter
    loss: BeforeAndAfter
    rounds: int
    foat_start: int
    foat_scores: list[float]
    window_size: int
    bytes_up: int
    bytes_down: int
    device_peak_anon_mb: float
    planned_mb: float
    seconds: float
    adapters: Path
    folder: Path
    restarts: int
    adapters_sha256: str

    def as_json(self) -> dict[str, object]:
        """The result as plain values."""
        return asdict(self) | {"adapters": str(self.adapters), "folder": str(self.folder)}


@dataclass
class _Record:
    """What the events of a run add up to."""

    steps: list[WindowStep] = field(default_factory=list)
    peak_anonymous_bytes: int = 0

    def add(self, event: Event) -> None:
        if event.WhichOneof("event") != "round_closed" or event.round_closed.round.kind != pb.ROUND_KIND_TRAIN:
            return
        closed = event.round_closed
        self.peak_anonymous_bytes = max(self.peak_anonymous_bytes, closed.metrics.peak_anonymous_bytes)
        self.steps.append(
            WindowStep(closed.rounds_done, closed.round.first_layer, closed.round.window_size, closed.metrics.loss)
        )


def emulate(settings: EmulationSettings, on_event: Callable[[Event], None] | None = None) -> EmulationResult:
    """Runs the federation to its end and writes `adapters.safetensors`, `events.jsonl`, `result.json`, `run.png` and
    `run.svg`.

    Raises BadInputError and BundleError for input that cannot be used, MemoryBudgetError when no device can train
    even one layer,
    and RunFailedError when the run fails or a process leaves with an error.
    """
    begin = time.monotonic()
    bundle = Bundle(settings.bundle)
    bundle.verify_files()
    choose_window_size(bundle.manifest, settings.memory_budgets, settings.config.window_size)
    devices = deal_devices(settings, bundle.manifest)
    coordinator = CoordinatorProcess(
        settings.folder / "coordinator", settings.folder / "coordinator.log", settings.listen
    )
    try:
        devices = [replace(device, coordinator=near_address(coordinator.address)) for device in devices]
        fleet = DeviceFleet(devices, settings.folder / "slots", settings.workers, settings.commands)
        try:
            with OperatorClient(near_address(coordinator.address)) as client:
                run_id = client.create(bundle, settings.config, name=settings.folder.name).run_id
                client.start(run_id)
                record = _follow(client, run_id, settings.folder / "events.jsonl", (coordinator, fleet), on_event)
                run = client.get(run_id)
                require_success(run)
                checkpoint = client.checkpoint(run_id)
            fleet.stop()
        finally:
            fleet.stop(grace_seconds=0)
    finally:
        coordinator.stop()
    adapters = settings.folder / "adapters.safetensors"
    adapters.write_bytes(checkpoint)
    history = RunHistory(
        [(evaluation.rounds_done, evaluation.accuracy) for evaluation in run.evaluations],
        record.steps,
        bundle.manifest.model.num_layers,
        run.foat_start,
        1 / (bundle.manifest.num_labels or bundle.manifest.model.vocab_size),
    )
    plot_run(history, settings.folder)
    first, last = run.evaluations[0], run.evaluations[-1]
    result = EmulationResult(
        accuracy=BeforeAndAfter(first.accuracy, last.accuracy),
        loss=BeforeAndAfter(first.loss, last.loss),
        rounds=run.rounds_done,
        foat_start=run.foat_start,
        foat_scores=list(run.foat_scores),
        window_size=run.window_size,
        bytes_up=run.bytes_up,
        bytes_down=run.bytes_down,
        device_peak_anon_mb=record.peak_anonymous_bytes / 1e6,
        planned_mb=bundle.manifest.round_bytes(run.window_size) / 1e6,
        seconds=time.monotonic() - begin,
        adapters=adapters,
        folder=settings.folder,
        restarts=fleet.restarts + coordinator.restarts,
        adapters_sha256=sha256_file(adapters),
    )
    (settings.folder / "result.json").write_text(json.dumps(result.as_json(), indent=1) + "\n")
    return result


def deal_devices(settings: EmulationSettings, manifest: Manifest) -> list[DeviceSettings]:
    """Deals the examples to devices, writes each device's files, and returns the devices' settings (without an
    address).

    Training examples follow `settings.partition`; held-out examples are dealt evenly, and to as many devices as there
    are.
    """
    train = _read_rows(settings.train_file, manifest)
    test = _read_rows(settings.test_file, manifest)
    labels = [row["label"] if isinstance(row.get("label"), int) else 0 for row in train]
    shares = partition(labels, settings.devices, settings.partition, settings.seed)
    devices = []
    for index, share in enumerate(shares):
        folder = settings.folder / "devices" / f"{index:04d}"
        folder.mkdir(parents=True)
        held_out = test[index :: settings.devices]
        _write_rows(folder / "train.jsonl", [train[row] for row in share])
        if held_out:
            _write_rows(folder / "test.jsonl", held_out)
        devices.append(
            DeviceSettings(
                coordinator="",
                state_folder=folder / "state",
                train_file=folder / "train.jsonl",
                test_file=folder / "test.jsonl" if held_out else None,
                memory_budget_bytes=settings.memory_budgets[index % len(settings.memory_budgets)],
                device_key=f"emulated-{index:04d}",
            )
        )
    return devices


def _read_rows(path: Path, manifest: Manifest) -> list[dict[str, Any]]:
    """The rows of a data file, checked for the bundle's task; labels as numbers."""
    if not manifest.is_language_model:
        return [asdict(example) for example in read_examples(path, manifest.task.labels)]
    read_passages(path)
    return [row for row, _ in read_objects(path, FORMS)]


def _write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _follow(
    client: OperatorClient,
    run_id: str,
    path: Path,
    processes: Sequence[CoordinatorProcess | DeviceFleet],
    on_event: Callable[[Event], None] | None,
) -> _Record:
    """Writes the run's events as they come, until it has ended; killed processes are started again meanwhile."""
    record = _Record()
    with path.open("w", encoding="utf-8") as file, _Supervisor(processes, client, run_id) as supervisor:
        for event in client.watch(run_id, patience_seconds=_PATIENCE_SECONDS):
            file.write(json.dumps(plain(event)) + "\n")
            file.flush()
            record.add(event)
            if on_event is not None:
                on_event(event)
        supervisor.check()
    return record


class _Supervisor:
    """Looks after the processes from a thread of its own. When one cannot be revived, it cancels the run; `check`
    then says why."""

    def __init__(
        self, processes: Sequence[CoordinatorProcess | DeviceFleet], client: OperatorClient, run_id: str
    ) -> None:
        self._processes = processes
        self._client = client
        self._run_id = run_id
        self._stop = threading.Event()
        self._error: ChainFedError | None = None
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _Supervisor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def check(self) -> None:
        if self._error is not None:
            raise self._error

    def _watch(self) -> None:
        while not self._stop.wait(_LOOK_SECONDS):
            try:
                for process in self._processes:
                    process.revive()
            except ChainFedError as error:
                self._error = error
                with suppress(ChainFedError):
                    self._client.cancel(self._run_id)
                return


def parse_memory_budgets(text: str) -> list[int]:
    """`64,128,0` in megabytes to bytes; 0 means no limit. Raises BadInputError for anything else."""
    try:
        budgets = [int(float(part) * 1e6) for part in text.split(",")]
    except (ValueError, OverflowError):
        budgets = [-1]
    if min(budgets) < 0:
        raise BadInputError(
            f"--memory-mb {text!r} is no list of megabytes; write numbers separated by commas, such as 64,128 (0: "
            f"no limit)."
        )
    return budgets
