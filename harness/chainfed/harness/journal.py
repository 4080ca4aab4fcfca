"""What has been done of an assignment, in a file that a process killed at any point leaves readable.

One record a line: eight hexadecimal digits of CRC-32, a space, a JSON object. A record is one `write`; a line that is
cut or does not match its CRC ends the journal and is dropped. A record is appended after the work that it tells of is
in the page cache, so it outlives the process. It does not outlive the machine, because nothing waits for the disk:
therefore the first record names the boot, and a journal of another boot is void.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_FILE = "journal"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

Record = Mapping[str, Any]


def boot_id() -> str:
    """Names the time since the machine started; empty where the system does not tell."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""


class Journal:
    """The records of one assignment and the folder that they speak of."""

    def __init__(self, folder: Path, header: Mapping[str, str | int]) -> None:
        """Opens the journal in `folder`; empties the folder first unless its journal begins with `header`.

        header: all that the work depends on (assignment, boot, data); equal headers mean that the work may go on.
        """
        self.folder = folder
        expected = {"header": dict(header)}
        records, good_bytes = _read(folder / _FILE)
        if not records or records[0] != expected:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            records, good_bytes = [], 0
        self._handle = os.open(folder / _FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.ftruncate(self._handle, good_bytes)
        self.records: list[Record] = records
        if not records:
            self.append(expected)

    def append(self, record: Record) -> None:
        """Adds a record. It counts from the moment that this returns, whatever happens to the process."""
        body = json.dumps(record, separators=(",", ":"), sort_keys=True).encode()
        line = b"%08x %s\n" % (zlib.crc32(body), body)
        written = os.write(self._handle, line)
        if written != len(line):
            raise OSError(f"only {written} of {len(line)} bytes of a journal record were written: is the disk full?")
        self.records.append(record)

    def find(self, key: str) -> list[Any]:
        """The values under `key` of all records that have it, in order."""
        return [record[key] for record in self.records if key in record]

    def path(self, name: str) -> Path:
        """A file of the work that the journal speaks of."""
        return self.folder / name

    def close(self) -> None:
        """Closes the file; the folder stays."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def discard(self) -> None:
        """Removes the folder: the work is handed in, or void."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def _read(path: Path) -> tuple[list[Record], int]:
    """The records up to the first damaged one, and the bytes that they take."""
    try:
        data = path.read_bytes()
    except OSError:
        return [], 0
    records: list[Record] = []
    position = 0
    while (end := data.find(b"\n", position)) >= 0:
        record = _parse(data[position:end])
        if record is None:
            break
        records.append(record)
        position = end + 1
    return records, position


def _parse(line: bytes) -> Record | None:
    checksum, _, body = line.partition(b" ")
    try:
        if int(checksum, 16) != zlib.crc32(body):
            return None
        record = json.loads(body)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
