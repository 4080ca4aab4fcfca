"""The device under test as a process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from chainfed.core.errors import BadInputError

_TRACEBACK = re.compile(
    r"Traceback \(most recent call last\)|Exception in thread|panicked at|^\s+at [\w.$<>/]+\(", re.M
)
_GROUP_SECONDS = 10.0


class DeviceProcess:
    """A device from its start to its end, in a process group that a kill takes as a whole."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        """log: receives standard error; standard output goes beside it. Raises BadInputError when it cannot start."""
        self._log = log
        with log.open("wb") as err, log.with_suffix(".out").open("wb") as out:
            try:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
                )
            except OSError as error:
                raise BadInputError(
                    f"The device {command[0]} cannot be started ({error.strerror}); give --device a command that can."
                ) from error

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    @property
    def stderr(self) -> str:
        """What it has said so far."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    @property
    def last_line(self) -> str:
        """The last thing that it said."""
        lines = [line.strip() for line in self.stderr.splitlines() if line.strip()]
        return lines[-1] if lines else ""

    @property
    def has_traceback(self) -> bool:
        """Whether it showed its insides instead of a sentence."""
        return _TRACEBACK.search(self.stderr) is not None

    def kill(self) -> None:
        """kill -9 of the device and of whatever it has started."""
        group = self._process.pid
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
        self._process.wait()
        limit = time.monotonic() + _GROUP_SECONDS
        with suppress(ProcessLookupError):
            while time.monotonic() < limit:
                os.killpg(group, 0)
                time.sleep(0.01)
