"""From a bundle and its tuned adapters to a Hugging Face folder that loads without ChainFed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers

from chainfed.core.errors import BundleError
from chainfed.core.manifest import (
    CONFIG_FILE,
    EMBEDDINGS_FILE,
    OUTPUT_FILE,
    TOKENIZER_FILE,
    Bundle,
    Manifest,
    layer_file,
)
from chainfed.core.tensors import FloatArray, Tensors, adapter_names, head_names, statistics_names
from chainfed.toolchain.checkpoint import TOKENIZER_CONFIG_FILE, family_of, parse_model_config
from chainfed.toolchain.checkpoint_weights import WEIGHTS_FILE
from chainfed.toolchain.model_state import read_model_state
from chainfed.toolchain.new_folder import NewFolder
from chainfed.toolchain.safetensors_file import TensorSource, sources_of, write_tensors

MODEL_CODE = ("configuration_chainfed.py", "modeling_chainfed.py")
CARD_FILE = "README.md"

_LANGUAGE_CARD = """---
library_name: transformers
pipeline_tag: text-generation
---
A {model_type} language model, fine-tuned with ChainFed.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(FOLDER, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)
print(tokenizer.decode(model.generate(**tokenizer("a text", return_tensors="pt"), max_new_tokens=32)[0]))
```
"""

_CARD = """---
library_name: transformers
pipeline_tag: text-classification
---
A {model_type} text classifier with {labels} labels, fine-tuned with ChainFed.

```python
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(FOLDER, trust_remote_code=True)
model = AutoModelForSequenceClassification.from_pretrained(FOLDER, trust_remote_code=True)
batch = tokenizer(["a text"], truncation=True, padding=True, return_tensors="pt")
print(model.config.id2label[model(**batch).logits.argmax().item()])
```
"""


def merge_bundle(
    bundle: Bundle,
    adapters: Path,
    out: Path,
    force: bool = False,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> Path:
    """Writes the tuned model as a Hugging Face folder and returns that folder.

    The frozen weights are copied shard by shard, never held together. The standardisation of the last layer's
    features is folded into the classifier, so the folder gives the logits of the bundle's programs.

    Args:
        bundle: what the adapters were tuned over.
        adapters: the model state, a safetensors file.
        out: a folder that does not exist yet.
        force: replace `out` when this function wrote it.
        on_progress: called with the file just written, how many are done and how many there are.

    Raises:
        BadInputError: `adapters` does not exist, or `out` exists.
        BundleError: the bundle is damaged, or the adapters are of another model or label set.
    """
    state = read_model_state(bundle, adapters)
    bundle.verify_files()
    manifest = bundle.manifest
    base_config = _read_config(bundle)
    files: dict[str, bytes] = {name: _model_code(name) for name in MODEL_CODE}
    if manifest.has_tokenizer:
        files |= {TOKENIZER_FILE: _tokenizer(bundle), TOKENIZER_CONFIG_FILE: _tokenizer_config(bundle)}
    card = _LANGUAGE_CARD if manifest.is_language_model else _CARD
    files[CARD_FILE] = card.format(model_type=base_config["model_type"], labels=manifest.num_labels).encode()
    with NewFolder(out, force, MODEL_CODE[0]) as folder:
        total = len(files) + 2
        for done, (name, data) in enumerate(files.items(), 1):
            folder.write(name, data)
            _report(on_progress, name, done, total)
        layers_path = _write_weights(bundle, base_config, state, folder.path(WEIGHTS_FILE))
        _report(on_progress, WEIGHTS_FILE, total - 1, total)
        config = _merged_config(manifest, base_config, layers_path)
        folder.write(CONFIG_FILE, (json.dumps(config, indent=1, sort_keys=True) + "\n").encode())
        folder.commit()
    _report(on_progress, CONFIG_FILE, total, total)
    return out


def classifier_of(state: Mapping[str, FloatArray], last_layer: int) -> tuple[FloatArray, FloatArray]:
    """The final head with its standardisation folded in.

    `((f - mean) * rstd) @ weight.T + bias` is `f @ (weight * rstd).T + (bias - weight @ (mean * rstd))`; the
    sums are taken in float64. Returns the weight [C, D] and the bias [C], float32.
    """
    weight, bias = (state[name].astype(np.float64) for name in head_names(last_layer))
    mean, rstd = (state[name].astype(np.float64) for name in statistics_names(last_layer))
    return (weight * rstd).astype(np.float32), (bias - weight @ (mean * rstd)).astype(np.float32)


def _write_weights(bundle: Bundle, base_config: Mapping[str, Any], state: Tensors, path: Path) -> str:
    """Writes `model.safetensors` and returns where the base model keeps its layers."""
    family = family_of(bundle.folder, base_config)
    if family.num_layers != bundle.manifest.model.num_layers:
        raise BundleError(f"{bundle.folder}: {CONFIG_FILE} and the manifest disagree on the layers; export it again.")
    keys = _base_model_keys(base_config)
    sources: dict[str, TensorSource] = {}
    shard = sources_of(bundle.path(EMBEDDINGS_FILE))
    sources |= {f"model.{key}": shard[name] for name, key in family.embedding_keys(keys).items()}
    for layer in range(family.num_layers):
        shard = sources_of(bundle.path(layer_file(layer)))
        place = f"{family.layers_path}.{layer}"
        for name, key in family.layer_keys(layer, keys).items():
            sources[f"model.{place}.layer.{key.removeprefix(place + '.')}"] = shard[name]
        for name, part in zip(adapter_names(layer), ("down", "up"), strict=True):
            sources[f"model.{place}.adapter.{part}"] = TensorSource.of_array(state[name])
    if family.output_shapes:
        shard = sources_of(bundle.path(OUTPUT_FILE))
        sources |= {f"model.{key}": shard[name] for name, key in family.output_keys(keys).items()}
    sources |= _head(bundle, state)
    write_tensors(path, sources, {"format": "pt"})
    return family.layers_path


def _head(bundle: Bundle, state: Tensors) -> dict[str, TensorSource]:
    """The classifier, or a language head that is not the embeddings."""
    manifest = bundle.manifest
    if not manifest.is_language_model:
        weight, bias = classifier_of(state, manifest.model.num_layers - 1)
        return {"classifier.weight": TensorSource.of_array(weight), "classifier.bias": TensorSource.of_array(bias)}
    head = manifest.model.language_head
    if head is None or head.file == EMBEDDINGS_FILE:
        return {}
    return {"lm_head.weight": sources_of(bundle.path(head.file))[head.tensor]}


def _base_model_keys(base_config: Mapping[str, Any]) -> list[str]:
    """The keys of the base model as transformers builds it from its configuration."""
    with torch.device("meta"):
        return list(transformers.AutoModel.from_config(parse_model_config(base_config)).state_dict())


def _merged_config(manifest: Manifest, base_config: Mapping[str, Any], layers_path: str) -> dict[str, Any]:
    purpose = "CausalLM" if manifest.is_language_model else "SequenceClassification"
    return {
        "architectures": [f"ChainFedFor{purpose}"],
        "auto_map": {
            "AutoConfig": "configuration_chainfed.ChainFedConfig",
            f"AutoModelFor{purpose}": f"modeling_chainfed.ChainFedFor{purpose}",
        },
        "model_type": "chainfed",
        "base_config": dict(base_config),
        "layers_path": layers_path,
        "adapter_dim": manifest.adapter.bottleneck,
        "pad_token_id": manifest.tokenizer.pad_token_id,
        "dtype": "float32",
        **(_language_settings(base_config) if manifest.is_language_model else _classifier_settings(manifest)),
    }


def _language_settings(base_config: Mapping[str, Any]) -> dict[str, Any]:
    """What generation asks the configuration for, beside what the base model's answers."""
    asked = {name: base_config[name] for name in ("bos_token_id", "eos_token_id") if name in base_config}
    return asked | {"tie_word_embeddings": bool(base_config.get("tie_word_embeddings", False))}


def _classifier_settings(manifest: Manifest) -> dict[str, Any]:
    return {
        "pooling": manifest.task.pooling,
        "problem_type": "single_label_classification",
        "id2label": {str(number): name for number, name in enumerate(manifest.task.labels)},
        "label2id": {name: number for number, name in enumerate(manifest.task.labels)},
    }


def _read_config(bundle: Bundle) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(bundle.path(CONFIG_FILE).read_bytes())
    return config


def _tokenizer(bundle: Bundle) -> bytes:
    """The tokenizer without the bundle's cutting and padding: transformers decides both at each call."""
    tokenizer = tokenizers.Tokenizer.from_file(str(bundle.path(TOKENIZER_FILE)))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return str(tokenizer.to_str(pretty=False)).encode()


def _tokenizer_config(bundle: Bundle) -> bytes:
    settings = json.loads(bundle.path(TOKENIZER_CONFIG_FILE).read_bytes())
    settings |= {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": bundle.manifest.shapes.seq_len,
    }
    return (json.dumps(settings, indent=1, sort_keys=True) + "\n").encode()


def _model_code(name: str) -> bytes:
    return (resources.files("chainfed.toolchain") / "merged_model" / name).read_bytes()


def _report(on_progress: Callable[[str, int, int], None] | None, name: str, done: int, total: int) -> None:
    if on_progress is not None:
        on_progress(name, done, total)
