"""Configuration of a model that was fine-tuned with ChainFed adapters."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig


class ChainFedConfig(PretrainedConfig):  # type: ignore[misc]
    """A base model, an adapter after each of its layers, and a linear classifier on pooled tokens.

    Attributes:
        base_config: the configuration of the base model, `model_type` included.
        layers_path: where the base model keeps its list of layers, such as `encoder.layer`.
        adapter_dim: bottleneck of the adapters.
        pooling: `mean` over the tokens, or `cls` for the first token.
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
        super().__init__(**kwargs)
