"""Transactions about rounds and assignments."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sqlalchemy import ColumnElement, and_, func, insert, select, update

from chainfed.coordinator.records import (
    ENDED_STATES,
    FAILED_ASSIGNMENTS,
    WORKING_STATES,
    Assignment,
    AssignmentState,
    Metrics,
    Report,
    Round,
    RoundOutcome,
    RoundState,
    Run,
    RunState,
)
from chainfed.coordinator.store import devices, runs, tables
from chainfed.coordinator.store.rows import (
    PIECES,
    REPORT,
    SCORES,
    assignment_of,
    assignment_values,
    round_of,
    round_values,
)
from chainfed.coordinator.store.transaction import Transaction, round_message
from chainfed.core.errors import ConflictError, NotFoundError
from chainfed.v1 import blob_pb2, device_service_pb2, run_service_pb2


def latest_attempt(transaction: Transaction, run_id: str, number: int) -> Round | None:
    """The newest attempt at a round; None before the first."""
    table = tables.rounds
    query = select(table).where(table.c.run_id == run_id, table.c.number == number)
    row = transaction.connection.execute(query.order_by(table.c.attempt.desc()).limit(1)).mappings().first()
    return round_of(row) if row else None


def under_way(transaction: Transaction, run_id: str) -> Round | None:
    """The round that is open or sealed."""
    table = tables.rounds
    unfinished = table.c.state.in_([RoundState.OPEN.value, RoundState.SEALED.value])
    row = transaction.connection.execute(select(table).where(table.c.run_id == run_id, unfinished)).mappings().first()
    return round_of(row) if row else None


def last_opened_ms(transaction: Transaction, run_id: str) -> int | None:
    """When the run's newest round opened; None before the first."""
    table = tables.rounds
    newest = select(func.max(table.c.opened_ms)).where(table.c.run_id == run_id)
    opened: int | None = transaction.connection.execute(newest).scalar()
    return opened


def open_round(transaction: Transaction, opened: Round, assignments: Sequence[Assignment]) -> None:
    """Records an attempt at a round, its assignments and the event. Raises ConflictError when the run is
    not working."""
    runs.require(runs.get(transaction, opened.run_id), WORKING_STATES, "open a round")
    transaction.connection.execute(insert(tables.rounds).values(**round_values(opened)))
    rows = [assignment_values(assignment, transaction.now_ms) for assignment in assignments]
    transaction.connection.execute(insert(tables.assignments), rows)
    progress = transaction.progress(opened.run_id, opened.number, opened.attempt)
    event = run_service_pb2.WatchRunResponse(round_opened=round_message(opened, progress))
    transaction.append_event(opened.run_id, event)
    transaction.changed |= {f"device:{assignment.device_id}" for assignment in assignments}


def assignment(transaction: Transaction, assignment_id: str, device_id: str) -> Assignment:
    """An assignment of a device. Raises NotFoundError when there is no such assignment for this device."""
    table = tables.assignments
    query = select(table).where(table.c.assignment_id == assignment_id, table.c.device_id == device_id)
    row = transaction.connection.execute(query).mappings().first()
    if row is None:
        devices.get(transaction, device_id)
        raise NotFoundError(
            f"Assignment {assignment_id[:40]!r} of device {device_id} does not exist; check in for a new one."
        )
    return assignment_of(row)


def with_round(transaction: Transaction, assignment_id: str, device_id: str) -> tuple[Assignment, Round, Run]:
    """An assignment with its round and run. Raises NotFoundError."""
    found = assignment(transaction, assignment_id, device_id)
    return found, _round(transaction, found), runs.get(transaction, found.run_id)


def next_of_device(transaction: Transaction, device_id: str) -> tuple[Assignment, Round] | None:
    """The oldest open assignment of a device in a working run."""
    table, all_runs = tables.assignments, tables.runs
    query = (
        select(table)
        .join(all_runs, all_runs.c.run_id == table.c.run_id)
        .where(
            table.c.device_id == device_id,
            table.c.state == AssignmentState.OPEN.value,
            all_runs.c.state.in_([state.value for state in WORKING_STATES]),
        )
        .order_by(table.c.created_ms, table.c.assignment_id)
        .limit(1)
    )
    row = transaction.connection.execute(query).mappings().first()
    if row is None:
        return None
    found = assignment_of(row)
    return found, _round(transaction, found)


def report(transaction: Transaction, assignment_id: str, device_id: str, result: Report, bytes_up: int) -> bool:
    """Takes a device's result if its assignment is open. True when a result of this assignment counts, now
    or from before."""
    found = assignment(transaction, assignment_id, device_id)
    devices.touch(transaction, device_id)
    if found.state is not AssignmentState.OPEN:
        return found.state is AssignmentState.REPORTED
    table = tables.assignments
    values = {"state": AssignmentState.REPORTED.value, "report": REPORT.dump_json(result).decode()}
    transaction.connection.execute(update(table).where(table.c.assignment_id == assignment_id).values(**values))
    run, current = tables.runs, tables.rounds
    transaction.connection.execute(
        update(run).where(run.c.run_id == found.run_id).values(bytes_up=run.c.bytes_up + bytes_up)
    )
    transaction.connection.execute(
        update(current).where(_same_round(found)).values(bytes_up=current.c.bytes_up + bytes_up)
    )
    transaction.changed.add(f"run:{found.run_id}")
    return True


def fail(
    transaction: Transaction,
    assignment_id: str,
    device_id: str,
    state: AssignmentState,
    reason: int,
    detail: str,
) -> bool:
    """Closes an open assignment without a result, with an event. False when it was not open."""
    found = assignment(transaction, assignment_id, device_id)
    devices.touch(transaction, device_id)
    if found.state is not AssignmentState.OPEN:
        return False
    _fail(transaction, found, state, reason, detail)
    return True


def _fail(transaction: Transaction, found: Assignment, state: AssignmentState, reason: int, detail: str) -> None:
    table = tables.assignments
    same = table.c.assignment_id == found.assignment_id
    change = update(table).where(same).values(state=state.value, reason=reason, detail=detail)
    transaction.connection.execute(change)
    failed = run_service_pb2.DeviceFailed(
        device_id=found.device_id,
        round=found.round_number,
        reason=device_service_pb2.AbandonReason.Name(reason),
        detail=detail,
    )
    transaction.append_event(found.run_id, run_service_pb2.WatchRunResponse(device_failed=failed))


def add_bytes_down(transaction: Transaction, current: Round, count: int) -> None:
    """Counts bytes sent to a device towards its round and run."""
    run, table = tables.runs, tables.rounds
    transaction.connection.execute(
        update(run).where(run.c.run_id == current.run_id).values(bytes_down=run.c.bytes_down + count)
    )
    transaction.connection.execute(
        update(table).where(_same_attempt(current)).values(bytes_down=table.c.bytes_down + count)
    )


def seal_round(transaction: Transaction, current: Round) -> list[Assignment]:
    """Takes no more results for an open round. Returns the assignments that reported, by device_id.

    Open assignments expire, with an event each, when the deadline has passed, and are superseded otherwise.
    """
    newest = latest_attempt(transaction, current.run_id, current.number)
    if newest is not None and newest.attempt == current.attempt and newest.state is RoundState.OPEN:
        runs.require(runs.get(transaction, current.run_id), WORKING_STATES, "seal a round")
        late = transaction.now_ms >= newest.deadline_ms
        for found in _assignments(transaction, current, {AssignmentState.OPEN}):
            if late:
                seconds = (newest.deadline_ms - newest.opened_ms) / 1000
                detail = f"no result within the round's {seconds:g} seconds"
                _fail(transaction, found, AssignmentState.EXPIRED, 0, detail)
            else:
                same = tables.assignments.c.assignment_id == found.assignment_id
                superseded = update(tables.assignments).where(same).values(state=AssignmentState.SUPERSEDED.value)
                transaction.connection.execute(superseded)
        _set_state(transaction, current, RoundState.SEALED)
    return _assignments(transaction, current, {AssignmentState.REPORTED})


def drop_round(transaction: Transaction, current: Round) -> None:
    """Gives up a sealed attempt."""
    _set_state(transaction, current, RoundState.DROPPED)


def failures(transaction: Transaction, run_id: str, number: int) -> list[Assignment]:
    """The assignments of all attempts at a round that failed, in order of attempt and device_id."""
    table = tables.assignments
    failed = table.c.state.in_([state.value for state in FAILED_ASSIGNMENTS])
    query = select(table).where(table.c.run_id == run_id, table.c.round_number == number, failed)
    rows = transaction.connection.execute(query.order_by(table.c.attempt, table.c.device_id))
    return [assignment_of(row) for row in rows.mappings()]


def close_round(transaction: Transaction, current: Round, outcome: RoundOutcome) -> Run:
    """Records a sealed round's outcome: the run's new state, checkpoint, evaluation and events. All of it
    or nothing.

    Raises ConflictError when the run has ended or the round is not sealed.
    """
    run = runs.get(transaction, current.run_id)
    runs.require(run, frozenset(RunState) - ENDED_STATES, "close a round")
    newest = latest_attempt(transaction, current.run_id, current.number)
    if newest is None or newest.attempt != current.attempt or newest.state is not RoundState.SEALED:
        raise ConflictError(f"Round {current.number} of run {current.run_id} is not sealed.")
    values: dict[str, object] = {"rounds_done": outcome.rounds_done, "next_round": current.number + 1}
    if outcome.pieces is not None:
        values["pieces"] = PIECES.dump_json(outcome.pieces).decode()
    if outcome.checkpoint is not None:
        values |= {
            "checkpoint_sha256": outcome.checkpoint.sha256,
            "checkpoint_bytes": outcome.checkpoint.size_bytes,
        }
    if outcome.profile is not None:
        values |= {
            "foat_start": outcome.profile.foat_start,
            "window_size": outcome.profile.window_size,
            "foat_scores": SCORES.dump_json(outcome.profile.scores).decode(),
        }
    transaction.connection.execute(update(tables.runs).where(tables.runs.c.run_id == run.run_id).values(**values))
    _set_state(transaction, current, RoundState.CLOSED)
    _insert_results(transaction, current, outcome)
    _append_outcome_events(transaction, newest, outcome)
    return runs.get(transaction, run.run_id)


def skip_round(transaction: Transaction, run_id: str, number: int) -> Run:
    """Advances the run past a round that is not held."""
    table = tables.runs
    transaction.connection.execute(update(table).where(table.c.run_id == run_id).values(next_round=number + 1))
    return runs.get(transaction, run_id)


def open_assignment_ids(transaction: Transaction) -> list[str]:
    """Assignments whose files are still needed: open ones, and reported ones of rounds that are not
    closed."""
    table, rounds = tables.assignments, tables.rounds
    same = and_(
        rounds.c.run_id == table.c.run_id,
        rounds.c.number == table.c.round_number,
        rounds.c.attempt == table.c.attempt,
    )
    unfinished = rounds.c.state.in_([RoundState.OPEN.value, RoundState.SEALED.value])
    return list(
        transaction.connection.execute(select(table.c.assignment_id).join(rounds, same).where(unfinished)).scalars()
    )


def _round(transaction: Transaction, found: Assignment) -> Round:
    query = select(tables.rounds).where(_same_round(found))
    return round_of(transaction.connection.execute(query).mappings().one())


def _same_round(found: Assignment) -> ColumnElement[bool]:
    table = tables.rounds
    return and_(table.c.run_id == found.run_id, table.c.number == found.round_number, table.c.attempt == found.attempt)


def _same_attempt(current: Round) -> ColumnElement[bool]:
    table = tables.rounds
    return and_(table.c.run_id == current.run_id, table.c.number == current.number, table.c.attempt == current.attempt)


def _set_state(transaction: Transaction, current: Round, state: RoundState) -> None:
    change = update(tables.rounds).where(_same_attempt(current)).values(state=state.value)
    transaction.connection.execute(change)


def _assignments(transaction: Transaction, current: Round, states: Collection[AssignmentState]) -> list[Assignment]:
    table = tables.assignments
    query = select(table).where(
        table.c.run_id == current.run_id,
        table.c.round_number == current.number,
        table.c.attempt == current.attempt,
        table.c.state.in_([state.value for state in states]),
    )
    return [assignment_of(row) for row in transaction.connection.execute(query.order_by(table.c.device_id)).mappings()]


def _insert_results(transaction: Transaction, current: Round, outcome: RoundOutcome) -> None:
    place = {"run_id": current.run_id, "round_number": current.number, "rounds_done": outcome.rounds_done}
    if outcome.checkpoint is not None:
        blob = {"sha256": outcome.checkpoint.sha256, "size_bytes": outcome.checkpoint.size_bytes}
        transaction.connection.execute(insert(tables.checkpoints).values(**place, **blob))
    if outcome.evaluation is not None:
        found = outcome.evaluation
        counts = {"accuracy": found.accuracy, "loss": found.loss, "num_examples": found.num_examples}
        transaction.connection.execute(insert(tables.evaluations).values(**place, **counts))


def _append_outcome_events(transaction: Transaction, current: Round, outcome: RoundOutcome) -> None:
    closed = run_service_pb2.RoundClosed(
        round=round_message(current, transaction.progress(current.run_id, current.number, current.attempt)),
        rounds_done=outcome.rounds_done,
        bytes_up=current.bytes_up,
        bytes_down=current.bytes_down,
        seconds=(transaction.now_ms - current.opened_ms) / 1000,
    )
    if outcome.metrics is not None:
        closed.metrics.CopyFrom(_metrics_message(outcome.metrics))
    if outcome.checkpoint is not None:
        blob = outcome.checkpoint
        closed.checkpoint.CopyFrom(blob_pb2.BlobRef(sha256=blob.sha256, size_bytes=blob.size_bytes))
    transaction.append_event(current.run_id, run_service_pb2.WatchRunResponse(round_closed=closed))
    if outcome.profile is not None:
        found = outcome.profile
        profiled = run_service_pb2.Profiled(
            scores=found.scores,
            foat_start=found.foat_start,
            window_size=found.window_size,
            below_threshold_missing=found.below_threshold_missing,
            threshold=found.threshold,
            explanation=found.explanation,
        )
        transaction.append_event(current.run_id, run_service_pb2.WatchRunResponse(profiled=profiled))
    if outcome.evaluation is not None:
        evaluated = run_service_pb2.Evaluation(**vars(outcome.evaluation))
        transaction.append_event(current.run_id, run_service_pb2.WatchRunResponse(evaluated=evaluated))


def _metrics_message(metrics: Metrics) -> device_service_pb2.UpdateMetrics:
    return device_service_pb2.UpdateMetrics(**vars(metrics))
