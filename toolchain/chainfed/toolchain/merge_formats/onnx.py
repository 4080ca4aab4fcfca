"""The tuned model as ONNX."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chainfed.core.errors import VerificationError
from chainfed.core.manifest import CONFIG_FILE, TOKENIZER_FILE, Bundle, Manifest
from chainfed.toolchain.checkpoint import TOKENIZER_CONFIG_FILE
from chainfed.toolchain.merge_formats.agreement import Agreement, compare, text_batches
from chainfed.toolchain.merge_formats.tuned_model import (
    INPUT_NAMES,
    OUTPUT_NAME,
    LogitsModel,
    load_tuned_model,
    quiet_exporter,
)
from chainfed.toolchain.new_folder import NewFolder

MODEL_FILE = "model.onnx"
WEIGHTS_SUFFIX = ".data"
"""What the file beside the model is called that holds the weights of a large one."""

_INLINE_BYTES = 1_900_000_000
"""The most bytes of weights that are kept in the model's own file, which can have 2 GiB."""

_BATCH_SIZES = (1, 4, 3)
_LABEL_SETTINGS = ("id2label", "label2id", "problem_type", "pad_token_id")

_CARD = """---
library_name: onnx
---
A {model_type} model, fine-tuned with ChainFed, as ONNX: `input_ids` and `attention_mask` (batch, sequence), int64, give
`logits`, float32{of_what}.

```python
import numpy, onnxruntime

{ids}
session = onnxruntime.InferenceSession("model.onnx")
feed = {{"input_ids": [ids], "attention_mask": [[1] * len(ids)]}}
print(session.run(["logits"], {{name: numpy.array(rows, dtype="int64") for name, rows in feed.items()}})[0])
```
"""
_IDS_OF_A_TEXT = """from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file("tokenizer.json")
tokenizer.enable_truncation({seq_len})
ids = tokenizer.encode("a text").ids"""
_ANY_IDS = "ids = [1, 2, 3]  # the model came without a tokenizer"


def write_onnx(
    bundle: Bundle, merged: Path, folder: NewFolder, tolerance: float, report: Callable[[str], None]
) -> Agreement:
    """Writes `model.onnx` with tokenizer, labels and a card, and holds it against the Hugging Face folder `merged`.

    Weights of more than 2 GB lie in `model.onnx.data`.

    Raises:
        VerificationError: the ONNX model is not valid, or onnxruntime gives other logits.
    """
    report("reading the model")
    model = load_tuned_model(merged)
    report("exporting to ONNX")
    path = folder.path(MODEL_FILE)
    _export(model, path)
    report("checking with onnx and onnxruntime")
    agreement = check_onnx(bundle, model, path, tolerance)
    config = json.loads((merged / CONFIG_FILE).read_bytes())
    base_config = {name: value for name, value in config["base_config"].items() if name != "architectures"}
    labels = {name: config[name] for name in _LABEL_SETTINGS if name in config}
    folder.write(CONFIG_FILE, (json.dumps(base_config | labels, indent=1, sort_keys=True) + "\n").encode())
    for name in (TOKENIZER_FILE, TOKENIZER_CONFIG_FILE) if bundle.manifest.has_tokenizer else ():
        folder.write(name, (merged / name).read_bytes())
    folder.write("README.md", _card(bundle.manifest, base_config["model_type"]).encode())
    return agreement


def check_onnx(bundle: Bundle, model: LogitsModel, path: Path, tolerance: float) -> Agreement:
    """Holds an ONNX file against `onnx.checker` and against the model, in several shapes.

    Raises:
        VerificationError: it is not valid, or onnxruntime gives other logits.
    """
    import onnx
    import onnxruntime

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise VerificationError(f"the exported ONNX model is not valid ({error}); nothing was written.") from error
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(ids: Tensor, mask: Tensor) -> Tensor:
        feed = dict(zip(INPUT_NAMES, (ids.numpy(), mask.numpy()), strict=True))
        return torch.from_numpy(session.run([OUTPUT_NAME], feed)[0])

    batches = text_batches(bundle, bundle.manifest.shapes.seq_len, _BATCH_SIZES)
    return compare(model, run, batches, tolerance, "the ONNX model")


def _card(manifest: Manifest, model_type: str) -> str:
    of_what = " (batch, sequence, vocabulary)" if manifest.is_language_model else "; the labels are in `config.json`"
    ids = _IDS_OF_A_TEXT.format(seq_len=manifest.shapes.seq_len) if manifest.has_tokenizer else _ANY_IDS
    return _CARD.format(model_type=model_type, of_what=of_what, ids=ids)


def _export(model: LogitsModel, path: Path) -> None:
    examples = tuple(torch.ones(2, 7, dtype=torch.int64) for _ in INPUT_NAMES)  # one tensor twice would be one input
    axes = {0: "batch", 1: "sequence"}
    with quiet_exporter("torch.onnx", "torch.onnx._internal.exporter._registration", "onnxscript"):
        exported: Any = torch.onnx.export(
            model,
            examples,
            dynamo=True,
            verbose=False,
            input_names=list(INPUT_NAMES),
            output_names=[OUTPUT_NAME],
            dynamic_shapes=dict.fromkeys(INPUT_NAMES, axes),
        )
    _forget_origin(exported.model)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    exported.save(str(path), external_data=weights > _INLINE_BYTES)


def _forget_origin(model: Any) -> None:
    """Drops what the exporter noted of where each node came from, such as paths of this machine."""
    for part in (model, model.graph, *model.functions.values()):
        part.metadata_props.clear()
        part.doc_string = None
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            value.doc_string = None
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
        value.doc_string = None
