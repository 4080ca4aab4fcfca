"""Eligibility and the seeded draw."""

from collections import Counter
from dataclasses import replace

import pytest

from chainfed.coordinator.configuration import RunConfig, complete
from chainfed.coordinator.records import Device, RoundKind
from chainfed.coordinator.selection import draw, eligible, seen_since, wanted_results
from chainfed.core.order import SplitMix64, derive_seed, sample
from tests.coordinator.conftest import config, make_manifest


def device(name: str, **values: int) -> Device:
    return replace(Device(name, "fake", 1, 0, 1000, 0, 10, 5), **values)


@pytest.fixture
def settings() -> RunConfig:
    return complete(config(devices_per_round=3), make_manifest({}))


def test_a_device_needs_memory_examples_and_the_bundle_format() -> None:
    manifest = make_manifest({})
    devices = [
        device("d5", memory_budget_bytes=2_000_000),
        device("d1"),
        device("d2", memory_budget_bytes=1_999_999),
        device("d3", num_train_examples=0),
        device("d4", bundle_format_version=0),
    ]
    assert [each.device_id for each in eligible(devices, manifest, RoundKind.TRAIN, 2)] == ["d1", "d5"]
    assert [each.device_id for each in eligible(devices, manifest, RoundKind.TRAIN, 0)] == ["d1", "d2", "d5"]


def test_an_evaluation_needs_test_examples_and_the_memory_of_the_prefix() -> None:
    devices = [device("d1", num_test_examples=0), device("d2", memory_budget_bytes=500_000, num_train_examples=0)]
    found = eligible(devices, make_manifest({}), RoundKind.EVALUATE, 3)
    assert [each.device_id for each in found] == ["d2"]


def test_presence_goes_by_the_last_check_in() -> None:
    devices = [device("d1", last_seen_ms=0), device("d2", last_seen_ms=99), device("d3", last_seen_ms=100)]
    assert [each.device_id for each in seen_since(devices, 100)] == ["d3"]
    assert [each.device_id for each in seen_since(devices, -5)] == ["d2", "d3"]


def test_the_draw_is_the_documented_one(settings: RunConfig) -> None:
    devices = [device(f"d{index:02}") for index in range(20)]
    expected = sample(devices, 3, SplitMix64(derive_seed("select", 11, 4)))
    again = sample(devices, 3, SplitMix64(derive_seed("select", 11, 4, 1)))
    assert draw(devices, RoundKind.TRAIN, settings, 4, 0) == sorted(expected, key=lambda each: each.device_id)
    assert draw(devices, RoundKind.TRAIN, settings, 4, 1) == sorted(again, key=lambda each: each.device_id)


def test_every_device_is_drawn_equally_often(settings: RunConfig) -> None:
    devices = [device(f"d{index:02}") for index in range(10)]
    counts = Counter(
        each.device_id for number in range(3000) for each in draw(devices, RoundKind.TRAIN, settings, number, 0)
    )
    assert sum(counts.values()) == 9000
    assert all(abs(count - 900) < 4 * 25.1 for count in counts.values())  # four standard deviations of a binomial


def test_over_selection_draws_more_than_are_wanted(settings: RunConfig) -> None:
    devices = [device(f"d{index:02}") for index in range(10)]
    generous = replace(settings, over_selection=1.3)
    assert len(draw(devices, RoundKind.TRAIN, generous, 1, 0)) == 4
    assert wanted_results(RoundKind.TRAIN, generous, 4) == 3
    assert wanted_results(RoundKind.EVALUATE, generous, 9) == 9


def test_profiling_takes_all_up_to_64_and_evaluation_takes_all(settings: RunConfig) -> None:
    devices = [device(f"d{index:02}") for index in range(90)]
    assert len(draw(devices, RoundKind.PROFILE, settings, 0, 0)) == 64
    assert draw(devices[:5], RoundKind.PROFILE, settings, 0, 0) == devices[:5]
    assert draw(devices, RoundKind.EVALUATE, settings, 1, 0) == devices
