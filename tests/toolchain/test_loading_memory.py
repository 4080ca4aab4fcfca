"""Exporting a checkpoint takes memory for one tensor of it, however large the model is."""

from __future__ import annotations

import json
import math
import shutil
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import transformers

from chainfed.runtime import memory
from chainfed.toolchain.programs import ProgramDefinition, TensorSpec

LAYERS = 12
CONFIG = transformers.BertConfig(
    vocab_size=20_000,
    hidden_size=512,
    num_hidden_layers=LAYERS,
    num_attention_heads=8,
    intermediate_size=2048,
    max_position_embeddings=32,
)

EXPORT = """
import sys
from pathlib import Path
from chainfed.runtime.memory import PeakSampler
from chainfed.toolchain import program_files
from chainfed.toolchain.export import export_bundle
from chainfed.toolchain.export_settings import ExportSettings

program_files.lower_programs = lambda settings, names, weights=None: ((name, b"program", 1) for name in names)
program_files.measure_peaks = lambda programs: dict.fromkeys(programs, 1)
settings = ExportSettings(sys.argv[1], ("no", "yes"), Path(sys.argv[2]), seq_len=8, batch_size=1, adapter_dim=4)
with PeakSampler() as sampler:
    export_bundle(settings)
    print(sampler.peak_bytes)
"""


def write_sparse(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """A safetensors file of bfloat16 zeros that takes no room on the disk."""
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


@pytest.fixture
def large_model(tiny_model: Path, tmp_path: Path) -> Path:
    """A BERT of 230 MB in float32, as three files of bfloat16 with an index."""
    folder = tmp_path / "model"
    folder.mkdir()
    shutil.copy(tiny_model / "tokenizer.json", folder)
    CONFIG.save_pretrained(folder)
    with torch.device("meta"):
        shapes = {name: tuple(t.shape) for name, t in transformers.AutoModel.from_config(CONFIG).state_dict().items()}
    files = {f"model-{number}.safetensors": dict(list(shapes.items())[number::3]) for number in range(3)}
    for name, part in files.items():
        write_sparse(folder / name, part)
    index = {"weight_map": {key: name for name, part in files.items() for key in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.skipif(memory.anonymous_bytes() == 0, reason="the system does not tell RssAnon")
def test_the_peak_is_below_the_embeddings_and_two_layers(large_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    arguments = [sys.executable, "-c", EXPORT, str(large_model), str(out)]
    peak = int(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout)
    shards = {path.name: path.stat().st_size for path in (out / "weights").iterdir()}
    assert len(shards) == LAYERS + 1
    assert sum(shards.values()) > 190_000_000
    assert 10_000_000 < peak < shards["embeddings.safetensors"] + 2 * shards["layer_00.safetensors"]


@pytest.mark.skipif(memory.anonymous_bytes() == 0, reason="the system does not tell RssAnon")
def test_the_weights_that_a_program_is_traced_with_take_no_memory() -> None:
    spec = TensorSpec("layer.weight", (50_000, 2000))
    program = ProgramDefinition("block", (spec,), (spec,), lambda tensors: tensors)
    before = memory.anonymous_bytes()
    inputs = program.example_inputs()
    assert inputs[0].shape == (50_000, 2000)
    assert inputs[0].dtype == torch.float32
    assert memory.anonymous_bytes() - before < 4_000_000
    assert inputs[0][-1].abs().sum() == 0
