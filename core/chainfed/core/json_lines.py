"""JSON lines, optionally gzipped: one object a line, and where it stands."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

from chainfed.core.errors import BadInputError


def read_objects(path: Path, fields: str) -> list[tuple[dict[str, Any], str]]:
    """Every object of a file with its place, such as "data.jsonl, line 3".

    fields: what a row holds, for the error message. Raises BadInputError, naming file and line, when the file is
    absent, unreadable or empty, or a line is no JSON object.
    """
    if not path.is_file():
        raise BadInputError(f"{path} does not exist; give a JSON-lines file (.jsonl or .jsonl.gz) with {fields} a row.")
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        lines = data.decode("utf-8").split("\n")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise BadInputError(
            f"{path} cannot be read ({error}); give UTF-8 JSON lines, gzipped if the name ends in .gz."
        ) from error
    places = ((line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip())
    rows = [(_object(line, where), where) for line, where in places]
    if not rows:
        raise BadInputError(f"{path} holds no example; give at least one row with {fields}.")
    return rows


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadInputError(f"{where} is not JSON ({error}); write one JSON object a line.") from error
    if not isinstance(row, dict):
        raise BadInputError(f'{where} is no JSON object; write rows like {{"text": "...", "label": 0}}.')
    return row
