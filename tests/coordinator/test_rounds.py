"""Whom the round loop waits for, with a clock that the test moves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from chainfed.coordinator.assignments import new_assignments
from chainfed.coordinator.blobs import FolderBlobs, Updates
from chainfed.coordinator.configuration import complete
from chainfed.coordinator.records import Blob, Round, RoundKind, RoundState, Run, RunState
from chainfed.coordinator.rounds import HaltedError, Patience, RunLoop
from chainfed.coordinator.store import SqlStore, open_store
from chainfed.core.manifest import Bundle
from chainfed.core.tensors import piece_of
from tests.coordinator.conftest import config

RUN = "0123456789ab"
PATIENCE = Patience(present_ms=60_000, return_ms=30_000, poll_seconds=0.01)


@dataclass
class Scene:
    """A training run of two devices a round whose round 1 was opened when its three devices were present."""

    store: SqlStore
    loop: RunLoop
    devices: list[str]
    ms: int = 1_000_000

    def now_ms(self) -> int:
        return self.ms

    async def check_in(self, *devices: str) -> None:
        for device in devices:
            await self.store.check_in(device, 0, 10, 0)

    async def opened(self, number: int) -> Round | None:
        """The round, if it opens within a moment of real time."""
        return await until(lambda: self.store.latest_attempt(RUN, number), seconds=0.5)


async def until(look: Callable, seconds: float):  # type: ignore[no-untyped-def, type-arg]
    """What `look` finds, once it finds something; None when the time is over."""
    for _ in range(int(seconds / 0.02)):
        if found := await look():
            return found
        await asyncio.sleep(0.02)
    return None


@pytest.fixture
async def scene(bundle: Bundle, tmp_path: Path) -> AsyncIterator[Scene]:
    made = Scene(None, None, [])  # type: ignore[arg-type]
    made.store = await open_store(f"sqlite:///{tmp_path / 'store.sqlite'}", made)
    pieces = {piece_of(name): Blob("a" * 64, 1) for name in bundle.manifest.state_shapes()}
    settings = complete(config(devices_per_round=2), bundle.manifest)
    run = Run(RUN, "", RunState.TRAINING, settings, Blob(bundle.manifest_sha256, 1), pieces, made.ms)
    run = replace(run, next_round=3, foat_start=1, window_size=2)
    await made.store.create_run(run, "request")
    made.devices = sorted([await made.store.enrol(f"key {index}", "fake", 1) for index in range(3)])
    await made.check_in(*made.devices)
    before = Round(RUN, 1, 0, RoundKind.EVALUATE, 0, 0, 1, b"", made.ms, made.ms + 1, RoundState.CLOSED)
    await made.store.open_round(before, new_assignments(run, 1, 0, made.devices[:1]))
    blobs, updates = FolderBlobs(tmp_path / "blobs"), Updates(tmp_path / "uploads")
    made.loop = RunLoop(RUN, bundle.manifest, made.store, blobs, updates, made, PATIENCE)
    task = asyncio.create_task(made.loop.carry_out())
    yield made
    made.loop.stop()
    made.store.changes.notify_all()
    with pytest.raises(HaltedError):
        await task
    await made.store.close()


async def test_a_round_opens_at_once_when_all_are_there(scene: Scene) -> None:
    current = await scene.opened(3)
    assert current is not None
    assert (current.kind, current.first_layer, current.window_size, current.wanted) == (RoundKind.TRAIN, 2, 2, 2)


async def test_devices_that_were_there_get_time_to_come_back(scene: Scene) -> None:
    first = await scene.opened(3)
    assert first is not None
    scene.ms += 70_000
    await scene.check_in(*scene.devices[:2])
    await scene.store.seal_round(first)
    await scene.store.drop_round(first)
    scene.store.changes.notify(f"run:{RUN}")

    async def second() -> Round | None:
        found = await scene.store.latest_attempt(RUN, 3)
        return found if found is not None and found.attempt == 1 else None

    assert await until(second, 0.4) is None
    assert (await scene.store.run(RUN)).reason == "the run waits for 1 more device to check in"
    scene.ms += 29_000
    assert await until(second, 0.2) is None
    scene.ms += 2_000
    assert await until(second, 2.0) is not None
    assert (await scene.store.run(RUN)).reason == ""


async def test_a_device_that_comes_back_ends_the_wait(scene: Scene) -> None:
    first = await scene.opened(3)
    assert first is not None
    scene.ms += 70_000
    await scene.check_in(*scene.devices[:2])
    await scene.store.seal_round(first)
    await scene.store.drop_round(first)
    scene.store.changes.notify(f"run:{RUN}")
    await asyncio.sleep(0.1)
    await scene.check_in(scene.devices[2])

    async def second() -> Round | None:
        found = await scene.store.latest_attempt(RUN, 3)
        return found if found is not None and found.attempt == 1 else None

    assert await until(second, 2.0) is not None
