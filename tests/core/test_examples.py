"""Data files: what is read, and the sentence for everything that is wrong."""

import gzip
import json
from pathlib import Path

import pytest

from chainfed.core.errors import BadInputError
from chainfed.core.examples import Example, read_examples

LABELS = ("no", "yes")


def write(path: Path, *rows: object) -> Path:
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name", ["data.jsonl", "data.jsonl.gz"])
def test_reads_numbers_and_names(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, {"text": "a", "label": 1, "more": 3}, "", {"text": "", "label": "no"})
    assert read_examples(path, LABELS) == [Example("a", 1), Example("", 0)]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ('{"text": "a"}', "line 2 has no `label`"),
        ('{"label": 1}', "line 2 has no `text`"),
        ('{"text": "a", "label": 2}', "label 2 is none of the bundle's 2 labels"),
        ('{"text": "a", "label": "maybe"}', "label 'maybe' is none of the bundle's 2 labels"),
        ('{"text": "a", "label": true}', "`label` is bool"),
        ('{"text": 5, "label": 1}', "`text` is int"),
        ("[1]", "line 2 is no JSON object"),
        ("{", "line 2 is not JSON"),
    ],
)
def test_bad_row_is_named(tmp_path: Path, row: str, sentence: str) -> None:
    path = write(tmp_path / "data.jsonl", {"text": "fine", "label": 0}, row)
    with pytest.raises(BadInputError, match=f"data.jsonl, {sentence}" if sentence.startswith("line") else sentence):
        read_examples(path, LABELS)


def test_absent_empty_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="does not exist"):
        read_examples(tmp_path / "none.jsonl", LABELS)
    with pytest.raises(BadInputError, match="holds no example"):
        read_examples(write(tmp_path / "empty.jsonl"), LABELS)
    (tmp_path / "bad.jsonl.gz").write_bytes(b"not gzip")
    with pytest.raises(BadInputError, match="cannot be read"):
        read_examples(tmp_path / "bad.jsonl.gz", LABELS)
