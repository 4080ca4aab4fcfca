"""Attention as the programs compute it; transformers' layer modules find it by the name ``ATTENTION``.

It never keeps the (S, S) probabilities of all heads for the backward pass, which computes them again: one product more
in six, and the largest thing a layer would keep is gone. Heads that share keys and values are rows of one product, so
these are not repeated. B batch, S sequence, H heads, K heads of keys and values, E width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

ATTENTION = "chainfed"


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """What transformers' ``eager_attention_forward`` computes, without dropout and without its probabilities.

    Args:
        module: the attention module, of which nothing is needed.
        query: (B, H, S, E).
        key: (B, K, S, E), where K divides H.
        value: (B, K, S, E).
        attention_mask: added to the scores, (B or 1, 1, S or 1, S).
        scaling: the factor of the scores; None for one over the root of E.
        softcap: bound that a tanh puts on the scores; None for no bound.

    Returns:
        (B, S, H, E), and None in place of the probabilities.
    """
    del module
    batch, heads, seq, width = query.shape
    groups = key.shape[1]
    scaled = query * (width**-0.5 if scaling is None else scaling)
    rows = scaled.reshape(batch * groups, heads // groups * seq, width)
    columns, values = (tensor.reshape(batch * groups, seq, width) for tensor in (key, value))
    shape = (batch, heads, seq, seq)
    if softcap is None:
        mixed = _Attention.apply(rows, columns, values, attention_mask, shape)  # type: ignore[no-untyped-call]
    else:
        capped = torch.tanh(_scores(rows, columns, None, shape) / softcap) * softcap
        masked = capped if attention_mask is None else (capped.view(shape) + attention_mask).view(capped.shape)
        mixed = torch.bmm(torch.softmax(masked, dim=-1), values)
    return mixed.view(batch, heads, seq, width).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, attention)


class _Attention(torch.autograd.Function):
    """``softmax(rows columns^T + mask) values``; the mask has no gradient.

    (B K, H/K S, E), (B K, S, E), (B K, S, E) -> (B K, H/K S, E)
    """

    @staticmethod
    def forward(rows: Tensor, columns: Tensor, values: Tensor, mask: Tensor | None, shape: tuple[int, ...]) -> Tensor:
        return torch.bmm(_probabilities(rows, columns, mask, shape), values)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        del output
        *tensors, ctx.shape = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        rows, columns, values, mask = ctx.saved_tensors
        probabilities = _probabilities(rows, columns, mask, ctx.shape)
        for_values = torch.bmm(probabilities.transpose(1, 2), gradient)
        weighted = probabilities * torch.bmm(gradient, values.transpose(1, 2))
        for_scores = weighted - probabilities * weighted.sum(dim=-1, keepdim=True)
        return torch.bmm(for_scores, columns), torch.bmm(for_scores.transpose(1, 2), rows), for_values, None, None


def _probabilities(rows: Tensor, columns: Tensor, mask: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    return torch.softmax(_scores(rows, columns, mask, shape), dim=-1)


def _scores(rows: Tensor, columns: Tensor, mask: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    """(B K, H/K S, S); a mask that is the same for all rows of a text is added without a change of shape."""
    scores = torch.bmm(rows, columns.transpose(1, 2))
    if mask is None:
        return scores
    if mask.shape[2] == 1:
        groups = rows.shape[0] // shape[0]
        return scores + mask[:, 0].repeat_interleave(groups, dim=0) if mask.shape[0] > 1 else scores + mask[0]
    return (scores.view(shape) + mask).view(scores.shape)
