"""The memory plan: how its parts are counted, and that the probe measures what a program holds."""

from __future__ import annotations

import subprocess
import sys

import pytest

from chainfed.core.errors import ChainFedError
from chainfed.core.manifest import Bundle, MemoryPlan, ProgramEntry, TensorSpec
from chainfed.toolchain.memory_plan import larger_plan, plan_beside, plan_memory
from chainfed.toolchain.memory_probe import measure_peaks

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells anonymous memory")


def _entry(*names_and_sizes: tuple[str, int]) -> ProgramEntry:
    inputs = tuple(TensorSpec(name=name, shape=(size,), dtype="float32") for name, size in names_and_sizes)
    return ProgramEntry(file="programs/x.pte", inputs=inputs, outputs=(), arena_bytes=1000)


def test_a_window_counts_weights_as_mapped_and_the_rest_as_its_own() -> None:
    entry = _entry(
        ("trainable.window.0.down", 10),
        ("state.m.window.0.down", 10),
        ("window.0.layer.dense.weight", 100),
        ("h", 50),
        ("mask", 5),
    )
    plan = plan_memory("window_q1", entry, measured_peak=5000)
    assert plan.file_bytes == 4 * (10 + 100)
    assert plan.optimizer_bytes == 4 * 10
    assert plan.io_bytes == 4 * (50 + 5)
    assert plan.workspace_bytes == 5000 - 1000 - plan.io_bytes
    assert plan.anonymous_bytes == 5000 + plan.optimizer_bytes


def test_hidden_states_of_the_prefix_are_mapped() -> None:
    entry = _entry(("h", 50), ("mask", 5), ("layer.dense.weight", 100))
    assert plan_memory("block", entry, 5000).io_bytes == 20
    assert plan_memory("window_q1", entry, 5000).io_bytes == 220


def test_without_a_measurement_the_workspace_is_as_large_as_the_arena() -> None:
    assert plan_memory("block", _entry(("mask", 5)), 0).workspace_bytes == 1000


def test_a_measurement_below_the_arena_never_makes_a_negative_part() -> None:
    plan = plan_memory("block", _entry(("mask", 5)), 100)
    assert plan.workspace_bytes == 0
    assert plan.anonymous_bytes == 1000 + 20


def test_programs_in_turn_need_the_larger_of_both() -> None:
    small = MemoryPlan(
        anonymous_bytes=5, arena_bytes=5, workspace_bytes=0, optimizer_bytes=0, io_bytes=0, file_bytes=90
    )
    large = small.model_copy(update={"anonymous_bytes": 9, "arena_bytes": 9, "file_bytes": 10})
    assert larger_plan(small, large) == large.model_copy(update={"file_bytes": 90})


def test_a_program_that_stays_loaded_beside_another_adds_what_it_allocates() -> None:
    plan = plan_memory("block", _entry(("h", 50), ("mask", 5)), 3000)
    pool = plan_memory("pool", _entry(("h", 50), ("mask", 5)), 1500)
    both = plan_beside(plan, pool)
    assert pool.io_bytes == 20
    assert both.anonymous_bytes == 3000 + (1500 - 20)
    assert (both.io_bytes, both.file_bytes) == (plan.io_bytes, plan.file_bytes)


@linux_only
def test_the_probe_sees_the_arena_of_every_program(tiny_bundle: Bundle) -> None:
    entries = {name: tiny_bundle.manifest.programs[name] for name in ("block", "window_q3")}
    peaks = measure_peaks({name: (tiny_bundle.path(entry.file), entry) for name, entry in entries.items()})
    assert peaks.keys() == entries.keys()
    assert all(peaks[name] >= entries[name].arena_bytes for name in entries)
    assert peaks["window_q3"] > peaks["block"]


def test_a_probe_that_fails_says_what_it_wrote_last(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    died = subprocess.CompletedProcess([], 1, stdout="", stderr="Traceback\nBundleError: block.pte is no program\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: died)
    entry = tiny_bundle.manifest.programs["block"]
    with pytest.raises(ChainFedError, match=r"memory failed \(exit code 1\): BundleError: block.pte is no program"):
        measure_peaks({"block": (tiny_bundle.path(entry.file), entry)})


def test_every_plan_in_the_manifest_is_the_sum_of_its_parts(tiny_bundle: Bundle) -> None:
    manifest = tiny_bundle.manifest
    for plan in (manifest.prefix, *manifest.windows.values()):
        parts = plan.arena_bytes + plan.workspace_bytes + plan.optimizer_bytes + plan.io_bytes
        assert plan.anonymous_bytes == parts
    files = [plan.file_bytes for _, plan in sorted(manifest.windows.items())]
    assert files == sorted(files)
