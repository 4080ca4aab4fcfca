"""The programs of causal language modelling: adapters alone are trained, the model's own head serves both losses.

Only the positions that have a target go through the head, at most T of them a batch: `target_places` says where they
are among the B * S positions, `targets` which token follows there, and `target_weights` what each counts (0 for an
unused place). B batch, S sequence, D hidden size, V vocabulary.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from chainfed.toolchain.adapters import auxiliary_branch
from chainfed.toolchain.losses import global_perspective_loss
from chainfed.toolchain.optimizers import optimizer_step, state_shapes
from chainfed.toolchain.programs import (
    Named,
    ProgramDefinition,
    ProgramSettings,
    TensorSpec,
    below,
    hidden_and_mask,
    scalars,
    specs,
    under,
)
from chainfed.toolchain.vocabulary_loss import vocabulary_logits, vocabulary_loss
from chainfed.toolchain.window import adapter_shapes, auxiliary_specs, layer_specs, window_output


def language_programs(settings: ProgramSettings) -> list[ProgramDefinition]:
    """What a language model needs beside ``embed`` and ``block``: score, next and one ``window_q{Q}`` a size."""
    windows = [window_program(settings, size) for size in settings.windows]
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


def window_program(settings: ProgramSettings, window_size: int) -> ProgramDefinition:
    """The training step of a window of ``window_size`` layers (Algorithm 1, lines 5 to 9; Eq. 2)."""
    shapes = adapter_shapes(settings, window_size)
    trainable = specs("trainable.", shapes)
    state = specs("state.", state_shapes(settings.optimizer, shapes))
    inputs = trainable + state + layer_specs(settings, window_size) + auxiliary_specs(settings, window_size)
    inputs += hidden_and_mask(settings) + _head(settings) + _targets(settings)
    inputs += scalars("adapter_lr", "global_loss_weight")
    outputs = trainable + state + scalars("loss", "local_loss", "global_loss", "correct")
    return ProgramDefinition(f"window_q{window_size}", inputs, outputs, partial(_window_step, settings, window_size))


def _score(settings: ProgramSettings, tensors: Named) -> Named:
    features = _features(settings, tensors, _rows(tensors["h"], tensors["target_places"]))
    scored = vocabulary_loss(features, tensors["lm_head.weight"], tensors["targets"], settings.family.logit_softcap)
    weights = tensors["target_weights"]
    return {"loss_sum": (scored.losses * weights).sum(), "correct": _correct(scored.hits, weights)}


def _next(settings: ProgramSettings, tensors: Named) -> Named:
    features = _features(settings, tensors, _rows(tensors["h"], tensors["places"]))
    return {"logits": vocabulary_logits(features, tensors["lm_head.weight"], settings.family.logit_softcap)}


def _window_step(settings: ProgramSettings, window_size: int, tensors: Named) -> Named:
    """The head's gradient is formed while its loss is, so only what lies below the head is differentiated."""
    parameters = below(tensors, "trainable.")
    features, pull_back, *_ = torch.func.vjp(partial(_both_branches, settings, window_size, tensors), parameters)
    targets, weights = tensors["targets"], tensors["target_weights"]
    scored = vocabulary_loss(
        features, tensors["lm_head.weight"], torch.cat((targets, targets)), settings.family.logit_softcap
    )
    local_losses, global_losses = scored.losses.chunk(2)
    local_loss, global_loss = (local_losses * weights).sum(), (global_losses * weights).sum()
    share = torch.cat((weights, weights * tensors["global_loss_weight"]))
    (gradients,) = pull_back(scored.gradient * share.unsqueeze(1))
    rates = dict.fromkeys(parameters, tensors["adapter_lr"])
    updated, new_state = optimizer_step(settings.optimizer, parameters, gradients, below(tensors, "state."), rates)
    return {
        **under("trainable.", updated),
        **under("state.", new_state),
        "loss": global_perspective_loss(local_loss, global_loss, tensors["global_loss_weight"]),
        "local_loss": local_loss,
        "global_loss": global_loss,
        "correct": _correct(scored.hits.chunk(2)[0], weights),
    }


def _both_branches(settings: ProgramSettings, window_size: int, tensors: Named, trainable: dict[str, Tensor]) -> Tensor:
    """What the head sees of the local branch, then of the global one: (2 T, D)."""
    h = window_output(settings, window_size, tensors, trainable)
    local = _rows(h, tensors["target_places"])
    ahead = local
    if window_size < settings.family.num_layers:
        ahead = auxiliary_branch(local, tensors["aux.down"], tensors["aux.up"])
    return _features(settings, tensors, torch.cat((local, ahead)))


def _features(settings: ProgramSettings, tensors: Named, rows: Tensor) -> Tensor:
    """The model's final norm: (N, D) -> (N, D)."""
    return settings.family.finish(below(tensors, "output."), rows.unsqueeze(0)).squeeze(0)


def _rows(h: Tensor, places: Tensor) -> Tensor:
    """The hidden states at some of the B * S positions: (B, S, D), (N,) int64 -> (N, D)."""
    return h.reshape(-1, h.shape[-1]).index_select(0, places)


def _correct(hits: Tensor, weights: Tensor) -> Tensor:
    return (hits * (weights > 0).to(hits.dtype)).sum()


def _head(settings: ProgramSettings) -> tuple[TensorSpec, ...]:
    vocabulary = (settings.family.vocab_size, settings.family.hidden_size)
    return (*specs("output.", settings.family.output_shapes), TensorSpec("lm_head.weight", vocabulary))


def _targets(settings: ProgramSettings) -> tuple[TensorSpec, ...]:
    count = (settings.max_target_tokens,)
    places = TensorSpec("target_places", count, "int64"), TensorSpec("targets", count, "int64")
    return (*places, TensorSpec("target_weights", count))
