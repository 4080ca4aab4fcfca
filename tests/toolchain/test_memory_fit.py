"""`chainfed inspect --memory`: which window sizes fit, of a bundle and of a model that is not exported yet."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chainfed.core.cli import run
from chainfed.core.errors import BadInputError, ModelError
from chainfed.core.manifest import Bundle
from chainfed.toolchain.lowering import trace
from chainfed.toolchain.memory_estimate import graph_need
from chainfed.toolchain.memory_fit import alike, answer, ask, parse_bytes
from chainfed.toolchain.steps import build_programs
from chainfed.toolchain.verify import settings_of


def _run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = run([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, " ".join(captured.err.split())


@pytest.mark.parametrize(
    ("text", "amount"),
    [("200MB", 200_000_000), ("1.5GiB", 1_610_612_736), ("64000000", 64_000_000), ("10 kb", 10_000), ("1mib", 1 << 20)],
)
def test_amounts_of_memory(text: str, amount: int) -> None:
    assert parse_bytes(text) == amount


@pytest.mark.parametrize("text", ["", "much", "-5MB", "0MB", "5 TB", "1.2.3MB"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(BadInputError, match="is no amount of memory; write it like 200MB"):
        parse_bytes(text)


def test_a_bundles_own_shape_has_its_measured_plans(tiny_bundle: Bundle) -> None:
    own = answer(ask(str(tiny_bundle.folder), [4], [16]))
    manifest = tiny_bundle.manifest
    assert [(entry.window_size, entry.own_bytes, entry.mapped_bytes, entry.measured) for entry in own] == [
        (size, manifest.round_bytes(size), manifest.windows[size].file_bytes, True) for size in (1, 2, 3)
    ]


def test_estimates_of_a_bundle_follow_what_was_measured_of_it(tiny_bundle: Bundle) -> None:
    """A shape of one row less is estimated, and must lie near what was measured."""
    folder = str(tiny_bundle.folder)
    steps: list[tuple[str, int, int]] = []
    near = answer(ask(folder, [3], [16], [2]), lambda *step: steps.append(step))
    measured = answer(ask(folder, [4], [16], [2]))
    assert [entry.measured for entry in near] == [False]
    assert 0.7 * measured[0].own_bytes < near[0].own_bytes <= 1.05 * measured[0].own_bytes
    assert near[0].mapped_bytes == measured[0].mapped_bytes
    assert [done for _, done, _ in steps] == list(range(8))
    assert {total for _, _, total in steps} == {8}


def test_a_graph_of_two_parts_needs_what_one_of_more_parts_needs(tiny_bundle: Bundle) -> None:
    settings = replace(settings_of(tiny_bundle), tokens_at_once=32)
    assert alike(settings, "window_q2", (8, 16)) == (4, 16)
    assert alike(settings, "window_q2", (4, 16)) == (4, 16)
    assert alike(settings, "window_q2", (3, 16)) == (3, 16)  # in parts of one row, but two rows fit at once
    assert alike(settings, "window_q2", (2, 16)) == (2, 16)
    assert alike(settings, "block", (8, 16)) == (8, 16)
    eight, four = (build_programs(replace(settings, batch_size=rows))["window_q2"] for rows in (8, 4))
    assert graph_need(trace(eight)) == graph_need(trace(four))


@pytest.fixture(scope="module")
def config_alone(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder without weights or tokenizer."""
    folder = tmp_path_factory.mktemp("config")
    shutil.copy(tiny_model / "config.json", folder)
    return folder


def test_a_model_needs_its_configuration_alone(
    config_alone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = tmp_path / "fit.svg"
    options = ("--memory", "1MB", "--batch-sizes", "2,8", "--seq-lens", "8,32", "--windows", "1,2", "--plot", plot)
    code, out, err = _run(capsys, "inspect", config_alone, *options, "--json")
    assert code == 0, err
    result: dict[str, Any] = json.loads(out)
    assert result["budget_bytes"] == 1_000_000
    rounds = {(entry["window_size"], entry["batch_size"], entry["seq_len"]): entry for entry in result["rounds"]}
    assert len(rounds) == 8
    assert all(entry["estimated"] for entry in rounds.values())
    assert all(entry["fits"] == (entry["own_bytes"] <= 1_000_000) for entry in rounds.values())
    assert rounds[1, 8, 32]["own_bytes"] > rounds[1, 2, 32]["own_bytes"] > rounds[1, 2, 8]["own_bytes"]
    assert rounds[2, 8, 32]["own_bytes"] > rounds[1, 8, 32]["own_bytes"]
    assert rounds[2, 8, 32]["mapped_bytes"] > rounds[1, 8, 32]["mapped_bytes"] > 0
    picture = plot.read_text()
    assert picture.startswith("<?xml")
    assert "</svg>" in picture


def test_people_get_a_table(tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--batch-sizes", "4", "--seq-lens", "16")
    code, out, _ = _run(capsys, "inspect", tiny_bundle.folder, "--memory", "1GB", *options)
    assert code == 0
    assert "What fits 1000.0 MB" in " ".join(out.split())
    assert out.count("+ ") >= 3
    code, out, _ = _run(capsys, "inspect", tiny_bundle.folder, "--memory", "1kB", *options)
    assert code == 0
    assert "Nothing of this fits. The least is" in " ".join(out.split())


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        (("--memory", "lots"), BadInputError, "--memory 'lots' is no amount of memory"),
        (("--memory", "1MB", "--batch-sizes", "two"), BadInputError, "--batch-sizes 'two' is no list of numbers"),
        (("--memory", "1MB", "--batch-sizes", "0"), BadInputError, "--batch-sizes 0 is not possible"),
        (("--memory", "1MB", "--seq-lens", "33"), BadInputError, "--seq-lens 33 does not fit: give 1 to 32"),
        (("--memory", "1MB", "--windows", "4"), BadInputError, "a window size lies between 1 and 3"),
        (("--memory", "1MB", "--adapter-dim", "8"), BadInputError, "--adapter-dim is for models"),
        (("--memory", "1MB", "--plot", "fit.pdf"), BadInputError, "fit.pdf is neither .png nor .svg"),
        (("--memory", "1MB", "--plot", "nowhere/fit.png"), BadInputError, "there is no folder"),
        (("--seq-lens", "8"), BadInputError, "go with --memory"),
    ],
)
def test_questions_that_make_no_sense(
    tiny_bundle: Bundle,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    code: type[BadInputError],
    sentence: str,
) -> None:
    exit_code, out, err = _run(capsys, "inspect", tiny_bundle.folder, *options)
    assert (exit_code, out) == (code.exit_code, "")
    assert sentence in err


def test_what_is_neither_bundle_nor_model_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exit_code, _, err = _run(capsys, "inspect", tmp_path, "--memory", "1MB")
    assert exit_code == ModelError.exit_code
    assert "is no model: it has no config.json" in err
