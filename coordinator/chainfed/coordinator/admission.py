"""The window size from memory plans and budgets (Algorithm 1, line 3): memory plans as admission."""

from __future__ import annotations

from collections.abc import Sequence

from chainfed.core.console import megabytes
from chainfed.core.errors import MemoryBudgetError
from chainfed.core.manifest import Manifest


def choose_window_size(manifest: Manifest, budgets: Sequence[int], fixed: int = 0) -> int:
    """The window size Q of a run.

    `budgets`: anonymous bytes of each device, 0 for no limit. With `fixed` above 0 that size, if any budget
    holds it; otherwise the largest size that the smallest budget holds among those budgets that hold the
    bundle's smallest window. Raises MemoryBudgetError, saying which budget would do, when no budget holds
    it.
    """
    smallest = fixed or min(manifest.windows, key=lambda size: (manifest.round_bytes(size), size))
    needed = manifest.round_bytes(smallest)
    sufficient = [budget for budget in budgets if budget == 0 or budget >= needed]
    if not sufficient:
        layers = "1 layer" if smallest == 1 else f"{smallest} layers"
        remedy = (
            "choose a smaller window size"
            if fixed > 1
            else "export the bundle with a smaller batch size or sequence length"
        )
        raise MemoryBudgetError(
            f"The largest memory budget of {len(budgets)} device{'s' if len(budgets) != 1 else ''} is "
            f"{megabytes(max(budgets, default=0))}, but a round with a window of {layers} needs "
            f"{megabytes(needed)}; "
            f"give devices a budget of at least {needed} bytes, or {remedy}."
        )
    if fixed:
        return fixed
    limits = [budget for budget in sufficient if budget]
    sizes = [size for size in manifest.windows if not limits or manifest.round_bytes(size) <= min(limits)]
    return max(size for size in sizes if size <= manifest.model.num_layers)
