"""What a program of a bundle is: a pure function with the exact list of its inputs and outputs.

Every weight is an input, so a program depends on shapes only and one program serves all layers. The lists
here are what the manifest repeats and what a device feeds, in this order. B batch, S sequence, D hidden size,
A bottleneck, C labels, L layers, Q window size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from chainfed.core.manifest import TensorDtype, WeightDtype
from chainfed.runtime.dtypes import TORCH_DTYPES
from chainfed.toolchain.families.base import Family, Pooling
from chainfed.toolchain.optimizers import OptimizerSettings
from chainfed.toolchain.quantization import StoredTensor, matrices, stored_tensors, token_table

TaskKind = Literal["classification", "language_modelling"]
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
        task: what is learnt.
        num_labels: C of a classifier.
        max_target_tokens: of a language model, how many positions of a row go through its head, at most S - 1.
        windows: the window sizes to build a training step for, Q in the paper.
        pooling: how a row's tokens become one feature vector.
        optimizer: the rule inside the training steps.
        tokens_at_once: how many tokens a training step takes through its layers at a time. Fewer need less memory; but
            weights are packed anew for every product, which costs 10% of a product's time at 512 tokens and 20% at 256.
        dtype: how the matrices of the layers and the table of tokens are stored.
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
    dtype: WeightDtype = "f32"
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
        if self.task == "language_modelling" and not 1 <= self.max_target_tokens <= self.seq_len - 1:
            raise ValueError(f"max_target_tokens must lie between 1 and {self.seq_len - 1}, seq_len - 1")
        if not 1 <= self.seq_len <= self.family.max_seq_len:
            raise ValueError(f"seq_len must lie between 1 and {self.family.max_seq_len}, the model's longest sequence")
        if any(not 1 <= size <= self.family.num_layers for size in self.windows):
            raise ValueError(f"window sizes must lie between 1 and {self.family.num_layers}, the number of layers")
        if self.pooling not in get_args(Pooling):
            raise ValueError(f"pooling {self.pooling!r} is unknown: use one of {', '.join(get_args(Pooling))}")

    @property
    def blocks_hold_weights(self) -> bool:
        """Whether each frozen layer has a ``block`` of its own with the weights inside, as quantised ones have."""
        return self.dtype in ("int8", "int4")

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

    @property
    def language_head_tensors(self) -> tuple[StoredTensor, ...]:
        """How a language model's head is stored, which may be the table of tokens itself."""
        shapes = {"weight": (self.family.vocab_size, self.family.hidden_size)}
        return stored_tensors(shapes, shapes, self.dtype)


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
        """Tensors of the right shapes and dtypes, all zero: enough to trace with.

        NumPy's zeros are pages that nobody has touched, so the weights of a large model take no memory here.
        """
        return tuple(torch.from_numpy(np.zeros(spec.shape, spec.dtype)) for spec in self.inputs)


def below(tensors: Named, prefix: str) -> dict[str, Tensor]:
    """The tensors whose name starts with a prefix, by the rest of their name."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def under(prefix: str, tensors: Named) -> dict[str, Tensor]:
    """The tensors with a prefix before their names."""
    return {prefix + name: tensor for name, tensor in tensors.items()}


def specs(prefix: str, shapes: Mapping[str, tuple[int, ...]]) -> tuple[TensorSpec, ...]:
    """float32 tensors of these shapes, with a prefix before their names."""
    return tuple(TensorSpec(prefix + name, shape) for name, shape in shapes.items())


def stored_specs(prefix: str, tensors: tuple[StoredTensor, ...]) -> tuple[TensorSpec, ...]:
    """Tensors as a weight file has them, with a prefix before their names."""
    return tuple(TensorSpec(prefix + name, shape, dtype) for name, shape, dtype in tensors)


def scalars(*names: str) -> tuple[TensorSpec, ...]:
    """float32 scalars."""
    return tuple(TensorSpec(name, ()) for name in names)


def hidden(settings: ProgramSettings) -> TensorSpec:
    """Hidden states ``h``: (B, S, D)."""
    return TensorSpec("h", (settings.batch_size, settings.seq_len, settings.family.hidden_size))


def hidden_and_mask(settings: ProgramSettings) -> tuple[TensorSpec, ...]:
    """Hidden states (B, S, D) and which positions hold a token: ``mask`` (B, S)."""
    return hidden(settings), TensorSpec("mask", (settings.batch_size, settings.seq_len))
