"""What the chain is compared with: end-to-end training of the same adapters in PyTorch, whole model in memory,
measured in a process of its own."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModel

from chainfed.core.errors import ModelError
from chainfed.runtime.memory import PeakSampler
from chainfed.toolchain.families import family_for

_STEPS = 3
_TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 64}


def measure_end_to_end(model: Path, *, batch_size: int, seq_len: int, bottleneck: int, num_labels: int) -> int:
    """Peak anonymous memory over an idle process, in bytes, of training all adapters and a head of the encoder in
    `model`.

    A child process with one thread takes three AdamW steps on random tokens. The weights are copied out of the mapped
    checkpoint, so that they count as they do in a process that has loaded a model. Raises ModelError when the child
    fails.
    """
    arguments = [str(model), *(str(number) for number in (batch_size, seq_len, bottleneck, num_labels))]
    child = subprocess.run(
        [sys.executable, "-m", __name__, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
    )
    if child.returncode != 0:
        last = (child.stderr.strip().splitlines() or ["no message"])[-1]
        raise ModelError(f"End-to-end training of {model} could not be measured: {last}")
    return int(child.stdout.split()[-1])


def _measure(model: Path, batch_size: int, seq_len: int, bottleneck: int, num_labels: int) -> int:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:  # a tiny model first: what libraries load and keep is no cost of it
        config = AutoConfig.from_pretrained(model)
        for name, value in _TINY.items():
            setattr(config, name, value)
        AutoModel.from_config(config).save_pretrained(folder)
        _train(Path(folder), batch_size, 2, bottleneck, num_labels)
    with PeakSampler() as sampler:
        _train(model, batch_size, seq_len, bottleneck, num_labels)
    return sampler.peak_bytes


def _train(model: Path, batch_size: int, seq_len: int, bottleneck: int, num_labels: int) -> None:
    encoder = AutoModel.from_pretrained(model).train().requires_grad_(False)
    for parameter in encoder.parameters():
        parameter.data = parameter.data.clone()
    hidden = encoder.config.hidden_size
    layers: Any = encoder.get_submodule(family_for(encoder.config).layers_path)
    downs = [torch.nn.Parameter(torch.randn(bottleneck, hidden) * 0.02) for _ in layers]
    ups = [torch.nn.Parameter(torch.zeros(bottleneck, hidden)) for _ in layers]
    head = torch.nn.Linear(hidden, num_labels)
    for layer, down, up in zip(layers, downs, ups, strict=True):
        layer.register_forward_hook(partial(_adapt, down, up))
    optimizer = torch.optim.AdamW([*downs, *ups, *head.parameters()], lr=1e-3)
    for _ in range(_STEPS):
        ids = torch.randint(0, encoder.config.vocab_size, (batch_size, seq_len))
        labels = torch.randint(0, num_labels, (batch_size,))
        pooled = encoder(ids, attention_mask=torch.ones_like(ids)).last_hidden_state.mean(1)
        optimizer.zero_grad()
        functional.cross_entropy(head(pooled), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def _adapt(down: torch.Tensor, up: torch.Tensor, _layer: object, _inputs: object, output: Any) -> Any:
    """A forward hook: the adapter after a layer (Eq. 1)."""
    h = output[0] if isinstance(output, tuple) else output
    adapted = h + functional.gelu(h @ down.T) @ up
    return (adapted, *output[1:]) if isinstance(output, tuple) else adapted


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("sizes", type=int, nargs=4)
    options = parser.parse_args()
    print(_measure(options.model, *options.sizes))  # noqa: T201
