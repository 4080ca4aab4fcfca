"""One assignment on a device, from the fetched files to the outcome, with all that it cost."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from chainfed.core.errors import BundleError, MemoryBudgetError
from chainfed.harness.bundle import DeviceBundle, map_state
from chainfed.harness.chain import KeptDepth
from chainfed.harness.data import TokenData
from chainfed.harness.journal import Journal, boot_id
from chainfed.harness.outcome import Outcome, find_outcome, record_outcome
from chainfed.harness.profile import profile
from chainfed.harness.storage import DeviceStorage
from chainfed.harness.tasks import Work, evaluate, train, warm_up
from chainfed.runtime.memory import PeakSampler, trim
from chainfed.v1 import device_service_pb2 as pb

PROFILE, WARMUP, TRAIN, EVALUATE = "profile", "warmup", "train", "evaluate"

_ASSIGNMENT_ID = re.compile(r"[0-9A-Za-z_-]{1,64}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class StopWork(Exception):  # noqa: N818 - it is no error: the work is given back.
    """Ends the work on an assignment, to be given back for `reason`."""

    def __init__(self, reason: pb.AbandonReason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True)
class Usage:
    """What the work on one assignment took, over all processes that took part in it.

    peak_anonymous_bytes: RssAnon over the level right before the work, after the texts became token ids.
    peak_resident_bytes: the same of RssAnon and the pages of mapped files together.
    """

    cpu_seconds: float
    peak_anonymous_bytes: int
    peak_resident_bytes: int


@dataclass(frozen=True)
class Finding:
    """An assignment's outcome and what it took."""

    outcome: Outcome
    usage: Usage


def require_usable(assignment: pb.Assignment) -> None:
    """Raises BundleError when a name by which the device will keep a file could lead out of its state folder."""
    refs = [assignment.manifest, *(named.blob for named in (*assignment.files, *assignment.state))]
    if not _ASSIGNMENT_ID.fullmatch(assignment.assignment_id) or not all(_SHA256.fullmatch(ref.sha256) for ref in refs):
        raise BundleError(
            "The coordinator sent an assignment with an id that is not 1 to 64 letters, digits, - and _, or a SHA-256 "
            "that is not 64 hexadecimal digits; check that the address is the coordinator's."
        )


def task_kind(assignment: pb.Assignment) -> str:
    """Which task an assignment brings. Raises BundleError when this version does not know it."""
    kind = assignment.WhichOneof("task")
    if kind is None:
        raise BundleError("The coordinator sent a task that this ChainFed does not know; install a newer one.")
    return str(kind)


def open_journal(storage: DeviceStorage, assignment: pb.Assignment, data: TokenData) -> Journal:
    """The journal of an assignment: the one that a killed process left, when it was about the same work."""
    header = {
        "assignment": assignment.assignment_id,
        "manifest": assignment.manifest.sha256,
        "data": data.fingerprint,
        "boot": boot_id(),
    }
    return Journal(storage.work / assignment.assignment_id, header)


def compute(
    storage: DeviceStorage,
    assignment: pb.Assignment,
    bundle: DeviceBundle,
    pieces: Mapping[str, Path],
    data: TokenData,
    journal: Journal,
    memory_budget_bytes: int,
    tell: Callable[[str], None],
) -> Finding:
    """Does the work, or finds that it is done.

    pieces: the pieces of the model state by name. data: the training or the held-out examples, as the task needs them.
    tell: hears what is being done. Raises StopWork when the deadline has passed, MemoryBudgetError when the plan does
    not fit into the budget, NotFiniteError and BundleError as the tasks do.
    """
    done = find_outcome(journal)
    if done is not None:
        return Finding(done, _usage(journal))
    _check_budget(bundle, assignment, memory_budget_bytes)
    session = len({number for number, *_ in journal.find("usage")})
    state = map_state(bundle.manifest, pieces)
    kept = _kept_depth(storage, assignment, bundle, pieces, data)
    if assignment.WhichOneof("task") == EVALUATE and 0 < assignment.evaluate.max_examples < len(data):
        data = data.select(range(assignment.evaluate.max_examples))
    cpu_before = time.process_time()
    with PeakSampler() as sampler:

        def note() -> None:
            used = time.process_time() - cpu_before
            journal.append({"usage": [session, used, sampler.peak_bytes, sampler.peak_resident_bytes]})

        def checkpoint(message: str) -> None:
            if time.time() * 1000 > assignment.deadline_unix_ms > 0:
                raise StopWork(pb.ABANDON_REASON_INTERNAL, "The deadline passed before the work was done.")
            if message:
                note()
                tell(message)

        work = Work(bundle, state, data, journal, assignment.seed, kept, checkpoint)
        outcome = _run(work, assignment)
        note()
        record_outcome(journal, outcome)
    if kept is not None:
        storage.keep_in_cache(_role(assignment), kept.path)
    trim()
    return Finding(outcome, _usage(journal))


def _run(work: Work, assignment: pb.Assignment) -> Outcome:
    kind = task_kind(assignment)
    if kind == PROFILE:
        if len(work.data) < 2:
            raise StopWork(pb.ABANDON_REASON_NO_EXAMPLES, "Profiling needs two examples, the device has one.")
        return profile(work, assignment.profile)
    if kind == WARMUP:
        return warm_up(work, assignment.warmup)
    if kind == TRAIN:
        return train(work, assignment.train)
    return evaluate(work)


def _usage(journal: Journal) -> Usage:
    """Processor time of the last note of every process that worked on it, summed, and the highest peaks."""
    last: dict[int, float] = {}
    anonymous = resident = 0
    for session, cpu_seconds, peak_bytes, peak_resident_bytes in journal.find("usage"):
        last[session] = cpu_seconds
        anonymous, resident = max(anonymous, peak_bytes), max(resident, peak_resident_bytes)
    return Usage(sum(last.values()), anonymous, resident)


def _check_budget(bundle: DeviceBundle, assignment: pb.Assignment, budget: int) -> None:
    needed = bundle.manifest.prefix.anonymous_bytes
    if assignment.WhichOneof("task") == TRAIN and assignment.train.window_size in bundle.manifest.windows:
        needed = bundle.manifest.round_bytes(assignment.train.window_size)
    if 0 < budget < needed:
        raise MemoryBudgetError(
            f"The work needs {needed / 1e6:.1f} MB of memory, the device may use {budget / 1e6:.1f} MB; a budget of "
            f"{-(-needed // 1_000_000)} MB would do."
        )


def _kept_depth(
    storage: DeviceStorage,
    assignment: pb.Assignment,
    bundle: DeviceBundle,
    pieces: Mapping[str, Path],
    data: TokenData,
) -> KeptDepth | None:
    """The output of the last layer below the first one that is trained: it does not change from round to round."""
    depth = assignment.foat_start
    if depth >= bundle.manifest.model.num_layers or assignment.WhichOneof("task") == PROFILE:
        return None
    adapters = [pieces[f"adapters.{layer}"].name for layer in range(depth) if f"adapters.{layer}" in pieces]
    parts = (bundle.manifest_sha256, data.fingerprint, str(depth), *adapters)
    key = hashlib.sha256("/".join(parts).encode()).hexdigest()[:32]
    return KeptDepth(depth, storage.cache / f"{_role(assignment)}-{key}", data.num_batches)


def _role(assignment: pb.Assignment) -> str:
    return "test" if assignment.WhichOneof("task") == EVALUATE else "train"
