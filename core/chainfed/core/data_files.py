"""Data files before it is known for which task they will be used."""

from __future__ import annotations

from pathlib import Path

from chainfed.core.examples import read_row
from chainfed.core.json_lines import read_objects
from chainfed.core.passages import FORMS, read_passage


def count_rows(path: Path) -> int:
    """How many rows a file has, each of which is a labelled text or a passage.

    Raises BadInputError, naming file and line, when the file is absent or empty, or a row is neither.
    """
    rows = read_objects(path, f"`text` and `label`, or {FORMS}")
    for row, where in rows:
        (read_row if "label" in row else read_passage)(row, where)
    return len(rows)
