"""Cross-entropy over a whole vocabulary without ever holding its logits.

The vocabulary is walked in chunks of rows, once: a running maximum, a running sum, and a running sum of the head's rows
weighted with the exponentials give the loss and, at the end, its gradient for the features. The head is frozen, so that
is all the gradient there is. N targets, V vocabulary, D hidden size; all float32 unless said.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

CHUNK_ROWS = 2048
"""Rows of the vocabulary at a time: the logits of a chunk stay small, and its products stay large enough to be fast."""

_LOWEST = -1e30


@dataclass(frozen=True)
class VocabularyLoss:
    """The loss of every target and what follows from it.

    Attributes:
        losses: (N,), cross-entropy in nats.
        hits: (N,), 1 where no token has a larger logit than the target.
        gradient: (N, D), of `losses` for the features, row by row.
    """

    losses: Tensor
    hits: Tensor
    gradient: Tensor


def vocabulary_loss(features: Tensor, head: Tensor, targets: Tensor, softcap: float | None = None) -> VocabularyLoss:
    """Loss and gradient of ``cross_entropy(features @ head.T, targets)`` in one pass over the vocabulary.

    Args:
        features: (N, D).
        head: (V, D).
        targets: (N,) int64.
        softcap: with it, logits are ``softcap * tanh(logits / softcap)``, as Gemma 2 has them.
    """
    count = features.shape[0]
    highest = torch.full((count, 1), _LOWEST)
    total = torch.zeros((count, 1))
    pulled = torch.zeros_like(features)
    wanted = torch.zeros((count, 1))
    for start in range(0, head.shape[0], CHUNK_ROWS):
        rows = head[start : start + CHUNK_ROWS]
        logits, slope = _capped(functional.linear(features, rows), softcap)
        wanted = wanted + _logit_of(targets - start, logits)
        higher = torch.maximum(highest, logits.amax(dim=1, keepdim=True))
        shrink = (highest - higher).exp()
        shares = (logits - higher).exp()
        total = total * shrink + shares.sum(dim=1, keepdim=True)
        pulled = pulled * shrink + torch.mm(shares if slope is None else shares * slope, rows)
        highest = higher
    pushed = functional.embedding(targets, head)
    if softcap is not None:
        pushed = pushed * (1.0 - wanted * wanted * (1.0 / softcap**2))
    losses = highest + total.log() - wanted
    return VocabularyLoss(losses.squeeze(1), (wanted >= highest).to(features.dtype).squeeze(1), pulled / total - pushed)


def vocabulary_logits(features: Tensor, head: Tensor, softcap: float | None = None) -> Tensor:
    """The logits themselves, chunk by chunk: (N, D), (V, D) -> (N, V)."""
    chunks = [head[start : start + CHUNK_ROWS] for start in range(0, head.shape[0], CHUNK_ROWS)]
    return torch.cat([_capped(functional.linear(features, rows), softcap)[0] for rows in chunks], dim=1)


def _capped(logits: Tensor, softcap: float | None) -> tuple[Tensor, Tensor | None]:
    """Logits after the cap, and their derivative where there is one: tanh(x) is 2 sigmoid(2x) - 1."""
    if softcap is None:
        return logits, None
    bounded = torch.sigmoid(logits * (2.0 / softcap)) * 2.0 - 1.0
    return bounded * softcap, 1.0 - bounded * bounded


def _logit_of(places: Tensor, logits: Tensor) -> Tensor:
    """Each target's logit where its place lies in this chunk, else 0: (N,) int64, (N, chunk) -> (N, 1)."""
    last = logits.shape[1] - 1
    inside = ((places >= 0) & (places <= last)).to(logits.dtype)
    return logits.gather(1, places.clamp(0, last).unsqueeze(1)) * inside.unsqueeze(1)
