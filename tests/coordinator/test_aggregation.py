"""The weighted mean against exact fractions, and the check of updates."""

from fractions import Fraction

import numpy as np
import pytest

from chainfed.coordinator.aggregation import WeightedMean, applied, checked_tensors, largest_encoding
from chainfed.core.errors import UpdateRejectedError
from chainfed.core.tensors import Tensors, encode

SHAPES = {"adapters.1.down": (2, 3), "heads.1.bias": (4,)}


def drawn(seed: int) -> Tensors:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def test_the_mean_is_that_of_exact_fractions() -> None:
    weights, updates, before = [3, 1, 250_007], [drawn(1), drawn(2), drawn(3)], drawn(4)
    mean = WeightedMean(SHAPES)
    for weight, update in zip(weights, updates, strict=True):
        mean.add(weight, update)
    after = applied(before, mean.result())
    for name, shape in SHAPES.items():
        for place in np.ndindex(*shape):
            total = sum(
                weight * Fraction(float(each[name][place])) for weight, each in zip(weights, updates, strict=True)
            )
            exact = Fraction(float(before[name][place])) + total / sum(weights)
            assert abs(float(after[name][place]) - float(exact)) <= 1.2e-7 * max(abs(float(exact)), 1e-6)
            assert after[name].dtype == np.float32


def test_the_same_order_gives_the_same_bytes() -> None:
    results = []
    for _ in range(2):
        mean = WeightedMean(SHAPES)
        for seed in range(5):
            mean.add(seed + 1, drawn(seed))
        results.append(encode(applied(drawn(9), mean.result())))
    assert results[0] == results[1]


def test_a_mean_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no updates"):
        WeightedMean(SHAPES).result()


def test_a_good_update_is_read() -> None:
    update = drawn(1)
    data = encode(update)
    read = checked_tensors(data, SHAPES, "the update", max_norm=100)
    assert all((read[name] == update[name]).all() for name in SHAPES)
    assert len(data) <= largest_encoding(SHAPES)


def spoilt(**tensors: np.ndarray) -> bytes:
    return encode(drawn(1) | {name.replace("_", "."): tensor for name, tensor in tensors.items()})


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"nonsense", "not a readable safetensors file"),
        (encode({"adapters.1.down": drawn(1)["adapters.1.down"]}), "lacks heads.1.bias"),
        (spoilt(heads_1_weight=np.zeros(3, np.float32)), "unknown heads.1.weight"),
        (spoilt(heads_1_bias=np.zeros(5, np.float32)), r"shape \[5\], expected \[4\]"),
        (spoilt(heads_1_bias=np.zeros(4, np.float64)), "F64"),
        (spoilt(heads_1_bias=np.array([0, np.nan, 0, 0], np.float32)), "not finite"),
        (spoilt(heads_1_bias=np.array([0, np.inf, 0, 0], np.float32)), "not finite"),
        (spoilt(heads_1_bias=np.full(4, 50, np.float32)), "norm 100"),
    ],
)
def test_a_bad_update_is_refused_with_a_sentence(data: bytes, words: str) -> None:
    with pytest.raises(UpdateRejectedError, match=words):
        checked_tensors(data, SHAPES, "the update", max_norm=10)
