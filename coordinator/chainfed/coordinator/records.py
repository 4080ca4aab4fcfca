"""What the coordinator remembers, as values: runs, rounds, assignments, devices and what devices reported."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from chainfed.coordinator.configuration import RunConfig


class RunState(StrEnum):
    """Where a run stands; the names are those of the protocol without their prefix."""

    CREATED = "CREATED"
    PROFILING = "PROFILING"
    WARMING = "WARMING"
    TRAINING = "TRAINING"
    COMPLETED = "COMPLETED"
    PAUSED = "PAUSED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


WORKING_STATES = frozenset({RunState.PROFILING, RunState.WARMING, RunState.TRAINING})
ENDED_STATES = frozenset({RunState.COMPLETED, RunState.FAILED, RunState.CANCELLED})


class RoundKind(StrEnum):
    """What a round is for."""

    PROFILE = "PROFILE"
    WARMUP = "WARMUP"
    TRAIN = "TRAIN"
    EVALUATE = "EVALUATE"


class RoundState(StrEnum):
    """OPEN takes results; SEALED takes none and waits for its aggregation; CLOSED counts; DROPPED got too
    few results."""

    OPEN = "OPEN"
    SEALED = "SEALED"
    CLOSED = "CLOSED"
    DROPPED = "DROPPED"


class AssignmentState(StrEnum):
    """OPEN until exactly one other holds; SUPERSEDED when the round closed without this device
    (over-selection, cancellation)."""

    OPEN = "OPEN"
    REPORTED = "REPORTED"
    ABANDONED = "ABANDONED"
    REFUSED = "REFUSED"
    EXPIRED = "EXPIRED"
    SUPERSEDED = "SUPERSEDED"


FAILED_ASSIGNMENTS = frozenset({AssignmentState.ABANDONED, AssignmentState.REFUSED, AssignmentState.EXPIRED})


@dataclass(frozen=True)
class Blob:
    """Immutable bytes by SHA-256 (64 hexadecimal digits) and length in bytes."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class Device:
    """A device as of its last check-in. Times are Unix milliseconds; `last_seen_ms` is 0 before the first
    check-in. `public_key` is what its signatures are held against, SubjectPublicKeyInfo in DER; None: it does not
    sign."""

    device_id: str
    model: str
    bundle_format_version: int
    enrolled_ms: int
    last_seen_ms: int = 0
    memory_budget_bytes: int = 0
    num_train_examples: int = 0
    num_test_examples: int = 0
    public_key: bytes | None = None


@dataclass(frozen=True)
class Run:
    """A run. `resume_state` is where a paused run goes back to; `next_round` is the number of the next
    round to close."""

    run_id: str
    name: str
    state: RunState
    config: RunConfig
    manifest: Blob
    pieces: dict[str, Blob]
    created_ms: int
    reason: str = ""
    resume_state: RunState | None = None
    rounds_done: int = 0
    next_round: int = 0
    window_size: int = 0
    foat_start: int = -1
    foat_scores: tuple[float, ...] = ()
    checkpoint: Blob | None = None
    bytes_up: int = 0
    bytes_down: int = 0
    paused_ms: int = 0
    ended_ms: int = 0


@dataclass(frozen=True)
class Round:
    """One attempt at a round. `wanted` results close it; `template` is the serialised Assignment that all
    its devices share."""

    run_id: str
    number: int
    attempt: int
    kind: RoundKind
    first_layer: int
    window_size: int
    wanted: int
    template: bytes
    opened_ms: int
    deadline_ms: int
    state: RoundState = RoundState.OPEN
    bytes_up: int = 0
    bytes_down: int = 0


@dataclass(frozen=True)
class Progress:
    """Devices of a round: selected, those that handed in a result, those that failed, and those that are
    still at work."""

    selected: int
    reported: int
    abandoned: int
    open: int


@dataclass(frozen=True)
class ProfileReport:
    """FOAT scores of one device and where its statistics lie."""

    num_examples: int
    scores: tuple[float, ...]
    statistics: Blob
    kind: Literal["profile"] = "profile"


@dataclass(frozen=True)
class Metrics:
    """What a device measured while it trained; fields and units as in the protocol's UpdateMetrics."""

    num_examples: int
    num_steps: int
    loss: float
    local_loss: float
    global_loss: float
    accuracy: float
    peak_anonymous_bytes: int
    cpu_seconds: float


@dataclass(frozen=True)
class UpdateReport:
    """An accepted update and its metrics."""

    update: Blob
    metrics: Metrics
    kind: Literal["update"] = "update"


@dataclass(frozen=True)
class EvaluationReport:
    """Counts of one device's held-out examples; `loss_sum` in nats."""

    num_examples: int
    num_correct: int
    loss_sum: float
    kind: Literal["evaluation"] = "evaluation"


Report = ProfileReport | UpdateReport | EvaluationReport


@dataclass(frozen=True)
class Assignment:
    """One device's part in one attempt at a round. `reason` is the protocol's AbandonReason."""

    assignment_id: str
    run_id: str
    round_number: int
    attempt: int
    device_id: str
    seed: int
    state: AssignmentState = AssignmentState.OPEN
    reason: int = 0
    detail: str = ""
    report: Report | None = None


@dataclass(frozen=True)
class Evaluation:
    """Counts over all devices: accuracy 0 to 1, mean cross-entropy in nats."""

    rounds_done: int
    accuracy: float
    loss: float
    num_examples: int


@dataclass(frozen=True)
class Profile:
    """FOAT's outcome and the window size (phase 1 of Algorithm 1)."""

    scores: tuple[float, ...]
    foat_start: int
    window_size: int
    below_threshold_missing: bool
    threshold: float
    explanation: str


@dataclass(frozen=True)
class RoundOutcome:
    """What a closed round changes in its run; None where it changes nothing."""

    rounds_done: int
    pieces: dict[str, Blob] | None = None
    checkpoint: Blob | None = None
    metrics: Metrics | None = None
    evaluation: Evaluation | None = None
    profile: Profile | None = None
