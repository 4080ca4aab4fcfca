"""Every family from a Hugging Face folder to verified programs: export, error and time against eager, arena.

The models have random weights and medium sizes, two layers each. Decoders are exported twice: as classifiers, and to
model language. Programs come from the cache where it has them; then the seconds say little.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from chainfed.core.console import err, out, table
from chainfed.core.manifest import window_program
from chainfed.toolchain.export import export_bundle
from chainfed.toolchain.export_settings import ExportSettings
from chainfed.toolchain.programs import TaskKind
from chainfed.toolchain.verify import verify_bundle
from chainfed.toolchain.verify_cases import SENTENCES

_SIZES: dict[str, Any] = {
    "vocab_size": 3000,
    "hidden_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 768,
    "max_position_embeddings": 130,
    "pad_token_id": 0,
}
_DECODER: dict[str, Any] = {"num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2}
_ENCODERS = {
    "BERT": transformers.BertConfig(**_SIZES),
    "DistilBERT": transformers.DistilBertConfig(**_SIZES, hidden_dim=768),
    "ELECTRA": transformers.ElectraConfig(**_SIZES, embedding_size=128),
    "RoBERTa": transformers.RobertaConfig(**_SIZES),
    "XLM-R": transformers.XLMRobertaConfig(**_SIZES),
    "ModernBERT": transformers.ModernBertConfig(
        **_SIZES,
        local_attention=32,
        global_attn_every_n_layers=2,
        cls_token_id=1,
        sep_token_id=2,
        bos_token_id=1,
        eos_token_id=2,
    ),
}
_DECODERS = {
    "LLaMA": transformers.LlamaConfig(**_SIZES, **_DECODER),
    "LLaMA 3, scaled rope": transformers.LlamaConfig(
        **_SIZES,
        **_DECODER,
        tie_word_embeddings=True,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
    "Mistral": transformers.MistralConfig(**_SIZES, **_DECODER, sliding_window=32),
    "Qwen 2": transformers.Qwen2Config(**_SIZES, **_DECODER),
    "Qwen 3": transformers.Qwen3Config(**_SIZES, **_DECODER, head_dim=64),
    "Gemma 2": transformers.Gemma2Config(**_SIZES, **_DECODER, head_dim=64, sliding_window=32),
    "Gemma 3": transformers.Gemma3TextConfig(
        **_SIZES, **_DECODER, head_dim=64, sliding_window=32, layer_types=["sliding_attention", "full_attention"]
    ),
}
_COLUMNS = ("family", "task", "export s", "largest error", "window Q=2 / eager", "block / eager", "arena Q=2 MB")


def measure(shared: Path, folder: Path, quick: bool) -> None:
    """Exports and verifies every family, or with `quick` the first encoder and the first decoder."""
    del shared
    tasks: list[tuple[str, Any, TaskKind]] = [(name, config, "classification") for name, config in _ENCODERS.items()]
    for name, config in _DECODERS.items():
        tasks += [(name, config, "classification"), (name, config, "language_modelling")]
    if quick:
        tasks = [task for task in tasks if task[0] in ("BERT", "LLaMA")]
    rows = table("Families, one thread, 4 rows of 64 tokens", *_COLUMNS)
    results = []
    for number, task in enumerate(tasks, start=1):
        err.print(f"{number} of {len(tasks)}: {task[0]}, {task[2]}")
        results.append(_measure(*task))
        (folder / "families.json").write_text(json.dumps(results, indent=1))
        rows.add_row(*(f"{value:.2g}" if isinstance(value, float) else str(value) for value in results[-1].values()))
    out.print(rows)


def _measure(name: str, config: Any, task: TaskKind) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as work:
        model = _write_model(config, task, Path(work) / "model")
        labels = ("a", "b", "c") if task == "classification" else ()
        settings = ExportSettings(
            str(model), labels, Path(work) / "bundle", task, seq_len=64, batch_size=4, adapter_dim=32, windows=(1, 2)
        )
        began = time.monotonic()
        bundle = export_bundle(settings)
        seconds = time.monotonic() - began
        programs = verify_bundle(bundle).programs
    return {
        "family": name,
        "task": task,
        "export_seconds": round(seconds),
        "max_error": max(report.max_error for report in programs.values()),
        "window_ratio": programs[window_program(2)].time_ratio,
        "block_ratio": programs["block"].time_ratio,
        "arena_mb": bundle.manifest.programs[window_program(2)].arena_bytes / 1e6,
    }


def _write_model(config: Any, task: TaskKind, folder: Path) -> Path:
    kind = transformers.AutoModel if task == "classification" else transformers.AutoModelForCausalLM
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kind.from_config(config).save_pretrained(folder)
    words = ["[PAD]", "[UNK]", *sorted({word for sentence in SENTENCES for word in sentence.split()})]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
