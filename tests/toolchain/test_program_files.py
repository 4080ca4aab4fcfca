"""Which programs an export lowers: none whose bytes are known. Counted, not timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import BertConfig

from chainfed.toolchain import program_files
from chainfed.toolchain.families import family_for
from chainfed.toolchain.new_folder import NewFolder
from chainfed.toolchain.program_cache import ProgramCache
from chainfed.toolchain.program_files import ProgramWriter
from chainfed.toolchain.programs import ProgramSettings

CONFIG: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 16,
}
WINDOWS = {"window_q1", "window_q2"}
EVERY = {"embed", "block", "pool", "head", "score"} | WINDOWS


@pytest.fixture
def lowered_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[ProgramSettings], set[str]]:
    """`lowered_by(settings)`: the programs that an export lowers, after all exports before it."""
    lowered: set[str] = set()

    def lower(settings: ProgramSettings, names: Sequence[str], weights: Path) -> Iterator[tuple[str, bytes, int]]:
        lowered.update(names)
        return ((name, f"{name} {settings.num_labels}".encode(), 1) for name in names)

    def measure(programs: Mapping[str, object]) -> dict[str, int]:
        return dict.fromkeys(programs, 1)

    monkeypatch.setattr(program_files, "lower_programs", lower)
    monkeypatch.setattr(program_files, "measure_peaks", measure)

    def export(settings: ProgramSettings) -> set[str]:
        lowered.clear()
        with NewFolder(tmp_path / "out", force=True, mark="programs") as folder:
            writer = ProgramWriter(settings, folder, ProgramCache(tmp_path / "cache"))
            writer.write(lambda step: None)
            writer.measure(lambda step: None)
        return set(lowered)

    return export


@pytest.fixture
def settings() -> ProgramSettings:
    """Two layers, three labels, windows of one and two layers."""
    return ProgramSettings(family_for(BertConfig(**CONFIG)), 4, 8, 4, 3, windows=(1, 2))


@pytest.mark.parametrize(
    ("changes", "config", "expected"),
    [
        ({}, {}, set()),
        ({}, {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}, set()),
        ({}, {"architectures": ["BertForMaskedLM"], "problem_type": "single_label_classification"}, set()),
        ({}, {"name_or_path": "elsewhere/another-name"}, set()),
        ({"num_labels": 8}, {}, set()),
        ({"num_labels": 9}, {}, {"head", "score"} | WINDOWS),
        ({"pooling": "cls"}, {}, {"pool", "score"} | WINDOWS),
        ({"windows": (2,)}, {}, set()),
        ({"adapter_dim": 6}, {}, {"block"} | WINDOWS),
        ({"batch_size": 2}, {}, EVERY),
        ({}, {"hidden_act": "relu"}, EVERY),
    ],
)
def test_only_programs_that_a_change_reaches_are_lowered_again(
    lowered_by: Callable[[ProgramSettings], set[str]],
    settings: ProgramSettings,
    changes: dict[str, Any],
    config: dict[str, Any],
    expected: set[str],
) -> None:
    assert lowered_by(settings) == EVERY
    changed = replace(settings, family=family_for(BertConfig(**(CONFIG | config))), **changes)
    assert lowered_by(changed) == expected


def test_the_optimiser_reaches_only_programs_that_train(
    lowered_by: Callable[[ProgramSettings], set[str]], settings: ProgramSettings
) -> None:
    lowered_by(settings)
    assert lowered_by(replace(settings, optimizer=replace(settings.optimizer, eps=1e-3))) == {"head"} | WINDOWS
