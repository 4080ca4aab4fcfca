"""FOAT on the server against slow, obvious references."""

from fractions import Fraction

import numpy as np
import pytest

from chainfed.coordinator.foat import find_start, mean_scores, pooled_statistics


def test_scores_are_weighted_by_examples() -> None:
    reports = [(3, [0.9, 0.5]), (1, [0.5, 0.1])]
    expected = [Fraction(3 * 9 + 5, 40), Fraction(3 * 5 + 1, 40)]
    assert mean_scores(reports) == pytest.approx([float(value) for value in expected], abs=1e-15)


def test_the_chain_starts_at_the_first_layer_below_the_threshold() -> None:
    start = find_start([0.95, 0.79, 0.85, 0.3], 0.8)
    assert (start.layer, start.below_threshold_missing) == (1, False)
    assert find_start([0.8, 0.7], 0.8).layer == 1  # below, not at


def test_without_one_below_it_starts_at_the_lowest_and_says_so() -> None:
    start = find_start([0.95, 0.9, 0.85, 0.85, 0.99], 0.8)
    assert (start.layer, start.below_threshold_missing) == (2, True)


def test_statistics_are_those_of_all_examples_together() -> None:
    rng = np.random.default_rng(0)
    devices = [
        rng.normal(loc=3 * index, scale=1 + index, size=(5 + 7 * index, 4)).astype(np.float32) for index in range(4)
    ]
    parts = [
        (
            len(features),
            {
                "statistics.0.mean": features.mean(axis=0, dtype=np.float64).astype(np.float32),
                "statistics.0.variance": features.var(axis=0, dtype=np.float64).astype(np.float32),
            },
        )
        for features in devices
    ]
    pooled = pooled_statistics(parts, 1)
    everything = np.concatenate(devices).astype(np.float64)
    np.testing.assert_allclose(pooled["statistics.0.mean"], everything.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(pooled["statistics.0.rstd"], 1 / np.sqrt(everything.var(axis=0) + 1e-6), rtol=1e-6)
    assert all(tensor.dtype == np.float32 for tensor in pooled.values())


def test_a_constant_feature_gets_a_finite_deviation() -> None:
    part = {"statistics.0.mean": np.ones(2, np.float32), "statistics.0.variance": np.zeros(2, np.float32)}
    assert pooled_statistics([(8, part)], 1)["statistics.0.rstd"] == pytest.approx(1000.0)
    with pytest.raises(ValueError, match="no device"):
        pooled_statistics([], 1)
