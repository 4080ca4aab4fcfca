"""Memory that exporting a large checkpoint takes: LLaMA-2-7B sizes in bfloat16, zeros in sparse files, three shards."""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import tokenizers
import torch
import transformers
from tokenizers import models

from chainfed.core.console import megabytes, out, table

DEFAULT_LAYERS = 4
_SHARDS = 3
_INTERVAL_SECONDS = 0.05
_COMMAND = ("--labels", "2", "--seq-len", "16", "--batch-size", "1", "--adapter-dim", "8", "--windows", "1")


def measure(shared: Path, folder: Path, quick: bool, layers: int = DEFAULT_LAYERS) -> None:
    """Exports and prints the peak anonymous memory of the exporting process, and of it and its workers together.

    `layers`: of the 32 of LLaMA-2-7B. The bundle takes 0.5 GB of disk, and 0.8 GB more for each of them.
    """
    model, bundle = folder / "loading-model", folder / "loading-bundle"
    for left in (model, bundle):
        shutil.rmtree(left, ignore_errors=True)
    checkpoint_bytes, largest_bytes = _write_checkpoint(model, 1 if quick else layers)
    try:
        own, together, seconds = _export(model, bundle)
        bundle_bytes = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
    finally:
        shutil.rmtree(bundle, ignore_errors=True)
        shutil.rmtree(model, ignore_errors=True)
    rows = table("Exporting a checkpoint of LLaMA-2-7B sizes", "", "")
    facts = {
        "layers": 1 if quick else layers,
        "checkpoint_bytes": checkpoint_bytes,
        "bundle_bytes": bundle_bytes,
        "largest_tensor_bytes": largest_bytes,
        "exporter_peak_anonymous_bytes": own,
        "peak_anonymous_bytes_with_workers": together,
        "seconds": seconds,
    }
    for name, value in facts.items():
        shown = megabytes(int(value)) if name.endswith(("bytes", "workers")) else f"{value:.0f}"
        rows.add_row(name.replace("_", " "), shown)
    out.print(rows)
    (folder / "loading.json").write_text(json.dumps(facts, indent=1))


def _write_checkpoint(folder: Path, layers: int) -> tuple[int, int]:
    """Writes the model; returns its bytes, and the float32 bytes of its largest tensor."""
    folder.mkdir(parents=True)
    config = transformers.LlamaConfig(num_hidden_layers=layers, max_position_embeddings=4096)
    config.save_pretrained(folder)
    tokenizers.Tokenizer(models.WordLevel({"<unk>": 0, "<pad>": 1}, unk_token="<unk>")).save(
        str(folder / "tokenizer.json")
    )
    with torch.device("meta"):
        tensors = transformers.AutoModel.from_config(config).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    weight_map: dict[str, str] = {}
    for number in range(_SHARDS):
        part = dict(list(shapes.items())[number::_SHARDS])
        name = f"model-{number + 1:05}-of-{_SHARDS:05}.safetensors"
        _write_sparse(folder / name, part)
        weight_map |= dict.fromkeys(part, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return 2 * sum(map(math.prod, shapes.values())), 4 * max(map(math.prod, shapes.values()))


def _write_sparse(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


def _export(model: Path, bundle: Path) -> tuple[int, int, float]:
    """Runs `chainfed export` with an empty cache; returns its peak, the peak of all its processes, and seconds."""
    command = [sys.executable, "-c", "from chainfed.core.cli import main; main()", "export", str(model)]
    environment = os.environ | {"CHAINFED_CACHE": str(model / "cache")}
    own = together = 0
    started = time.monotonic()
    with subprocess.Popen([*command, *_COMMAND, "--out", str(bundle)], env=environment) as process:
        while process.poll() is None:
            each = _anonymous_bytes_of_tree(process.pid)
            own, together = max(own, each.get(process.pid, 0)), max(together, sum(each.values()))
            time.sleep(_INTERVAL_SECONDS)
    if process.returncode != 0:
        raise SystemExit(f"the export ended with exit code {process.returncode}")
    return own, together, time.monotonic() - started


def _anonymous_bytes_of_tree(root: int) -> dict[int, int]:
    """RssAnon of a process and all that it started, by process id; empty where the system does not tell."""
    parents, anonymous = {}, {}
    for path in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":", 1) for line in path.read_text().splitlines())
        except OSError:
            continue  # it has ended
        process = int(path.parent.name)
        parents[process] = int(fields["PPid"])
        anonymous[process] = int(fields.get("RssAnon", "0 kB").split()[0]) * 1024
    return {process: size for process, size in anonymous.items() if _descends(process, root, parents)}


def _descends(process: int, root: int, parents: Mapping[int, int]) -> bool:
    while process != root:
        if process not in parents:
            return False
        process = parents[process]
    return True
