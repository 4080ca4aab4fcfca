"""What the round loop needs from outside, as protocols: it knows neither the database nor the network."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from chainfed.coordinator.records import (
    Assignment,
    Blob,
    Device,
    Progress,
    Round,
    RoundOutcome,
    Run,
    RunState,
)


class Clock(Protocol):
    """The time of day."""

    def now_ms(self) -> int:
        """Milliseconds since the Unix epoch."""


class SystemClock:
    """The machine's clock."""

    def now_ms(self) -> int:
        """Milliseconds since the Unix epoch."""
        return time.time_ns() // 1_000_000


class Changes:
    """Wakes who waits for a key to change. Keys are `devices`, `device:ID` and `run:ID`; the store notifies
    after each commit.

    Read `count`, look at the state, then wait with `changed`: a change in between is not lost.
    """

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._everybody = 0
        self._waiting: dict[str, set[asyncio.Future[None]]] = {}

    def count(self, key: str) -> int:
        """How often the key has changed."""
        return self._counts[key] + self._everybody

    def notify(self, *keys: str) -> None:
        """Says that keys changed."""
        for key in keys:
            self._counts[key] += 1
            self._wake(key)

    def notify_all(self) -> None:
        """Says that every key changed, those included that nobody has waited for yet."""
        self._everybody += 1
        for key in list(self._waiting):
            self._wake(key)

    def _wake(self, key: str) -> None:
        for waiting in self._waiting.pop(key, set()):
            if not waiting.done():
                waiting.set_result(None)

    async def changed(self, key: str, since: int, timeout_seconds: float) -> bool:
        """Waits until the key's count is above `since`; False when the time is over first."""
        if self.count(key) > since:
            return True
        waiting = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, set()).add(waiting)
        try:
            await asyncio.wait_for(waiting, max(timeout_seconds, 0.0))
        except TimeoutError:
            return False
        finally:
            keys = self._waiting.get(key)
            if keys is not None:
                keys.discard(waiting)
                if not keys:
                    del self._waiting[key]
        return True


class Blobs(Protocol):
    """Content-addressed bytes."""

    def read(self, blob: Blob) -> bytes:
        """The bytes."""

    def put(self, data: bytes) -> Blob:
        """Stores bytes durably, once."""


class UpdateFiles(Protocol):
    """Results that devices handed in."""

    def read(self, assignment_id: str, update: Blob) -> bytes:
        """An accepted result's bytes."""

    def remove(self, assignment_id: str) -> None:
        """Deletes everything that arrived for an assignment."""


class RoundStore(Protocol):
    """The durable state, as far as the round loop uses it. Every method is one transaction."""

    changes: Changes

    async def run(self, run_id: str) -> Run:
        """The run. Raises NotFoundError."""

    async def devices(self) -> list[Device]:
        """All devices by device_id."""

    async def set_reason(self, run_id: str, reason: str) -> None:
        """Says what a working run waits for."""

    async def advance(self, run_id: str, to: RunState, reason: str = "") -> Run:
        """Takes a working run to another state. Raises ConflictError when it is not working (paused,
        ended)."""

    async def latest_attempt(self, run_id: str, number: int) -> Round | None:
        """The newest attempt at a round; None before the first."""

    async def last_opened_ms(self, run_id: str) -> int | None:
        """When the run's newest round opened; None before the first."""

    async def open_round(self, opened: Round, assignments: Sequence[Assignment]) -> None:
        """Records an attempt at a round and its assignments. Raises ConflictError when the run is not
        working."""

    async def progress(self, current: Round) -> Progress:
        """How many devices have reported, failed, or are still at work."""

    async def seal_round(self, current: Round) -> list[Assignment]:
        """Takes no more results for an open round: open assignments expire (past the deadline, with an
        event) or are superseded.

        Returns the assignments that reported, by device_id; the same list when it is repeated.
        """

    async def drop_round(self, current: Round) -> None:
        """Gives up a sealed attempt that got too few results."""

    async def failures(self, run_id: str, number: int) -> list[Assignment]:
        """The assignments of all attempts at a round that failed, in order of attempt and device_id."""

    async def close_round(self, current: Round, outcome: RoundOutcome) -> Run:
        """Records a sealed round's outcome, advances the run past it, and tells who watches. Raises
        ConflictError when the run ended."""

    async def skip_round(self, run_id: str, number: int) -> Run:
        """Advances the run past a round that is not held."""
