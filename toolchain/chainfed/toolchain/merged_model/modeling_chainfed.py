"""Models that were fine-tuned with ChainFed: a base model with adapters, and a linear classifier or a language head.

B batch, S sequence, D hidden size, A bottleneck, C labels, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import MODEL_MAPPING, AutoConfig, AutoModel, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast, SequenceClassifierOutput

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


def base_model_with_adapters(config: ChainFedConfig) -> Any:
    """The base model of `config.base_config`, with an adapter after each layer and no pooler.

    It gets the dtype in which the model around it is being made, whatever its own configuration was saved with.
    """
    base = AutoConfig.for_model(**config.base_config)
    attention = config._attn_implementation
    if attention == "sdpa" and not MODEL_MAPPING[type(base)]._supports_sdpa:
        attention = "eager"
    model = AutoModel.from_config(base, attn_implementation=attention, dtype=torch.get_default_dtype())
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    layers = model.get_submodule(config.layers_path)
    for index in range(len(layers)):
        adapter = ChainFedAdapter(base.hidden_size, config.adapter_dim)
        layers[index] = ChainFedLayer(layers[index], adapter)
    return model


class ChainFedForSequenceClassification(PreTrainedModel):  # type: ignore[misc]
    """The merged model; load it with `AutoModelForSequenceClassification` and `trust_remote_code=True`."""

    config_class = ChainFedConfig
    base_model_prefix = "model"
    _supports_sdpa = True

    def __init__(self, config: ChainFedConfig) -> None:
        """Builds the base model with its adapters."""
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = base_model_with_adapters(config)
        self.classifier = nn.Linear(self.model.config.hidden_size, config.num_labels)
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


class ChainFedForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """The merged language model; load it with `AutoModelForCausalLM` and `trust_remote_code=True`."""

    config_class = ChainFedConfig
    base_model_prefix = "model"
    _supports_sdpa = True
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012 (as transformers reads it)

    def __init__(self, config: ChainFedConfig) -> None:
        """Builds the base model with its adapters, and its head."""
        super().__init__(config)
        self.model = base_model_with_adapters(config)
        base = self.model.config
        self.lm_head = nn.Linear(base.hidden_size, base.vocab_size, bias=False)
        self.softcap = getattr(base, "final_logit_softcapping", None)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int = 0,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Predict what follows each token.

        Args:
            input_ids: (B, S) int64.
            attention_mask: (B, S), 1 for a token and 0 for padding; without it, every position is a token.
            labels: (B, S) int64, the token at each position itself, -100 where it does not count; with them the result
                has the mean cross-entropy as `loss`.
            logits_to_keep: how many of the last positions get logits; 0 for all.
            return_dict: False for a plain tuple.
            kwargs: what else the base model takes, such as `past_key_values`.

        Returns:
            A `CausalLMOutputWithPast` with `logits` (B, S, V).
        """
        outputs = self.model(input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **kwargs)
        logits: Tensor = self.lm_head(outputs.last_hidden_state[:, -logits_to_keep:])
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        loss = None
        if labels is not None:
            loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        result = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        return result if return_dict is not False else result.to_tuple()
