"""The window size from memory plans and budgets."""

import pytest

from chainfed.coordinator.admission import choose_window_size
from chainfed.core.errors import MemoryBudgetError
from tests.coordinator.conftest import make_manifest, plan


@pytest.mark.parametrize(
    ("budgets", "fixed", "size"),
    [
        ([0, 0], 0, 3),
        ([0, 2_500_000], 0, 2),
        ([3_000_000, 1_000_000], 0, 1),
        ([5_000_000, 999_999], 0, 3),  # the second takes no part
        ([2_000_000, 1], 2, 2),
    ],
)
def test_the_smallest_budget_that_holds_a_window_decides(budgets: list[int], fixed: int, size: int) -> None:
    assert choose_window_size(make_manifest({}), budgets, fixed) == size


def test_the_prefix_counts_too() -> None:
    manifest = make_manifest({}, prefix=plan(2_000_000))
    assert choose_window_size(manifest, [2_000_000]) == 2
    with pytest.raises(MemoryBudgetError):
        choose_window_size(manifest, [1_500_000])


def test_too_small_a_budget_is_told_which_would_do() -> None:
    with pytest.raises(MemoryBudgetError, match=r"0\.9 MB.*window of 1 layer needs 1\.0 MB.*at least 1000000 bytes"):
        choose_window_size(make_manifest({}), [900_000, 100_000])
    with pytest.raises(MemoryBudgetError, match=r"3 layers.*at least 3000000 bytes, or choose a smaller window"):
        choose_window_size(make_manifest({}), [2_000_000], 3)
