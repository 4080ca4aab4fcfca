"""Cross-entropy over a whole vocabulary without ever holding its logits.

The vocabulary is walked in chunks of rows, once: a running maximum, a running sum, and a running sum of the head's rows
weighted with the exponentials give the loss and, at the end, its gradient for the features. The head is frozen, so that
is all the gradient there is, and a backward pass only has to scale it. N targets, V vocabulary, D hidden size; all
float32 unless said.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan_op
from torch.nn import functional

from chainfed.toolchain.widening import gather_rows, widened

Named = Mapping[str, Tensor]
Step = Callable[..., tuple[Tensor, ...]]

CHUNK_ROWS = 1024
"""Rows of the vocabulary at a time: the logits of a chunk stay small, and its products stay large enough to be fast."""

_TILE = 32
"""Columns that XNNPACK computes at once, at most."""
_LOWEST = -1e30


def vocabulary_loss(
    features: Tensor, head: Named, targets: Tensor, softcap: float | None = None
) -> tuple[Tensor, Tensor]:
    """``cross_entropy(features @ head.T, targets)`` of each target, in one pass over the vocabulary.

    Args:
        features: (N, D).
        head: ``weight`` (V, D) as it is stored, with its scales where it has any; it gets no gradient.
        targets: (N,) int64.
        softcap: with it, logits are ``softcap * tanh(logits / softcap)``, as Gemma 2 has them.

    Returns:
        The losses in nats, (N,); and 1 for each target that no token has a larger logit than, else 0, (N,).
    """
    stored = (tuple(head), *head.values())
    losses, hits, _ = _VocabularyLoss.apply(features, targets, softcap, *stored)  # type: ignore[no-untyped-call]
    return losses, hits


class _VocabularyLoss(torch.autograd.Function):
    """(N, D), (N,) -> losses (N,), hits (N,), and the gradient of the losses for the features, (N, D)."""

    @staticmethod
    def forward(
        features: Tensor, targets: Tensor, softcap: float | None, names: tuple[str, ...], *stored: Tensor
    ) -> tuple[Tensor, ...]:
        return _loss_and_gradient(features, dict(zip(names, stored, strict=True)), targets, softcap)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.count = len(inputs)
        _, hits, gradient = output
        ctx.mark_non_differentiable(hits, gradient)
        ctx.save_for_backward(gradient)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * gradients[0].unsqueeze(1), *[None] * (ctx.count - 1)


def _loss_and_gradient(features: Tensor, head: Named, targets: Tensor, softcap: float | None) -> tuple[Tensor, ...]:
    count, width = features.shape
    so_far: tuple[Tensor, ...] = (
        torch.full((count, 1), _LOWEST),
        torch.zeros((count, 1)),
        torch.zeros((count, width)),
        torch.zeros((count, 1)),
    )
    (highest, total, pulled, wanted), _ = _walk(partial(_add_chunk, head, softcap), so_far, head, (features, targets))
    pushed = gather_rows(head, "weight", targets)
    if softcap is not None:
        pushed = pushed * (1.0 - wanted * wanted * (1.0 / softcap**2))
    losses = highest + total.log() - wanted
    hits = (wanted >= highest).to(features.dtype)
    return losses.squeeze(1), hits.squeeze(1), pulled / total - pushed


def chunk_rows(vocabulary: int) -> int:
    """Rows of a chunk, at most `CHUNK_ROWS`: such that they divide the vocabulary, where that is possible.

    It is the largest divisor that XNNPACK multiplies without a remainder, if that is at least half of `CHUNK_ROWS`: a
    product of 1,002 columns takes 1.7 times as long as one of 768, and chunks of 128 rows made the loss over 131,968
    tokens take 1.3 times as long as chunks of 1,024 that do not divide it.
    """
    if vocabulary <= CHUNK_ROWS:
        return vocabulary
    even = [rows for rows in range(_TILE, CHUNK_ROWS + 1, _TILE) if vocabulary % rows == 0]
    return even[-1] if even and even[-1] >= CHUNK_ROWS // 2 else CHUNK_ROWS


def _walk(step: Step, carried: Sequence[Tensor], head: Named, given: tuple[Tensor, ...]) -> tuple[Any, Any]:
    """A step for each chunk of the head: what is carried after the last one, and what each gave beside it, stacked.

    step: what is carried, the number of the chunk's first row, the chunk's stored tensors, `given` -> what is carried,
    what it gives. Where chunks do not divide the vocabulary, the last one is filled with its last row over again.
    """
    vocabulary, rows = head["weight"].shape[0], chunk_rows(head["weight"].shape[0])
    starts = torch.arange(0, vocabulary, rows)
    if vocabulary % rows == 0:
        chunks = [tensor.view(vocabulary // rows, rows, *tensor.shape[1:]) for tensor in head.values()]
        found = scan_op(step, list(carried), [starts, *chunks], given)
    else:

        def gather_and_step(*tensors: Tensor) -> tuple[Tensor, ...]:
            before, start, stored = tensors[: len(carried)], tensors[len(carried)], tensors[len(carried) + 1 :]
            places = (torch.arange(rows) + start).clamp(max=vocabulary - 1)
            chunk = [tensor.index_select(0, places) for tensor in stored[: len(head)]]
            return step(*before, start, *chunk, *stored[len(head) :])

        found = scan_op(gather_and_step, list(carried), [starts], (*head.values(), *given))
    return found[: len(carried)], found[len(carried) :]


def _add_chunk(head: Named, softcap: float | None, *tensors: Tensor) -> tuple[Tensor, ...]:
    """What is known of the vocabulary so far, and one more chunk of it -> what is known then.

    highest (N, 1), total (N, 1), pulled (N, D) and wanted (N, 1); the number of the chunk's first row, its stored
    tensors; features (N, D) and targets (N,).
    """
    highest, total, pulled, wanted, start, *stored, features, targets = tensors
    logits, slope, rows = _logits(features, dict(zip(head, stored, strict=True)), softcap)
    vocabulary = head["weight"].shape[0]
    if vocabulary % len(rows):
        beyond = (torch.arange(len(rows)) + start >= vocabulary).to(logits.dtype)
        logits = logits + beyond * _LOWEST
    higher = torch.maximum(highest, logits.amax(dim=1, keepdim=True))
    shrink = (highest - higher).exp()
    shares = (logits - higher).exp()
    return (
        higher,
        total * shrink + shares.sum(dim=1, keepdim=True),
        pulled * shrink + torch.mm(shares if slope is None else shares * slope, rows),
        wanted + _logit_of(targets - start, logits),
    )


def vocabulary_logits(features: Tensor, head: Named, softcap: float | None = None) -> Tensor:
    """The logits themselves, chunk by chunk: (N, D), ``weight`` (V, D) -> (N, V)."""

    def step(*tensors: Tensor) -> tuple[Tensor, ...]:
        count, _, *stored, given = tensors
        return count + 1.0, _logits(given, dict(zip(head, stored, strict=True)), softcap)[0]

    _, (logits,) = _walk(step, (torch.zeros(1),), head, (features,))  # a loop has to carry something
    joined: Tensor = logits.transpose(0, 1).reshape(len(features), -1)
    return joined[:, : head["weight"].shape[0]]


def _logits(features: Tensor, stored: Named, softcap: float | None) -> tuple[Tensor, Tensor | None, Tensor]:
    """Capped logits of a chunk, the cap's derivative where there is one, and the chunk's rows in float32.

    tanh(x) is taken as 2 sigmoid(2x) - 1.
    """
    rows = widened(dict(stored))["weight"]
    logits = functional.linear(features, rows)
    if softcap is None:
        return logits, None, rows
    bounded = torch.sigmoid(logits * (2.0 / softcap)) * 2.0 - 1.0
    return bounded * softcap, 1.0 - bounded * bounded, rows


def _logit_of(places: Tensor, logits: Tensor) -> Tensor:
    """Each target's logit where its place lies in this chunk, else 0: (N,) int64, (N, chunk) -> (N, 1)."""
    last = logits.shape[1] - 1
    inside = ((places >= 0) & (places <= last)).to(logits.dtype)
    return logits.gather(1, places.clamp(0, last).unsqueeze(1)) * inside.unsqueeze(1)
