"""Labelled texts: JSON lines, optionally gzipped, with `text` (a string) and `label` (a number or a label's name)."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from chainfed.core.errors import BadInputError


@dataclass(frozen=True)
class Example:
    """A text and its label, 0-based."""

    text: str
    label: int


@dataclass(frozen=True)
class Row:
    """A row of a data file before its label is known to be one of a task's. `where` names file and line."""

    text: str
    label: int | str
    where: str


def read_examples(path: Path, labels: Sequence[str]) -> list[Example]:
    """The examples of a file.

    Raises BadInputError, naming file and line, when the file is absent, empty or not JSON lines, when a row lacks
    `text` or `label`, or when a label is not one of `labels` (by number or by name).
    """
    numbers = {name: number for number, name in enumerate(labels)}
    return [Example(row.text, _label_number(row, numbers)) for row in read_rows(path)]


def read_rows(path: Path) -> list[Row]:
    """The rows of a file, whatever their labels are. Raises BadInputError as `read_examples` does."""
    if not path.is_file():
        raise BadInputError(
            f"{path} does not exist; give a JSON-lines file (.jsonl or .jsonl.gz) with `text` and `label` in each row."
        )
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        lines = data.decode("utf-8").split("\n")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise BadInputError(
            f"{path} cannot be read ({error}); give UTF-8 JSON lines, gzipped if the name ends in .gz."
        ) from error
    rows = [_row(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise BadInputError(f"{path} holds no example; give at least one row with `text` and `label`.")
    return rows


def _row(line: str, where: str) -> Row:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise BadInputError(f"{where} is not JSON ({error}); write one JSON object a line.") from error
    if not isinstance(row, dict):
        raise BadInputError(f'{where} is no JSON object; write rows like {{"text": "...", "label": 0}}.')
    for field in ("text", "label"):
        if field not in row:
            raise BadInputError(f"{where} has no `{field}`; every row needs `text` and `label`.")
    text, label = row["text"], row["label"]
    if not isinstance(text, str):
        raise BadInputError(f"{where}: `text` is {type(text).__name__}, but must be a string.")
    if not isinstance(label, (str, int)) or isinstance(label, bool):
        raise BadInputError(f"{where}: `label` is {type(label).__name__}, but must be an integer or a label's name.")
    return Row(text, label, where)


def _label_number(row: Row, numbers: dict[str, int]) -> int:
    if isinstance(row.label, str) and row.label in numbers:
        return numbers[row.label]
    if isinstance(row.label, int) and 0 <= row.label < len(numbers):
        return row.label
    raise BadInputError(
        f"{row.where}: label {row.label!r} is none of the bundle's {len(numbers)} labels (0 to {len(numbers) - 1}, "
        f"or one of {', '.join(list(numbers)[:5])}{' ...' if len(numbers) > 5 else ''}); correct the row or export "
        "with other --labels."
    )
