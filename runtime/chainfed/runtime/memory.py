"""How much memory a process holds: anonymous (its own) and file-backed (the system can take it back at any time)."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

_INTERVAL_SECONDS = 0.005
_M_MMAP_THRESHOLD = -3
_LARGE_BYTES = 1 << 20

# Runs in a process of its own: a running program holds Python's lock, so a thread would see nothing until it is over.
# Between two readings it takes the system's own high-water mark of all memory less the mapped files, and resets the
# mark (by writing 5 to clear_refs): so it misses no peak, however short.
_WATCH = """
import os, re, select, sys
folder, interval = sys.argv[1], float(sys.argv[2])
status = os.open(folder + "/status", os.O_RDONLY)
try:
    reset = os.open(folder + "/clear_refs", os.O_WRONLY)
except OSError:
    reset = -1
peak = before = resident = 0
while True:
    asked = select.select([0], [], [], interval)[0]
    try:
        fields = dict(re.findall(rb"(VmHWM|RssAnon|RssFile|RssShmem):\\s+(\\d+)", os.pread(status, 8192, 0)))
        anonymous, files = int(fields[b"RssAnon"]), int(fields[b"RssFile"]) + int(fields[b"RssShmem"])
        together = anonymous + files
        if reset >= 0:
            together = int(fields[b"VmHWM"])
            anonymous = max(anonymous, together - max(files, before))
            os.write(reset, b"5")
        before = files
    except (OSError, KeyError):
        break
    peak, resident = max(peak, anonymous * 1024), max(resident, together * 1024)
    if asked:
        command = os.read(0, 1)
        if not command:
            break
        os.write(1, b"%d %d\\n" % (peak, resident))
        if command == b"r":
            peak = resident = 0
"""


def anonymous_bytes() -> int:
    """RssAnon of this process in bytes; 0 where the system does not tell (it is Linux that does)."""
    return _status("RssAnon")


def file_bytes() -> int:
    """RssFile of this process in bytes: mapped files, weights among them; 0 where the system does not tell."""
    return _status("RssFile")


def trim() -> None:
    """Collects garbage and gives freed memory back to the system, so that the next reading shows what is in use."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def return_large_blocks() -> None:
    """Lets the allocator of this process give every block of 1 MiB and more back to the system when it is freed.

    Left to itself glibc keeps ever larger blocks once one was freed, and then a program's workspace, which grows by
    reallocation, leaves holes: the second program of a process took up to twice the memory of the first.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)


class _Level(NamedTuple):
    """Bytes of a process: its own, and with the pages of mapped files."""

    anonymous: int
    resident: int


def _level() -> _Level:
    anonymous = anonymous_bytes()
    return _Level(anonymous, anonymous + file_bytes())


class PeakSampler:
    """The peak of this process's memory, read every 5 ms by a helper process while the context is open.

    `peak_bytes` is the highest level of anonymous memory above the level when the context was entered;
    `peak_resident_bytes` is the same with the pages of mapped files counted too.
    The helper ends with the context, and also when this process is killed. What it reads is never too low; on a machine
    so busy that the helper waits for a core, mapped files that come and go between two readings count as well.
    """

    def __init__(self, interval_seconds: float = _INTERVAL_SECONDS) -> None:
        self._interval = interval_seconds
        self._helper: subprocess.Popen[str] | None = None
        self._highest = _Level(0, 0)
        self._idle = _Level(0, 0)

    @property
    def peak_bytes(self) -> int:
        """Highest anonymous memory so far over what it was at first; 0 or more."""
        return max(0, self._look().anonymous - self._idle.anonymous)

    @property
    def peak_resident_bytes(self) -> int:
        """Highest anonymous memory and file pages together so far over what they were at first; 0 or more."""
        return max(0, self._look().resident - self._idle.resident)

    def __enter__(self) -> PeakSampler:
        if anonymous_bytes() > 0:
            self._helper = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _WATCH, f"/proc/{os.getpid()}", str(self._interval)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            self._ask("p")
        trim()
        self._ask("r")
        self._idle = self._highest = _level()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._look()
        helper, self._helper = self._helper, None
        if helper is not None and helper.stdin is not None and helper.stdout is not None:
            helper.stdin.close()
            helper.stdout.close()
            helper.wait()

    def _look(self) -> _Level:
        """The highest level so far."""
        for level in (self._ask("p"), _level()):
            self._highest = _Level(*map(max, self._highest, level))
        return self._highest

    def _ask(self, command: str) -> _Level:
        """The helper's peaks since they were last reset; 0 when there is no helper any more."""
        helper = self._helper
        if helper is None or helper.stdin is None or helper.stdout is None:
            return _Level(0, 0)
        try:
            helper.stdin.write(command)
            helper.stdin.flush()
            anonymous, resident = helper.stdout.readline().split()
            return _Level(int(anonymous), int(resident))
        except (OSError, ValueError):
            return _Level(0, 0)


def _status(field: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    for line in lines:
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return 0
