"""How examples are dealt."""

import numpy as np
import pytest

from chainfed.core.errors import BadInputError
from chainfed.harness.partition import PartitionSpec, partition

LABELS = [index % 4 for index in range(400)]


@pytest.mark.parametrize("text", ["iid", "dirichlet:1.0", "dirichlet:0.05"])
def test_every_example_goes_to_exactly_one_device_and_none_is_empty(text: str) -> None:
    shares = partition(LABELS, 20, PartitionSpec.parse(text), seed=3)
    assert sorted(index for share in shares for index in share) == list(range(400))
    assert min(map(len, shares)) >= 1
    assert shares == partition(LABELS, 20, PartitionSpec.parse(text), seed=3)
    assert shares != partition(LABELS, 20, PartitionSpec.parse(text), seed=4)


def label_spread(shares: list[list[int]]) -> float:
    """Mean over devices of the largest label's share; 0.25 when labels are even."""
    return float(
        np.mean([np.bincount([LABELS[index] for index in share], minlength=4).max() / len(share) for share in shares])
    )


def test_smaller_alpha_is_more_uneven() -> None:
    spreads = [label_spread(partition(LABELS, 10, PartitionSpec(alpha), seed=0)) for alpha in (100.0, 1.0, 0.1)]
    assert 0.25 <= spreads[0] < 0.35 < spreads[1] < spreads[2]


@pytest.mark.parametrize(
    "text", ["", "random", "dirichlet", "dirichlet:", "dirichlet:0", "dirichlet:-1", "dirichlet:nan"]
)
def test_unknown_partition_is_refused(text: str) -> None:
    with pytest.raises(BadInputError, match="dirichlet:A"):
        PartitionSpec.parse(text)


def test_too_many_devices_are_refused() -> None:
    with pytest.raises(BadInputError, match="3 examples cannot be dealt to 4 devices"):
        partition([0, 1, 0], 4, PartitionSpec(None), seed=0)
