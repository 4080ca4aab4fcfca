"""BERT-type encoders: transformers' ``BertModel``, alone or inside a ``BertFor...`` model."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers.models.bert.modeling_bert import BertEmbeddings, BertLayer

from chainfed.toolchain.families.base import Shapes, Weights, build_on_meta, find_keys, shapes_of

_ROOTS = ("bert.", "")
_MASKED_SCORE = -1e9


class BertFamily:
    """BERT: learned positions, post-norm layers, bidirectional attention.

    The layers are transformers' own modules, built without storage and called functionally with the weights
    that a program is given.
    """

    def __init__(self, config: Any) -> None:
        """Read the dimensions from a ``BertConfig``.

        Raises:
            ValueError: the configuration describes a decoder, which this family is not.
        """
        if getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False):
            raise ValueError("a BERT model configured as a decoder is not supported, only encoders are")
        self.config = copy.deepcopy(config)
        self.config._attn_implementation = "eager"
        self._embeddings = build_on_meta(BertEmbeddings, self.config)
        self._layer = build_on_meta(BertLayer, self.config)

    @property
    def num_layers(self) -> int:
        """Number of layers, L in the paper."""
        return int(self.config.num_hidden_layers)

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states, D."""
        return int(self.config.hidden_size)

    @property
    def vocab_size(self) -> int:
        """Number of rows in the token embedding."""
        return int(self.config.vocab_size)

    @property
    def max_seq_len(self) -> int:
        """The longest sequence the position embedding covers."""
        return int(self.config.max_position_embeddings)

    @property
    def default_pooling(self) -> str:
        """Mean pooling: it does well on sentence encoders and on plain BERT, and needs no pooler weights."""
        return "mean"

    @property
    def embedding_shapes(self) -> Shapes:
        """Local name -> shape of every embedding tensor."""
        return shapes_of(self._embeddings)

    @property
    def layer_shapes(self) -> Shapes:
        """Local name -> shape of every tensor of one layer."""
        return shapes_of(self._layer)

    def embed(self, weights: Weights, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Token, position and type-0 embeddings, normalised: (B, S) int64 -> (B, S, D)."""
        del mask  # BERT's positions count padding too
        positions = torch.arange(input_ids.shape[1]).unsqueeze(0)
        arguments = {"position_ids": positions, "token_type_ids": torch.zeros_like(positions)}
        hidden: Tensor = functional_call(self._embeddings, dict(weights), (input_ids,), arguments)
        return hidden

    def layer(self, weights: Weights, h: Tensor, mask: Tensor) -> Tensor:
        """Self-attention and feed-forward of one layer: (B, S, D) -> (B, S, D)."""
        additive = ((1.0 - mask) * _MASKED_SCORE)[:, None, None, :]
        hidden: Tensor = functional_call(self._layer, dict(weights), (h, additive))
        return hidden

    def embedding_keys(self, checkpoint: Collection[str]) -> dict[str, str]:
        """Local embedding name -> checkpoint key, with or without the ``bert.`` prefix.

        Raises:
            MissingWeightError: a tensor is not in the checkpoint.
        """
        return find_keys(self.embedding_shapes.keys(), "embeddings.", _ROOTS, checkpoint)

    def layer_keys(self, index: int, checkpoint: Collection[str]) -> dict[str, str]:
        """Local layer name -> checkpoint key of layer ``index``, with or without the ``bert.`` prefix.

        Raises:
            MissingWeightError: a tensor is not in the checkpoint.
            IndexError: there is no such layer.
        """
        if not 0 <= index < self.num_layers:
            raise IndexError(f"layer {index} of a model with {self.num_layers} layers")
        return find_keys(self.layer_shapes.keys(), f"encoder.layer.{index}.", _ROOTS, checkpoint)

    def reference_embeddings(self) -> nn.Module:
        """``BertEmbeddings`` with real storage, for the eager reference."""
        module: nn.Module = BertEmbeddings(self.config)
        return module.eval()

    def reference_layer(self) -> nn.Module:
        """``BertLayer`` with real storage, for the eager reference."""
        module: nn.Module = BertLayer(self.config)
        return module.eval()
