"""Rows to records and back. Structured columns are JSON; what was written by this package is read back
without checks of meaning."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import RowMapping

from chainfed.coordinator.configuration import RunConfig
from chainfed.coordinator.records import (
    Assignment,
    AssignmentState,
    Blob,
    Device,
    Evaluation,
    Report,
    Round,
    RoundKind,
    RoundState,
    Run,
    RunState,
)

CONFIG = TypeAdapter(RunConfig)
PIECES = TypeAdapter(dict[str, Blob])
SCORES = TypeAdapter(tuple[float, ...])
REPORT: TypeAdapter[Report] = TypeAdapter(Report)


def device_of(row: RowMapping) -> Device:
    """A device."""
    return Device(**{field: row[field] for field in Device.__dataclass_fields__})


def run_of(row: RowMapping) -> Run:
    """A run."""
    checkpoint = row["checkpoint_sha256"]
    plain = (
        "run_id name reason rounds_done next_round window_size foat_start bytes_up bytes_down created_ms "
        "paused_ms ended_ms"
    )
    return Run(
        **{field: row[field] for field in plain.split()},
        state=RunState(row["state"]),
        resume_state=RunState(row["resume_state"]) if row["resume_state"] else None,
        config=CONFIG.validate_json(row["config"]),
        manifest=Blob(row["manifest_sha256"], row["manifest_bytes"]),
        pieces=PIECES.validate_json(row["pieces"]),
        foat_scores=SCORES.validate_json(row["foat_scores"]),
        checkpoint=Blob(checkpoint, row["checkpoint_bytes"]) if checkpoint else None,
    )


def run_values(run: Run) -> dict[str, Any]:
    """A new run's columns."""
    plain = (
        "run_id name reason rounds_done next_round window_size foat_start bytes_up bytes_down created_ms "
        "paused_ms ended_ms"
    )
    return {field: getattr(run, field) for field in plain.split()} | {
        "state": run.state.value,
        "resume_state": run.resume_state.value if run.resume_state else None,
        "config": CONFIG.dump_json(run.config).decode(),
        "manifest_sha256": run.manifest.sha256,
        "manifest_bytes": run.manifest.size_bytes,
        "pieces": PIECES.dump_json(run.pieces).decode(),
        "foat_scores": SCORES.dump_json(run.foat_scores).decode(),
        "checkpoint_sha256": run.checkpoint.sha256 if run.checkpoint else None,
        "checkpoint_bytes": run.checkpoint.size_bytes if run.checkpoint else None,
    }


def round_of(row: RowMapping) -> Round:
    """An attempt at a round."""
    values = {field: row[field] for field in Round.__dataclass_fields__}
    return Round(**values | {"kind": RoundKind(row["kind"]), "state": RoundState(row["state"])})


def round_values(current: Round) -> dict[str, Any]:
    """A new attempt's columns."""
    values = {field: getattr(current, field) for field in Round.__dataclass_fields__}
    return values | {"kind": current.kind.value, "state": current.state.value}


def assignment_of(row: RowMapping) -> Assignment:
    """An assignment."""
    values = {field: row[field] for field in Assignment.__dataclass_fields__}
    return Assignment(
        **values
        | {
            "seed": int(row["seed"]),
            "state": AssignmentState(row["state"]),
            "report": REPORT.validate_json(row["report"]) if row["report"] else None,
        }
    )


def assignment_values(assignment: Assignment, created_ms: int) -> dict[str, Any]:
    """A new assignment's columns. A seed is a 64-bit unsigned integer, which a database's integer does not
    hold: it is text."""
    values = {field: getattr(assignment, field) for field in Assignment.__dataclass_fields__}
    return values | {
        "seed": str(assignment.seed),
        "state": assignment.state.value,
        "report": None,
        "created_ms": created_ms,
    }


def evaluation_of(row: RowMapping) -> Evaluation:
    """An evaluation."""
    return Evaluation(**{field: row[field] for field in Evaluation.__dataclass_fields__})
