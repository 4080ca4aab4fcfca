"""A case: its name, what it is about, and how it is tried."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from chainfed.core.tensors import sha256_hex
from chainfed.harness.interop.ground import CREATED, TRAINING, Ground, ReferenceUpdate, difference
from chainfed.harness.interop.proxy import Meddler
from chainfed.harness.interop.trial import CaseFailed, Trial
from chainfed.v1 import device_service_pb2 as pb


@dataclass(frozen=True)
class Stand:
    """All that an attempt at a case needs; `folder` is its own and empty."""

    ground: Ground
    command: Sequence[str]
    folder: Path
    limit_seconds: float

    def trial(self, meddler: Meddler | None = None, moment: str = TRAINING) -> Trial:
        """A trial with a coordinator in the state of a moment of the undisturbed run."""
        assert moment in (CREATED, TRAINING)
        self.ground.copy_state(moment, self.folder / "coordinator")
        return Trial(self.command, self.ground.data, self.folder, meddler or Meddler(), self.limit_seconds)


class Case(ABC):
    """One thing that goes wrong, and what a device has to make of it."""

    name: ClassVar[str]
    sentence: ClassVar[str]

    @abstractmethod
    def run(self, stand: Stand) -> list[str]:
        """What was checked, in words. Raises CaseFailed, or NotSetUp when the disturbance did not come about."""


def require_bytes(trial: Trial, header: pb.UpdateHeader, expected: ReferenceUpdate) -> str:
    """Raises CaseFailed when an update is not what the Python device handed in undisturbed."""
    if header.update.sha256 != expected.sha256:
        found = trial.results.get(header.assignment_id, b"")
        readable = sha256_hex(found) == header.update.sha256
        raise CaseFailed(
            f"the update of round {expected.assignment.round} that an undisturbed Python device hands in, SHA-256 "
            f"{expected.sha256[:16]}",
            difference(found, expected.tensors) if readable else f"SHA-256 {header.update.sha256[:16]}",
        )
    return "update: same bytes"
