"""Which devices take part in a round: eligibility, presence and a seeded draw."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from chainfed.coordinator.configuration import RunConfig
from chainfed.coordinator.records import Device, RoundKind
from chainfed.core.manifest import Manifest
from chainfed.core.order import SplitMix64, derive_seed, sample

MAX_PROFILED_DEVICES = 64


def holds(device: Device, needed_bytes: int) -> bool:
    """Whether the device's budget (0: no limit) holds so much anonymous memory."""
    return device.memory_budget_bytes == 0 or device.memory_budget_bytes >= needed_bytes


def needed_bytes(manifest: Manifest, kind: RoundKind, window_size: int) -> int:
    """Anonymous memory that a round needs. `window_size` 0 (not chosen yet) stands for the bundle's smallest.

    An evaluation runs block after block and no training program.
    """
    if kind is RoundKind.EVALUATE:
        return manifest.prefix.anonymous_bytes
    if window_size:
        return manifest.round_bytes(window_size)
    return min(manifest.round_bytes(size) for size in manifest.windows)


def eligible(devices: Iterable[Device], manifest: Manifest, kind: RoundKind, window_size: int) -> list[Device]:
    """The devices that could take part in such a round, by device_id.

    They read the bundle's format, their budget holds the round, and they have examples of the kind that it
    uses.
    """
    needed = needed_bytes(manifest, kind, window_size)

    def fits(device: Device) -> bool:
        examples = device.num_test_examples if kind is RoundKind.EVALUATE else device.num_train_examples
        return device.bundle_format_version >= manifest.format_version and examples > 0 and holds(device, needed)

    return sorted((device for device in devices if fits(device)), key=lambda device: device.device_id)


def seen_since(devices: Iterable[Device], since_ms: int) -> list[Device]:
    """The devices that checked in at `since_ms` (Unix milliseconds) or later."""
    return [device for device in devices if device.last_seen_ms > 0 and device.last_seen_ms >= since_ms]


def wanted_results(kind: RoundKind, config: RunConfig, num_selected: int) -> int:
    """Results that close a round before its deadline: all of them in profiling and evaluation."""
    if kind in (RoundKind.PROFILE, RoundKind.EVALUATE):
        return num_selected
    return min(config.devices_per_round, num_selected)


def draw(candidates: Sequence[Device], kind: RoundKind, config: RunConfig, number: int, attempt: int) -> list[Device]:
    """The devices of a round, by device_id: a draw without replacement that the run's seed, the round and
    the attempt decide.

    `candidates` are sorted by device_id. Every candidate is equally likely, whatever it brought in earlier
    rounds.
    """
    if kind is RoundKind.EVALUATE:
        return list(candidates)
    count = math.ceil(config.devices_per_round * config.over_selection - 1e-9)
    if kind is RoundKind.PROFILE:
        count = MAX_PROFILED_DEVICES
    parts = ("select", config.seed, number) + ((attempt,) if attempt else ())
    chosen = sample(candidates, count, SplitMix64(derive_seed(*parts)))
    return sorted(chosen, key=lambda device: device.device_id)
