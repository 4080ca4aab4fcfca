"""The tuned model as one ExecuTorch program: weights inside, for an app that only wants answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tokenizers
import torch
from torch import Tensor

from chainfed.core.manifest import TOKENIZER_FILE, Bundle, ProgramEntry, TensorSpec
from chainfed.runtime.program import Program, set_threads
from chainfed.toolchain.decompositions import approximate_gelu
from chainfed.toolchain.merge_formats.agreement import Agreement, compare, padded, text_batches
from chainfed.toolchain.merge_formats.tuned_model import (
    INPUT_NAMES,
    OUTPUT_NAME,
    LogitsModel,
    load_tuned_model,
    quiet_exporter,
)
from chainfed.toolchain.new_folder import NewFolder
from chainfed.toolchain.program_cache import package_versions

MODEL_FILE = "model.pte"
METADATA_FILE = "metadata.json"

_BATCH_SIZES = (1, 1, 1, 1)  # a text at a time is what an app asks about


@dataclass(frozen=True)
class _Inference:
    """A lowered inference program: its bytes, and its tensors and arena as a manifest would tell them."""

    data: bytes
    entry: ProgramEntry


def write_executorch(
    bundle: Bundle, merged: Path, folder: NewFolder, seq_len: int, tolerance: float, report: Callable[[str], None]
) -> Agreement:
    """Writes `model.pte` with tokenizer and metadata, and holds it against the Hugging Face folder `merged`.

    The program's method `forward` takes `input_ids` and `attention_mask`, (1, seq_len) int64 each, and gives `logits`,
    computed by XNNPACK where it can be. Its methods `get_seq_len`, `get_pad_token_id` and, for a classifier,
    `get_labels` (a JSON list) take nothing.

    Raises:
        VerificationError: the ExecuTorch runtime gives other logits.
    """
    report("reading the model")
    model = load_tuned_model(merged)
    report("lowering to ExecuTorch")
    program = _lower(bundle, model, seq_len)
    folder.write(MODEL_FILE, program.data)
    report("checking with the ExecuTorch runtime")
    agreement = check_executorch(bundle, model, folder.path(MODEL_FILE), program.entry, tolerance)
    metadata = {
        "format": "chainfed-inference",
        "format_version": 1,
        "created_by": package_versions("chainfed", "executorch", "torch", "transformers"),
        "task": bundle.manifest.task.model_dump(mode="json"),
        "tokenizer": bundle.manifest.tokenizer.model_dump(mode="json"),
        "program": program.entry.model_dump(mode="json"),
    }
    folder.write(METADATA_FILE, (json.dumps(metadata, indent=1, sort_keys=True) + "\n").encode())
    if bundle.manifest.has_tokenizer:
        folder.write(TOKENIZER_FILE, _tokenizer(bundle, seq_len))
    return agreement


def check_executorch(
    bundle: Bundle, model: LogitsModel, path: Path, entry: ProgramEntry, tolerance: float
) -> Agreement:
    """Holds a program on the ExecuTorch runtime against the model, on padded texts and on random tokens.

    Raises:
        VerificationError: it gives other logits.
    """
    seq_len = entry.inputs[0].shape[1]
    pad_token_id = bundle.manifest.tokenizer.pad_token_id
    batches = [padded(batch, seq_len, pad_token_id) for batch in text_batches(bundle, seq_len, _BATCH_SIZES)]
    set_threads(1)
    with Program(path, entry) as program:

        def run(ids: Tensor, mask: Tensor) -> Tensor:
            return program.run(dict(zip(INPUT_NAMES, (ids, mask), strict=True)))[OUTPUT_NAME]

        return compare(model, run, batches, tolerance, "the ExecuTorch program")


def _lower(bundle: Bundle, model: LogitsModel, seq_len: int) -> _Inference:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import ExecutorchBackendConfig, to_edge_transform_and_lower
    from executorch.exir.passes import MemoryPlanningPass

    examples = tuple(torch.ones(1, seq_len, dtype=torch.int64) for _ in INPUT_NAMES)
    with quiet_exporter():
        exported = torch.export.export(model, examples, strict=False)
        exported = exported.run_decompositions({torch.ops.aten.gelu.default: approximate_gelu})
        edge = to_edge_transform_and_lower(
            exported, partitioner=[XnnpackPartitioner()], constant_methods=_constants(bundle, seq_len)
        )
        planning = MemoryPlanningPass(alloc_graph_input=False, alloc_graph_output=True)
        lowered = edge.to_executorch(ExecutorchBackendConfig(memory_planning_pass=planning))
    plans = lowered.executorch_program.execution_plan
    forward = next(plan for plan in plans if plan.name == "forward")
    with torch.no_grad():
        output_shape = tuple(model(*examples).shape)
    entry = ProgramEntry(
        file=MODEL_FILE,
        inputs=tuple(TensorSpec(name=name, shape=(1, seq_len), dtype="int64") for name in INPUT_NAMES),
        outputs=(TensorSpec(name=OUTPUT_NAME, shape=output_shape, dtype="float32"),),
        arena_bytes=sum(forward.non_const_buffer_sizes),
    )
    return _Inference(bytes(lowered.buffer), entry)


def _constants(bundle: Bundle, seq_len: int) -> dict[str, int | str]:
    """What the program tells of itself to an app that has nothing else."""
    constants: dict[str, int | str] = {
        "get_seq_len": seq_len,
        "get_pad_token_id": bundle.manifest.tokenizer.pad_token_id,
    }
    if not bundle.manifest.is_language_model:
        constants["get_labels"] = json.dumps(list(bundle.manifest.task.labels), ensure_ascii=False)
    return constants


def _tokenizer(bundle: Bundle, seq_len: int) -> bytes:
    """The bundle's tokenizer, cutting and padding to the program's length."""
    tokenizer = tokenizers.Tokenizer.from_file(str(bundle.path(TOKENIZER_FILE)))
    pad_token_id = bundle.manifest.tokenizer.pad_token_id
    tokenizer.enable_truncation(seq_len)
    tokenizer.enable_padding(pad_id=pad_token_id, pad_token=tokenizer.id_to_token(pad_token_id) or "", length=seq_len)
    return str(tokenizer.to_str(pretty=False)).encode()
