"""Runs and their events as text for people."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from chainfed.coordinator.plain import enum_name
from chainfed.core.console import megabytes, out, table
from chainfed.v1 import device_service_pb2
from chainfed.v1 import run_service_pb2 as pb


def state_name(state: int) -> str:
    """`TRAINING`."""
    return enum_name(pb.RunState.DESCRIPTOR, state)


def run(shown: pb.Run) -> None:
    """Prints a run."""
    rows = table(f"Run {shown.run_id} {shown.name}".rstrip(), "", "")
    for name, value in _facts(shown):
        rows.add_row(name, value)
    out.print(rows)
    if shown.reason:
        out.print(shown.reason, markup=False)


def _facts(shown: pb.Run) -> list[tuple[str, str]]:
    facts = [("state", state_name(shown.state)), ("training rounds", f"{shown.rounds_done} of {shown.config.rounds}")]
    if shown.HasField("open_round"):
        facts.append(("round under way", _round(shown.open_round)))
    if shown.foat_start >= 0:
        facts.append(("first trained layer", str(shown.foat_start)))
        facts.append(("scores", " ".join(f"{score:.3f}" for score in shown.foat_scores)))
    if shown.window_size:
        facts.append(("window size", str(shown.window_size)))
    facts += [
        (f"accuracy after {evaluation.rounds_done}", f"{evaluation.accuracy:.4f} (loss {evaluation.loss:.4f})")
        for evaluation in shown.evaluations
    ]
    facts.append(("received from devices", megabytes(shown.bytes_up)))
    facts.append(("sent to devices", megabytes(shown.bytes_down)))
    if shown.HasField("checkpoint"):
        facts.append(("checkpoint", shown.checkpoint.sha256[:16]))
    return facts


def runs(shown: Sequence[pb.Run]) -> None:
    """Prints runs as a table."""
    rows = table("Runs", "run", "name", "state", "rounds", "window", "accuracy", "created")
    for one in shown:
        accuracy = f"{one.evaluations[-1].accuracy:.4f}" if one.evaluations else "-"
        created = datetime.fromtimestamp(one.created_unix_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")
        done = f"{one.rounds_done}/{one.config.rounds}"
        window = str(one.window_size or "-")
        rows.add_row(one.run_id, one.name, state_name(one.state), done, window, accuracy, created)
    out.print(rows)


def event_line(event: pb.WatchRunResponse) -> str:
    """An event as one line with the time of day (UTC)."""
    at = datetime.fromtimestamp(event.unix_ms / 1000, UTC).strftime("%H:%M:%S")
    return f"{at} {_words(event)}"


def _words(event: pb.WatchRunResponse) -> str:
    which = event.WhichOneof("event")
    if which == "state_changed":
        reason = f": {event.state_changed.reason}" if event.state_changed.reason else ""
        return f"{state_name(event.state_changed.to)}{reason}"
    if which == "profiled":
        scores = " ".join(f"{score:.3f}" for score in event.profiled.scores)
        return f"FOAT scores {scores}. {event.profiled.explanation}"
    if which == "round_opened":
        return f"opened {_round(event.round_opened)}"
    if which == "round_closed":
        return _closed(event.round_closed)
    if which == "evaluated":
        found = event.evaluated
        return (
            f"accuracy {found.accuracy:.4f}, loss {found.loss:.4f} over {found.num_examples} examples "
            f"after {found.rounds_done} training rounds"
        )
    if which == "device_failed":
        failed = event.device_failed
        reason = enum_name(device_service_pb2.AbandonReason.DESCRIPTOR, failed.reason)
        said = "" if failed.reason == device_service_pb2.ABANDON_REASON_UNSPECIFIED else f" {reason}"
        return f"device {failed.device_id} did not deliver in round {failed.round}:{said} {failed.detail}".rstrip()
    return "an event that this version does not know"


def _round(shown: pb.Round) -> str:
    kind = enum_name(pb.RoundKind.DESCRIPTOR, shown.kind).lower()
    window = ""
    if shown.window_size:
        window = f", layers {shown.first_layer} to {shown.first_layer + shown.window_size - 1}"
    return (
        f"round {shown.number} ({kind}{window}): {shown.num_reported} of {shown.num_selected} devices "
        "reported, "
        f"{shown.num_abandoned} gave up"
    )


def _closed(closed: pb.RoundClosed) -> str:
    measured = ""
    if closed.HasField("metrics"):
        measured = f", loss {closed.metrics.loss:.4f}, local accuracy {closed.metrics.accuracy:.4f}"
    traffic = f"{megabytes(closed.bytes_up)} up, {megabytes(closed.bytes_down)} down"
    return f"closed {_round(closed.round)}{measured}, {traffic}, {closed.seconds:.1f} s"
