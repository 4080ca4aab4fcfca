"""A device of any implementation as a process: a command that takes the options of `chainfed device`."""

from __future__ import annotations

import shlex
import subprocess
from contextlib import suppress
from pathlib import Path

from chainfed.core.address import is_loopback, split_address
from chainfed.core.errors import BadInputError
from chainfed.harness.device import DeviceSettings


class CommandDevice:
    """The process, with what a fleet asks of `multiprocessing`'s."""

    def __init__(self, command: str, settings: DeviceSettings, log: Path) -> None:
        """Starts `command` with the settings as options; its standard error goes to the end of `log`.

        Raises BadInputError when it cannot be started.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as target:
            try:
                self._process = subprocess.Popen(
                    [*_words(command), *_options(settings)], stdin=subprocess.DEVNULL, stdout=target, stderr=target
                )
            except OSError as error:
                raise BadInputError(
                    f"The device {command!r} cannot be started ({error.strerror}); give --device a command that can."
                ) from error

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def exitcode(self) -> int | None:
        """None while it runs; below 0 when a signal ended it."""
        return self._process.poll()

    def is_alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def join(self, timeout: float | None = None) -> None:
        """Waits for its end, at most so many seconds."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout)

    def kill(self) -> None:
        """Ends it at once."""
        self._process.kill()


def _words(command: str) -> list[str]:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise BadInputError(f"--device {command!r} is no command ({error}); close its quotes.") from error
    if not words:
        raise BadInputError("--device is empty; give a command that takes the options of `chainfed device`.")
    return words


def _options(settings: DeviceSettings) -> list[str]:
    options = [
        *("--coordinator", settings.coordinator, "--state", str(settings.state_folder)),
        *("--data", str(settings.train_file), "--threads", str(settings.threads)),
        *("--patience", str(settings.patience_seconds), "--memory-mb", str(settings.memory_budget_bytes / 1e6)),
    ]
    if settings.test_file is not None:
        options += ["--test-data", str(settings.test_file)]
    if not is_loopback(split_address(settings.coordinator)[0]):
        options.append("--insecure")
    if settings.device_key is not None:
        options += ["--key", settings.device_key]
    return options
