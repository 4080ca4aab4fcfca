"""A layer over a batch, a few rows at a time: the same numbers, with the intermediates of a part of it at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan_op

from chainfed.toolchain.programs import Named


def in_parts(compute: Callable[[Named], Tensor], batched: Named, shared: Named, rows: int) -> Tensor:
    """``compute`` over the whole batch, in a loop of the program over ``rows`` of them at a time.

    Args:
        compute: named inputs -> (rows, ...), each row of which depends on the same row of the inputs alone.
        batched: inputs whose first dimension is the batch, (B, ...).
        shared: inputs that are the same for all rows.
        rows: a divisor of B.

    Returns:
        (B, ...)
    """
    batch_size = next(iter(batched.values())).shape[0]
    if rows == batch_size:
        return compute({**batched, **shared})

    def part(count: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        return count + 1.0, compute(dict(zip([*batched, *shared], tensors, strict=True)))

    parts = [tensor.reshape(batch_size // rows, rows, *tensor.shape[1:]) for tensor in batched.values()]
    _, computed = scan_op(part, [torch.zeros(())], parts, tuple(shared.values()))
    whole: Tensor = computed.reshape(batch_size, *computed.shape[2:])
    return whole
