"""How a run is told to people while it goes on: one line an event, and a status line with progress and remaining
time."""

from __future__ import annotations

from types import TracebackType

from chainfed.core.console import err, megabytes, progress
from chainfed.v1 import run_service_pb2 as pb

_WORK = {
    pb.ROUND_KIND_PROFILE: "FOAT: layer similarities",
    pb.ROUND_KIND_WARMUP: "warming up the heads",
    pb.ROUND_KIND_EVALUATE: "evaluating",
}


class Narrator:
    """Writes a run's events (`tell`) to standard error, with a progress bar where that is a terminal."""

    def __init__(self, rounds: int) -> None:
        self._progress = progress()
        self._task = self._progress.add_task("starting", total=rounds)
        self._accuracy = "-"
        self._bytes_up = 0
        self._bytes_down = 0

    def __enter__(self) -> Narrator:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def tell(self, event: pb.WatchRunResponse) -> None:
        """Writes one event."""
        kind = event.WhichOneof("event")
        if kind == "round_opened":
            self._progress.update(self._task, description=_describe(event.round_opened))
        elif kind == "profiled":
            self._profiled(event.profiled)
        elif kind == "round_closed":
            self._closed(event.round_closed)
        elif kind == "evaluated":
            self._evaluated(event.evaluated)
        elif kind == "device_failed":
            failed = event.device_failed
            self._say(f"  device {failed.device_id}, round {failed.round}: {failed.detail}")
        elif kind == "state_changed" and event.state_changed.reason:
            state = pb.RunState.Name(event.state_changed.to).removeprefix("RUN_STATE_").lower()
            self._say(f"run {state}: {event.state_changed.reason}")

    def _say(self, line: str) -> None:
        err.print(line, markup=False)

    def _profiled(self, profiled: pb.Profiled) -> None:
        scores = "  ".join(f"{number}:{score:.2f}" for number, score in enumerate(profiled.scores))
        self._say(f"FOAT     layer similarity to the embedding (CKA)  {scores}")
        self._say(f"         {profiled.explanation}")

    def _closed(self, closed: pb.RoundClosed) -> None:
        self._bytes_up += closed.bytes_up
        self._bytes_down += closed.bytes_down
        if closed.round.kind == pb.ROUND_KIND_TRAIN:
            self._progress.update(self._task, completed=closed.rounds_done)
            label = f"round {closed.rounds_done:<3}{_window(closed.round):<13}"
        elif closed.round.kind == pb.ROUND_KIND_WARMUP:
            label = f"warm-up  {'heads':<13}"
        else:
            return
        metrics = closed.metrics
        self._say(
            f"{label} loss {metrics.loss:.3f}  training accuracy {100 * metrics.accuracy:.1f}%  held-out "
            f"{self._accuracy}  "
            f"up {megabytes(self._bytes_up)}  down {megabytes(self._bytes_down)}  device peak "
            f"{megabytes(metrics.peak_anonymous_bytes)}  "
            f"{closed.seconds:.1f} s",
        )

    def _evaluated(self, evaluation: pb.Evaluation) -> None:
        self._accuracy = f"{100 * evaluation.accuracy:.1f}%"
        self._say(
            f"accuracy {self._accuracy} (loss {evaluation.loss:.3f}) on {evaluation.num_examples} held-out examples "
            f"after {evaluation.rounds_done} rounds",
        )


def _window(opened: pb.Round) -> str:
    first, last = opened.first_layer, opened.first_layer + opened.window_size - 1
    return f"layer {first}" if first == last else f"layers {first}-{last}"


def _describe(opened: pb.Round) -> str:
    work = _WORK.get(opened.kind) or f"training {_window(opened)}"
    return f"{work} on {opened.num_selected} devices"
