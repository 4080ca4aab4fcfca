"""Exports again: the same bytes in another process, and nothing half-written when a process is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chainfed.core.manifest import Bundle
from chainfed.toolchain.export import export_bundle
from chainfed.toolchain.export_settings import ExportSettings

MEASURED = ("anonymous_bytes", "workspace_bytes")
"""What of a memory plan is measured: the workspace, and with it the sum."""


@pytest.fixture
def settings(tiny_bundle: Bundle, tiny_model: Path, tmp_path: Path) -> ExportSettings:
    """The settings of `tiny_bundle`, whose programs are in the cache by now."""
    labels = tiny_bundle.manifest.task.labels
    return ExportSettings(
        str(tiny_model), labels, tmp_path / "bundle", seq_len=16, batch_size=4, adapter_dim=8, windows=(1, 2, 3)
    )


def _export_in_a_process(model: Path, folder: Path, hash_seed: str) -> dict[str, bytes]:
    """Every file of a bundle that a process of its own makes, in a folder and with a cache of its own."""
    folder.mkdir()
    environment = os.environ | {"PYTHONHASHSEED": hash_seed, "CHAINFED_CACHE": str(folder / "cache")}
    command = ["export", str(model), "--labels", "2", "--out", "bundle", "--seq-len", "8", "--batch-size", "2"]
    command += ["--adapter-dim", "4"]
    subprocess.run(
        [sys.executable, "-c", "from chainfed.core.cli import main; main()", *command],
        cwd=folder,
        env=environment,
        check=True,
        capture_output=True,
    )
    bundle = folder / "bundle"
    return {str(path.relative_to(bundle)): path.read_bytes() for path in bundle.rglob("*") if path.is_file()}


def _without_measurements(manifest: bytes) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(manifest)
    for plan in (*value["windows"].values(), value["prefix"]):
        for name in MEASURED:
            del plan[name]
    return value


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_processes_with_empty_caches_write_the_same_bytes(tiny_model: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    config = json.loads((model / "config.json").read_text()) | {"num_hidden_layers": 1}  # fewer and smaller programs
    (model / "config.json").write_text(json.dumps(config))
    first = _export_in_a_process(model, tmp_path / "first", "1")
    second = _export_in_a_process(model, tmp_path / "second", "2")
    manifests = [_without_measurements(files.pop("manifest.json")) for files in (first, second)]
    assert len([name for name in first if name.endswith(".pte")]) == 6
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []
    assert manifests[0] == manifests[1]


def _killed_at(settings: ExportSettings, moment: int) -> int:
    """Exports in a process that is killed, by its own hand, before a step; returns how it ended."""
    child = os.fork()
    if child == 0:

        def die(step: str, done: int, total: int) -> None:
            if done == moment:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            export_bundle(settings, die)
        finally:
            os._exit(0)
    return os.WTERMSIG(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("moment", [0, 1, 3, 5, 9, 13])
def test_a_killed_export_leaves_no_bundle_and_the_next_one_succeeds(
    tiny_bundle: Bundle, settings: ExportSettings, tmp_path: Path, moment: int
) -> None:
    assert _killed_at(settings, moment) == signal.SIGKILL
    assert not settings.out.exists()
    assert [path.name for path in tmp_path.iterdir()] == [".bundle.partial"]
    again = export_bundle(settings)
    assert again.manifest_bytes == tiny_bundle.manifest_bytes
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    again.verify_files()


def test_a_killed_export_keeps_the_bundle_that_it_was_to_replace(
    tiny_bundle: Bundle, settings: ExportSettings, tmp_path: Path
) -> None:
    export_bundle(settings)
    assert _killed_at(replace(settings, force=True, seed=5), 12) == signal.SIGKILL
    Bundle(settings.out).verify_files()
    assert Bundle(settings.out).manifest_bytes == tiny_bundle.manifest_bytes
    replaced = export_bundle(replace(settings, force=True, seed=5))
    assert replaced.manifest_bytes != tiny_bundle.manifest_bytes
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
