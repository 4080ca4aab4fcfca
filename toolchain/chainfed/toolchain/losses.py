"""Pooling, heads and the losses of a training step.

B batch, S sequence, D hidden size, C labels; all float32 unless said.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from chainfed.toolchain.families.base import Pooling


def pool(h: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """One feature vector for each row: the mean over its tokens, its first token, or its last one.

    Args:
        h: (B, S, D).
        mask: (B, S), 1 for a token and 0 for padding; a row without any token pools to zero.
        pooling: ``"mean"``, ``"cls"`` or ``"last"`` (padding, if any, comes after the tokens).

    Returns:
        (B, D)
    """
    if pooling == "cls":
        return h[:, 0]
    if pooling == "last":
        after = functional.pad(mask[:, 1:], (0, 1))
        share = mask - after  # 1 at the last token, 0 elsewhere
    else:
        share = mask / mask.sum(dim=1, keepdim=True).clamp(min=1.0)
    return torch.bmm(share.unsqueeze(1), h).squeeze(1)


def head_logits(features: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    """A linear head on standardised features.

    Args:
        features: (B, D), pooled.
        weight: (C, D).
        bias: (C,).
        mean: (D,), the layer's fixed feature mean.
        rstd: (D,), one over the layer's fixed feature deviation.

    Returns:
        (B, C)
    """
    return functional.linear((features - mean) * rstd, weight, bias)


def weighted_cross_entropy(logits: Tensor, labels: Tensor, sample_weights: Tensor) -> Tensor:
    """Sum over the rows of weight times cross-entropy.

    With weights that sum to 1 this is the mean loss; a row of weight 0 (padding) adds nothing, whatever its
    label is.

    Args:
        logits: (B, C).
        labels: (B,) int64.
        sample_weights: (B,).

    Returns:
        ()
    """
    one_hot = (labels.unsqueeze(1) == torch.arange(logits.shape[1])).to(logits.dtype)
    log_likelihood = (torch.log_softmax(logits, dim=1) * one_hot).sum(dim=1)
    return -(log_likelihood * sample_weights).sum()


def correct_count(logits: Tensor, labels: Tensor, sample_weights: Tensor) -> Tensor:
    """Number of rows with a positive weight whose largest logit is at the label.

    Args:
        logits: (B, C).
        labels: (B,) int64.
        sample_weights: (B,).

    Returns:
        () float32
    """
    hit = (logits.argmax(dim=1) == labels) & (sample_weights > 0)
    return hit.to(logits.dtype).sum()


def global_perspective_loss(local_loss: Tensor, global_loss: Tensor, global_loss_weight: Tensor) -> Tensor:
    """The objective of a stage: local loss + lambda * global loss (Eq. 2)."""
    return local_loss + global_loss_weight * global_loss
