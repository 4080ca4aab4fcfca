"""What the toolchain has to know about a kind of model: a *family*.

A family is everything that differs between, say, BERT and LLaMA: how tokens become hidden states, what one
layer computes, which tensors it needs and where a checkpoint keeps them. All else (adapters, losses,
optimisers, programs) is the same for every family.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

Pooling = Literal["mean", "cls", "last"]
Weights = Mapping[str, Tensor]
Shapes = Mapping[str, tuple[int, ...]]


class MissingWeightError(LookupError):
    """A checkpoint lacks a tensor that the family needs."""


class Family(Protocol):
    """One model, seen as embeddings followed by equal layers.

    Shapes in this protocol: B batch, S sequence, D hidden size; every tensor is float32 unless said.
    """

    config: Any
    """The Hugging Face configuration this family was made from."""

    @property
    def causal(self) -> bool:
        """Whether a position attends to those before it only, so that the model predicts what follows."""
        ...

    @property
    def logit_softcap(self) -> float | None:
        """The bound c of ``c * tanh(logits / c)`` that the language-model head puts on its logits, if any."""
        ...

    @property
    def layers_path(self) -> str:
        """Where transformers' base model keeps its list of layers, such as ``encoder.layer``."""
        ...

    @property
    def num_layers(self) -> int:
        """Number of layers, L in the paper."""
        ...

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states, D."""
        ...

    @property
    def vocab_size(self) -> int:
        """Number of rows in the token embedding."""
        ...

    @property
    def max_seq_len(self) -> int:
        """The longest sequence the model's position embedding covers."""
        ...

    @property
    def default_pooling(self) -> Pooling:
        """How a classifier pools this family's output unless told otherwise."""
        ...

    @property
    def embedding_shapes(self) -> Shapes:
        """Local name -> shape of every embedding tensor, in program order."""
        ...

    @property
    def layer_shapes(self) -> Shapes:
        """Local name -> shape of every tensor of one layer, in program order; the same for all layers."""
        ...

    @property
    def output_shapes(self) -> Shapes:
        """Local name -> shape of what stands between the last layer and a head: a final norm, or nothing."""
        ...

    def embed(self, weights: Weights, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Turn token ids into the first hidden states.

        Args:
            weights: the tensors of :attr:`embedding_shapes`.
            input_ids: (B, S) int64.
            mask: (B, S), 1 for a token and 0 for padding.

        Returns:
            (B, S, D)
        """
        ...

    def layer(self, weights: Weights, h: Tensor, mask: Tensor) -> Tensor:
        """Apply one frozen layer.

        Args:
            weights: the tensors of :attr:`layer_shapes`.
            h: (B, S, D).
            mask: (B, S), 1 for a token and 0 for padding.

        Returns:
            (B, S, D)
        """
        ...

    def finish(self, weights: Weights, h: Tensor) -> Tensor:
        """What the model does to the output of its last layer: a final norm, or nothing.

        Heads see every layer's output this way.

        Args:
            weights: the tensors of :attr:`output_shapes`.
            h: (B, S, D).

        Returns:
            (B, S, D)
        """
        ...

    def embedding_keys(self, checkpoint: Collection[str]) -> dict[str, str]:
        """Local embedding name -> key in a checkpoint that has the keys ``checkpoint``.

        Raises:
            MissingWeightError: a tensor is not in the checkpoint.
        """
        ...

    def layer_keys(self, index: int, checkpoint: Collection[str]) -> dict[str, str]:
        """Local layer name -> key of layer ``index`` in a checkpoint that has the keys ``checkpoint``.

        Tensors of :meth:`layer_constants` have no key.

        Raises:
            MissingWeightError: a tensor is not in the checkpoint.
            IndexError: there is no such layer.
        """
        ...

    def layer_constants(self, index: int) -> Weights:
        """The tensors of layer ``index`` that come from the configuration.

        They are what makes layers of different kinds, such as local and global attention, one program.
        """
        ...

    def output_keys(self, checkpoint: Collection[str]) -> dict[str, str]:
        """Local output name -> key in a checkpoint that has the keys ``checkpoint``.

        Raises:
            MissingWeightError: a tensor is not in the checkpoint.
        """
        ...

    def language_head_key(self, checkpoint: Collection[str]) -> str:
        """Key of the language-model head's (V, D) weight; tied heads have that of the token embeddings.

        Raises:
            MissingWeightError: the checkpoint has no such head.
        """
        ...

    def reference_embeddings(self) -> ReferenceModule:
        """transformers' own embedding module with storage, called as ``module(input_ids, mask)``."""
        ...

    def reference_layer(self) -> ReferenceModule:
        """transformers' own layer module with storage, called as ``module(h, mask)``."""
        ...

    def reference_output(self) -> ReferenceModule:
        """transformers' own final norm with storage, called as ``module(h)``."""
        ...


class ReferenceModule(nn.Module):
    """A module of the eager reference: it is given its tensors by local names, and computes as transformers does."""

    def __init__(self, module: nn.Module) -> None:
        """Keep ``module`` in evaluation mode; nothing in it is trained."""
        super().__init__()
        self.module = module.eval().requires_grad_(False)

    def load(self, tensors: Weights) -> None:
        """Take the tensors of one layer, the embeddings, or the output, by local names."""
        self.module.load_state_dict(dict(tensors), strict=False, assign=True)

    def forward(self, *arguments: Tensor) -> Tensor:
        """Call the module with the first argument alone."""
        result: Tensor = self.module(arguments[0])
        return result


def build_on_meta(make: Callable[..., nn.Module], *arguments: Any) -> nn.Module:
    """Build ``make(*arguments)`` without memory for its weights, in evaluation mode."""
    with torch.device("meta"):
        return make(*arguments).eval()


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the parameters of a module, in the module's order."""
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


def find_keys(
    names: Collection[str], prefix: str, roots: tuple[str, ...], checkpoint: Collection[str]
) -> dict[str, str]:
    """Map local names to checkpoint keys, whatever root the checkpoint uses.

    Args:
        names: local names, such as ``attention.self.query.weight``.
        prefix: the path to the module inside the base model, such as ``encoder.layer.3.``.
        roots: what may stand before the prefix, such as ``bert.``; tried in order.
        checkpoint: the keys that exist.

    Raises:
        MissingWeightError: under no root is there a key for some name.
    """
    keys = {}
    for name in names:
        candidates = [root + prefix + spelling for root in roots for spelling in _spellings(name)]
        found = next((key for key in candidates if key in checkpoint), None)
        if found is None:
            raise MissingWeightError(f"the checkpoint has no tensor {roots[-1] + prefix + name!r}")
        keys[name] = found
    return keys


def _spellings(name: str) -> tuple[str, ...]:
    """A name, and the TensorFlow spelling that early checkpoints keep for layer norms."""
    if "LayerNorm." not in name:
        return (name,)
    return name, name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
