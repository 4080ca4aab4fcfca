"""The store over SQLAlchemy: every public method is one transaction, and wakes who waits for what it
changed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncEngine

from chainfed.coordinator.ports import Changes, Clock
from chainfed.coordinator.records import (
    Assignment,
    AssignmentState,
    Blob,
    Device,
    Evaluation,
    Progress,
    Report,
    Round,
    RoundOutcome,
    Run,
    RunState,
)
from chainfed.coordinator.store import devices, rounds, runs
from chainfed.coordinator.store.transaction import Transaction
from chainfed.v1 import run_service_pb2

P = ParamSpec("P")
T = TypeVar("T")


class SqlStore:
    """The durable state of a coordinator.

    `durable` commits to the disk; `light` may lose its newest commits when the machine (not the process)
    dies, which is enough for check-ins and counts of bytes. Writers take turns; a write goes on to its end
    when its caller is cancelled.
    """

    def __init__(self, durable: AsyncEngine, light: AsyncEngine, clock: Clock) -> None:
        self.changes = Changes()
        self._durable, self._light, self._clock = durable, light, clock
        self._turn = asyncio.Lock()

    async def close(self) -> None:
        """Closes all connections after the write under way."""
        async with self._turn:
            await self._durable.dispose()
            await self._light.dispose()

    # Devices

    async def enrol(
        self,
        device_key: str,
        model: str,
        bundle_format_version: int,
        public_key: bytes | None = None,
        admitted: bool = True,
    ) -> str:
        """Makes a device known. Returns its device_id. Raises UnauthorizedError for a new device that is not
        `admitted`, and for a known one with another public key."""
        return await self._write(devices.enrol, device_key, model, bundle_format_version, public_key, admitted)

    async def check_in(self, device_id: str, budget: int, num_train: int, num_test: int) -> None:
        """Stores what a device has now. Raises NotFoundError."""
        await self._write_light(devices.check_in, device_id, budget, num_train, num_test)

    async def touch(self, device_id: str) -> None:
        """Notes that a device was seen."""
        await self._write_light(devices.touch, device_id)

    async def device(self, device_id: str) -> Device:
        """One device. Raises NotFoundError."""
        return await self._read(devices.get, device_id)

    async def devices(self) -> list[Device]:
        """All devices by device_id."""
        return await self._read(devices.every)

    # Runs

    async def create_run(self, run: Run, request_id: str) -> Run:
        """Stores a new run; the one that an earlier call with the same `request_id` made, if there is one."""
        return await self._write(runs.create, run, request_id)

    async def run_by_request(self, request_id: str) -> Run | None:
        """The run that a call with this `request_id` made."""
        return await self._read(runs.by_request, request_id)

    async def run(self, run_id: str) -> Run:
        """One run. Raises NotFoundError."""
        return await self._read(runs.get, run_id)

    async def runs(self) -> list[Run]:
        """All runs, newest first."""
        return await self._read(runs.every)

    async def run_states(self) -> list[tuple[str, RunState, str, int]]:
        """Id, state, reason and end of every run."""
        return await self._read(runs.states)

    async def set_reason(self, run_id: str, reason: str) -> None:
        """Says what a working run waits for."""
        await self._write_light(runs.set_reason, run_id, reason)

    async def advance(self, run_id: str, to: RunState, reason: str = "") -> Run:
        """Takes a working run to another state. Raises ConflictError."""
        return await self._write(runs.advance, run_id, to, reason)

    async def start_run(self, run_id: str) -> Run:
        """Lets a created run begin. Raises ConflictError."""
        return await self._write(runs.start, run_id)

    async def pause_run(self, run_id: str, reason: str) -> Run:
        """Holds a working run. Raises ConflictError."""
        return await self._write(runs.pause, run_id, reason)

    async def resume_run(self, run_id: str) -> Run:
        """Lets a paused run go on. Raises ConflictError."""
        return await self._write(runs.resume, run_id)

    async def cancel_run(self, run_id: str) -> Run:
        """Ends a run for good. Raises ConflictError."""
        return await self._write(runs.cancel, run_id)

    async def events(self, run_id: str, from_sequence: int, limit: int = 100) -> list[run_service_pb2.WatchRunResponse]:
        """A run's events from a sequence number on. Raises NotFoundError."""
        return await self._read(runs.events, run_id, from_sequence, limit)

    async def evaluations(self, run_id: str) -> list[Evaluation]:
        """A run's evaluations in order."""
        return await self._read(runs.evaluations, run_id)

    async def checkpoint(self, run_id: str, rounds_done: int | None) -> Blob:
        """A checkpoint; the newest when `rounds_done` is None. Raises NotFoundError."""
        return await self._read(runs.checkpoint, run_id, rounds_done)

    # Rounds

    async def latest_attempt(self, run_id: str, number: int) -> Round | None:
        """The newest attempt at a round."""
        return await self._read(rounds.latest_attempt, run_id, number)

    async def round_under_way(self, run_id: str) -> Round | None:
        """The round that is not closed yet."""
        return await self._read(rounds.under_way, run_id)

    async def last_opened_ms(self, run_id: str) -> int | None:
        """When the run's newest round opened."""
        return await self._read(rounds.last_opened_ms, run_id)

    async def open_round(self, opened: Round, assignments: Sequence[Assignment]) -> None:
        """Records an attempt at a round. Raises ConflictError when the run is not working."""
        await self._write(rounds.open_round, opened, assignments)

    async def progress(self, current: Round) -> Progress:
        """How many devices have reported, failed, or are still at work."""
        return await self._read(Transaction.progress, current.run_id, current.number, current.attempt)

    async def seal_round(self, current: Round) -> list[Assignment]:
        """Takes no more results. Returns the assignments that reported."""
        return await self._write(rounds.seal_round, current)

    async def drop_round(self, current: Round) -> None:
        """Gives up a sealed attempt."""
        await self._write(rounds.drop_round, current)

    async def failures(self, run_id: str, number: int) -> list[Assignment]:
        """The assignments of all attempts at a round that failed."""
        return await self._read(rounds.failures, run_id, number)

    async def close_round(self, current: Round, outcome: RoundOutcome) -> Run:
        """Records a sealed round's outcome. Raises ConflictError."""
        return await self._write(rounds.close_round, current, outcome)

    async def skip_round(self, run_id: str, number: int) -> Run:
        """Advances the run past a round that is not held."""
        return await self._write(rounds.skip_round, run_id, number)

    async def add_bytes_down(self, current: Round, count: int) -> None:
        """Counts bytes sent to a device towards its round and run."""
        await self._write_light(rounds.add_bytes_down, current, count)

    # Assignments

    async def next_assignment(self, device_id: str) -> tuple[Assignment, Round] | None:
        """The oldest open assignment of a device in a working run."""
        return await self._read(rounds.next_of_device, device_id)

    async def assignment(self, assignment_id: str, device_id: str) -> tuple[Assignment, Round, Run]:
        """A device's assignment with its round and run. Raises NotFoundError."""
        return await self._read(rounds.with_round, assignment_id, device_id)

    async def report(self, assignment_id: str, device_id: str, result: Report, bytes_up: int) -> bool:
        """Takes a device's result if its assignment is open. True when its result counts."""
        return await self._write(rounds.report, assignment_id, device_id, result, bytes_up)

    async def fail_assignment(
        self, assignment_id: str, device_id: str, state: AssignmentState, reason: int, detail: str
    ) -> bool:
        """Closes an open assignment without a result. False when it was not open."""
        return await self._write(rounds.fail, assignment_id, device_id, state, reason, detail)

    async def needed_uploads(self) -> list[str]:
        """Assignments whose files are still needed."""
        return await self._read(rounds.open_assignment_ids)

    # Transactions

    async def _read(self, work: Callable[Concatenate[Transaction, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        def body(connection: Connection) -> T:
            return work(Transaction(connection, self._clock.now_ms()), *args, **kwargs)

        async with self._durable.connect() as connection:
            return await connection.run_sync(body)

    async def _write(self, work: Callable[Concatenate[Transaction, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._transact(self._durable, lambda transaction: work(transaction, *args, **kwargs))

    async def _write_light(
        self, work: Callable[Concatenate[Transaction, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        return await self._transact(self._light, lambda transaction: work(transaction, *args, **kwargs))

    async def _transact(self, engine: AsyncEngine, work: Callable[[Transaction], T]) -> T:
        async def turn() -> T:
            async with self._turn:
                transactions: list[Transaction] = []

                def body(connection: Connection) -> T:
                    transactions.append(Transaction(connection, self._clock.now_ms()))
                    return work(transactions[0])

                async with engine.begin() as connection:
                    result = await connection.run_sync(body)
            self._notify(transactions[0].changed)
            return result

        return await asyncio.shield(asyncio.create_task(turn()))

    def _notify(self, changed: set[str]) -> None:
        if "device:*" in changed:
            self.changes.notify_all()
        self.changes.notify(*sorted(changed))
