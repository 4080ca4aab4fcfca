"""The programs of a bundle as pure functions, with the exact list of their inputs and outputs.

Every weight is an input, so a program depends on shapes only and one program serves all layers. The lists
here are what the manifest repeats and what a device feeds, in this order. B batch, S sequence, D hidden size,
A bottleneck, C labels, L layers, Q window size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import get_args

import torch
from torch import Tensor

from chainfed.core.manifest import TensorDtype, WeightDtype, frozen_block_program
from chainfed.runtime.dtypes import TORCH_DTYPES
from chainfed.toolchain.adapters import adapter, auxiliary_branch
from chainfed.toolchain.families.base import Family, Pooling
from chainfed.toolchain.losses import (
    correct_count,
    global_perspective_loss,
    head_logits,
    pool,
    weighted_cross_entropy,
)
from chainfed.toolchain.optimizers import OptimizerSettings, optimizer_step, state_shapes
from chainfed.toolchain.quantization import StoredTensor, is_scale, matrices, stored_tensors, token_table
from chainfed.toolchain.widening import gather_rows, narrow_tables, widened

Named = Mapping[str, Tensor]


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape and dtype of one input or output of a program."""

    name: str
    shape: tuple[int, ...]
    dtype: TensorDtype = "float32"

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as torch has it."""
        return TORCH_DTYPES[self.dtype]

    @property
    def nbytes(self) -> int:
        """Size of the tensor in bytes."""
        return torch.Size(self.shape).numel() * self.torch_dtype.itemsize


@dataclass(frozen=True)
class ProgramSettings:
    """All that the programs of one bundle depend on.

    Attributes:
        family: the model.
        batch_size: B.
        seq_len: S.
        adapter_dim: A.
        num_labels: C.
        windows: the window sizes to build a training step for, Q in the paper.
        pooling: how a row's tokens become one feature vector.
        optimizer: the rule inside the training steps.
        dtype: how the matrices of the layers and the table of tokens are stored.
    """

    family: Family
    batch_size: int
    seq_len: int
    adapter_dim: int
    num_labels: int
    windows: tuple[int, ...] = (1, 2, 3)
    pooling: Pooling = "mean"
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    dtype: WeightDtype = "f32"

    def __post_init__(self) -> None:
        """Refuse settings that no program can be made from.

        Raises:
            ValueError: a size is out of the model's range.
        """
        if min(self.batch_size, self.adapter_dim) < 1 or self.num_labels < 2:
            raise ValueError("batch_size and adapter_dim must be at least 1 and num_labels at least 2")
        if not 1 <= self.seq_len <= self.family.max_seq_len:
            raise ValueError(f"seq_len must lie between 1 and {self.family.max_seq_len}, the model's longest sequence")
        if any(not 1 <= size <= self.family.num_layers for size in self.windows):
            raise ValueError(f"window sizes must lie between 1 and {self.family.num_layers}, the number of layers")
        if self.pooling not in get_args(Pooling):
            raise ValueError(f"pooling {self.pooling!r} is unknown: use one of {', '.join(get_args(Pooling))}")

    @property
    def layer_tensors(self) -> tuple[StoredTensor, ...]:
        """What the weight file of a layer holds."""
        shapes = self.family.layer_shapes
        return stored_tensors(shapes, matrices(shapes), self.dtype)

    @property
    def embedding_tensors(self) -> tuple[StoredTensor, ...]:
        """What the weight file of the embeddings holds."""
        shapes = self.family.embedding_shapes
        return stored_tensors(shapes, token_table(shapes, self.family.vocab_size), self.dtype)


@dataclass(frozen=True)
class ProgramDefinition:
    """A pure function with named, typed, ordered inputs and outputs; it can be sent to another process.

    Attributes:
        name: the program's name in a bundle, such as ``window_q2``.
        inputs: in the order the function takes them.
        outputs: in the order the function returns them.
        compute: named inputs -> named outputs.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    compute: Callable[[Named], Named]

    def function(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The program on flat tensors: what is traced, and what the lowered program does."""
        results = self.compute({spec.name: tensor for spec, tensor in zip(self.inputs, tensors, strict=True)})
        return tuple(results[spec.name] for spec in self.outputs)

    def example_inputs(self) -> tuple[Tensor, ...]:
        """Tensors of the right shapes and dtypes, all zero: enough to trace with."""
        return tuple(torch.zeros(spec.shape, dtype=spec.torch_dtype) for spec in self.inputs)


def build_programs(settings: ProgramSettings) -> dict[str, ProgramDefinition]:
    """Define every program of a bundle: embed, the blocks, pool, head, score and one ``window_q{Q}`` a size."""
    programs = [embed_program(settings), *block_programs(settings), pool_program(settings)]
    programs += [head_program(settings), score_program(settings)]
    programs += [window_program(settings, size) for size in settings.windows]
    return {program.name: program for program in programs}


def embed_program(settings: ProgramSettings) -> ProgramDefinition:
    """Token ids -> first hidden states."""
    rows = (settings.batch_size, settings.seq_len)
    tokens = (TensorSpec("input_ids", rows, "int64"), TensorSpec("mask", rows))
    inputs = tokens + _stored_specs("embeddings.", settings.embedding_tensors)
    return ProgramDefinition("embed", inputs, (_hidden(settings),), partial(_embed, settings))


def block_program(settings: ProgramSettings) -> ProgramDefinition:
    """Hidden states -> hidden states: one frozen layer and its adapter."""
    bottleneck = (settings.adapter_dim, settings.family.hidden_size)
    inputs = _hidden_and_mask(settings) + _stored_specs("layer.", settings.layer_tensors)
    inputs += _specs("adapter.", {"down": bottleneck, "up": bottleneck})
    return ProgramDefinition("block", inputs, (_hidden(settings),), partial(_block, settings))


def block_programs(settings: ProgramSettings) -> list[ProgramDefinition]:
    """``block``, which serves all layers, or for quantised weights ``block_00`` and so on, which hold a layer each.

    Those are lowered by :mod:`chainfed.toolchain.frozen_block`; their ``compute`` takes the weights as ``block`` does.
    """
    shared = block_program(settings)
    if settings.dtype not in ("int8", "int4"):
        return [shared]
    inputs = tuple(spec for spec in shared.inputs if not spec.name.startswith("layer."))
    layers = range(settings.family.num_layers)
    return [replace(shared, name=frozen_block_program(layer), inputs=inputs) for layer in layers]


def pool_program(settings: ProgramSettings) -> ProgramDefinition:
    """Hidden states -> one feature vector for each row."""
    features = TensorSpec("features", (settings.batch_size, settings.family.hidden_size))
    return ProgramDefinition("pool", _hidden_and_output(settings), (features,), partial(_pool, settings))


def score_program(settings: ProgramSettings) -> ProgramDefinition:
    """Last hidden states and labels -> summed loss, correct count and logits."""
    inputs = _hidden_and_output(settings) + _specs("head.", _head_shapes(settings))
    inputs += _statistics(settings, "mean", "rstd") + _batch(settings)
    logits = TensorSpec("logits", (settings.batch_size, settings.num_labels))
    outputs = (*_scalars("loss_sum", "correct"), logits)
    return ProgramDefinition("score", inputs, outputs, partial(_score, settings))


def head_program(settings: ProgramSettings) -> ProgramDefinition:
    """Pooled features -> one head after one optimiser step: warm-up and linear probing."""
    shapes = {f"head.{name}": shape for name, shape in _head_shapes(settings).items()}
    trainable = _specs("", shapes)
    state = _specs("state.", state_shapes(settings.optimizer, shapes))
    inputs = trainable + state
    inputs += (TensorSpec("features", (settings.batch_size, settings.family.hidden_size)),)
    inputs += _statistics(settings, "mean", "rstd") + _batch(settings) + _scalars("head_lr")
    outputs = trainable + state + _scalars("loss", "correct")
    return ProgramDefinition("head", inputs, outputs, partial(_head_step, settings))


def window_program(settings: ProgramSettings, window_size: int) -> ProgramDefinition:
    """The training step of a window of ``window_size`` layers (Algorithm 1, lines 5 to 9; Eq. 2)."""
    family = settings.family
    shapes = _window_trainables(settings, window_size)
    trainable = _specs("trainable.", shapes)
    state = _specs("state.", state_shapes(settings.optimizer, shapes))
    inputs = trainable + state
    for index in range(window_size):
        inputs += _stored_specs(f"window.{index}.layer.", settings.layer_tensors)
    after = family.num_layers - window_size
    if after:
        stack = (after, settings.adapter_dim, family.hidden_size)
        inputs += _specs("aux.", {"down": stack, "up": stack})
    inputs += _statistics(settings, "local_mean", "local_rstd", "final_mean", "final_rstd")
    inputs += _hidden_and_output(settings) + _batch(settings)
    inputs += _scalars("adapter_lr", "head_lr", "final_head_lr", "global_loss_weight")
    outputs = trainable + state + _scalars("loss", "local_loss", "global_loss", "correct")
    compute = partial(_window_step, settings, window_size)
    return ProgramDefinition(f"window_q{window_size}", inputs, outputs, compute)


def _embed(settings: ProgramSettings, tensors: Named) -> Named:
    stored, ids = _below(tensors, "embeddings."), tensors["input_ids"]
    weights = {name: tensor for name, tensor in stored.items() if not is_scale(name, stored)}
    for table in narrow_tables(stored):  # only the batch's rows are widened, and they become the table
        weights[table] = gather_rows(stored, table, tensors["input_ids"])
        ids = torch.arange(ids.numel()).view(ids.shape)
    return {"h": settings.family.embed(weights, ids, tensors["mask"])}


def _block(settings: ProgramSettings, tensors: Named) -> Named:
    hidden = settings.family.layer(layer_weights(tensors, "layer."), tensors["h"], tensors["mask"])
    return {"h": adapter(hidden, tensors["adapter.down"], tensors["adapter.up"])}


def _pool(settings: ProgramSettings, tensors: Named) -> Named:
    return {"features": _features(settings, tensors, tensors["h"])}


def _features(settings: ProgramSettings, tensors: Named, h: Tensor) -> Tensor:
    """What heads see of a layer's output: finished as the model's own last layer's, and pooled. (B, S, D) -> (B, D)"""
    return pool(settings.family.finish(_below(tensors, "output."), h), tensors["mask"], settings.pooling)


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
    state = _below(tensors, "state.")
    updated, new_state = optimizer_step(settings.optimizer, parameters, gradients, state, rates)
    return {**updated, **_under("state.", new_state), "loss": loss, "correct": correct}


def _window_step(settings: ProgramSettings, window_size: int, tensors: Named) -> Named:
    parameters = _below(tensors, "trainable.")
    objective = partial(_window_objective, settings, window_size, tensors)
    gradients, (loss, losses) = torch.func.grad_and_value(objective, has_aux=True)(parameters)
    rates = {name: tensors[_learning_rate(name)] for name in parameters}
    state = _below(tensors, "state.")
    updated, new_state = optimizer_step(settings.optimizer, parameters, gradients, state, rates)
    return {**_under("trainable.", updated), **_under("state.", new_state), "loss": loss, **losses}


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


def window_output(settings: ProgramSettings, window_size: int, tensors: Named, trainable: Named) -> Tensor:
    """Run a window's layers, each with its adapter: (B, S, D) -> (B, S, D)."""
    h = tensors["h"]
    for index in range(window_size):
        h = settings.family.layer(layer_weights(tensors, f"window.{index}.layer."), h, tensors["mask"])
        h = adapter(h, trainable[f"window.{index}.down"], trainable[f"window.{index}.up"])
    return h


def layer_weights(tensors: Named, prefix: str) -> dict[str, Tensor]:
    """The float32 weights of the layer whose stored tensors have names with a prefix."""
    return widened(_below(tensors, prefix))


def _window_trainables(settings: ProgramSettings, window_size: int) -> dict[str, tuple[int, ...]]:
    bottleneck = (settings.adapter_dim, settings.family.hidden_size)
    shapes: dict[str, tuple[int, ...]] = {}
    for index in range(window_size):
        shapes |= {f"window.{index}.down": bottleneck, f"window.{index}.up": bottleneck}
    for head in ("local_head", "final_head"):
        shapes |= {f"{head}.{name}": shape for name, shape in _head_shapes(settings).items()}
    return shapes


def _learning_rate(parameter: str) -> str:
    """The input that holds the learning rate of a trainable of the window."""
    return {"window": "adapter_lr", "local_head": "head_lr", "final_head": "final_head_lr"}[parameter.split(".")[0]]


def _head(tensors: Named, name: str) -> tuple[Tensor, Tensor]:
    return tensors[f"{name}.weight"], tensors[f"{name}.bias"]


def _below(tensors: Named, prefix: str) -> dict[str, Tensor]:
    """The tensors whose name starts with a prefix, by the rest of their name."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _under(prefix: str, tensors: Named) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _specs(prefix: str, shapes: Mapping[str, tuple[int, ...]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(prefix + name, shape) for name, shape in shapes.items())


def _stored_specs(prefix: str, tensors: tuple[StoredTensor, ...]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(prefix + name, shape, dtype) for name, shape, dtype in tensors)


def _scalars(*names: str) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name, ()) for name in names)


def _statistics(settings: ProgramSettings, *names: str) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name, (settings.family.hidden_size,)) for name in names)


def _hidden(settings: ProgramSettings) -> TensorSpec:
    return TensorSpec("h", (settings.batch_size, settings.seq_len, settings.family.hidden_size))


def _hidden_and_mask(settings: ProgramSettings) -> tuple[TensorSpec, ...]:
    return _hidden(settings), TensorSpec("mask", (settings.batch_size, settings.seq_len))


def _hidden_and_output(settings: ProgramSettings) -> tuple[TensorSpec, ...]:
    return _hidden_and_mask(settings) + _specs("output.", settings.family.output_shapes)


def _batch(settings: ProgramSettings) -> tuple[TensorSpec, ...]:
    rows = (settings.batch_size,)
    return TensorSpec("labels", rows, "int64"), TensorSpec("sample_weights", rows)


def _head_shapes(settings: ProgramSettings) -> dict[str, tuple[int, ...]]:
    return {"weight": (settings.num_labels, settings.family.hidden_size), "bias": (settings.num_labels,)}
