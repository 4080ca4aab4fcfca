"""The programs of a classifier: heads on pooled features are trained with the adapters.

B batch, S sequence, D hidden size, A bottleneck, L layers, Q window size. Heads have `head_rows` rows, whatever the
number of labels.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from chainfed.core.tensors import head_rows
from chainfed.toolchain.adapters import auxiliary_branch
from chainfed.toolchain.losses import (
    correct_count,
    global_perspective_loss,
    head_logits,
    pool,
    weighted_cross_entropy,
)
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
from chainfed.toolchain.window import WindowTask, adapter_shapes, window_output, window_program


def classification_programs(settings: ProgramSettings) -> list[ProgramDefinition]:
    """What a classifier needs beside ``embed`` and ``block``: pool, head, score and one ``window_q{Q}`` a size."""
    programs = [pool_program(settings), head_program(settings), score_program(settings)]
    return programs + [window_program(settings, size, window_task(settings, size)) for size in settings.windows]


def pool_program(settings: ProgramSettings) -> ProgramDefinition:
    """Hidden states -> one feature vector for each row."""
    features = TensorSpec("features", (settings.batch_size, settings.family.hidden_size))
    return ProgramDefinition("pool", _hidden_and_output(settings), (features,), partial(_pool, settings))


def score_program(settings: ProgramSettings) -> ProgramDefinition:
    """Last hidden states and labels -> summed loss, correct count and logits."""
    inputs = _hidden_and_output(settings) + specs("head.", _head_shapes(settings))
    inputs += _statistics(settings, "mean", "rstd") + _batch(settings)
    logits = TensorSpec("logits", (settings.batch_size, head_rows(settings.num_labels)))
    outputs = (*scalars("loss_sum", "correct"), logits)
    return ProgramDefinition("score", inputs, outputs, partial(_score, settings))


def head_program(settings: ProgramSettings) -> ProgramDefinition:
    """Pooled features -> one head after one optimiser step: warm-up and linear probing."""
    shapes = {f"head.{name}": shape for name, shape in _head_shapes(settings).items()}
    trainable = specs("", shapes)
    state = specs("state.", state_shapes(settings.optimizer, shapes))
    inputs = trainable + state
    inputs += (TensorSpec("features", (settings.batch_size, settings.family.hidden_size)),)
    inputs += _statistics(settings, "mean", "rstd") + _batch(settings) + scalars("head_lr")
    outputs = trainable + state + scalars("loss", "correct")
    return ProgramDefinition("head", inputs, outputs, partial(_head_step, settings))


def window_task(settings: ProgramSettings, window_size: int) -> WindowTask:
    """Adapters, the local head of the window's end and the final head, on labels of whole rows."""
    trainables = adapter_shapes(settings, window_size)
    rates = dict.fromkeys(trainables, "adapter_lr")
    for head, rate in (("local_head", "head_lr"), ("final_head", "final_head_lr")):
        shapes = {f"{head}.{name}": shape for name, shape in _head_shapes(settings).items()}
        trainables |= shapes
        rates |= dict.fromkeys(shapes, rate)
    inputs = _statistics(settings, "local_mean", "local_rstd", "final_mean", "final_rstd")
    inputs += _hidden_and_output(settings) + _batch(settings)
    inputs += scalars("adapter_lr", "head_lr", "final_head_lr", "global_loss_weight")
    objective = partial(_window_objective, settings, window_size)
    return WindowTask(objective, trainables, inputs, ("h", "mask", "labels", "sample_weights"), rates)


def _pool(settings: ProgramSettings, tensors: Named) -> Named:
    return {"features": _features(settings, tensors, tensors["h"])}


def _features(settings: ProgramSettings, tensors: Named, h: Tensor) -> Tensor:
    """What heads see of a layer's output: finished as the model's own last layer's, and pooled. (B, S, D) -> (B, D)"""
    return pool(settings.family.finish(below(tensors, "output."), h), tensors["mask"], settings.pooling)


def _score(settings: ProgramSettings, tensors: Named) -> Named:
    features = _features(settings, tensors, tensors["h"])
    logits = head_logits(features, *_head(tensors, "head"), tensors["mean"], tensors["rstd"])
    batch = (tensors["labels"], tensors["sample_weights"])
    return {
        "loss_sum": weighted_cross_entropy(logits, *batch),
        "correct": correct_count(logits, *batch),
        "logits": logits,
    }


def _head_step(settings: ProgramSettings, tensors: Named) -> Named:
    parameters = {name: tensors[name] for name in ("head.weight", "head.bias")}
    batch = (tensors["labels"], tensors["sample_weights"])

    def objective(trainable: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        logits = head_logits(tensors["features"], *_head(trainable, "head"), tensors["mean"], tensors["rstd"])
        return weighted_cross_entropy(logits, *batch), correct_count(logits, *batch)

    gradients, (loss, correct) = torch.func.grad_and_value(objective, has_aux=True)(parameters)
    rates = dict.fromkeys(parameters, tensors["head_lr"])
    state = below(tensors, "state.")
    updated, new_state = optimizer_step(settings.optimizer, parameters, gradients, state, rates)
    return {**updated, **under("state.", new_state), "loss": loss, "correct": correct}


def _window_objective(
    settings: ProgramSettings, window_size: int, tensors: Named, trainable: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The stage's loss as a function of what it trains; the parts of it are returned beside it."""
    h = window_output(settings, window_size, tensors, trainable)
    batch = (tensors["labels"], tensors["sample_weights"])
    local_logits = head_logits(
        _features(settings, tensors, h), *_head(trainable, "local_head"), tensors["local_mean"], tensors["local_rstd"]
    )
    local_loss = weighted_cross_entropy(local_logits, *batch)
    if settings.pooling == "cls":
        h = h[:, :1]  # adapters work on each token alone, and only the first one is pooled
    if window_size < settings.family.num_layers:
        h = auxiliary_branch(h, tensors["aux.down"], tensors["aux.up"])
    global_logits = head_logits(
        _features(settings, tensors, h), *_head(trainable, "final_head"), tensors["final_mean"], tensors["final_rstd"]
    )
    global_loss = weighted_cross_entropy(global_logits, *batch)
    loss = global_perspective_loss(local_loss, global_loss, tensors["global_loss_weight"])
    parts = {"local_loss": local_loss, "global_loss": global_loss, "correct": correct_count(local_logits, *batch)}
    return loss, parts


def _head(tensors: Named, name: str) -> tuple[Tensor, Tensor]:
    return tensors[f"{name}.weight"], tensors[f"{name}.bias"]


def _statistics(settings: ProgramSettings, *names: str) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name, (settings.family.hidden_size,)) for name in names)


def _hidden_and_output(settings: ProgramSettings) -> tuple[TensorSpec, ...]:
    return hidden_and_mask(settings) + specs("output.", settings.family.output_shapes)


def _batch(settings: ProgramSettings) -> tuple[TensorSpec, ...]:
    rows = (settings.batch_size,)
    return TensorSpec("labels", rows, "int64"), TensorSpec("sample_weights", rows)


def _head_shapes(settings: ProgramSettings) -> dict[str, tuple[int, ...]]:
    rows = head_rows(settings.num_labels)
    return {"weight": (rows, settings.family.hidden_size), "bias": (rows,)}
