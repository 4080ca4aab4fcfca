"""What a round's results amount to: aggregation of each kind of round, from the devices' files to new
pieces and a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Sequence

from chainfed.coordinator.admission import choose_window_size
from chainfed.coordinator.aggregation import WeightedMean, applied, checked_tensors
from chainfed.coordinator.assignments import update_shapes
from chainfed.coordinator.foat import Start, find_start, mean_scores, pooled_statistics, profile_shapes
from chainfed.coordinator.ports import Blobs, UpdateFiles
from chainfed.coordinator.records import (
    Assignment,
    Blob,
    Evaluation,
    EvaluationReport,
    Metrics,
    Profile,
    ProfileReport,
    Round,
    RoundOutcome,
    Run,
    UpdateReport,
)
from chainfed.coordinator.schedule import PlannedRound
from chainfed.core.errors import RunFailedError
from chainfed.core.manifest import Manifest
from chainfed.core.tensors import Tensors, decode, encode, piece_of, split_pieces
from chainfed.v1 import device_service_pb2


def trained(
    run: Run,
    manifest: Manifest,
    current: Round,
    reported: Sequence[Assignment],
    rounds_done: int,
    blobs: Blobs,
    updates: UpdateFiles,
) -> RoundOutcome:
    """Algorithm 1, line 11: new = old + sum of n_k change_k / sum of n_k, over the devices in the order
    given (device_id).

    Raises RunFailedError when the sum is not finite.
    """
    shapes = update_shapes(device_service_pb2.Assignment.FromString(current.template), manifest)
    mean = WeightedMean(shapes)
    metrics: list[Metrics] = []
    for assignment in reported:
        report = assignment.report
        if not isinstance(report, UpdateReport):
            raise TypeError(f"assignment {assignment.assignment_id} reported {type(report).__name__}")
        data = updates.read(assignment.assignment_id, report.update)
        mean.add(
            report.metrics.num_examples,
            checked_tensors(data, shapes, f"the update of device {assignment.device_id}"),
        )
        metrics.append(report.metrics)
    after = applied(_load(run, {piece_of(name) for name in shapes}, blobs), mean.result())
    pieces = _store(run, after, blobs)
    return RoundOutcome(rounds_done, pieces, _checkpoint(pieces, blobs), metrics=mean_metrics(metrics))


def mean_metrics(metrics: Sequence[Metrics]) -> Metrics:
    """Means weighted by examples; examples and steps are summed, and of the memory peaks the largest is
    taken."""
    total = sum(each.num_examples for each in metrics)

    def mean(field: str) -> float:
        return math.fsum(each.num_examples * getattr(each, field) for each in metrics) / total

    return Metrics(
        num_examples=total,
        num_steps=sum(each.num_steps for each in metrics),
        loss=mean("loss"),
        local_loss=mean("local_loss"),
        global_loss=mean("global_loss"),
        accuracy=mean("accuracy"),
        peak_anonymous_bytes=max(each.peak_anonymous_bytes for each in metrics),
        cpu_seconds=mean("cpu_seconds"),
    )


def evaluated(rounds_done: int, reported: Sequence[Assignment]) -> RoundOutcome:
    """Accuracy and loss over all devices' held-out examples; no evaluation when none had an example."""
    reports = [assignment.report for assignment in reported if isinstance(assignment.report, EvaluationReport)]
    examples = sum(report.num_examples for report in reports)
    if not examples:
        return RoundOutcome(rounds_done)
    correct = sum(report.num_correct for report in reports)
    loss = math.fsum(report.loss_sum for report in reports) / examples
    return RoundOutcome(rounds_done, evaluation=Evaluation(rounds_done, correct / examples, loss, examples))


def profiled(
    run: Run,
    manifest: Manifest,
    reported: Sequence[Assignment],
    budgets: Sequence[int],
    blobs: Blobs,
    updates: UpdateFiles,
) -> RoundOutcome:
    """Algorithm 1, lines 2 and 3: L_start from the mean scores, Q from the memory plans, and the pooled
    statistics for the heads.

    `budgets`: memory budgets of the devices of the round, in bytes. Raises MemoryBudgetError when none
    holds a window.
    """
    layers = manifest.model.num_layers
    shapes = profile_shapes(manifest)
    reports: list[ProfileReport] = []
    parts: list[tuple[int, Tensors]] = []
    for assignment in reported:
        if isinstance(assignment.report, ProfileReport):
            data = updates.read(assignment.assignment_id, assignment.report.statistics)
            what = f"the statistics of device {assignment.device_id}"
            parts.append((assignment.report.num_examples, checked_tensors(data, shapes, what)))
            reports.append(assignment.report)
    scores = mean_scores([(report.num_examples, report.scores) for report in reports])
    window_size = choose_window_size(manifest, budgets, run.config.window_size)
    found = find_start(scores, run.config.foat_threshold)
    start = min(found.layer, layers - window_size)
    profile = Profile(
        scores=scores,
        foat_start=start,
        window_size=window_size,
        below_threshold_missing=found.below_threshold_missing,
        threshold=run.config.foat_threshold,
        explanation=_explain(run, manifest, scores, found, start, window_size, budgets),
    )
    pieces = _store(run, pooled_statistics(parts, layers) if shapes else {}, blobs)
    return RoundOutcome(0, pieces, profile=profile)


def _explain(
    run: Run,
    manifest: Manifest,
    scores: Sequence[float],
    found: Start,
    start: int,
    window_size: int,
    budgets: Sequence[int],
) -> str:
    threshold = run.config.foat_threshold
    score = f"{scores[found.layer]:.3f}"
    if found.below_threshold_missing:
        words = f"No layer scored below T = {threshold:g}; layer {found.layer} has the lowest score, {score}"
    else:
        words = f"Layer {found.layer} is the first that scored below T = {threshold:g} ({score})"
    if start != found.layer:
        words += f"; the chain starts at layer {start}, because a window of {window_size} must fit before the end"
    need = manifest.round_bytes(window_size) / 1e6
    if run.config.window_size:
        return f"{words}. The window size {window_size} was set by the operator; it needs {need:.1f} MB."
    limits = [budget for budget in budgets if budget]
    smallest = (
        f"the smallest budget of {min(limits) / 1e6:.1f} MB holds"
        if limits
        else "the bundle has; no device has a memory limit"
    )
    return f"{words}. Window size {window_size} ({need:.1f} MB) is the largest that {smallest}."


def _load(run: Run, pieces: set[str], blobs: Blobs) -> Tensors:
    tensors: Tensors = {}
    for piece in sorted(pieces):
        tensors |= decode(blobs.read(run.pieces[piece]), f"piece {piece} of run {run.run_id}")
    return tensors


def _store(run: Run, changed: Tensors, blobs: Blobs) -> dict[str, Blob]:
    """The run's pieces with those replaced that hold the changed tensors; a piece changes as a whole."""
    for name, tensor in changed.items():
        if not math.isfinite(float(tensor.sum(dtype="float64"))):
            raise RunFailedError(
                f"After aggregation tensor {name} is not finite; start again with smaller learning rates."
            )
    return run.pieces | {piece: blobs.put(encode(tensors)) for piece, tensors in split_pieces(changed).items()}


def _checkpoint(pieces: dict[str, Blob], blobs: Blobs) -> Blob:
    """The whole model state as one safetensors blob."""
    state: Tensors = {}
    for piece, blob in sorted(pieces.items()):
        state |= decode(blobs.read(blob), f"piece {piece}")
    return blobs.put(encode(state))


_REASONS: dict[int, str] = {
    device_service_pb2.ABANDON_REASON_UNSPECIFIED: "",
    device_service_pb2.ABANDON_REASON_NOT_FINITE: "not finite",
    device_service_pb2.ABANDON_REASON_POLICY: "its work policy no longer held",
    device_service_pb2.ABANDON_REASON_MEMORY: "not enough memory",
    device_service_pb2.ABANDON_REASON_STORAGE: "not enough storage",
    device_service_pb2.ABANDON_REASON_BAD_BUNDLE: "bad bundle",
    device_service_pb2.ABANDON_REASON_NO_EXAMPLES: "no usable examples",
    device_service_pb2.ABANDON_REASON_INTERNAL: "internal error",
}


def explain_failures(planned: PlannedRound, needed: int, failures: Sequence[Assignment]) -> str:
    """One sentence: which round failed and why its devices did not deliver, each distinct reason once."""
    reasons: dict[str, list[str]] = {}
    for failure in failures:
        words = (
            ": ".join(part for part in (_REASONS.get(failure.reason, ""), failure.detail) if part) or "no reason given"
        )
        reasons.setdefault(words, []).append(failure.device_id)
    listed = [f"{', '.join(sorted(set(ids))[:3])}: {words}" for words, ids in list(reasons.items())[:5]]
    because = "; ".join(listed) or "no device failed, but too few reported"
    return (
        f"Round {planned.number} ({planned.kind.lower()}) got fewer than {needed} usable results in every "
        "attempt. Devices said: "
        f"{because}. See `chainfed run watch` for each of them."
    )
