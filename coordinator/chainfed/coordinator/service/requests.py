"""Checks of what callers send. Each raises BadInputError with a sentence that names the field and what it
may be."""

from __future__ import annotations

import math
import re

from chainfed.coordinator.records import Blob, EvaluationReport, Metrics
from chainfed.core.errors import BadInputError, UpdateRejectedError
from chainfed.v1 import blob_pb2, device_service_pb2

_HEX = re.compile("[0-9a-f]+")
_LARGEST_BLOB = 1 << 40


def hexadecimal(value: str, digits: int, field: str) -> str:
    """An identifier of that many hexadecimal digits."""
    if len(value) != digits or not _HEX.fullmatch(value):
        raise BadInputError(f"{field} is {value[:80]!r}, but must be {digits} lower-case hexadecimal digits.")
    return value


def text(value: str, field: str, shortest: int, longest: int, printable_ascii: bool = False) -> str:
    """A text of `shortest` to `longest` characters."""
    if not shortest <= len(value) <= longest:
        raise BadInputError(f"{field} has {len(value)} characters, but must have {shortest} to {longest}.")
    if printable_ascii and not all(" " <= character <= "~" for character in value):
        raise BadInputError(f"{field} holds characters that are not printable ASCII.")
    return value


def at_least(value: int, smallest: int, field: str) -> int:
    """A number of at least `smallest`."""
    if value < smallest:
        raise BadInputError(f"{field} is {value}, but must be {smallest} or more.")
    return value


def blob(message: blob_pb2.BlobRef, field: str) -> Blob:
    """A reference to a blob of up to a tebibyte."""
    hexadecimal(message.sha256, 64, f"{field}.sha256")
    if not 0 <= message.size_bytes <= _LARGEST_BLOB:
        raise BadInputError(f"{field}.size_bytes is {message.size_bytes}, but must be 0 to {_LARGEST_BLOB}.")
    return Blob(message.sha256, message.size_bytes)


def metrics(message: device_service_pb2.UpdateMetrics) -> Metrics:
    """What a device measured. Raises UpdateRejectedError when a number is impossible: its update cannot be
    trusted either."""
    measured = Metrics(
        num_examples=message.num_examples,
        num_steps=message.num_steps,
        loss=message.loss,
        local_loss=message.local_loss,
        global_loss=message.global_loss,
        accuracy=message.accuracy,
        peak_anonymous_bytes=message.peak_anonymous_bytes,
        cpu_seconds=message.cpu_seconds,
    )
    if not 1 <= measured.num_examples <= 1 << 40:
        raise UpdateRejectedError(
            f"metrics.num_examples is {measured.num_examples}, but an update needs 1 example or more; it "
            "does not count."
        )
    if min(measured.num_steps, measured.peak_anonymous_bytes) < 0:
        raise UpdateRejectedError(
            "metrics.num_steps or metrics.peak_anonymous_bytes is negative; the update does not count."
        )
    for field in ("loss", "local_loss", "global_loss", "accuracy", "cpu_seconds"):
        value = getattr(measured, field)
        if not math.isfinite(value):
            raise UpdateRejectedError(f"metrics.{field} is {value}, which is not finite; the update does not count.")
    if not 0 <= measured.accuracy <= 1:
        raise UpdateRejectedError(
            f"metrics.accuracy is {measured.accuracy:g}, but must be 0 to 1; the update does not count."
        )
    return measured


def evaluation(request: device_service_pb2.SubmitEvaluationRequest) -> EvaluationReport:
    """A device's counts. Raises UpdateRejectedError when they are impossible."""
    if not 0 <= request.num_correct <= request.num_examples <= 1 << 40:
        raise UpdateRejectedError(
            f"{request.num_correct} of {request.num_examples} examples correct is impossible; the evaluation "
            "does not count."
        )
    if not (math.isfinite(request.loss_sum) and request.loss_sum >= 0):
        raise UpdateRejectedError(
            f"loss_sum is {request.loss_sum}, but must be finite and 0 or more; the evaluation does not count."
        )
    return EvaluationReport(request.num_examples, request.num_correct, request.loss_sum)


def scores(values: list[float], num_layers: int) -> tuple[float, ...]:
    """FOAT scores, one a layer. Rounding may leave them a little outside 0 to 1. Raises UpdateRejectedError
    for anything else."""
    if len(values) != num_layers:
        raise UpdateRejectedError(
            f"The profile has {len(values)} scores, but the model has {num_layers} layers; it does not count."
        )
    for layer, value in enumerate(values):
        if not -1e-3 <= value <= 1 + 1e-3:
            raise UpdateRejectedError(
                f"The score of layer {layer} is {value}, but must be 0 to 1; the profile does not count."
            )
    return tuple(values)
