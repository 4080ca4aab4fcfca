"""A batch's gradients as the sum over parts of the batch that go through the model one after the other.

A training step holds what its backward pass needs of every layer. Rows of a batch do not depend on each other, and the
losses are sums over rows, so a step over a few rows at a time gives the same gradients and holds that much less. The
loop is part of the program: torch's ``scan``, which ExecuTorch runs as a jump, so a program does not grow with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan_op

Named = Mapping[str, Tensor]
Objective = Callable[[Named, dict[str, Tensor]], tuple[Tensor, dict[str, Tensor]]]
"""(inputs, trainable) -> the loss, and by name what else is summed over the rows; all of them scalars."""


def rows_at_once(batch_size: int, seq_len: int, tokens: int) -> int:
    """How many rows to take at a time: the largest divisor of the batch size within so many tokens, at least 1."""
    fitting = [rows for rows in range(1, batch_size + 1) if batch_size % rows == 0 and rows * seq_len <= tokens]
    return max(fitting, default=1)


def accumulated_gradients(
    objective: Objective,
    parameters: Named,
    inputs: Named,
    *,
    batched: Sequence[str],
    sums: Sequence[str],
    rows: int,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Gradients, loss and sums over a whole batch.

    Args:
        objective: the loss of some rows as a function of what is trained.
        parameters: what is trained.
        inputs: what else the objective takes.
        batched: those inputs whose first dimension is the batch, (B, ...); the objective is given ``rows`` of them.
        sums: the names of what the objective returns beside the loss.
        rows: a divisor of B.

    Returns:
        The gradient of each parameter; and ``loss`` and the sums by name.
    """
    batch_size = inputs[batched[0]].shape[0]
    if rows == batch_size:
        return _gradients(objective, parameters, inputs)
    shared = {name: tensor for name, tensor in inputs.items() if name not in batched}
    parts = [inputs[name].reshape(batch_size // rows, rows, *inputs[name].shape[1:]) for name in batched]
    sizes = [parameter.shape for parameter in parameters.values()] + [torch.Size(()) for _ in ("loss", *sums)]

    def add_part(*tensors: Tensor) -> tuple[Tensor, ...]:
        so_far, others = tensors[: len(sizes)], tensors[len(sizes) :]
        given = dict(zip([*batched, *parameters, *shared], others, strict=True))
        trainable = {name: given.pop(name) for name in parameters}
        gradients, values = _gradients(objective, trainable, given)
        added = [*gradients.values(), *(values[name] for name in ("loss", *sums))]
        return tuple(total + value for total, value in zip(so_far, added, strict=True))

    nothing = [torch.zeros(size) for size in sizes]
    totals = iter(scan_op(add_part, nothing, parts, (*parameters.values(), *shared.values())))
    return {name: next(totals) for name in parameters}, {name: next(totals) for name in ("loss", *sums)}


def _gradients(objective: Objective, parameters: Named, inputs: Named) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    differentiate = torch.func.grad_and_value(partial(objective, inputs), has_aux=True)
    gradients, (loss, sums) = differentiate(dict(parameters))
    return gradients, {"loss": loss, **sums}
