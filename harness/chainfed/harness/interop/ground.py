"""What all cases share: a bundle, data, an undisturbed run of the Python device, and a coordinator's state within it.

The undisturbed run is what every other is compared with: its updates and its checkpoints, byte for byte.
"""

from __future__ import annotations

import json
import math
import shutil
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from chainfed.coordinator.assignments import update_shapes
from chainfed.coordinator.client import require_success
from chainfed.core.errors import BadInputError, RunFailedError
from chainfed.core.json_lines import read_objects
from chainfed.core.manifest import Bundle
from chainfed.core.rpc import CHUNK_BYTES
from chainfed.core.tensors import Tensors, decode, sha256_hex
from chainfed.harness.interop.proxy import Meddler
from chainfed.harness.interop.state_folder import Progress
from chainfed.harness.interop.traffic import Call
from chainfed.harness.interop.trial import CaseFailed, Trial
from chainfed.toolchain.export import export_bundle
from chainfed.toolchain.export_settings import ExportSettings
from chainfed.v1 import device_service_pb2 as pb
from chainfed.v1 import run_service_pb2 as run_pb

PYTHON_DEVICE = (sys.executable, "-m", "chainfed.core", "device")
CREATED, TRAINING = "created", "training"
"""Moments of which the coordinator's state is kept: a run that was created, and its first training round given out."""

LEAST_BATCHES = 12
_SEED = 20
_WAITS_IN_A_RUN = 10  # the whole run is waited for at once
_EVERY_FIFTH = 5
_TRAIN_ROWS, _TEST_ROWS = 190, 21  # neither is a whole number of batches
_SEQ_LEN, _BATCH_SIZE, _ADAPTER_DIM, _WINDOW = 32, 8, 256, 3
_THRESHOLD = 0.85  # of the made model's scores the third is the first below it, so there are two windows of three
_LOWEST_SCORE = 0.0  # no score is below it: a given model is trained from the layer with the lowest one

Progressed = Callable[[str], None]


@dataclass(frozen=True)
class GivenBundle:
    """A bundle and examples for it, in place of generated ones."""

    bundle: Path
    data: Path


@dataclass(frozen=True)
class ReferenceUpdate:
    """What the Python device handed in for a round (safetensors bytes), and the journal of it."""

    assignment: pb.Assignment
    tensors: bytes
    journal: Progress

    @property
    def sha256(self) -> str:
        """Names the update."""
        return sha256_hex(self.tensors)

    @property
    def size_bytes(self) -> int:
        """Its length."""
        return len(self.tensors)


@dataclass(frozen=True)
class Ground:
    """Where everything lies, and what is expected.

    updates: by round. checkpoints: safetensors bytes by training rounds done, from 1 on. run_id: of the run in the kept
    states of the coordinator.
    """

    folder: Path
    bundle: Bundle
    data: tuple[Path, Path]
    run_id: str
    updates: dict[int, ReferenceUpdate]
    checkpoints: dict[int, bytes]

    @property
    def first(self) -> ReferenceUpdate:
        """The update of the first training round."""
        return min(self._trained(), key=lambda update: update.assignment.round)

    @property
    def last(self) -> ReferenceUpdate:
        """The update of the last training round."""
        return max(self._trained(), key=lambda update: update.assignment.round)

    def _trained(self) -> list[ReferenceUpdate]:
        return [update for update in self.updates.values() if update.assignment.HasField("train")]

    def copy_state(self, moment: str, target: Path) -> None:
        """Gives a new coordinator the state that the undisturbed run's had at a moment."""
        shutil.copytree(self.folder / moment, target)


@dataclass
class _Keeper(Meddler):
    """Copies the coordinator's state while the first answer with a training task waits."""

    source: Path
    target: Path
    kept: bool = field(default=False)

    async def answer(self, call: Call, message: Any) -> Any:
        if call.method == "CheckIn" and message.assignment.HasField("train") and not self.kept:
            _copy_state(self.source, self.target)
            self.kept = True
        return message


def prepare(folder: Path, given: GivenBundle | None, limit_seconds: float, progressed: Progressed) -> Ground:
    """Makes the ground in `folder`.

    Raises BadInputError and BundleError when what was given cannot be used, RunFailedError when the Python device
    cannot do an undisturbed run over it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if given is None:
        bundle, data = _make(folder, progressed)
    else:
        bundle, data = Bundle(given.bundle), _split(given.data, folder)
    _check_sizes(bundle, data[0])
    progressed("an undisturbed run of the Python device")
    bundle.verify_files()
    return _run_undisturbed(folder, bundle, data, _THRESHOLD if given is None else _LOWEST_SCORE, limit_seconds)


def _make(folder: Path, progressed: Progressed) -> tuple[Bundle, tuple[Path, Path]]:
    from chainfed.harness.sample_task import LABELS, make_sample_task

    progressed("exporting a small bundle")
    task = make_sample_task(folder / "made", num_train=_TRAIN_ROWS, num_test=_TEST_ROWS, seed=0)
    settings = ExportSettings(
        str(task.model),
        LABELS,
        folder / "bundle",
        seq_len=_SEQ_LEN,
        batch_size=_BATCH_SIZE,
        adapter_dim=_ADAPTER_DIM,
        windows=(_WINDOW,),
    )
    return export_bundle(settings), (task.train, task.test)


def _split(data: Path, folder: Path) -> tuple[Path, Path]:
    """Every fifth row is held out."""
    rows = [row for row, _ in read_objects(data, "examples of the bundle's task")]
    paths = folder / "train.jsonl", folder / "test.jsonl"
    kept = [row for number, row in enumerate(rows) if number % _EVERY_FIFTH], rows[::_EVERY_FIFTH]
    for path, some in zip(paths, kept, strict=True):
        path.write_text("".join(json.dumps(row) + "\n" for row in some), encoding="utf-8")
    return paths


def _check_sizes(bundle: Bundle, train: Path) -> None:
    """Raises BadInputError when a disturbance in the middle of something would find no middle."""
    manifest = bundle.manifest
    rows, needed = len(read_objects(train, "examples")), LEAST_BATCHES * manifest.shapes.batch_size
    if rows < needed:
        raise BadInputError(
            f"The data leave {rows} rows to train on, but the cases need {needed} ({LEAST_BATCHES} batches): give more."
        )
    largest = max(entry.bytes for name, entry in manifest.files.items() if name.startswith("weights/layer_"))
    window = max(manifest.windows)
    task = pb.Assignment(train=pb.TrainTask(first_layer=0, window_size=window))
    update = sum(4 * math.prod(shape) for shape in update_shapes(task, manifest).values())
    for what, size in (("layer", largest), (f"update of a window of {window}", update)):
        if size < 2 * CHUNK_BYTES:
            raise BadInputError(
                f"The bundle's {what} has {size} bytes, but a transfer that is cut in its middle needs "
                f"{2 * CHUNK_BYTES}; give a bundle of a larger model or with larger adapters."
            )


def _run_undisturbed(
    folder: Path, bundle: Bundle, data: tuple[Path, Path], threshold: float, limit_seconds: float
) -> Ground:
    place = folder / "undisturbed"
    keeper = _Keeper(place / "coordinator", folder / TRAINING)
    config = run_pb.RunConfig(
        window_size=max(bundle.manifest.windows),
        rounds=2,
        devices_per_round=1,
        min_devices=1,
        warmup_rounds=0 if bundle.manifest.is_language_model else 1,
        local_epochs=1,
        seed=_SEED,
        foat_threshold=threshold,
    )
    with Trial(PYTHON_DEVICE, data, place, keeper, _WAITS_IN_A_RUN * limit_seconds) as trial:
        run_id = trial.operator.create(bundle, config, name="interop").run_id
        _copy_state(keeper.source, folder / CREATED)
        trial.operator.start(run_id)
        trial.start_device()
        _await_end(trial)
        require_success(trial.operator.get(run_id))
        checkpoints = {done: trial.operator.checkpoint(run_id, done) for done in (1, 2)}
        updates = {}
        for assignment in trial.traffic.assignments():
            tensors = trial.results.get(assignment.assignment_id)
            if tensors is not None:
                journal = trial.journals[assignment.assignment_id]
                updates[assignment.round] = ReferenceUpdate(assignment, tensors, journal)
    return Ground(folder, bundle, data, run_id, updates, checkpoints)


def _await_end(trial: Trial) -> None:
    try:
        code = trial.exit_code("the undisturbed run to end")
    except CaseFailed as failure:
        raise RunFailedError(f"The undisturbed run of the Python device does not end: {failure.seen}.") from failure
    if code != 0:
        raise RunFailedError(f"The Python device ended its undisturbed run with exit code {code}: {trial.last_words}.")


def _copy_state(source: Path, target: Path) -> None:
    """A coordinator's state while nothing is going on in it: its files, and a consistent copy of its database.

    The copy holds no device to a public key: the one under test has a key of its own.
    """
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("coordinator.sqlite*", "lock"))
    with (
        closing(sqlite3.connect(source / "coordinator.sqlite")) as there,
        closing(sqlite3.connect(target / "coordinator.sqlite")) as here,
    ):
        there.backup(here)
        here.execute("UPDATE devices SET public_key = NULL")
        here.commit()


def difference(found: bytes, expected: bytes) -> str:
    """In words, how the tensors of a safetensors file differ from those expected."""
    ours, theirs = decode(found, "the device's tensors"), decode(expected, "the expected tensors")
    sha256 = f"SHA-256 {sha256_hex(found)[:16]}"
    if shapes_of(ours) != shapes_of(theirs):
        return f"{sha256}, with other tensors: {', '.join(ours)}"
    largest = {name: float(np.abs(ours[name] - theirs[name]).max(initial=0.0)) for name in theirs}
    worst = max(largest, key=lambda name: largest[name])
    others = sum(ours[name].tobytes() != theirs[name].tobytes() for name in theirs)
    if not others:
        return f"{sha256}, the same values written in another way"
    return f"{sha256}, other values in {others} of {len(theirs)} tensors, by up to {largest[worst]:.3g} in {worst}"


def shapes_of(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    """The shape of each."""
    return {name: tensor.shape for name, tensor in tensors.items()}
