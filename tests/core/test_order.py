"""The draws that every language must make alike, held against the vectors that every language's tests read."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from chainfed.core.order import SplitMix64, batches, derive_seed, permutation, sample

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "vectors" / "order.json").read_text())


@pytest.mark.parametrize("vector", VECTORS["next"])
def test_the_generator_gives_the_vectors_integers(vector: dict[str, Any]) -> None:
    generator = SplitMix64(int(vector["seed"]))
    assert [str(generator.next()) for _ in vector["values"]] == vector["values"]


@pytest.mark.parametrize("vector", VECTORS["below"])
def test_bounded_draws_give_the_vectors_integers(vector: dict[str, Any]) -> None:
    generator = SplitMix64(int(vector["seed"]))
    assert [str(generator.below(int(vector["bound"]))) for _ in vector["values"]] == vector["values"]


@pytest.mark.parametrize("vector", VECTORS["permutation"])
def test_permutations_are_the_vectors(vector: dict[str, Any]) -> None:
    assert permutation(vector["count"], SplitMix64(int(vector["seed"]))) == vector["order"]


@pytest.mark.parametrize("vector", VECTORS["derive_seed"])
def test_derived_seeds_are_the_vectors(vector: dict[str, Any]) -> None:
    assert str(derive_seed(*vector["parts"])) == vector["seed"]


@pytest.mark.parametrize("vector", VECTORS["batches"])
def test_batches_are_the_vectors(vector: dict[str, Any]) -> None:
    found = batches(vector["num_examples"], vector["batch_size"], vector["epochs"], int(vector["seed"]))
    assert found == vector["steps"]


def test_the_published_first_outputs_of_splitmix64() -> None:
    """From the reference implementation's widely printed sequence for seed 1234567."""
    generator = SplitMix64(1234567)
    assert [generator.next() for _ in range(3)] == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_bounded_draws_are_uniform() -> None:
    generator = SplitMix64(5)
    counts = Counter(generator.below(6) for _ in range(6000))
    assert set(counts) == set(range(6))
    assert all(850 < count < 1150 for count in counts.values())


@pytest.mark.parametrize("bound", [0, -1, (1 << 63) + 1])
def test_a_bound_outside_the_range_is_refused(bound: int) -> None:
    with pytest.raises(ValueError, match="outside"):
        SplitMix64(0).below(bound)


def test_a_sample_has_no_item_twice_and_never_more_than_there_are() -> None:
    drawn = sample("abcdef", 4, SplitMix64(1))
    assert len(drawn) == len(set(drawn)) == 4
    assert sorted(sample("abc", 9, SplitMix64(1))) == ["a", "b", "c"]


def test_every_epoch_has_every_example_once_in_an_order_of_its_own() -> None:
    steps = batches(10, 4, 2, 3)
    assert [len(step) for step in steps] == [4, 4, 2, 4, 4, 2]
    first, second = ([index for step in part for index in step] for part in (steps[:3], steps[3:]))
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
