"""Transactions about runs, their events, evaluations and checkpoints."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from google.protobuf import json_format
from sqlalchemy import func, insert, select, update

from chainfed.coordinator.records import (
    ENDED_STATES,
    WORKING_STATES,
    AssignmentState,
    Blob,
    Evaluation,
    RoundState,
    Run,
    RunState,
)
from chainfed.coordinator.store import tables
from chainfed.coordinator.store.rows import evaluation_of, run_of, run_values
from chainfed.coordinator.store.transaction import Transaction, state_changed
from chainfed.core.errors import ConflictError, NotFoundError
from chainfed.v1 import run_service_pb2


def create(transaction: Transaction, run: Run, request_id: str) -> Run:
    """Stores a new run; the run that an earlier call with the same `request_id` made, if there is one."""
    table = tables.runs
    known = transaction.connection.execute(select(table.c.run_id).where(table.c.request_id == request_id)).scalar()
    if known is not None:
        return get(transaction, known)
    transaction.connection.execute(insert(table).values(**run_values(run), request_id=request_id))
    return get(transaction, run.run_id)


def by_request(transaction: Transaction, request_id: str) -> Run | None:
    """The run that a call with this `request_id` made."""
    table = tables.runs
    row = transaction.connection.execute(select(table).where(table.c.request_id == request_id)).mappings().first()
    return run_of(row) if row else None


def get(transaction: Transaction, run_id: str) -> Run:
    """One run. Raises NotFoundError."""
    table = tables.runs
    row = transaction.connection.execute(select(table).where(table.c.run_id == run_id)).mappings().first()
    if row is None:
        raise NotFoundError(f"Run {run_id[:40]!r} does not exist on this coordinator; see `chainfed run list`.")
    return run_of(row)


def every(transaction: Transaction) -> list[Run]:
    """All runs, newest first."""
    table = tables.runs
    rows = transaction.connection.execute(select(table).order_by(table.c.created_ms.desc(), table.c.run_id))
    return [run_of(row) for row in rows.mappings()]


def states(transaction: Transaction) -> list[tuple[str, RunState, str, int]]:
    """Id, state, reason and end (Unix milliseconds, 0 while it goes on) of every run."""
    table = tables.runs
    query = select(table.c.run_id, table.c.state, table.c.reason, table.c.ended_ms).order_by(table.c.created_ms)
    rows = transaction.connection.execute(query)
    return [(run_id, RunState(state), reason, ended_ms) for run_id, state, reason, ended_ms in rows]


def set_reason(transaction: Transaction, run_id: str, reason: str) -> None:
    """Says what a working run waits for."""
    table = tables.runs
    working = table.c.state.in_([state.value for state in WORKING_STATES])
    transaction.connection.execute(
        update(table).where(table.c.run_id == run_id, working, table.c.reason != reason).values(reason=reason)
    )


def advance(transaction: Transaction, run_id: str, to: RunState, reason: str = "") -> Run:
    """Takes a working run to another state. Raises ConflictError when it is not working."""
    run = get(transaction, run_id)
    require(run, WORKING_STATES, f"go to {to}")
    return _move(transaction, run, to, reason)


def start(transaction: Transaction, run_id: str) -> Run:
    """Lets a created run begin; changes nothing when it has begun. Raises ConflictError when it is paused
    or has ended."""
    run = get(transaction, run_id)
    if run.state in WORKING_STATES:
        return run
    require(run, {RunState.CREATED}, "be started")
    return _move(transaction, run, RunState.PROFILING, "")


def pause(transaction: Transaction, run_id: str, reason: str) -> Run:
    """Holds a working run; changes nothing when it is paused. Raises ConflictError otherwise."""
    run = get(transaction, run_id)
    if run.state is RunState.PAUSED:
        return run
    require(run, WORKING_STATES, "be paused")
    return _move(transaction, run, RunState.PAUSED, reason, resume_state=run.state.value, paused_ms=transaction.now_ms)


def resume(transaction: Transaction, run_id: str) -> Run:
    """Lets a paused run go on; its open round gets the time back. Changes nothing when it is working; else
    raises ConflictError."""
    run = get(transaction, run_id)
    if run.state in WORKING_STATES:
        return run
    require(run, {RunState.PAUSED}, "be resumed")
    table = tables.rounds
    still_open = (table.c.run_id == run_id) & (table.c.state == RoundState.OPEN.value)
    longer = table.c.deadline_ms + (transaction.now_ms - run.paused_ms)
    transaction.connection.execute(update(table).where(still_open).values(deadline_ms=longer))
    _wake_devices(transaction, run_id)
    return _move(transaction, run, run.resume_state or RunState.PROFILING, "", resume_state=None)


def cancel(transaction: Transaction, run_id: str) -> Run:
    """Ends a run for good; changes nothing when it was cancelled before. Raises ConflictError when it has
    ended otherwise."""
    run = get(transaction, run_id)
    if run.state is RunState.CANCELLED:
        return run
    require(run, frozenset(RunState) - ENDED_STATES, "be cancelled")
    return _move(transaction, run, RunState.CANCELLED, "cancelled by the operator")


def require(run: Run, allowed: Collection[RunState], what: str) -> None:
    """Raises ConflictError unless the run is in one of the allowed states."""
    if run.state not in allowed:
        raise ConflictError(
            f"Run {run.run_id} is {run.state} and cannot {what}; it would have to be "
            f"{' or '.join(state for state in RunState if state in allowed)}."
        )


def _move(transaction: Transaction, run: Run, to: RunState, reason: str, **values: Any) -> Run:
    if to in ENDED_STATES:
        values["ended_ms"] = transaction.now_ms
        _close_assignments(transaction, run.run_id)
        transaction.changed.add("device:*")
    table = tables.runs
    change = update(table).where(table.c.run_id == run.run_id).values(state=to.value, reason=reason, **values)
    transaction.connection.execute(change)
    transaction.append_event(run.run_id, state_changed(run.state, to, reason))
    return get(transaction, run.run_id)


def _close_assignments(transaction: Transaction, run_id: str) -> None:
    table = tables.assignments
    still_open = (table.c.run_id == run_id) & (table.c.state == AssignmentState.OPEN.value)
    transaction.connection.execute(update(table).where(still_open).values(state=AssignmentState.SUPERSEDED.value))
    rounds = tables.rounds
    unfinished = rounds.c.state.in_([RoundState.OPEN.value, RoundState.SEALED.value])
    dropped = update(rounds).where(rounds.c.run_id == run_id, unfinished).values(state=RoundState.DROPPED.value)
    transaction.connection.execute(dropped)


def _wake_devices(transaction: Transaction, run_id: str) -> None:
    table = tables.assignments
    still_open = (table.c.run_id == run_id) & (table.c.state == AssignmentState.OPEN.value)
    for device_id in transaction.connection.execute(select(table.c.device_id).where(still_open)).scalars():
        transaction.changed.add(f"device:{device_id}")


def events(
    transaction: Transaction, run_id: str, from_sequence: int, limit: int
) -> list[run_service_pb2.WatchRunResponse]:
    """The run's events from a sequence number on. Raises NotFoundError."""
    get(transaction, run_id)
    table = tables.events
    query = (
        select(table.c.event)
        .where(table.c.run_id == run_id, table.c.sequence >= from_sequence)
        .order_by(table.c.sequence)
        .limit(limit)
    )
    texts = transaction.connection.execute(query).scalars()
    return [json_format.Parse(text, run_service_pb2.WatchRunResponse(), ignore_unknown_fields=True) for text in texts]


def evaluations(transaction: Transaction, run_id: str) -> list[Evaluation]:
    """The run's evaluations in order."""
    table = tables.evaluations
    query = select(table).where(table.c.run_id == run_id).order_by(table.c.round_number)
    return [evaluation_of(row) for row in transaction.connection.execute(query).mappings()]


def checkpoint(transaction: Transaction, run_id: str, rounds_done: int | None) -> Blob:
    """The newest checkpoint, or the newest that was made when `rounds_done` training rounds were done.
    Raises NotFoundError."""
    get(transaction, run_id)
    table = tables.checkpoints
    query = select(table.c.sha256, table.c.size_bytes).where(table.c.run_id == run_id)
    if rounds_done is not None:
        query = query.where(table.c.rounds_done == rounds_done)
    row = transaction.connection.execute(query.order_by(table.c.round_number.desc()).limit(1)).first()
    if row is None:
        newest = transaction.connection.execute(
            select(func.max(table.c.rounds_done)).where(table.c.run_id == run_id)
        ).scalar()
        have = "it has none yet" if newest is None else f"its newest is that after {newest} training rounds"
        which = "" if rounds_done is None else f" after {rounds_done} training rounds"
        raise NotFoundError(f"Run {run_id} has no checkpoint{which}; {have}.")
    return Blob(row[0], row[1])
