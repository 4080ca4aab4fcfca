"""The tuned adapters in the layout of AdapterHub's `adapters` library, to be loaded onto the model they were tuned for.

The library's bottleneck adapter can be ours: after a whole layer (`output_adapter`, `original_ln_before`), around its
output (`residual_before_ln` false), gelu, no norm of its own; its biases, which ours has not, are zeros. Its heads pool
the first token of an encoder or the last of a decoder, as ours do with `cls` and `last` pooling; a head on the mean of
the tokens has no place in the library, so its tensors are written beside the adapters under the same names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chainfed.core.errors import BadInputError
from chainfed.core.manifest import Bundle, Manifest
from chainfed.core.tensors import Tensors, adapter_names
from chainfed.toolchain.merge import classifier_of
from chainfed.toolchain.model_state import read_model_state
from chainfed.toolchain.new_folder import NewFolder
from chainfed.toolchain.safetensors_file import TensorSource, write_tensors

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter.safetensors"
HEAD_CONFIG_FILE = "head_config.json"
HEAD_WEIGHTS_FILE = "model_head.safetensors"
LIBRARY_VERSION = "adapters.1.3.0"
"""The version of the library whose layout this is."""

_NAME = "chainfed"


@dataclass(frozen=True)
class _Place:
    """How the library sees a model type: its class, where adapter `{layer}` lies, and which token its heads take."""

    model_class: str
    adapter: str
    pooling: str


_BERT_LAYER = "encoder.layer.{layer}.output"
_PLACES = {
    "bert": _Place("BertAdapterModel", f"bert.{_BERT_LAYER}", "cls"),
    "electra": _Place("ElectraAdapterModel", f"electra.{_BERT_LAYER}", "cls"),
    "roberta": _Place("RobertaAdapterModel", f"roberta.{_BERT_LAYER}", "cls"),
    "xlm-roberta": _Place("XLMRobertaAdapterModel", f"roberta.{_BERT_LAYER}", "cls"),
    "distilbert": _Place("DistilBertAdapterModel", "distilbert.transformer.layer.{layer}.output_adapters", "cls"),
    "llama": _Place("LlamaAdapterModel", "model.layers.{layer}.output_adapters", "last"),
    "mistral": _Place("MistralAdapterModel", "model.layers.{layer}.output_adapters", "last"),
}

_ADAPTER_SETTINGS: dict[str, Any] = {
    "adapter_residual_before_ln": False,
    "cross_adapter": False,
    "dropout": 0.0,
    "init_weights": "bert",
    "inv_adapter": None,
    "inv_adapter_reduction_factor": None,
    "is_parallel": False,
    "leave_out": [],
    "ln_after": False,
    "ln_before": False,
    "mh_adapter": False,
    "non_linearity": "gelu",
    "original_ln_after": False,
    "original_ln_before": True,
    "output_adapter": True,
    "phm_layer": False,
    "residual_before_ln": False,
    "scaling": 1.0,
    "use_gating": False,
}

_CARD = """---
library_name: adapters
base_model_type: {model_type}
---
Adapters of a {model_type} text classifier with {labels} labels, fine-tuned with ChainFed, for the `adapters` library.

```python
from adapters import AutoAdapterModel
from transformers import AutoTokenizer

model = AutoAdapterModel.from_pretrained(THE_MODEL_THAT_WAS_TUNED)
model.load_adapter(FOLDER, use_safetensors=True, set_active=True{with_head})
batch = AutoTokenizer.from_pretrained(THE_MODEL_THAT_WAS_TUNED)(["a text"], return_tensors="pt")
{use}
```
"""
_USE_HEAD = "print(model(**batch).logits)"
_USE_MEAN = """
# The library has no head on the mean of the tokens, so these lines are that head.
from safetensors.torch import load_file

head = load_file("FOLDER/model_head.safetensors")
hidden, mask = model.base_model(**batch)[0], batch["attention_mask"].unsqueeze(-1)
features = (hidden * mask).sum(1) / mask.sum(1)
print(features @ head["heads.chainfed.1.weight"].T + head["heads.chainfed.1.bias"])
""".strip()


_LANGUAGE_CARD = """---
library_name: adapters
base_model_type: {model_type}
---
Adapters of a {model_type} language model, fine-tuned with ChainFed, for the `adapters` library.

```python
import adapters
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(THE_MODEL_THAT_WAS_TUNED)
adapters.init(model)
model.load_adapter(FOLDER, use_safetensors=True, set_active=True)
tokenizer = AutoTokenizer.from_pretrained(THE_MODEL_THAT_WAS_TUNED)
print(tokenizer.decode(model.generate(**tokenizer("a text", return_tensors="pt"), max_new_tokens=32)[0]))
```
"""


def write_adapters(bundle: Bundle, adapters: Path, folder: NewFolder) -> None:
    """Writes the adapters for the library to load, and a classifier's final head, standardisation folded in.

    Raises:
        BadInputError: the library does not know the model's type, or the adapters file does not exist.
        BundleError: the bundle is damaged, or the adapters are of another model or label set.
    """
    _place_of(bundle.manifest)
    write_layout(bundle.manifest, read_model_state(bundle, adapters), folder)


def write_layout(manifest: Manifest, state: Tensors, folder: NewFolder) -> None:
    """Writes a model state as the library keeps it. Raises BadInputError when it does not know the model's type."""
    place = _place_of(manifest)
    folder.write(CONFIG_FILE, _json_bytes(_described(manifest, place, _adapter_config(manifest))))
    _write(folder, WEIGHTS_FILE, adapter_tensors(state, manifest.model.num_layers, place.adapter))
    if manifest.is_language_model:
        folder.write("README.md", _LANGUAGE_CARD.format(model_type=manifest.model.family).encode())
    else:
        _write_head(manifest, place, state, folder)


def _write_head(manifest: Manifest, place: _Place, state: Tensors, folder: NewFolder) -> None:
    """The classifier: with a configuration where the library has a head that pools as ours does, and a card."""
    has_head = manifest.task.pooling == place.pooling
    _write(folder, HEAD_WEIGHTS_FILE, _head_tensors(state, manifest.model.num_layers))
    if has_head:
        folder.write(HEAD_CONFIG_FILE, _json_bytes(_described(manifest, place, _head_config(manifest))))
    card = _CARD.format(
        model_type=manifest.model.family,
        labels=manifest.num_labels,
        with_head="" if has_head else ", with_head=False",
        use=_USE_HEAD if has_head else _USE_MEAN,
    )
    folder.write("README.md", card.encode())


def adapter_tensors(state: Mapping[str, Any], num_layers: int, adapter: str) -> Tensors:
    """The adapters by the library's names; `adapter` is where one lies, with `{layer}` for its number.

    Its linear layers keep `[out, in]`, so `up`, (A, D) with us, is turned.
    """
    tensors: Tensors = {}
    for layer in range(num_layers):
        down, up = (state[name] for name in adapter_names(layer))
        prefix = f"{adapter.format(layer=layer)}.adapters.{_NAME}."
        tensors[prefix + "adapter_down.0.weight"] = down
        tensors[prefix + "adapter_down.0.bias"] = np.zeros(down.shape[0], dtype=np.float32)
        tensors[prefix + "adapter_up.weight"] = np.ascontiguousarray(up.T)
        tensors[prefix + "adapter_up.bias"] = np.zeros(up.shape[1], dtype=np.float32)
    return tensors


def reduction_factor(hidden_size: int, bottleneck: int) -> float:
    """The factor from which the library gets the bottleneck: it takes `int(hidden_size // factor)`."""
    exact = hidden_size / bottleneck
    return exact if int(hidden_size // exact) == bottleneck else hidden_size / (bottleneck + 0.5)


def _place_of(manifest: Manifest) -> _Place:
    family = manifest.model.family
    if family not in _PLACES:
        raise BadInputError(
            f"--format adapters is not possible: AdapterHub's `adapters` library has no models of type {family!r}, "
            f"only {', '.join(_PLACES)} among those that ChainFed tunes; use --format hf."
        )
    return _PLACES[family]


def _adapter_config(manifest: Manifest) -> dict[str, Any]:
    factor = reduction_factor(manifest.model.hidden_size, manifest.adapter.bottleneck)
    return _ADAPTER_SETTINGS | {"reduction_factor": factor}


def _head_config(manifest: Manifest) -> dict[str, Any]:
    return {
        "activation_function": None,
        "bias": True,
        "dropout_prob": None,
        "head_type": "classification",
        "label2id": {name: number for number, name in enumerate(manifest.task.labels)},
        "layers": 1,
        "num_labels": manifest.num_labels,
        "use_pooler": False,
    }


def _described(manifest: Manifest, place: _Place, config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as the library saves it: with the model that it is for."""
    return {
        "config": dict(config),
        "hidden_size": manifest.model.hidden_size,
        "model_class": place.model_class,
        "model_name": None,
        "model_type": manifest.model.family,
        "name": _NAME,
        "version": LIBRARY_VERSION,
    }


def _head_tensors(state: Mapping[str, Any], num_layers: int) -> Tensors:
    weight, bias = classifier_of(state, num_layers - 1)
    return {f"heads.{_NAME}.1.weight": weight, f"heads.{_NAME}.1.bias": bias}


def _write(folder: NewFolder, name: str, tensors: Tensors) -> None:
    sources = {key: TensorSource.of_array(tensor) for key, tensor in tensors.items()}
    write_tensors(folder.path(name), sources, {"format": "pt"})
    folder.add(name)


def _json_bytes(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()
