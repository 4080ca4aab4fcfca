"""Frozen weights as f32, f16, int8 and int4: size, memory, speed, and what becomes of logits and accuracy."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from large_blocks import paired
from tasks import AGNEWS, YELP, Task, model_folder
from transformers import AutoModel

from chainfed.core.console import megabytes, out, table
from chainfed.core.examples import Example, read_examples
from chainfed.core.manifest import TOKENIZER_FILE, Bundle, Manifest, ProgramEntry, WeightDtype, layer_file
from chainfed.core.tensors import Tensors, head_names, statistics_names
from chainfed.runtime.prediction import predict
from chainfed.runtime.program import Program, set_threads
from chainfed.runtime.tokenization import Tokenizer
from chainfed.toolchain.export import export_bundle
from chainfed.toolchain.export_settings import ExportSettings
from chainfed.toolchain.model_state import read_model_state
from chainfed.toolchain.reference import Reference, wide_tensors
from chainfed.toolchain.verify import norm_error, settings_of
from chainfed.toolchain.verify_cases import SENTENCES, Case, Cases, classified_rows

_DTYPES: tuple[WeightDtype, ...] = get_args(WeightDtype)
_WINDOW = 2
_VARIANCE_FLOOR = 1e-2


def measure(shared: Path, folder: Path, quick: bool) -> None:
    """Exports, times and evaluates every dtype of the real model, and prints tables."""
    set_threads(1)
    results: dict[str, Any] = {}
    bundles = {dtype: _bundle(dtype, shared, folder) for dtype in _DTYPES}
    results["minilm"] = {dtype: _sizes_and_times(bundles, dtype, 3 if quick else 9) for dtype in _DTYPES}
    for task in (AGNEWS,) if quick else (AGNEWS, YELP):
        results[task.name] = _accuracies(task, bundles, shared, rows=64 if quick else 1000)
    _print_tables(results)
    (folder / "precision.json").write_text(json.dumps(results, indent=1))


def _bundle(dtype: WeightDtype, shared: Path, folder: Path) -> Bundle:
    place = folder / "bundles" / f"precision-{dtype}"
    labels = tuple(str(number) for number in range(len(AGNEWS.labels(shared))))
    model = str(model_folder(shared))
    return export_bundle(ExportSettings(model, labels, place, seq_len=64, windows=(_WINDOW,), dtype=dtype, force=True))


def _sizes_and_times(bundles: Mapping[WeightDtype, Bundle], dtype: WeightDtype, repeats: int) -> dict[str, float]:
    bundle, manifest = bundles[dtype], bundles[dtype].manifest
    step, base_step = (_case(each, f"window_q{_WINDOW}") for each in (bundle, bundles["f32"]))
    block, reference = _case(bundle, manifest.block_program(0)), Reference(settings_of(bundle))
    wide = wide_tensors({**block.inputs, **block.held})
    block_ratio, block_error = _ratio(bundle, block, lambda: reference.run("block", wide)["h"], repeats)
    with Program(*_program(bundles["f32"], base_step)) as base:
        step_ratio, _ = _ratio(bundle, step, lambda: base.run(base_step.inputs)["loss"], repeats)
    return {
        "bundle_bytes": sum(entry.bytes for entry in manifest.files.values()),
        "shard_bytes": manifest.files[layer_file(0)].bytes,
        "block_bytes": manifest.files[_passed_file(manifest)].bytes,
        "window_anonymous_bytes": manifest.windows[_WINDOW].anonymous_bytes,
        "prefix_anonymous_bytes": manifest.prefix.anonymous_bytes,
        "step_over_f32": step_ratio,
        "block_over_eager": block_ratio,
        "block_error": block_error,
    }


def _passed_file(manifest: Manifest) -> str:
    """Where the weights lie of a layer that a device only passes through."""
    return manifest.programs[manifest.block_program(0)].file if manifest.blocks_hold_weights else layer_file(0)


def _case(bundle: Bundle, program: str) -> Case:
    rows = classified_rows(bundle, [Example(text, 0) for text in SENTENCES])
    return next(case for case in Cases(bundle, Reference(settings_of(bundle)), rows) if case.program == program)


def _program(bundle: Bundle, case: Case) -> tuple[Path, ProgramEntry]:
    entry = bundle.manifest.programs[case.program]
    return bundle.path(entry.file), entry


def _ratio(bundle: Bundle, case: Case, other: Callable[[], torch.Tensor], repeats: int) -> tuple[float, float]:
    """Median time of a program over that of another computation, run in turn; and the error of its first output."""
    with Program(*_program(bundle, case)) as program:
        first = next(iter(program.run(case.inputs).values()))
        expected = other()
        error = norm_error(first, expected) if first.shape == expected.shape else 0.0
        return paired(lambda: program.run(case.inputs, clone_outputs=False), other, repeats), error


def _accuracies(task: Task, bundles: Mapping[WeightDtype, Bundle], shared: Path, rows: int) -> dict[str, Any]:
    """Accuracy of a linear head fitted on the float32 model's features, over each dtype's programs."""
    train, test = (_examples(path, task, shared, rows) for path in task.files(shared))
    state = _probe(bundles["f32"], train, shared)
    logits = {dtype: predict(bundle, state, test).logits for dtype, bundle in bundles.items()}
    labels = np.array([example.label for example in test])
    return {
        dtype: {
            "accuracy": float((found.argmax(1) == labels).mean()),
            "largest_logit_error": float(np.abs(found - logits["f32"]).max()),
            "mean_logit_error": float(np.abs(found - logits["f32"]).mean()),
            "same_answer": float((found.argmax(1) == logits["f32"].argmax(1)).mean()),
            "rows": len(test),
        }
        for dtype, found in logits.items()
    }


def _examples(path: Path, task: Task, shared: Path, rows: int) -> list[Example]:
    """Rows spread over the whole file, always the same ones."""
    examples = read_examples(path, task.labels(shared))
    return [examples[int(place)] for place in np.linspace(0, len(examples) - 1, min(rows, len(examples)))]


def _probe(bundle: Bundle, train: list[Example], shared: Path) -> Tensors:
    """The bundle's initial state with its final head and statistics fitted to `train` on eager features."""
    manifest = bundle.manifest
    tokenizer = Tokenizer(bundle.path(TOKENIZER_FILE), manifest.tokenizer.pad_token_id, manifest.shapes.seq_len)
    tokens, model = tokenizer([example.text for example in train]), AutoModel.from_pretrained(model_folder(shared))
    pooled = []
    with torch.no_grad():
        for ids, mask in zip(torch.split(tokens.ids, 32), torch.split(tokens.mask, 32), strict=True):
            hidden = model.eval()(ids, attention_mask=mask.long()).last_hidden_state * mask[:, :, None]
            pooled.append(hidden.sum(1) / mask.sum(1, keepdim=True))
    features = torch.cat(pooled)
    mean, rstd = features.mean(0), (features.var(0, correction=0) + _VARIANCE_FLOOR).rsqrt()
    weight, bias = _fit(
        (features - mean) * rstd, torch.tensor([example.label for example in train]), manifest.num_labels
    )
    last = manifest.model.num_layers - 1
    names = (*head_names(last), *statistics_names(last))
    fitted = {name: value.numpy() for name, value in zip(names, (weight, bias, mean, rstd), strict=True)}
    return read_model_state(bundle, None) | fitted


def _fit(features: torch.Tensor, labels: torch.Tensor, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logistic regression with a little weight decay, from zero: no chance in it."""
    head = torch.nn.Linear(features.shape[1], classes)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2, weight_decay=1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(head(features), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return head.weight.detach(), head.bias.detach()


def _print_tables(results: Mapping[str, Any]) -> None:
    sizes_and_times = table(f"MiniLM, 8 x 64, window of {_WINDOW}", *(
        "dtype", "bundle", "layer to train", "layer to pass", "window's own memory", "prefix's own memory",
        "step / f32", "block / eager f32", "block error",
    ))  # fmt: skip
    for dtype, row in results["minilm"].items():
        shown = ("bundle_bytes", "shard_bytes", "block_bytes", "window_anonymous_bytes", "prefix_anonymous_bytes")
        ratios = (f"{row['step_over_f32']:.2f}", f"{row['block_over_eager']:.2f}", f"{row['block_error']:.1e}")
        sizes_and_times.add_row(dtype, *(megabytes(row[name]) for name in shown), *ratios)
    out.print(sizes_and_times)
    for task in (task for task in (AGNEWS, YELP) if task.name in results):
        accuracies = table(f"A linear head on MiniLM, {task.name}", *(
            "dtype", "accuracy", "same answer as f32", "largest logit error", "mean logit error"
        ))  # fmt: skip
        for dtype, row in results[task.name].items():
            errors = (f"{row['largest_logit_error']:.3f}", f"{row['mean_logit_error']:.4f}")
            accuracies.add_row(dtype, f"{100 * row['accuracy']:.1f}", f"{100 * row['same_answer']:.1f}", *errors)
        out.print(accuracies)
