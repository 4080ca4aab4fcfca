"""Options of an export, checked before any work."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from chainfed.core.errors import BadInputError, ModelError
from chainfed.toolchain.checkpoint import Checkpoint
from chainfed.toolchain.export_settings import ExportSettings, program_settings, read_labels, training_defaults


@pytest.fixture
def settings(tiny_model: Path, tmp_path: Path) -> ExportSettings:
    """Settings that fit the tiny model."""
    return ExportSettings(str(tiny_model), ("no", "yes"), tmp_path / "out", seq_len=16)


def test_labels_are_a_number_a_json_list_or_lines(tmp_path: Path) -> None:
    assert read_labels("3") == ("0", "1", "2")
    (tmp_path / "labels.json").write_text(json.dumps(["World", "Sci/Tech"]))
    assert read_labels(str(tmp_path / "labels.json")) == ("World", "Sci/Tech")
    (tmp_path / "labels.txt").write_text("negative\n\n positive \n")
    assert read_labels(str(tmp_path / "labels.txt")) == ("negative", "positive")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('["a", "a"]', "names 'a' more than once"),
        ('["a"]', "gives 1 labels, but a classifier needs at least 2"),
        ('["a", 2]', "something other than names"),
        ("[a, b", "is no JSON list"),
    ],
)
def test_a_label_file_that_is_wrong_says_why(tmp_path: Path, content: str, sentence: str) -> None:
    (tmp_path / "labels.json").write_text(content)
    with pytest.raises(BadInputError, match=sentence):
        read_labels(str(tmp_path / "labels.json"))


@pytest.mark.parametrize(
    ("given", "sentence"), [("1", "at least 2"), ("-4", "at least 2"), ("four", "neither a number nor")]
)
def test_label_counts_that_are_wrong_say_why(given: str, sentence: str) -> None:
    with pytest.raises(BadInputError, match=sentence):
        read_labels(given)


def test_usual_windows_are_those_that_fit(settings: ExportSettings, tiny_model: Path) -> None:
    family = Checkpoint(tiny_model).family
    assert program_settings(settings, family).windows == (1, 2, 3)
    assert program_settings(replace(settings, windows=(3, 1, 3)), family).windows == (1, 3)


def test_sizes_that_do_not_fit_the_model_say_what_would(settings: ExportSettings, tiny_model: Path) -> None:
    family = Checkpoint(tiny_model).family
    with pytest.raises(ModelError, match="has 32 positions, fewer than --seq-len 33; give --seq-len 32 or less"):
        program_settings(replace(settings, seq_len=33), family)
    with pytest.raises(BadInputError, match="has 3 layers, so a window size lies between 1 and 3"):
        program_settings(replace(settings, windows=(1, 4)), family)
    for change in ({"seq_len": 0}, {"batch_size": 0}, {"adapter_dim": -1}, {"seed": -1}):
        with pytest.raises(BadInputError, match="is not possible"):
            program_settings(replace(settings, **change), family)  # type: ignore[arg-type]


def test_sgd_never_decays_weights(settings: ExportSettings, tiny_model: Path) -> None:
    family = Checkpoint(tiny_model).family
    assert program_settings(replace(settings, optimizer="sgd"), family).optimizer.weight_decay == 0.0
    assert program_settings(settings, family).optimizer.max_grad_norm == 1.0


def test_learning_rates_differ_by_optimizer() -> None:
    adamw, sgd = training_defaults("adamw", "classification"), training_defaults("sgd", "classification")
    assert (adamw.adapter_lr, adamw.head_lr) == (1e-3, 3e-3)
    assert sgd.adapter_lr > adamw.adapter_lr
    assert sgd.head_lr > adamw.head_lr
