"""Labelled texts: JSON lines, optionally gzipped, with `text` (a string) and `label` (a number or a label's name)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chainfed.core.errors import BadInputError
from chainfed.core.json_lines import read_objects


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
    return [read_row(row, where) for row, where in read_objects(path, "`text` and `label`")]


def read_row(row: Mapping[str, Any], where: str) -> Row:
    """A row of a labelled file. Raises BadInputError, naming `where`, when it has not the two fields."""
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
