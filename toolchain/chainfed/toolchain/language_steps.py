"""The programs of causal language modelling: adapters alone are trained, the model's own head serves both losses.

Only positions that have a target go through the head, at most T of a row: `target_places` says where in the row they
are, `targets` which token follows there, and `target_weights` what each counts (0 for an unused place). B batch, S
sequence, T targets of a row, D hidden size, V vocabulary.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from chainfed.toolchain.adapters import auxiliary_branch
from chainfed.toolchain.losses import global_perspective_loss
from chainfed.toolchain.programs import (
    Named,
    ProgramDefinition,
    ProgramSettings,
    TensorSpec,
    below,
    hidden_and_mask,
    scalars,
    specs,
    stored_specs,
)
from chainfed.toolchain.vocabulary_loss import vocabulary_logits, vocabulary_loss
from chainfed.toolchain.window import WindowTask, adapter_shapes, window_output, window_program


def language_programs(settings: ProgramSettings) -> list[ProgramDefinition]:
    """What a language model needs beside ``embed`` and ``block``: score, next and one ``window_q{Q}`` a size."""
    windows = [window_program(settings, size, window_task(settings, size)) for size in settings.windows]
    return [score_program(settings), next_program(settings), *windows]


def score_program(settings: ProgramSettings) -> ProgramDefinition:
    """Last hidden states and targets -> weighted sum of the losses and count of the targets that are most likely."""
    inputs = hidden_and_mask(settings) + _head(settings) + _targets(settings)
    return ProgramDefinition("score", inputs, scalars("loss_sum", "correct"), partial(_score, settings))


def next_program(settings: ProgramSettings) -> ProgramDefinition:
    """Last hidden states -> the logits of what follows at one place of each row."""
    rows = settings.batch_size
    inputs = (*hidden_and_mask(settings), *_head(settings), TensorSpec("places", (rows,), "int64"))
    logits = TensorSpec("logits", (rows, settings.family.vocab_size))
    return ProgramDefinition("next", inputs, (logits,), partial(_next, settings))


def window_task(settings: ProgramSettings, window_size: int) -> WindowTask:
    """Adapters, on the tokens that follow the target places."""
    trainables = adapter_shapes(settings, window_size)
    inputs = hidden_and_mask(settings) + _head(settings) + _targets(settings)
    inputs += scalars("adapter_lr", "global_loss_weight")
    batched = ("h", "mask", "target_places", "targets", "target_weights")
    objective = partial(_window_objective, settings, window_size)
    return WindowTask(objective, trainables, inputs, batched, dict.fromkeys(trainables, "adapter_lr"))


def _score(settings: ProgramSettings, tensors: Named) -> Named:
    features = _features(settings, tensors, _at(tensors["h"], tensors["target_places"]))
    targets, weights = tensors["targets"].flatten(), tensors["target_weights"].flatten()
    losses, hits = vocabulary_loss(features, below(tensors, "lm_head."), targets, settings.family.logit_softcap)
    return {"loss_sum": (losses * weights).sum(), "correct": _correct(hits, weights)}


def _next(settings: ProgramSettings, tensors: Named) -> Named:
    features = _features(settings, tensors, _at(tensors["h"], tensors["places"].unsqueeze(1)))
    return {"logits": vocabulary_logits(features, below(tensors, "lm_head."), settings.family.logit_softcap)}


def _window_objective(
    settings: ProgramSettings, window_size: int, tensors: Named, trainable: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The stage's loss as a function of the adapters. Both branches go through the head together."""
    h = window_output(settings, window_size, tensors, trainable)
    local = ahead = _at(h, tensors["target_places"])
    if window_size < settings.family.num_layers:
        ahead = auxiliary_branch(local, tensors["aux.down"], tensors["aux.up"])
    features = _features(settings, tensors, torch.cat((local, ahead)))
    targets, weights = tensors["targets"].flatten(), tensors["target_weights"].flatten()
    losses, hits = vocabulary_loss(
        features, below(tensors, "lm_head."), torch.cat((targets, targets)), settings.family.logit_softcap
    )
    count = targets.shape[0]
    local_loss, global_loss = (losses[:count] * weights).sum(), (losses[count:] * weights).sum()
    loss = global_perspective_loss(local_loss, global_loss, tensors["global_loss_weight"])
    return loss, {"local_loss": local_loss, "global_loss": global_loss, "correct": _correct(hits[:count], weights)}


def _features(settings: ProgramSettings, tensors: Named, rows: Tensor) -> Tensor:
    """The model's final norm: (N, D) -> (N, D)."""
    return settings.family.finish(below(tensors, "output."), rows.unsqueeze(0)).squeeze(0)


def _at(h: Tensor, places: Tensor) -> Tensor:
    """The hidden states at some positions of each row: (B, S, D), (B, T) int64 -> (B T, D)."""
    batch, length, width = h.shape
    first = torch.arange(0, batch * length, length).unsqueeze(1)
    return h.reshape(batch * length, width).index_select(0, (places + first).flatten())


def _correct(hits: Tensor, weights: Tensor) -> Tensor:
    return (hits * (weights > 0).to(hits.dtype)).sum()


def _head(settings: ProgramSettings) -> tuple[TensorSpec, ...]:
    head = stored_specs("lm_head.", settings.language_head_tensors)
    return specs("output.", settings.family.output_shapes) + head


def _targets(settings: ProgramSettings) -> tuple[TensorSpec, ...]:
    count = (settings.batch_size, settings.max_target_tokens)
    places = TensorSpec("target_places", count, "int64"), TensorSpec("targets", count, "int64")
    return (*places, TensorSpec("target_weights", count))
