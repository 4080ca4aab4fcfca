"""Devices killed with -9 again and again, in the middle of their work: the run ends with the same adapters."""

from __future__ import annotations

import multiprocessing
import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from chainfed.coordinator.app import in_background
from chainfed.coordinator.client import OperatorClient, require_success
from chainfed.core.manifest import Bundle
from chainfed.harness.device import DeviceSettings, run_device
from chainfed.v1 import run_service_pb2 as pb

DEVICES = 3


class Fleet:
    """Device processes, some of which are killed and started again until `stop`."""

    def __init__(self, address: str, folder: Path) -> None:
        self.context: Any = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["chainfed.harness.device"])
        self.address, self.folder = address, folder
        self.kills = 0
        self.over = threading.Event()
        self.processes = [self.start(number) for number in range(DEVICES)]

    def start(self, number: int) -> Any:
        settings = DeviceSettings(
            self.address,
            self.folder / f"device-{number}",
            self.folder / f"train-{number}.jsonl",
            self.folder / f"test-{number}.jsonl",
            device_key=f"device {number}",
        )
        process = self.context.Process(target=run_device, args=(settings,))
        process.start()
        return process

    def keep_killing(self) -> None:
        generator = random.Random(4)
        while not self.over.wait(generator.uniform(0.2, 1.5)):
            number = generator.randrange(DEVICES)
            if self.processes[number].is_alive():
                self.processes[number].kill()
                self.processes[number].join()
                self.kills += 1
                self.processes[number] = self.start(number)


def final_adapters(bundle: Bundle, data: Any, folder: Path, kill: bool) -> tuple[str, int]:
    """SHA-256 of the last checkpoint, and how many devices were killed on the way."""
    folder.mkdir()
    for kind, path in (("train", data.train), ("test", data.test)):
        rows = path.read_text().splitlines(keepends=True)
        for number in range(DEVICES):
            (folder / f"{kind}-{number}.jsonl").write_text("".join(rows[number::DEVICES][: 19 + number]))
    config = pb.RunConfig(rounds=4, devices_per_round=2, min_devices=DEVICES, seed=5, window_size=2, local_epochs=2)
    with in_background(folder / "coordinator", "127.0.0.1:0") as address, OperatorClient(address) as client:
        run_id = client.create(bundle, config, name="").run_id
        fleet = Fleet(address, folder)
        time.sleep(1)
        client.start(run_id)
        killer = threading.Thread(target=fleet.keep_killing)
        if kill:
            killer.start()
        for _ in client.watch(run_id):
            pass
        fleet.over.set()
        if kill:
            killer.join()
        for process in fleet.processes:
            process.join(60)
            assert process.exitcode == 0
        run = client.get(run_id)
        require_success(run)
        return run.checkpoint.sha256, fleet.kills


@pytest.mark.slow
def test_a_run_whose_devices_are_killed_ends_with_the_same_adapters(
    tiny_bundle: Bundle, tiny_data: Any, tmp_path: Path
) -> None:
    undisturbed, _ = final_adapters(tiny_bundle, tiny_data, tmp_path / "undisturbed", kill=False)
    disturbed, kills = final_adapters(tiny_bundle, tiny_data, tmp_path / "disturbed", kill=True)
    assert kills >= 3
    assert disturbed == undisturbed
