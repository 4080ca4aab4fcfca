"""docs/bundle.md mentions whatever a bundle has: every field of the manifest, every input and output, every file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

BUNDLES = Path(__file__).parents[1] / "vectors" / "bundles"
NAMED_BY_THE_USER = ("files", "programs", "windows", "created_by", "between")


@pytest.fixture(scope="module")
def words(root: Path) -> set[str]:
    """Every part of the document that is set as code, but for `<tensor>` alone, which is no name."""
    found = re.findall(r"`([^`]+)`", (root / "docs" / "bundle.md").read_text(encoding="utf-8"))
    return {word for word in found if not word.startswith("<")}


def _fields(value: Any, name: str = "") -> set[str]:
    """Every key of a manifest that the format names, at every level."""
    found: set[str] = set()
    for key, inner in value.items() if isinstance(value, dict) else ():
        found |= _fields(inner, key) | (set() if name in NAMED_BY_THE_USER else {key})
    for inner in value if isinstance(value, list) else ():
        found |= _fields(inner)
    return found


def _is_documented(name: str, words: set[str]) -> bool:
    """Whether a tensor or file is there, whole or as a pattern such as `window.{j}.layer.<tensor>`."""
    return any(re.fullmatch(_pattern(spelling), name) for word in words for spelling in _spellings(word))


def _spellings(word: str) -> list[str]:
    """`a.down|up` stands for `a.down` and `a.up`."""
    first, *others = word.split("|")
    return [first, *(first.rpartition(".")[0] + "." + other for other in others)]


def _pattern(spelling: str) -> str:
    parts = re.split(r"(\{\w\}|<\w+>)", spelling)
    return "".join(_meaning(part) for part in parts)


def _meaning(part: str) -> str:
    if re.fullmatch(r"\{\w\}", part):
        return r"\d+"
    return r"[\w.]+" if part.startswith("<") else re.escape(part)


@pytest.mark.parametrize("bundle", ["encoder", "decoder", "language"])
def test_every_field_input_output_and_file_is_documented(bundle: str, words: set[str]) -> None:
    manifest = json.loads((BUNDLES / bundle / "bundle" / "manifest.json").read_text(encoding="utf-8"))
    singles = {single for word in words for single in re.findall(r'"?(\w+)"?', word)}
    assert sorted(_fields(manifest) - singles) == []
    tensors = {
        spec["name"]
        for program in manifest["programs"].values()
        for side in ("inputs", "outputs")
        for spec in program[side]
    }
    assert len(tensors) > 50
    assert sorted(name for name in tensors if not _is_documented(name, words)) == []
    assert sorted(name for name in manifest["programs"] if not _is_documented(name, words)) == []
    files = {re.sub(r"layer_\d+", "layer_00", name) for name in manifest["files"]}
    assert sorted(name for name in files if not _is_documented(name, words)) == []


def test_a_name_that_is_not_documented_is_noticed(words: set[str]) -> None:
    assert not _is_documented("window.0.weights.a", words)
    assert not _is_documented("trainable.other_head.weight", words)
    assert _is_documented("window.1.layer.attention.output.dense.weight", words)
    assert _is_documented("trainable.window.0.up", words)
    assert _is_documented("state.m.window.0.down", words)
