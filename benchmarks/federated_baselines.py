"""Two baselines for the chain, in plain PyTorch, on the same federation: end-to-end training of all adapters, and
linear probing.

Partition, selection of devices, order of examples, learning rates, clipping, warm-up rounds and number of rounds are
those of `chainfed emulate` with the same seed. What differs is the method alone: nothing of the toolchain's programs is
used, only transformers' own model.

Example: python benchmarks/federated_baselines.py --model MODEL --train TRAIN --test TEST --labels 4 --rounds 20
--seed 0 --out RESULT.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import AutoModel

from chainfed.core.examples import read_examples
from chainfed.core.order import SplitMix64, batches, derive_seed, sample
from chainfed.harness.partition import PartitionSpec, partition

FIRST_WARMUP_ROUND = 2  # round 0 profiles, round 1 evaluates
STATISTICS_EXAMPLES = 32

Parameters = dict[str, torch.Tensor]

_DEFAULTS = {
    "devices": 20,
    "per_round": 10,
    "rounds": 20,
    "warmup_rounds": 2,
    "partition": "dirichlet:1.0",
    "seed": 0,
    "batch_size": 8,
    "seq_len": 64,
    "adapter_dim": 32,
    "local_epochs": 1,
    "optimizer": "adamw",
    "adapter_lr": 1e-3,
    "head_lr": 3e-3,
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "evaluate_every": 5,
    "evaluate_rows": 1000,
    "threads": 1,
}


@dataclass(frozen=True)
class Batchable:
    """Tokenised examples: ids [n, S], mask [n, S], labels [n], and the output of the first layer [n, S, D], which no
    adapter precedes."""

    mask: torch.Tensor
    labels: torch.Tensor
    first_layer: torch.Tensor


class AdaptedModel:
    """The frozen encoder with a bottleneck adapter after every layer, masked mean pooling, and a head on standardised
    features."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModel.from_pretrained(folder, attn_implementation="sdpa").eval().requires_grad_(False)
        self.layers = self.model.encoder.layer
        self.hidden_size = self.model.config.hidden_size

    def initial(self, bottleneck: int, num_labels: int, seed: int) -> Parameters:
        generator = torch.Generator().manual_seed(seed)
        parameters: Parameters = {}
        for layer in range(len(self.layers)):
            parameters[f"adapters.{layer}.down"] = torch.randn(bottleneck, self.hidden_size, generator=generator) * 0.02
            parameters[f"adapters.{layer}.up"] = torch.zeros(bottleneck, self.hidden_size)
        parameters["head.weight"] = torch.randn(num_labels, self.hidden_size, generator=generator) * 0.02
        parameters["head.bias"] = torch.zeros(num_labels)
        return parameters

    def layer(self, index: int, h: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        output = self.layers[index](h, mask[:, None, None, :].bool())
        hidden: torch.Tensor = output[0] if isinstance(output, tuple) else output
        return hidden

    @torch.no_grad()
    def prepare(self, texts: list[str], labels: list[int], tokenizer: Tokenizer) -> Batchable:
        encodings = tokenizer.encode_batch(texts)
        ids = torch.tensor([encoding.ids for encoding in encodings])
        mask = torch.tensor([encoding.attention_mask for encoding in encodings], dtype=torch.float32)
        parts = []
        for start in range(0, len(texts), 64):
            h = self.model.embeddings(ids[start : start + 64])
            parts.append(self.layer(0, h, mask[start : start + 64]))
        return Batchable(mask, torch.tensor(labels), torch.cat(parts))

    def features(self, parameters: Parameters, data: Batchable, rows: list[int]) -> torch.Tensor:
        """Pooled features [len(rows), D]; padding behind the longest row is cut off, which changes nothing."""
        mask = data.mask[rows]
        length = int(mask.sum(1).max())
        mask, h = mask[:, :length], data.first_layer[rows, :length]
        for index in range(len(self.layers)):
            if index:
                h = self.layer(index, h, mask)
            h = h + functional.gelu(h @ parameters[f"adapters.{index}.down"].T) @ parameters[f"adapters.{index}.up"]
        return (h * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)

    @torch.no_grad()
    def all_features(self, parameters: Parameters, data: Batchable, rows: list[int]) -> torch.Tensor:
        return torch.cat(
            [self.features(parameters, data, rows[start : start + 32]) for start in range(0, len(rows), 32)]
        )


def head_logits(parameters: Parameters, features: torch.Tensor, mean: torch.Tensor, rstd: torch.Tensor) -> torch.Tensor:
    return ((features - mean) * rstd) @ parameters["head.weight"].T + parameters["head.bias"]


def optimizer_over(parameters: Parameters, trained: list[str], options: argparse.Namespace) -> torch.optim.Optimizer:
    groups = [
        {
            "params": [parameters[name]],
            "lr": options.head_lr if name.startswith("head.") else options.adapter_lr,
            "weight_decay": 0.0 if name.endswith("bias") else options.weight_decay,
        }
        for name in trained
    ]
    return (
        torch.optim.AdamW(groups)
        if options.optimizer == "adamw"
        else torch.optim.SGD([{**group, "weight_decay": 0.0} for group in groups])
    )


def device_ids(count: int) -> list[str]:
    """Device index by device id; the federation of `chainfed emulate` sorts by id."""
    return [hashlib.sha256(f"chainfed-device/emulated-{index:04d}".encode()).hexdigest()[:16] for index in range(count)]


def run_method(
    method: str,
    options: argparse.Namespace,
    model: AdaptedModel,
    train: Batchable,
    test: Batchable,
    shares: list[list[int]],
) -> dict[str, Any]:
    state = model.initial(options.adapter_dim, options.num_labels, options.seed)
    probing = method == "linear_probing"
    sample_rows = [row for share in shares for row in share[:STATISTICS_EXAMPLES]]
    start_features = model.all_features(state, train, sample_rows)
    mean, rstd = start_features.mean(0), (start_features.var(0, unbiased=False) + 1e-6).rsqrt()
    cached = (
        model.all_features(state, train, list(range(len(train.labels)))) if probing or options.warmup_rounds else None
    )
    cached_test = model.all_features(state, test, list(range(len(test.labels)))) if probing else None
    ids = device_ids(options.devices)
    by_id = {device_id: index for index, device_id in enumerate(ids)}
    curve, bytes_up = [], 0
    for step in range(options.warmup_rounds + options.rounds):
        number = FIRST_WARMUP_ROUND + step
        warming = step < options.warmup_rounds
        trained = [name for name in state if name.startswith("head.") or not (probing or warming)]
        chosen = sample(sorted(ids), options.per_round, SplitMix64(derive_seed("select", options.seed, number)))
        total = {name: torch.zeros_like(state[name], dtype=torch.float64) for name in trained}
        weight, losses = 0, []
        for device_id in sorted(chosen):
            share = shares[by_id[device_id]]
            local = {name: tensor.clone().requires_grad_(name in trained) for name, tensor in state.items()}
            optimizer = optimizer_over(local, trained, options)
            for rows in batches(
                len(share),
                options.batch_size,
                options.local_epochs,
                derive_seed("assign", options.seed, number, device_id),
            ):
                index = [share[row] for row in rows]
                features = (
                    cached[index]
                    if cached is not None and (probing or warming)
                    else model.features(local, train, index)
                )
                loss = functional.cross_entropy(head_logits(local, features, mean, rstd), train.labels[index])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_([local[name] for name in trained], options.max_grad_norm)
                optimizer.step()
                losses.append(loss.item())
            for name in trained:
                total[name] += len(share) * (local[name].detach() - state[name]).double()
            weight += len(share)
        bytes_up += sum(state[name].numel() * 4 for name in trained) * len(chosen)
        for name in trained:
            state[name] = (state[name].double() + total[name] / weight).float()
        row = {"round": step + 1, "warmup": warming, "train_loss": sum(losses) / len(losses), "bytes_up": bytes_up}
        last = step + 1 == options.warmup_rounds + options.rounds
        if (
            probing
            or last
            or (
                options.evaluate_every
                and not warming
                and (step + 1 - options.warmup_rounds) % options.evaluate_every == 0
            )
        ):
            count = len(test.labels) if last or probing else min(options.evaluate_rows, len(test.labels))
            features = (
                cached_test[:count] if cached_test is not None else model.all_features(state, test, list(range(count)))
            )
            logits = head_logits(state, features, mean, rstd)
            row |= {
                "examples": count,
                "accuracy": (logits.argmax(1) == test.labels[:count]).double().mean().item(),
                "loss": functional.cross_entropy(logits, test.labels[:count]).item(),
            }
        if not all(math.isfinite(value) for value in row.values()):
            raise SystemExit(f"{method} left the finite numbers in round {step + 1}")
        curve.append(row)
        print(json.dumps({"method": method, **row}), file=sys.stderr, flush=True)
    return {"accuracy": curve[-1]["accuracy"], "loss": curve[-1]["loss"], "bytes_up": bytes_up, "curve": curve}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--labels", dest="num_labels", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--methods", default="linear_probing,full_adapters")
    for name, default in _DEFAULTS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    labels = [str(number) for number in range(options.num_labels)]
    train_rows, test_rows = read_examples(options.train, labels), read_examples(options.test, labels)
    tokenizer = Tokenizer.from_file(str(options.model / "tokenizer.json"))
    tokenizer.enable_truncation(options.seq_len)
    tokenizer.enable_padding(length=options.seq_len)
    model = AdaptedModel(options.model)
    train = model.prepare([row.text for row in train_rows], [row.label for row in train_rows], tokenizer)
    test = model.prepare([row.text for row in test_rows], [row.label for row in test_rows], tokenizer)
    shares = partition(
        [row.label for row in train_rows], options.devices, PartitionSpec.parse(options.partition), options.seed
    )
    result: dict[str, dict[str, Any]] = {
        "options": {key: str(value) for key, value in vars(options).items() if not isinstance(value, Path)},
        "methods": {},
    }
    for method in options.methods.split(","):
        begin = time.monotonic()
        result["methods"][method] = run_method(method, options, model, train, test, shares) | {
            "seconds": time.monotonic() - begin
        }
        options.out.write_text(json.dumps(result, indent=1))
    print(
        json.dumps(
            {
                method: {key: value for key, value in outcome.items() if key != "curve"}
                for method, outcome in result["methods"].items()
            }
        )
    )


if __name__ == "__main__":
    main()
