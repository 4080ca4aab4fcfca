"""Runs cases one after the other and says what came out."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from chainfed.core.errors import BadInputError
from chainfed.harness.interop.case import Case, Stand
from chainfed.harness.interop.damage import BadShard, TruncatedCache, UnknownBundleVersion
from chainfed.harness.interop.ground import Ground
from chainfed.harness.interop.kills import KilledMidPrefix, KilledMidStep
from chainfed.harness.interop.lost_connections import (
    CoordinatorRestart,
    DropMidDownload,
    DropMidUpload,
    DuplicateSubmit,
    StaleRound,
)
from chainfed.harness.interop.trial import CaseFailed, NotSetUp

CASES: tuple[type[Case], ...] = (
    DropMidDownload,
    DropMidUpload,
    StaleRound,
    DuplicateSubmit,
    KilledMidStep,
    KilledMidPrefix,
    CoordinatorRestart,
    BadShard,
    TruncatedCache,
    UnknownBundleVersion,
)
_ATTEMPTS = 3
_STDERR_LINES = 30


@dataclass(frozen=True)
class CaseResult:
    """What came out of a case.

    checked: what held. expected, seen: why it failed. stderr: the last lines of the device, of a case that failed.
    attempts: more than one when a disturbance did not come about at first.
    """

    name: str
    passed: bool
    seconds: float
    attempts: int
    checked: list[str] = field(default_factory=list)
    expected: str = ""
    seen: str = ""
    stderr: str = ""

    def as_json(self) -> dict[str, object]:
        """The result as plain values."""
        return asdict(self)


def choose(names: Sequence[str]) -> list[Case]:
    """The cases of these names in their usual order; all without a name. Raises BadInputError for one that is none."""
    known = {case.name: case for case in CASES}
    for name in names:
        if name not in known:
            raise BadInputError(f"--case {name} is not one of the cases; give one of {', '.join(known)}.")
    return [case() for case in CASES if not names or case.name in names]


def run_cases(
    cases: Sequence[Case],
    ground: Ground,
    command: Sequence[str],
    folder: Path,
    limit_seconds: float,
    on_result: Callable[[CaseResult], None] = lambda result: None,
) -> list[CaseResult]:
    """Runs each case in a folder of its own below `folder`, which is not there yet."""
    results = []
    for case in cases:
        results.append(_run_case(case, ground, command, folder / case.name, limit_seconds))
        on_result(results[-1])
    return results


def _run_case(case: Case, ground: Ground, command: Sequence[str], folder: Path, limit_seconds: float) -> CaseResult:
    begin = time.monotonic()
    for attempt in range(1, _ATTEMPTS + 1):
        shutil.rmtree(folder, ignore_errors=True)
        try:
            checked = case.run(Stand(ground, command, folder, limit_seconds))
            return CaseResult(case.name, True, time.monotonic() - begin, attempt, checked)
        except CaseFailed as failure:
            expected, seen = failure.expected, failure.seen
            break
        except NotSetUp as failure:
            expected, seen = "a disturbance that comes about", f"in {attempt} attempts it did not: {failure}"
    seconds = time.monotonic() - begin
    return CaseResult(case.name, False, seconds, attempt, [], expected, seen, _last_lines(folder))


def _last_lines(folder: Path) -> str:
    """The end of what the device's last process wrote to standard error."""
    logs = sorted(folder.glob("device-*.err"), key=lambda path: path.stat().st_mtime)
    if not logs:
        return ""
    lines = logs[-1].read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(lines[-_STDERR_LINES:])
