"""Records on the wire."""

from __future__ import annotations

from chainfed.coordinator.assignments import blob_message
from chainfed.coordinator.records import Assignment, Evaluation, Progress, Round, Run
from chainfed.coordinator.store import SqlStore
from chainfed.coordinator.store.transaction import round_message, state_enum
from chainfed.v1 import device_service_pb2, run_service_pb2


async def run_message(run: Run, store: SqlStore) -> run_service_pb2.Run:
    """A run with its evaluations and the round under way."""
    current = await store.round_under_way(run.run_id)
    progress = await store.progress(current) if current else None
    return _run(run, await store.evaluations(run.run_id), current, progress)


def _run(
    run: Run, evaluations: list[Evaluation], current: Round | None, progress: Progress | None
) -> run_service_pb2.Run:
    return run_service_pb2.Run(
        run_id=run.run_id,
        name=run.name,
        state=state_enum(run.state),
        reason=run.reason,
        config=run.config.to_message(),
        manifest=blob_message(run.manifest),
        rounds_done=run.rounds_done,
        window_size=run.window_size,
        foat_start=run.foat_start,
        foat_scores=run.foat_scores,
        checkpoint=blob_message(run.checkpoint) if run.checkpoint else None,
        evaluations=[run_service_pb2.Evaluation(**vars(evaluation)) for evaluation in evaluations],
        bytes_up=run.bytes_up,
        bytes_down=run.bytes_down,
        created_unix_ms=run.created_ms,
        open_round=round_message(current, progress) if current and progress else None,
    )


def assignment_message(assignment: Assignment, current: Round) -> device_service_pb2.Assignment:
    """An assignment: what its round shares, and what is its own."""
    message = device_service_pb2.Assignment.FromString(current.template)
    message.assignment_id = assignment.assignment_id
    message.round = assignment.round_number
    message.seed = assignment.seed
    message.deadline_unix_ms = current.deadline_ms
    return message
