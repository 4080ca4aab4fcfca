"""What a task gives: the records that outlive the process that computed them, and what is then handed in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from chainfed.core.errors import BundleError, NotFiniteError
from chainfed.core.tensors import FloatArray, encode, sha256_file, sha256_hex
from chainfed.harness.journal import Journal


@dataclass(frozen=True)
class ProfileOutcome:
    """FOAT's result: `scores` a layer; `tensors_sha256` names the statistics' safetensors file."""

    num_examples: int
    scores: tuple[float, ...]
    tensors_sha256: str


@dataclass(frozen=True)
class UpdateOutcome:
    """A training task's result; `tensors_sha256` names the safetensors file with the changes.

    The losses are means over the steps; `accuracy` is the fraction of examples, counted in every pass, that the local
    head classified correctly while it was trained.
    """

    num_examples: int
    num_steps: int
    loss: float
    local_loss: float
    global_loss: float
    accuracy: float
    tensors_sha256: str


@dataclass(frozen=True)
class EvaluationOutcome:
    """Counts over the held-out examples; `loss_sum` in nats."""

    num_examples: int
    num_correct: int
    loss_sum: float


Outcome = ProfileOutcome | UpdateOutcome | EvaluationOutcome

_KINDS: dict[str, type[Outcome]] = {
    "profile": ProfileOutcome,
    "update": UpdateOutcome,
    "evaluation": EvaluationOutcome,
}
_TENSORS = "tensors"


def write_tensors(journal: Journal, tensors: Mapping[str, FloatArray]) -> str:
    """Writes a result's tensors next to the journal and returns the SHA-256 of the file.

    Raises NotFiniteError when one of them is not finite.
    """
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise NotFiniteError(f"The result for {name} is not finite; lower the learning rate.")
    data = encode(tensors)
    part = journal.path(_TENSORS + ".part")
    part.write_bytes(data)
    part.replace(journal.path(_TENSORS))
    return sha256_hex(data)


def tensors_path(journal: Journal, outcome: ProfileOutcome | UpdateOutcome) -> Path:
    """The file with a result's tensors. Raises BundleError when it is not what was written."""
    path = journal.path(_TENSORS)
    if not path.is_file() or sha256_file(path) != outcome.tensors_sha256:
        raise BundleError(f"{path} was changed after it was written; remove the device's state folder.")
    return path


def record_outcome(journal: Journal, outcome: Outcome) -> None:
    """Journals that the work is done and what came out."""
    kind = next(name for name, cls in _KINDS.items() if isinstance(outcome, cls))
    journal.append({"outcome": [kind, asdict(outcome)]})


def find_outcome(journal: Journal) -> Outcome | None:
    """The outcome, when the work is done."""
    for kind, fields in journal.find("outcome"):
        if kind == "profile":
            fields = fields | {"scores": tuple(fields["scores"])}
        return _KINDS[kind](**fields)
    return None
