"""A transaction under way, and the events that it appends."""

from __future__ import annotations

from dataclasses import dataclass, field

from google.protobuf import json_format
from sqlalchemy import Connection, func, insert, select

from chainfed.coordinator.records import FAILED_ASSIGNMENTS, AssignmentState, Progress, Round, RunState
from chainfed.coordinator.store import tables
from chainfed.v1 import run_service_pb2


@dataclass
class Transaction:
    """A database connection inside a transaction, the time of it, and the keys whose watchers are woken
    once it is committed."""

    connection: Connection
    now_ms: int
    changed: set[str] = field(default_factory=set)

    def append_event(self, run_id: str, event: run_service_pb2.WatchRunResponse) -> None:
        """Appends an event to the run's stream with the next sequence number, this time and the run's
        present state."""
        newest = select(func.max(tables.events.c.sequence)).where(tables.events.c.run_id == run_id)
        last = self.connection.execute(newest).scalar()
        state = self.connection.execute(select(tables.runs.c.state).where(tables.runs.c.run_id == run_id)).scalar_one()
        event.sequence = 0 if last is None else last + 1
        event.unix_ms = self.now_ms
        event.state = state_enum(RunState(state))
        text = json_format.MessageToJson(event, indent=None)
        self.connection.execute(insert(tables.events).values(run_id=run_id, sequence=event.sequence, event=text))
        self.changed.add(f"run:{run_id}")

    def progress(self, run_id: str, number: int, attempt: int) -> Progress:
        """Counts of an attempt's assignments."""
        table = tables.assignments
        query = (
            select(table.c.state, func.count())
            .where(table.c.run_id == run_id, table.c.round_number == number, table.c.attempt == attempt)
            .group_by(table.c.state)
        )
        counts = {AssignmentState(state): int(count) for state, count in self.connection.execute(query)}
        return Progress(
            selected=sum(counts.values()),
            reported=counts.get(AssignmentState.REPORTED, 0),
            abandoned=sum(counts.get(state, 0) for state in FAILED_ASSIGNMENTS),
            open=counts.get(AssignmentState.OPEN, 0),
        )


def state_enum(state: RunState) -> run_service_pb2.RunState:
    """The protocol's value of a run's state."""
    value: run_service_pb2.RunState = getattr(run_service_pb2, f"RUN_STATE_{state.value}")
    return value


def round_message(current: Round, progress: Progress) -> run_service_pb2.Round:
    """A round on the wire."""
    return run_service_pb2.Round(
        number=current.number,
        kind=f"ROUND_KIND_{current.kind.value}",
        first_layer=current.first_layer,
        window_size=current.window_size,
        num_selected=progress.selected,
        num_reported=progress.reported,
        num_abandoned=progress.abandoned,
    )


def state_changed(before: RunState, after: RunState, reason: str) -> run_service_pb2.WatchRunResponse:
    """The event of a transition."""
    change = run_service_pb2.StateChanged(to=state_enum(after), reason=reason)
    setattr(change, "from", state_enum(before))
    return run_service_pb2.WatchRunResponse(state_changed=change)
