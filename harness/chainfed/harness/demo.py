"""The whole story on one machine: a model becomes a bundle, phones that could not train it end to end tune it, a
model comes out."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from chainfed.core.console import megabytes, progress, table
from chainfed.core.errors import BadInputError
from chainfed.core.examples import Row, read_rows
from chainfed.core.manifest import Bundle
from chainfed.harness.emulate import EmulationResult, EmulationSettings, emulate
from chainfed.harness.narration import Narrator
from chainfed.harness.partition import PartitionSpec
from chainfed.toolchain.end_to_end import measure_end_to_end
from chainfed.toolchain.export import export_bundle
from chainfed.toolchain.export_settings import ExportSettings
from chainfed.toolchain.merge import merge_bundle
from chainfed.v1 import run_service_pb2 as pb

_DEVICES = 8
_PER_ROUND = 4
_BATCH_SIZE = 8
_SHARED_TRAIN, _SHARED_TEST = 640, 320
_MADE_TRAIN, _MADE_TEST = 640, 320


@dataclass(frozen=True)
class DemoTask:
    """A model folder, the texts to tune it on and to judge it by, the label names, and the programs' sizes.

    `made_up` says that model and texts were generated and stand for nothing real.
    """

    model: Path
    train: Path
    test: Path
    labels: tuple[str, ...]
    seq_len: int
    rounds: int
    made_up: bool


@dataclass(frozen=True)
class DemoResult:
    """What the demonstration showed.

    `end_to_end_bytes`: peak memory of end-to-end training. `memory_ratio`: that over a device's own peak and the
    weights
    that it mapped.
    """

    emulation: EmulationResult
    end_to_end_bytes: int
    memory_ratio: float
    made_up: bool
    merged_model: Path
    seconds: float

    def as_json(self) -> dict[str, object]:
        """The result as plain values."""
        return self.emulation.as_json() | {
            "end_to_end_mb": self.end_to_end_bytes / 1e6,
            "memory_ratio": self.memory_ratio,
            "made_up": self.made_up,
            "merged_model": str(self.merged_model),
            "seconds": self.seconds,
        }


def find_task(folder: Path, model: Path | None, data: Path | None) -> DemoTask:
    """The given model and data; else the real ones in `$CHAINFED_SHARED`; else made ones, written into `folder`.

    Raises BadInputError when only one of model and data is given, or when the data cannot be used.
    """
    if (model is None) != (data is None):
        raise BadInputError("The demo needs --model and --data together; give both, or neither.")
    if model is not None and data is not None:
        train, test, labels = split_file(data, folder)
        return DemoTask(model, train, test, labels, seq_len=64, rounds=8, made_up=False)
    shared = os.environ.get("CHAINFED_SHARED")
    if shared and (Path(shared) / "models/minilm-l6/config.json").is_file():
        yelp = Path(shared) / "data/yelp"
        train, test = folder / "train.jsonl", folder / "test.jsonl"
        for source, target, count in (
            (yelp / "train.jsonl.gz", train, _SHARED_TRAIN),
            (yelp / "test.jsonl.gz", test, _SHARED_TEST),
        ):
            write_rows(target, read_rows(source)[:count])
        labels = tuple(json.loads((yelp / "labels.json").read_text()))
        return DemoTask(Path(shared) / "models/minilm-l6", train, test, labels, seq_len=64, rounds=8, made_up=False)
    from chainfed.harness.sample_task import LABELS, make_sample_task

    made = make_sample_task(folder / "made", num_train=_MADE_TRAIN, num_test=_MADE_TEST, seed=0)
    return DemoTask(made.model, made.train, made.test, LABELS, seq_len=32, rounds=12, made_up=True)


def run_demo(task: DemoTask, folder: Path, say: Console) -> DemoResult:
    """Exports, measures, emulates and merges, telling each step to `say`."""
    begin = time.monotonic()
    say.print("\n[bold]1. Export: the model becomes a bundle of programs and weight shards[/]")
    settings = ExportSettings(
        str(task.model), task.labels, folder / "bundle", seq_len=task.seq_len, batch_size=_BATCH_SIZE, windows=(1, 2)
    )
    with progress() as display:
        bar = display.add_task("exporting", total=None)
        bundle = export_bundle(
            settings, lambda step, done, total: display.update(bar, description=step, completed=done, total=total)
        )
    manifest = bundle.manifest
    say.print(
        f"   {manifest.model.num_layers} layers, hidden size {manifest.model.hidden_size}, "
        f"{manifest.model.num_parameters / 1e6:.1f} M "
        f"parameters, labels: {', '.join(manifest.task.labels)}"
    )
    say.print("\n[bold]2. Memory: what a phone needs, beside end-to-end training of the same adapters in PyTorch[/]")
    end_to_end = measure_end_to_end(
        task.model,
        batch_size=_BATCH_SIZE,
        seq_len=task.seq_len,
        bottleneck=manifest.adapter.bottleneck,
        num_labels=manifest.num_labels,
    )
    say.print(memory_table(bundle, end_to_end))
    say.print(
        f"\n[bold]3. Federation: {_DEVICES} emulated phones, {_PER_ROUND} a round, texts dealt unevenly "
        f"(Dirichlet 1.0)[/]"
    )
    with Narrator(task.rounds) as narrator:
        emulation = emulate(_emulation(task, folder), narrator.tell)
    say.print("\n[bold]4. The tuned model as a Hugging Face folder[/]")
    merged = folder / "model"
    merge_bundle(bundle, emulation.adapters, merged)
    plan = manifest.windows[emulation.window_size]
    device_bytes = emulation.device_peak_anon_mb * 1e6 + plan.file_bytes
    result = DemoResult(
        emulation, end_to_end, end_to_end / device_bytes, task.made_up, merged, time.monotonic() - begin
    )
    _conclude(result, task, say)
    return result


def memory_table(bundle: Bundle, end_to_end_bytes: int) -> Table:
    """The memory plan of each window size beside end-to-end training."""
    rows = table("", "training", "own memory", "+ mapped weights", "end to end needs")
    for size, plan in sorted(bundle.manifest.windows.items()):
        own = bundle.manifest.round_bytes(size)
        ratio = end_to_end_bytes / (own + plan.file_bytes)
        rows.add_row(f"window of {size}", megabytes(own), megabytes(plan.file_bytes), f"{ratio:.1f} x as much")
    rows.add_row("end to end, measured", megabytes(end_to_end_bytes), "", "")
    return rows


def _emulation(task: DemoTask, folder: Path) -> EmulationSettings:
    run_folder = folder / "run"
    run_folder.mkdir()
    return EmulationSettings(
        bundle=folder / "bundle",
        train_file=task.train,
        test_file=task.test,
        folder=run_folder,
        devices=_DEVICES,
        workers=os.cpu_count() or 1,
        partition=PartitionSpec(1.0),
        memory_budgets=[0],
        seed=0,
        config=pb.RunConfig(
            window_size=2,
            rounds=task.rounds,
            devices_per_round=_PER_ROUND,
            min_devices=_DEVICES,
            evaluate_every=max(1, task.rounds // 2),
        ),
    )


def _conclude(result: DemoResult, task: DemoTask, say: Console) -> None:
    emulation = result.emulation
    say.print(
        f"   held-out accuracy {100 * emulation.accuracy.before:.1f}% before, "
        f"[bold]{100 * emulation.accuracy.after:.1f}%[/] after "
        f"{emulation.rounds} rounds"
    )
    say.print(
        f"   a device used {emulation.device_peak_anon_mb:.1f} MB of its own ({emulation.planned_mb:.1f} MB "
        f"planned); with mapped weights "
        f"end-to-end training needs {result.memory_ratio:.1f} times as much"
    )
    say.print(f"   no text left a device: {megabytes(emulation.bytes_up)} of adapter updates did, in all")
    say.print(f"   took {result.seconds:.0f} s; plot: {emulation.folder / 'run.png'}")
    say.print(f"   the tuned model lies in {result.merged_model}; use it with\n")
    say.print("       from transformers import pipeline", markup=False)
    say.print(
        f'       pipeline("text-classification", model="{result.merged_model}", trust_remote_code=True)("...")',
        markup=False,
    )
    if task.made_up:
        say.print(
            "\n   Model and texts were generated: the accuracies show that the chain learns, and nothing about "
            "real tasks."
        )


def split_file(data: Path, folder: Path) -> tuple[Path, Path, tuple[str, ...]]:
    """Cuts a labelled file in training rows and held-out rows (every fifth), and reads the labels off it.

    Raises BadInputError when the file cannot be read or has fewer than two labels.
    """
    rows = read_rows(data)
    names = {row.label for row in rows}
    numbers = [label for label in names if isinstance(label, int)]
    labels = [str(number) for number in range(max(numbers) + 1)] if numbers else sorted(str(name) for name in names)
    if len(names) < 2:
        raise BadInputError(f"{data} has one label only; the demo needs at least two values of `label`.")
    write_rows(folder / "train.jsonl", [row for number, row in enumerate(rows) if number % 5])
    write_rows(folder / "test.jsonl", rows[::5])
    return folder / "train.jsonl", folder / "test.jsonl", tuple(labels)


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Writes rows as JSON lines."""
    path.write_text(
        "".join(json.dumps({"text": row.text, "label": row.label}) + "\n" for row in rows), encoding="utf-8"
    )
