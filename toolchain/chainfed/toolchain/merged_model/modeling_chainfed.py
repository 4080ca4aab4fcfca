"""A text classifier that was fine-tuned with ChainFed: a base model with adapters, and a linear head.

B batch, S sequence, D hidden size, A bottleneck, C labels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from .configuration_chainfed import ChainFedConfig


class ChainFedAdapter(nn.Module):
    """`h + gelu(h W_down) W_up`, with both matrices stored as (A, D)."""

    def __init__(self, hidden_size: int, bottleneck: int) -> None:
        """Starts as the identity."""
        super().__init__()
        self.down = nn.Parameter(torch.zeros(bottleneck, hidden_size))
        self.up = nn.Parameter(torch.zeros(bottleneck, hidden_size))

    def forward(self, h: Tensor) -> Tensor:
        """(..., D) -> (..., D)"""
        return h + functional.gelu(functional.linear(h, self.down)) @ self.up


class ChainFedLayer(nn.Module):
    """A layer of the base model, followed by its adapter."""

    def __init__(self, layer: nn.Module, adapter: ChainFedAdapter) -> None:
        """Keeps both."""
        super().__init__()
        self.layer = layer
        self.adapter = adapter

    def __getattr__(self, name: str) -> Any:
        """What the base model asks of its layers, such as how far they attend, the layer answers."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the layer returns, with the adapter applied to its hidden states."""
        output = self.layer(*args, **kwargs)
        if isinstance(output, tuple):
            return (self.adapter(output[0]), *output[1:])
        return self.adapter(output)


class ChainFedForSequenceClassification(PreTrainedModel):  # type: ignore[misc]
    """The merged model; load it with `AutoModelForSequenceClassification` and `trust_remote_code=True`."""

    config_class = ChainFedConfig
    base_model_prefix = "model"
    _supports_sdpa = True

    def __init__(self, config: ChainFedConfig) -> None:
        """Builds the base model of `config.base_config` and puts an adapter after each layer."""
        super().__init__(config)
        self.num_labels = config.num_labels
        base = AutoConfig.for_model(**config.base_config)
        self.model = AutoModel.from_config(base, attn_implementation=config._attn_implementation)
        if getattr(self.model, "pooler", None) is not None:
            self.model.pooler = None
        layers = self.model.get_submodule(config.layers_path)
        for index in range(len(layers)):
            adapter = ChainFedAdapter(base.hidden_size, config.adapter_dim)
            layers[index] = ChainFedLayer(layers[index], adapter)
        self.classifier = nn.Linear(base.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Classify texts.

        Args:
            input_ids: (B, S) int64, cut to the length the model was tuned with.
            attention_mask: (B, S), 1 for a token and 0 for padding; without it, every position is a token.
            labels: (B,) int64; with them the result has the mean cross-entropy as `loss`.
            return_dict: False for a plain tuple.
            kwargs: what else the base model takes.

        Returns:
            A `SequenceClassifierOutput` with `logits` (B, C).
        """
        outputs = self.model(input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **kwargs)
        logits: Tensor = self.classifier(self._pool(outputs.last_hidden_state, attention_mask))
        loss = functional.cross_entropy(logits, labels.view(-1)) if labels is not None else None
        result = SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )
        return result if return_dict is not False else result.to_tuple()

    def _pool(self, h: Tensor, attention_mask: Tensor | None) -> Tensor:
        """(B, S, D) -> (B, D)"""
        if self.config.pooling == "cls":
            return h[:, 0]
        if self.config.pooling == "last":
            last = h.shape[1] - 1 if attention_mask is None else attention_mask.sum(dim=1).clamp(min=1) - 1
            return h[torch.arange(h.shape[0], device=h.device), last]
        if attention_mask is None:
            return h.mean(dim=1)
        mask = attention_mask.to(h.dtype)
        share = mask / mask.sum(dim=1, keepdim=True).clamp(min=1.0)
        return torch.bmm(share.unsqueeze(1), h).squeeze(1)
