"""Configuration of a model that was fine-tuned with ChainFed adapters."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

_ASKED_BY_GENERATION = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "layer_types",
    "sliding_window",
    "max_position_embeddings",
)


class ChainFedConfig(PretrainedConfig):  # type: ignore[misc]
    """A base model, an adapter after each of its layers, and a linear classifier or the base model's language head.

    Attributes:
        base_config: the configuration of the base model, `model_type` included.
        layers_path: where the base model keeps its list of layers, such as `encoder.layer`.
        adapter_dim: bottleneck of the adapters.
        pooling: of a classifier: `mean` over the tokens, `cls` for the first token, `last` for the last one.

    What generation asks a configuration for, such as `num_hidden_layers`, the base model's answers.
    """

    model_type = "chainfed"

    def __init__(
        self,
        base_config: dict[str, Any] | None = None,
        layers_path: str = "encoder.layer",
        adapter_dim: int = 32,
        pooling: str = "mean",
        **kwargs: Any,
    ) -> None:
        """Anything else is a setting of `PretrainedConfig`, such as `id2label`."""
        self.base_config = base_config or {"model_type": "bert"}
        self.layers_path = layers_path
        self.adapter_dim = adapter_dim
        self.pooling = pooling
        for name in _ASKED_BY_GENERATION:
            if name in self.base_config:
                kwargs.setdefault(name, self.base_config[name])
        super().__init__(**kwargs)
