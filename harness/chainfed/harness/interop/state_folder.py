"""What a device's state folder tells, in the layout of docs/device.md."""

from __future__ import annotations

import json
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Progress:
    """A journal read from outside.

    data: its whole lines. records: what they say, in order.
    """

    data: bytes
    records: tuple[dict[str, Any], ...]

    def find(self, key: str) -> list[Any]:
        """The values under `key` of all records that have it."""
        return [record[key] for record in self.records if key in record]

    @property
    def steps(self) -> Counter[str]:
        """Training steps done, by what they train."""
        return Counter(label for label, _ in self.find("step"))

    @property
    def passes(self) -> list[tuple[int, int]]:
        """(depth, batches done) in the order in which they were done."""
        return [(depth, batches) for depth, batches in self.find("pass")]


def journal_path(state: Path, assignment_id: str) -> Path:
    """Where the journal of an assignment lies."""
    return state / "work" / assignment_id / "journal"


def read_journal(path: Path) -> Progress:
    """The journal up to its first line that is cut or damaged; an absent one has no records."""
    try:
        data = path.read_bytes()
    except OSError:
        data = b""
    return parse_journal(data)


def parse_journal(data: bytes) -> Progress:
    """The same of a journal's bytes."""
    records: list[dict[str, Any]] = []
    end = 0
    while (line_end := data.find(b"\n", end)) >= 0:
        checksum, _, body = data[end:line_end].partition(b" ")
        try:
            if int(checksum, 16) != zlib.crc32(body):
                break
            records.append(json.loads(body))
        except ValueError:
            break
        end = line_end + 1
    return Progress(data[:end], tuple(records))


def halve(path: Path) -> None:
    """Truncates a file to the half of its length."""
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
