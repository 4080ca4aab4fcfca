"""Writes `tests/vectors/bundles/`: tiny bundles, and inputs with expected outputs for each of their programs.

`make vectors` runs it. Every language's reader is held against these files; `bundles/README.md` says how they are laid
out. Weights and inputs are drawn from fixed seeds. The expected outputs come from PyTorch eager over transformers' own
modules, never from a program.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import tokenizers
import torch
import transformers
from tokenizers import models, pre_tokenizers, processors

from chainfed.core.examples import Example
from chainfed.core.manifest import Bundle
from chainfed.core.order import derive_seed
from chainfed.runtime.shards import Shard
from chainfed.toolchain.export import export_bundle
from chainfed.toolchain.export_settings import ExportSettings
from chainfed.toolchain.reference import Reference
from chainfed.toolchain.verify import settings_of
from chainfed.toolchain.verify_cases import Case, Cases

FOLDER = Path(__file__).parent / "bundles"
TOLERANCE = 1e-4
LABELS = ("animals", "food", "machines")
BATCH_SIZE, SEQ_LEN = 3, 8
STEPS = 2
TEXTS = (
    "the old dog saw a fox",
    "bread and honey",
    "we saw an engine near a pump and a crane today",
    "unknown words stay unknown",
    "",
)
WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "the",
    "a",
    "an",
    "and",
    "we",
    "saw",
    "near",
    "old",
    "today",
    "dog",
    "fox",
    "bread",
    "honey",
    "engine",
    "pump",
    "crane",
]
SIZES: dict[str, Any] = {
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 16,
    "pad_token_id": 0,
}


@dataclass(frozen=True)
class Vectors:
    """A bundle to make: its name, the model's configuration, and the special tokens around a text."""

    name: str
    config: transformers.PretrainedConfig
    before: tuple[str, ...]
    after: tuple[str, ...]


def all_vectors() -> tuple[Vectors, ...]:
    """An encoder with its pooler of the mean, and a decoder with grouped heads, rotary positions and a final norm."""
    decoder = SIZES | {"num_key_value_heads": 1, "bos_token_id": 2, "eos_token_id": 3}
    return (
        Vectors("encoder", transformers.BertConfig(**SIZES), ("[CLS]",), ("[SEP]",)),
        Vectors("decoder", transformers.LlamaConfig(**decoder), ("[CLS]",), ()),
    )


def main() -> None:
    """Writes every bundle with its cases in place of what was there."""
    warnings.simplefilter("ignore")
    for vectors in all_vectors():
        folder = write_vectors(vectors, FOLDER)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        sys.stdout.write(f"{folder.relative_to(Path.cwd())}: {size / 1000:.0f} kB\n")


def write_vectors(vectors: Vectors, into: Path) -> Path:
    """Writes one bundle and its cases below `into`; returns its folder."""
    folder = into / vectors.name
    with tempfile.TemporaryDirectory() as work:
        model = write_model(vectors, Path(work) / "model")
        settings = ExportSettings(
            str(model), LABELS, folder / "bundle", SEQ_LEN, BATCH_SIZE, adapter_dim=4, windows=(1, 2), force=True
        )
        bundle = export_bundle(settings)
    shutil.rmtree(folder / "cases", ignore_errors=True)
    (folder / "cases").mkdir()
    index = {
        "tolerance": TOLERANCE,
        "texts": [{"text": text, "input_ids": token_ids(vectors, text)} for text in TEXTS],
        "cases": [_write_case(case, bundle, folder) for case in _chosen_cases(bundle)],
    }
    (folder / "cases.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return folder


def write_model(vectors: Vectors, folder: Path) -> Path:
    """The model as a Hugging Face folder; each weight comes from a generator of its own, seeded by its name."""
    model = transformers.AutoModel.from_config(vectors.config)
    model.load_state_dict({name: _weight(vectors.name, name, tensor) for name, tensor in model.state_dict().items()})
    model.save_pretrained(folder)
    _tokenizer(vectors).save(str(folder / "tokenizer.json"))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder


def token_ids(vectors: Vectors, text: str) -> list[int]:
    """What the tokenizer must give for a text, by the obvious way: words of the vocabulary, cut and padded."""
    words = [word if word in WORDS else "[UNK]" for word in text.split()]
    room = SEQ_LEN - len(vectors.before) - len(vectors.after)
    tokens = [*vectors.before, *words[:room], *vectors.after]
    return [WORDS.index(token) for token in tokens] + [0] * (SEQ_LEN - len(tokens))


def _weight(model: str, name: str, like: torch.Tensor) -> torch.Tensor:
    """Normal numbers; around 1 for the scale of a norm, and smaller for biases."""
    if not like.is_floating_point():
        return like
    generator = np.random.Generator(np.random.PCG64(derive_seed("vectors", model, name)))
    noise = generator.standard_normal(like.shape).astype(np.float32)
    if like.dim() > 1:
        return torch.from_numpy(noise * np.float32(0.25))
    return torch.from_numpy(noise * np.float32(0.1) + np.float32(name.endswith("weight")))


def _tokenizer(vectors: Vectors) -> tokenizers.Tokenizer:
    numbers = {word: number for number, word in enumerate(WORDS)}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(numbers, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=" ".join((*vectors.before, "$A", *vectors.after)),
        special_tokens=[(token, numbers[token]) for token in (*vectors.before, *vectors.after)],
    )
    tokenizer.add_special_tokens(WORDS[:4])
    return tokenizer


def _chosen_cases(bundle: Bundle) -> list[tuple[str, Case, Reference]]:
    """Every program at every place of the chain where it differs, on a batch with a padded row, by name."""
    reference = Reference(settings_of(bundle))
    examples = [Example(text, number % len(LABELS)) for number, text in enumerate(TEXTS)]
    chosen: list[tuple[str, Case, Reference]] = []
    for case in Cases(bundle, reference, examples):
        if case.rows < BATCH_SIZE:
            place = sum(other.program == case.program for _, other, _ in chosen)
            chosen.append((f"{case.program}-{place}", case, reference))
    return chosen


def _write_case(chosen: tuple[str, Case, Reference], bundle: Bundle, folder: Path) -> dict[str, Any]:
    """Writes a case's tensors and returns its entry in the index."""
    name, case, reference = chosen
    steps = min(case.steps, STEPS)
    weights = _weight_files(case.inputs, bundle)
    inputs = {key: tensor for key, tensor in case.inputs.items() if not key.startswith(tuple(weights))}
    tensors = {f"input/{key}": tensor for key, tensor in inputs.items()}
    given = dict(case.inputs)
    for step in range(1, steps + 1):
        expected = reference.run(case.program, given)
        tensors |= {f"expected/{step}/{key}": tensor for key, tensor in expected.items()}
        given |= {key: tensor for key, tensor in expected.items() if key in given}
    arrays = {key: np.asarray(tensor.detach().numpy(), order="C") for key, tensor in tensors.items()}
    (folder / "cases" / f"{name}.safetensors").write_bytes(safetensors.numpy.save(arrays))
    return {
        "name": name,
        "program": case.program,
        "place": case.description,
        "rows": case.rows,
        "steps": steps,
        "tensors": f"cases/{name}.safetensors",
        "weights": weights,
    }


def _weight_files(inputs: Mapping[str, torch.Tensor], bundle: Bundle) -> dict[str, str]:
    """Prefix of input names -> the bundle's file that holds these tensors under the rest of their names."""
    found: dict[str, str] = {}
    for name in bundle.manifest.weight_files():
        with Shard(bundle.path(name)) as shard:
            first = next(iter(shard.tensors))
            for prefix in (key.removesuffix(first) for key in inputs if key.endswith(f".{first}")):
                given = {local: inputs.get(prefix + local) for local in shard.tensors}
                if all(_equal(given[local], stored) for local, stored in shard.tensors.items()):
                    found[prefix] = name
    return found


def _equal(first: torch.Tensor | None, second: torch.Tensor) -> bool:
    return first is not None and torch.equal(first, second)


if __name__ == "__main__":
    main()
