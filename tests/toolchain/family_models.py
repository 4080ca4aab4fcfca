"""Small random models of every family, as Hugging Face folders with the tokenizer of the tiny model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers

_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 32,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
_DECODER: dict[str, Any] = {"num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2}
_LOCAL_AND_GLOBAL = ["sliding_attention", "full_attention"]
SCALED_ROPE = {  # as in LLaMA 3
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}

Configuration = tuple[type[Any], dict[str, Any]]
ENCODERS: dict[str, Configuration] = {
    "bert": (transformers.BertConfig, {}),
    "distilbert": (transformers.DistilBertConfig, {}),
    "electra": (transformers.ElectraConfig, {"embedding_size": 16}),
    "roberta": (transformers.RobertaConfig, {}),
    "xlm-roberta": (transformers.XLMRobertaConfig, {}),
    "modernbert": (
        transformers.ModernBertConfig,
        {"local_attention": 4, "global_attn_every_n_layers": 2, "cls_token_id": 1, "sep_token_id": 2},
    ),
}
DECODERS: dict[str, Configuration] = {
    "llama": (transformers.LlamaConfig, _DECODER),
    "llama3": (transformers.LlamaConfig, _DECODER | {"tie_word_embeddings": True, "rope_parameters": SCALED_ROPE}),
    "mistral": (transformers.MistralConfig, _DECODER | {"sliding_window": 4}),
    "qwen2": (transformers.Qwen2Config, _DECODER),
    "qwen3": (transformers.Qwen3Config, _DECODER | {"head_dim": 16}),
    "gemma2": (transformers.Gemma2Config, _DECODER | {"head_dim": 16, "sliding_window": 4}),
    "gemma3": (
        transformers.Gemma3TextConfig,
        _DECODER | {"head_dim": 16, "sliding_window": 4, "layer_types": _LOCAL_AND_GLOBAL},
    ),
}


def family_config(name: str, vocab_size: int) -> Any:
    """The configuration of the model of this name."""
    make, own = (ENCODERS | DECODERS)[name]
    return make(**_SIZES, **own, vocab_size=vocab_size)


def write_family_model(name: str, tiny_model: Path, folder: Path, *, with_head: bool = False) -> Path:
    """Writes the model of this name; with its language-model head, or bare."""
    vocabulary = json.loads((tiny_model / "config.json").read_text())["vocab_size"]
    kind = transformers.AutoModelForCausalLM if with_head else transformers.AutoModel
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kind.from_config(family_config(name, vocabulary)).save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_model / file, folder)
    return folder
