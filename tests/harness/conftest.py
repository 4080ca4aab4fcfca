"""A device's process that ends at a moment of the test's choice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pytest

from chainfed.harness.journal import Journal


class Killed(BaseException):
    """Stands for the end of the process."""


@dataclass
class Life:
    """How many records a process wrote, and whether it was killed."""

    records: int = 0
    killed: bool = False


KilledBefore = Callable[[int], AbstractContextManager[Life]]


@pytest.fixture
def killed_before(monkeypatch: pytest.MonkeyPatch) -> KilledBefore:
    """`with killed_before(n) as life`: what runs within is killed before it writes journal record n, counted from 0."""

    @contextmanager
    def dying(number: int) -> Iterator[Life]:
        life = Life()
        append = Journal.append

        def append_or_die(journal: Journal, record: Any) -> None:
            if life.records == number:
                life.killed = True
                raise Killed
            life.records += 1
            append(journal, record)

        with monkeypatch.context() as patch:
            patch.setattr(Journal, "append", append_or_die)
            with suppress(Killed):
                yield life

    return dying
