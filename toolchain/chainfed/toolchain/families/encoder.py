"""Encoders whose layers are all alike and attend in both directions: what they share, and a few lines for each."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers.models.bert.modeling_bert import BertEmbeddings, BertLayer
from transformers.models.distilbert.modeling_distilbert import Embeddings as DistilBertEmbeddings
from transformers.models.distilbert.modeling_distilbert import TransformerBlock as DistilBertLayer
from transformers.models.electra.modeling_electra import ElectraEmbeddings, ElectraLayer
from transformers.models.roberta.modeling_roberta import RobertaEmbeddings, RobertaLayer
from transformers.models.xlm_roberta.modeling_xlm_roberta import XLMRobertaEmbeddings, XLMRobertaLayer

from chainfed.toolchain.families.base import ReferenceModule, Weights
from chainfed.toolchain.families.modules import ModuleFamily

_MASKED_SCORE = -1e9


class EncoderFamily(ModuleFamily):
    """Learned positions, then layers called as ``layer(h, additive_mask)`` that end with a norm of their own."""

    embeddings_type: ClassVar[type[nn.Module]]
    """transformers' embedding module, made from the configuration, as the layer module is."""
    embeddings_prefix = "embeddings."
    layers_path = "encoder.layer"
    default_pooling = "mean"  # does well on every encoder, on middle layers too, and needs no pooler weights

    def __init__(self, config: Any) -> None:
        """Read the dimensions from a transformers configuration.

        Raises:
            ValueError: the configuration describes a decoder, which this family is not.
        """
        if getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False):
            raise ValueError(f"a {config.model_type} model configured as a decoder is not supported, only encoders are")
        super().__init__(config)

    def make_embeddings(self) -> nn.Module:
        """The embedding module."""
        return self.embeddings_type(self.config)

    def make_layer(self) -> nn.Module:
        """The layer module."""
        return self.layer_type(self.config)

    def embedding_arguments(self, mask: Tensor) -> dict[str, Tensor]:
        """What the embedding module takes beside the tokens: the position of each, counted with padding, and type 0."""
        positions = torch.arange(mask.shape[1]).unsqueeze(0)
        return {"position_ids": positions, "token_type_ids": torch.zeros_like(positions)}

    def layer(self, weights: Weights, h: Tensor, mask: Tensor) -> Tensor:
        """Self-attention and feed-forward of one layer: (B, S, D) -> (B, S, D)."""
        additive = ((1.0 - mask) * _MASKED_SCORE)[:, None, None, :]
        hidden: Tensor = functional_call(self._layer, dict(weights), (h, additive))
        return hidden

    def reference_layer(self) -> ReferenceModule:
        """The layer module."""
        return _MaskedReference(self.make_layer())


class _MaskedReference(ReferenceModule):
    """A layer that takes the lowest float where a position may not be looked at."""

    def forward(self, *arguments: Tensor) -> Tensor:
        h, mask = arguments
        result: Tensor = self.module(h, (1.0 - mask)[:, None, None, :] * torch.finfo(mask.dtype).min)
        return result


class BertFamily(EncoderFamily):
    """BERT."""

    embeddings_type = BertEmbeddings
    layer_type = BertLayer
    roots = ("bert.", "")


class DistilBertFamily(EncoderFamily):
    """DistilBERT: BERT without token types."""

    embeddings_type = DistilBertEmbeddings
    layer_type = DistilBertLayer
    roots = ("distilbert.", "")
    layers_path = "transformer.layer"

    def embedding_arguments(self, mask: Tensor) -> dict[str, Tensor]:
        """Positions, counted with padding."""
        return {"position_ids": torch.arange(mask.shape[1]).unsqueeze(0)}


class RobertaFamily(EncoderFamily):
    """RoBERTa: positions count tokens only, from one after the padding token's id on."""

    embeddings_type = RobertaEmbeddings
    layer_type = RobertaLayer
    roots = ("roberta.", "")

    @property
    def max_seq_len(self) -> int:
        """The rows of the position embedding less those up to the one that padding has."""
        return int(self.config.max_position_embeddings) - int(self.config.pad_token_id) - 1

    def embedding_arguments(self, mask: Tensor) -> dict[str, Tensor]:
        """The place of each token among the tokens of its row; padding has the place of the padding token."""
        tokens = mask.to(torch.int64)
        positions = torch.cumsum(tokens, dim=1) * tokens + int(self.config.pad_token_id)
        return {"position_ids": positions, "token_type_ids": torch.zeros_like(positions)}


class XlmRobertaFamily(RobertaFamily):
    """XLM-RoBERTa: RoBERTa over another vocabulary."""

    embeddings_type = XLMRobertaEmbeddings
    layer_type = XLMRobertaLayer


class ProjectedElectraEmbeddings(nn.Module):
    """ELECTRA's embeddings, and the projection to the layers' width that models with narrower embeddings have."""

    def __init__(self, config: Any) -> None:
        """Make the projection where the widths differ."""
        super().__init__()
        self.embeddings = ElectraEmbeddings(config)
        if config.embedding_size != config.hidden_size:
            self.embeddings_project = nn.Linear(config.embedding_size, config.hidden_size)

    def forward(self, input_ids: Tensor, **arguments: Tensor) -> Tensor:
        """(B, S) int64 -> (B, S, D)."""
        hidden: Tensor = self.embeddings(input_ids, **arguments)
        return self.embeddings_project(hidden) if hasattr(self, "embeddings_project") else hidden


class ElectraFamily(EncoderFamily):
    """ELECTRA's discriminator."""

    embeddings_type = ProjectedElectraEmbeddings
    layer_type = ElectraLayer
    roots = ("electra.", "")
    embeddings_prefix = ""
