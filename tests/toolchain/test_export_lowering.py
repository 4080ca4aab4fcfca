"""Lowering in several processes gives what lowering in one gives, and says so when it fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from chainfed.core.errors import ChainFedError
from chainfed.toolchain import parallel_lowering
from chainfed.toolchain.lowering import lower
from chainfed.toolchain.parallel_lowering import lower_programs
from chainfed.toolchain.programs import ProgramSettings
from chainfed.toolchain.steps import build_programs


@pytest.mark.slow
def test_workers_give_the_same_bytes_as_this_process(make_settings: Callable[..., ProgramSettings]) -> None:
    settings = make_settings("sgd", layers=2)
    definitions = build_programs(settings)
    names = ["pool", "score"]
    there = {name: (data, arena_bytes) for name, data, arena_bytes in lower_programs(settings, names, workers=2)}
    here = {name: lower(definitions[name]) for name in names}
    assert there == {name: (program.data, program.arena_bytes) for name, program in here.items()}


def test_one_worker_is_this_process(
    make_settings: Callable[..., ProgramSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("no process should be started")

    monkeypatch.setattr(parallel_lowering, "_Worker", refuse)
    assert [name for name, _, _ in lower_programs(make_settings(layers=1), ["pool"], workers=8)] == ["pool"]
    assert list(lower_programs(make_settings(layers=1), [], workers=8)) == []


@pytest.mark.slow
def test_a_worker_that_dies_is_reported_with_its_last_words(
    make_settings: Callable[..., ProgramSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(settings: ProgramSettings) -> dict[str, Any]:
        return {"config": {"model_type": "unknown-type"}, "optimizer": {}}

    monkeypatch.setattr(parallel_lowering, "_settings_to_json", broken)
    with pytest.raises(ChainFedError, match=r"lowering the program \w+ failed \(exit code 1\): .*unknown-type"):
        list(lower_programs(make_settings(layers=1), ["pool", "score"], workers=2))
