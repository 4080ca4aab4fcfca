"""Whole runs by the Python device and by the Kotlin device: the same bytes, and the same of all that is reported."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from chainfed.core.manifest import Bundle
from chainfed.harness.emulate import EmulationResult, EmulationSettings, emulate
from chainfed.harness.fleet import OWN_DEVICE
from chainfed.harness.partition import PartitionSpec
from chainfed.v1 import run_service_pb2 as pb

SLOW = pytest.mark.slow
MEASURED = ("peak_anonymous_bytes", "cpu_seconds", "seconds", "unix_ms", "bytes_down", "run_id")
Run = Callable[[EmulationSettings, Sequence[str]], tuple[EmulationResult, list[Any]]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """`run(settings, commands)`: the result, and all events but for what differs from time to time."""

    def run_with(settings: EmulationSettings, commands: Sequence[str]) -> tuple[EmulationResult, list[Any]]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        result = emulate(replace(settings, folder=folder, commands=commands))
        lines = (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()
        return result, [without_measures(json.loads(line)) for line in lines if "round_opened" not in line]

    return run_with


def without_measures(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_measures(item) for key, item in value.items() if key not in MEASURED}
    return value


def settings_for(bundle: Bundle, train: Path, test: Path, **config: Any) -> EmulationSettings:
    return EmulationSettings(
        bundle=bundle.folder,
        train_file=train,
        test_file=test,
        folder=Path(),
        devices=2,
        workers=2,
        partition=PartitionSpec(1.0),
        memory_budgets=[0],
        seed=7,
        config=pb.RunConfig(devices_per_round=2, min_devices=2, seed=7, **config),
    )


def test_a_classifier(run: Run, jvm_device: Path, tiny_bundle: Bundle, tiny_data: Any) -> None:
    settings = settings_for(tiny_bundle, tiny_data.train, tiny_data.test, window_size=2, rounds=3, warmup_rounds=1)
    python = run(settings, [OWN_DEVICE])
    for commands in ([str(jvm_device)], [OWN_DEVICE, str(jvm_device)]):
        result, events = run(settings, commands)
        assert result.adapters_sha256 == python[0].adapters_sha256
        assert result.foat_scores == python[0].foat_scores
        assert events == python[1]


def test_a_language_model(run: Run, jvm_device: Path, tiny_language_bundle: Bundle, tiny_passages: Any) -> None:
    settings = settings_for(tiny_language_bundle, tiny_passages.train, tiny_passages.test, window_size=1, rounds=2)
    python, kotlin = (run(settings, [command]) for command in (OWN_DEVICE, str(jvm_device)))
    assert kotlin[0].adapters_sha256 == python[0].adapters_sha256
    assert kotlin[1] == python[1]


@SLOW
@pytest.mark.parametrize("dtype", ["f16", "int8", "int4"])
def test_weights_in_fewer_bits(run: Run, jvm_device: Path, export_dtype: Any, tiny_data: Any, dtype: str) -> None:
    settings = settings_for(export_dtype(dtype), tiny_data.train, tiny_data.test, window_size=2, rounds=2)
    python, kotlin = (run(settings, [command]) for command in (OWN_DEVICE, str(jvm_device)))
    assert kotlin[0].adapters_sha256 == python[0].adapters_sha256
    assert kotlin[1] == python[1]


@SLOW
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_minilm_on_news(run: Run, jvm_device: Path, shared: Path, optimizer: Any, tmp_path_factory: Any) -> None:
    from chainfed.toolchain.export import export_bundle
    from chainfed.toolchain.export_settings import ExportSettings

    folder = tmp_path_factory.mktemp("news")
    labels = ("world", "sports", "business", "technology")
    export = ExportSettings(
        str(shared / "models/minilm-l6"), labels, folder / "bundle", seq_len=32, windows=(1, 2, 3), optimizer=optimizer
    )
    bundle = export_bundle(export)
    files = {}
    for name, source, count in (("train", "train_olora.jsonl.gz", 90), ("test", "test.jsonl.gz", 40)):
        files[name] = folder / f"{name}.jsonl"
        with gzip.open(shared / "data/agnews" / source, "rt", encoding="utf-8") as lines:
            files[name].write_text("".join(islice(lines, count)), encoding="utf-8")
    for window_size in (1, 2, 3):
        settings = settings_for(bundle, files["train"], files["test"], window_size=window_size, rounds=3)
        python = run(settings, [OWN_DEVICE])
        mixed = [[OWN_DEVICE, str(jvm_device)]] if window_size == 2 else []
        for commands in ([str(jvm_device)], *mixed):
            result, events = run(settings, commands)
            assert result.adapters_sha256 == python[0].adapters_sha256
            assert result.foat_scores == python[0].foat_scores
            assert events == python[1]
