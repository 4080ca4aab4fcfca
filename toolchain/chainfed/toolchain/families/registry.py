"""The families by Hugging Face ``model_type``; other packages add theirs by an entry point."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

from chainfed.toolchain.families.base import Family
from chainfed.toolchain.families.encoder import (
    BertFamily,
    DistilBertFamily,
    ElectraFamily,
    RobertaFamily,
    XlmRobertaFamily,
)
from chainfed.toolchain.families.rotary import (
    Gemma2Family,
    Gemma3Family,
    LlamaFamily,
    MistralFamily,
    ModernBertFamily,
    Qwen2Family,
    Qwen3Family,
)

ENTRY_POINT_GROUP = "chainfed.families"
"""Group whose entry points are named by ``model_type`` and load to a callable: configuration -> family."""

_BUILT_IN: dict[str, Callable[[Any], Family]] = {
    "bert": BertFamily,
    "distilbert": DistilBertFamily,
    "electra": ElectraFamily,
    "gemma2": Gemma2Family,
    "gemma3_text": Gemma3Family,
    "llama": LlamaFamily,
    "mistral": MistralFamily,
    "modernbert": ModernBertFamily,
    "qwen2": Qwen2Family,
    "qwen3": Qwen3Family,
    "roberta": RobertaFamily,
    "xlm-roberta": XlmRobertaFamily,
}


class UnsupportedModelError(ValueError):
    """No family is registered for a model's type."""


def supported_model_types() -> list[str]:
    """Every ``model_type`` that :func:`family_for` accepts, sorted."""
    return sorted({*_BUILT_IN, *(point.name for point in entry_points(group=ENTRY_POINT_GROUP))})


def family_for(config: Any) -> Family:
    """Make the family of a model from its Hugging Face configuration.

    Raises:
        UnsupportedModelError: there is no family for ``config.model_type``.
    """
    model_type = str(getattr(config, "model_type", ""))
    if model_type in _BUILT_IN:
        return _BUILT_IN[model_type](config)
    for point in entry_points(group=ENTRY_POINT_GROUP, name=model_type):
        family: Family = point.load()(config)
        return family
    known = ", ".join(supported_model_types())
    raise UnsupportedModelError(f"models of type {model_type!r} are not supported; supported are: {known}")
