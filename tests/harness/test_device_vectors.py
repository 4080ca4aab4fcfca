"""The small parts of docs/device.md, held against `tests/vectors/device.json`, which the Kotlin device reads too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from chainfed.core.tensors import encode
from chainfed.harness.arithmetic import moments, sum_in_order
from chainfed.harness.cka import centre, linear_cka, squared_cross_norm
from chainfed.harness.journal import Journal

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "vectors/device.json").read_text(encoding="utf-8"))


def test_sums_take_one_term_after_the_other() -> None:
    assert [sum_in_order(case["terms"]) for case in VECTORS["sums"]] == [case["sum"] for case in VECTORS["sums"]]


def test_moments() -> None:
    for case in VECTORS["moments"]:
        mean, variance = moments(np.array(case["rows"], np.float32))
        assert (mean.tolist(), variance.tolist()) == (case["mean"], case["variance"])


@pytest.mark.parametrize("case", VECTORS["cka"])
def test_cka_to_the_last_bit(case: dict[str, Any]) -> None:
    x, y = ([torch.tensor(piece, dtype=torch.float32) for piece in case[side]] for side in ("x", "y"))
    left, right = centre(lambda: iter(x)), centre(lambda: iter(y))
    norms = [squared_cross_norm(*pair) for pair in ((left, right), (left, left), (right, right))]
    assert norms == case["norms"]
    assert linear_cka(*norms) == case["score"]


def test_tensor_files_have_the_exact_bytes() -> None:
    for case in VECTORS["tensor_files"]:
        tensors = {
            name: np.array(tensor["values"], np.float32).reshape(tensor["shape"])
            for name, tensor in case["tensors"].items()
        }
        assert encode(tensors).hex() == case["hex"]


@pytest.mark.parametrize("case", VECTORS["journals"], ids=lambda case: case["name"])
def test_a_journal_ends_at_its_first_damaged_line(case: dict[str, Any], tmp_path: Path) -> None:
    header = VECTORS["journals"][0]["records"][0]["header"]
    (tmp_path / "work").mkdir()
    (tmp_path / "work/journal").write_bytes(bytes.fromhex(case["hex"]))
    journal = Journal(tmp_path / "work", header)
    assert journal.records == (case["records"] or [{"header": header}])
    journal.append({"score": 0.1})
    journal.close()
    good = b"".join(bytes.fromhex(VECTORS["journals"][0]["hex"]).splitlines(keepends=True)[: len(case["records"]) or 1])
    appended = bytes.fromhex(VECTORS["journals"][0]["hex"]).splitlines(keepends=True)[3]
    assert (tmp_path / "work/journal").read_bytes() == good + appended
