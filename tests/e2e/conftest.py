"""A small federation that every end-to-end test starts from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from chainfed.core.manifest import Bundle
from chainfed.harness.emulate import EmulationSettings
from chainfed.harness.partition import PartitionSpec
from chainfed.v1 import run_service_pb2 as pb

MakeSettings = Callable[..., EmulationSettings]


@pytest.fixture(scope="session")
def make_settings(tiny_bundle: Bundle, tiny_data, tmp_path_factory: pytest.TempPathFactory) -> MakeSettings:
    """Settings of a federation of three devices over the tiny bundle, in a folder of its own."""

    def make(**changes: object) -> EmulationSettings:
        settings = EmulationSettings(
            bundle=tiny_bundle.folder,
            train_file=Path(tiny_data.train),
            test_file=Path(tiny_data.test),
            folder=tmp_path_factory.mktemp("run"),
            devices=3,
            workers=2,
            partition=PartitionSpec(1.0),
            memory_budgets=[0],
            seed=11,
            config=pb.RunConfig(
                window_size=2,
                rounds=3,
                devices_per_round=2,
                min_devices=3,
                seed=11,
                foat_threshold=1.0,
                warmup_rounds=1,
            ),
        )
        return replace(settings, **changes)

    return make
