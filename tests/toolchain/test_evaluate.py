"""Accuracy and loss of a bundle on a data file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chainfed.core.errors import BadInputError
from chainfed.core.manifest import Bundle
from chainfed.toolchain.evaluate import evaluate_bundle


def test_an_untrained_bundle_is_near_chance_and_the_progress_ends(tiny_bundle: Bundle, tiny_data: Any) -> None:
    seen: list[tuple[int, int]] = []
    evaluation = evaluate_bundle(
        tiny_bundle, tiny_data.test, on_progress=lambda done, total: seen.append((done, total))
    )
    assert evaluation.examples == 60
    assert 0.05 < evaluation.accuracy < 0.75
    assert 0.8 < evaluation.loss < 1.6
    assert seen[-1][0] == seen[-1][1]


def test_labels_of_another_task_are_refused(tiny_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('{"text": "a cat", "label": 3}\n')
    with pytest.raises(BadInputError, match="label 3 is none of the bundle's 3 labels"):
        evaluate_bundle(tiny_bundle, tmp_path / "data.jsonl")
