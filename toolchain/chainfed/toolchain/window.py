"""What the training steps of all tasks share: a window's layers, the tensors that they take, and the step itself.

B batch, S sequence, D hidden size, A bottleneck, L layers, Q window size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from chainfed.toolchain.adapters import adapter
from chainfed.toolchain.gradient_accumulation import accumulated_gradients, rows_at_once
from chainfed.toolchain.optimizers import optimizer_step, state_shapes
from chainfed.toolchain.programs import (
    Named,
    ProgramDefinition,
    ProgramSettings,
    TensorSpec,
    below,
    scalars,
    specs,
    stored_specs,
    under,
)
from chainfed.toolchain.widening import widened


@dataclass(frozen=True)
class WindowTask:
    """What a task makes of a window.

    Attributes:
        objective: (inputs of some rows, trainables) -> the loss, and local_loss, global_loss and correct by name, each
            a sum over the rows.
        trainables: name -> shape of what is trained.
        inputs: what the program takes beside trainables, their state, layers and auxiliary adapters.
        batched: those of the inputs whose first dimension is the batch.
        rates: trainable -> the input that holds its learning rate.
    """

    objective: Callable[[Named, dict[str, Tensor]], tuple[Tensor, dict[str, Tensor]]]
    trainables: Mapping[str, tuple[int, ...]]
    inputs: tuple[TensorSpec, ...]
    batched: tuple[str, ...]
    rates: Mapping[str, str]


def window_program(settings: ProgramSettings, window_size: int, task: WindowTask) -> ProgramDefinition:
    """The training step of a window of ``window_size`` layers (Algorithm 1, lines 5 to 9; Eq. 2)."""
    trainable = specs("trainable.", task.trainables)
    state = specs("state.", state_shapes(settings.optimizer, task.trainables))
    inputs = trainable + state + layer_specs(settings, window_size) + auxiliary_specs(settings, window_size)
    outputs = trainable + state + scalars("loss", "local_loss", "global_loss", "correct")
    compute = partial(_window_step, settings, task)
    return ProgramDefinition(f"window_q{window_size}", inputs + task.inputs, outputs, compute)


def _window_step(settings: ProgramSettings, task: WindowTask, tensors: Named) -> Named:
    parameters, state = below(tensors, "trainable."), below(tensors, "state.")
    gradients, losses = accumulated_gradients(
        task.objective,
        parameters,
        {name: tensor for name, tensor in tensors.items() if not name.startswith(("trainable.", "state."))},
        batched=task.batched,
        sums=("local_loss", "global_loss", "correct"),
        rows=rows_at_once(settings.batch_size, settings.seq_len, settings.tokens_at_once),
    )
    rates = {name: tensors[rate] for name, rate in task.rates.items()}
    updated, new_state = optimizer_step(settings.optimizer, parameters, gradients, state, rates)
    return {**under("trainable.", updated), **under("state.", new_state), **losses}


def window_output(settings: ProgramSettings, window_size: int, tensors: Named, trainable: Named) -> Tensor:
    """Run a window's layers, each with its adapter: (B, S, D) -> (B, S, D)."""
    h = tensors["h"]
    for index in range(window_size):
        h = settings.family.layer(layer_weights(tensors, f"window.{index}.layer."), h, tensors["mask"])
        h = adapter(h, trainable[f"window.{index}.down"], trainable[f"window.{index}.up"])
    return h


def layer_weights(tensors: Named, prefix: str) -> dict[str, Tensor]:
    """The float32 weights of the layer whose stored tensors have names with a prefix."""
    return widened(below(tensors, prefix))


def adapter_shapes(settings: ProgramSettings, window_size: int) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the adapters of a window."""
    bottleneck = (settings.adapter_dim, settings.family.hidden_size)
    return {f"window.{index}.{part}": bottleneck for index in range(window_size) for part in ("down", "up")}


def layer_specs(settings: ProgramSettings, window_size: int) -> tuple[TensorSpec, ...]:
    """The frozen weights of a window's layers."""
    tensors = settings.layer_tensors
    return tuple(spec for index in range(window_size) for spec in stored_specs(f"window.{index}.layer.", tensors))


def auxiliary_specs(settings: ProgramSettings, window_size: int) -> tuple[TensorSpec, ...]:
    """The adapters of the auxiliary branch as one stack of L - Q; none when the window is the whole model."""
    after = settings.family.num_layers - window_size
    if not after:
        return ()
    stack = (after, settings.adapter_dim, settings.family.hidden_size)
    return specs("aux.", {"down": stack, "up": stack})
