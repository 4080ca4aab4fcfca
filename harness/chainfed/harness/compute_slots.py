"""A machine-wide limit on how many emulated devices compute at once, that a killed device cannot keep."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from types import TracebackType

_POLL_SECONDS = 0.01


class ComputeSlots:
    """A context manager over `count` lock files in `folder`: entering takes a free one, waiting for it when there is
    none.

    The locks are the kernel's, so one that is held by a process that dies is free again. One object serves one process.
    """

    def __init__(self, folder: Path, count: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._paths = [folder / f"slot-{number}" for number in range(count)]
        self._held: int | None = None

    def __enter__(self) -> ComputeSlots:
        while self._held is None:
            self._held = self._try_each()
            if self._held is None:
                time.sleep(_POLL_SECONDS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def _try_each(self) -> int | None:
        for path in self._paths:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                continue
            return descriptor
        return None
