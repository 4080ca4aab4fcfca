"""What a program of a bundle is: a pure function with the exact list of its inputs and outputs.

Every weight is an input, so a program depends on shapes only and one program serves all layers. The lists
here are what the manifest repeats and what a device feeds, in this order. B batch, S sequence, D hidden size,
A bottleneck, C labels, L layers, Q window size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from chainfed.toolchain.families.base import Family, Pooling
from chainfed.toolchain.optimizers import OptimizerSettings

TaskKind = Literal["classification", "language_modelling"]
Named = Mapping[str, Tensor]
_DTYPES = {"float32": torch.float32, "int64": torch.int64}


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape and dtype of one input or output of a program."""

    name: str
    shape: tuple[int, ...]
    dtype: Literal["float32", "int64"] = "float32"

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as torch has it."""
        return _DTYPES[self.dtype]

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
        task: what is learnt.
        num_labels: C of a classifier.
        max_target_tokens: of a language model, how many positions of a batch go through its head, at most B * (S - 1).
        windows: the window sizes to build a training step for, Q in the paper.
        pooling: how a row's tokens become one feature vector.
        optimizer: the rule inside the training steps.
        tokens_at_once: how many tokens a training step takes through its layers at a time. Fewer need less memory; but
            weights are packed anew for every product, which costs 10% of a product's time at 512 tokens and 20% at 256.
    """

    family: Family
    batch_size: int
    seq_len: int
    adapter_dim: int
    num_labels: int = 0
    windows: tuple[int, ...] = (1, 2, 3)
    task: TaskKind = "classification"
    max_target_tokens: int = 0
    tokens_at_once: int = 512
    pooling: Pooling = "mean"
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)

    def __post_init__(self) -> None:
        """Refuse settings that no program can be made from.

        Raises:
            ValueError: a size is out of the model's range.
        """
        if min(self.batch_size, self.adapter_dim) < 1:
            raise ValueError("batch_size and adapter_dim must be at least 1")
        if self.task == "classification" and self.num_labels < 2:
            raise ValueError("num_labels must be at least 2")
        if self.task == "language_modelling" and not self.family.causal:
            raise ValueError(
                f"a {self.family.config.model_type} model attends in both directions and predicts no token"
            )
        targets = self.batch_size * (self.seq_len - 1)
        if self.task == "language_modelling" and not 1 <= self.max_target_tokens <= targets:
            raise ValueError(f"max_target_tokens must lie between 1 and {targets}, batch_size * (seq_len - 1)")
        if not 1 <= self.seq_len <= self.family.max_seq_len:
            raise ValueError(f"seq_len must lie between 1 and {self.family.max_seq_len}, the model's longest sequence")
        if any(not 1 <= size <= self.family.num_layers for size in self.windows):
            raise ValueError(f"window sizes must lie between 1 and {self.family.num_layers}, the number of layers")
        if self.pooling not in get_args(Pooling):
            raise ValueError(f"pooling {self.pooling!r} is unknown: use one of {', '.join(get_args(Pooling))}")


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


def below(tensors: Named, prefix: str) -> dict[str, Tensor]:
    """The tensors whose name starts with a prefix, by the rest of their name."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def under(prefix: str, tensors: Named) -> dict[str, Tensor]:
    """The tensors with a prefix before their names."""
    return {prefix + name: tensor for name, tensor in tensors.items()}


def specs(prefix: str, shapes: Mapping[str, tuple[int, ...]]) -> tuple[TensorSpec, ...]:
    """float32 tensors of these shapes, with a prefix before their names."""
    return tuple(TensorSpec(prefix + name, shape) for name, shape in shapes.items())


def scalars(*names: str) -> tuple[TensorSpec, ...]:
    """float32 scalars."""
    return tuple(TensorSpec(name, ()) for name in names)


def hidden(settings: ProgramSettings) -> TensorSpec:
    """Hidden states ``h``: (B, S, D)."""
    return TensorSpec("h", (settings.batch_size, settings.seq_len, settings.family.hidden_size))


def hidden_and_mask(settings: ProgramSettings) -> tuple[TensorSpec, ...]:
    """Hidden states (B, S, D) and which positions hold a token: ``mask`` (B, S)."""
    return hidden(settings), TensorSpec("mask", (settings.batch_size, settings.seq_len))
