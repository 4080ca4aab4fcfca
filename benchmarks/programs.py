"""Time and memory of the programs of large models' sizes, beside PyTorch eager and the figures that were asked for.

No checkpoint is needed: a program depends on shapes only. Both sides run the same step on one thread, in turn; a row
says the median over the pairs of the quotient of their CPU times. Memory is measured in processes of their own, as for
a bundle's manifest: arena, what XNNPACK allocates beside it, optimiser state, and the inputs that are not mapped files.
`roberta block` also prints a frozen layer with its weights in fewer bits. `roberta round` is a device's whole round,
beside end-to-end training; it writes 3 GB and removes them.

Example: make bench-programs ARGS="roberta q1 --pairs 3"
Lowered programs and measured memory are cached in $CHAINFED_CACHE; tables go to runs/bench/programs.json and .md too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import device_round
import large_blocks
import torch
from transformers import LlamaConfig, Qwen3Config

from chainfed.core.console import err, out, table
from chainfed.core.manifest import MANIFEST_FILE, WeightDtype
from chainfed.runtime.program import Program, set_threads
from chainfed.toolchain.families import family_for
from chainfed.toolchain.memory_plan import plan_memory
from chainfed.toolchain.new_folder import NewFolder
from chainfed.toolchain.program_cache import ProgramCache
from chainfed.toolchain.program_files import ProgramWriter, program_file
from chainfed.toolchain.programs import ProgramDefinition, ProgramSettings
from chainfed.toolchain.quantization import GROUP_SCALE, SCALE
from chainfed.toolchain.reference import Reference, reference_of, wide_tensors
from chainfed.toolchain.steps import build_programs
from chainfed.toolchain.verify import relative_error

_ADAPTER_DIM = 64
_LABELS = 4
_VOCABULARY = 1000  # of an encoder: no program measured here takes its embeddings


@dataclass(frozen=True)
class Row:
    """A program to measure.

    Attributes:
        model: a key of `MODELS`.
        program: `block`, or `q` and the size of the window.
        batch_size: rows.
        seq_len: tokens in a row.
        targets: positions of a row that go through the language-model head; 0 for a classifier.
        asked_ratio: the time over eager's that was asked for; None for a report only.
        asked_mb: the anonymous memory that was asked for, likewise.
        dtype: how frozen weights are stored.
    """

    model: str
    program: str
    batch_size: int
    seq_len: int
    targets: int = 0
    asked_ratio: float | None = None
    asked_mb: float | None = None
    dtype: WeightDtype = "f32"

    @property
    def words(self) -> set[str]:
        """What it can be chosen by."""
        return {self.model, self.program, self.dtype}

    @property
    def window_size(self) -> int:
        """Layers in the window; 1 for the block."""
        return int(self.program[1:]) if self.program.startswith("q") else 1

    @property
    def name(self) -> str:
        """The program's name in a bundle."""
        return f"window_q{self.window_size}" if self.program.startswith("q") else self.program


@dataclass(frozen=True)
class Result:
    """What came out; sizes in bytes, times in seconds, ratios as medians over the pairs."""

    model: str
    program: str
    dtype: WeightDtype
    batch_size: int
    seq_len: int
    cpu_ratio: float
    wall_ratio: float
    cpu_ratios: tuple[float, ...]
    program_cpu_seconds: float
    eager_cpu_seconds: float
    max_error: float
    anonymous_bytes: int
    arena_bytes: int
    workspace_bytes: int
    optimizer_bytes: int
    io_bytes: int
    mapped_bytes: int
    preparation_seconds: float
    asked_ratio: float | None
    asked_mb: float | None


def _llama_1b(layers: int = 16) -> LlamaConfig:
    heads = {"num_attention_heads": 32, "num_key_value_heads": 8}
    sizes = {"hidden_size": 2048, "intermediate_size": 8192, "max_position_embeddings": 2048}
    return LlamaConfig(**sizes, **heads, num_hidden_layers=layers, vocab_size=128_256, pad_token_id=0)


def _qwen_600m(layers: int = 28) -> Qwen3Config:
    heads = {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128}
    sizes = {"hidden_size": 1024, "intermediate_size": 3072, "max_position_embeddings": 2048}
    return Qwen3Config(**sizes, **heads, num_hidden_layers=layers, vocab_size=151_936, pad_token_id=0)


def _llama_7b(layers: int = 32) -> LlamaConfig:
    heads = {"num_attention_heads": 32, "num_key_value_heads": 32}
    sizes = {"hidden_size": 4096, "intermediate_size": 11008, "max_position_embeddings": 2048}
    return LlamaConfig(**sizes, **heads, num_hidden_layers=layers, vocab_size=32_000, pad_token_id=0)


MODELS: Mapping[str, Callable[..., Any]] = {
    "roberta": device_round.roberta_large,
    "llama-1b": _llama_1b,
    "qwen-0.6b": _qwen_600m,
    "llama-7b": _llama_7b,
}
ROWS = (
    *(
        Row("roberta", f"q{size}", 8, 256, asked_ratio=1.0, asked_mb=asked)
        for size, asked in ((1, 80.0), (2, 150.0), (3, 170.0), (6, 220.0))
    ),
    Row("roberta", "block", 8, 256, asked_ratio=1.0),
    Row("llama-1b", "q2", 1, 512, 511, 1.0, 400.0),
    Row("qwen-0.6b", "q2", 1, 512, 511),
    Row("llama-7b", "q6", 1, 256, 255),
    Row("llama-7b", "q6", 1, 256, 255, dtype="int8"),
)


_ROUND, _BLOCKS = {"roberta", "round"}, {"roberta", "block"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words = sorted(set().union(_ROUND, *(row.words for row in ROWS)))
    parser.add_argument(
        "words", nargs="*", metavar="WORD", help=f"rows that have all of these: {', '.join(words)}; every row without"
    )
    parser.add_argument("--pairs", type=int, default=5, help="how often both sides run (default 5)")
    parser.add_argument("--layers", type=int, help="layers of the model; as many as the real one has unless told")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    options = parser.parse_args()
    if unknown := [word for word in options.words if word not in words]:
        parser.error(f"unknown word {unknown[0]!r}; choose from {', '.join(words)}")
    rows = [row for row in ROWS if row.words >= set(options.words)]
    whole_round = set(options.words) <= _ROUND
    if not rows and not whole_round:
        parser.error(f"no row has all of {', '.join(options.words)}; name a model, a program, or one of each")
    options.out.mkdir(parents=True, exist_ok=True)
    results = []
    for number, row in enumerate(rows, start=1):
        err.print(f"{number} of {len(rows)}: {row.model} {row.program} {row.dtype}")
        results.append(measure(row, options.out.absolute(), options.pairs, options.layers))
    if results:
        _print(results)
        (options.out / "programs.json").write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")
        (options.out / "programs.md").write_text(_markdown(results))
    if set(options.words) <= _BLOCKS:
        err.print("a frozen layer in fewer bits")
        blocks = large_blocks.measure(device_round.roberta_large(layers=1), options.pairs)
        out.print(large_blocks.show(blocks))
        (options.out / "blocks.json").write_text(json.dumps(blocks, indent=1) + "\n")
    if whole_round:
        err.print("a device's whole round, and end-to-end training")
        rounds = device_round.measure(device_round.roberta_large(vocab_size=50_265), options.out.absolute())
        out.print(device_round.show(rounds))
        (options.out / "round.json").write_text(json.dumps([asdict(each) for each in rounds], indent=1) + "\n")


def measure(row: Row, folder: Path, pairs: int, layers: int | None = None) -> Result:
    """Lowers a row's program, unless it is cached, and measures it."""
    started = time.perf_counter()
    settings = _settings(row, layers)
    definition = build_programs(settings)[row.name]
    with NewFolder(folder / f"program-{row.model}-{row.program}-{row.dtype}", True, MANIFEST_FILE) as new:
        writer = ProgramWriter(settings, new, ProgramCache(), [row.name])
        writer.write(lambda _: None)
        peaks = writer.measure(lambda _: None)
        prepared = time.perf_counter() - started
        entry = writer.entries[row.name]
        plan = plan_memory(row.name, entry, peaks[row.name])
        set_threads(1)
        with Program(new.path(program_file(row.name)), entry) as program:
            inputs = _inputs(settings, definition)
            cpu, wall, error = _race(program, reference_of(settings), row.name, inputs, pairs)
    ours, theirs = zip(*cpu, strict=True)
    return Result(
        model=row.model,
        program=row.program,
        dtype=row.dtype,
        batch_size=row.batch_size,
        seq_len=row.seq_len,
        cpu_ratio=statistics.median(mine / eager for mine, eager in cpu),
        wall_ratio=statistics.median(mine / eager for mine, eager in wall),
        cpu_ratios=tuple(round(mine / eager, 3) for mine, eager in cpu),
        program_cpu_seconds=statistics.median(ours),
        eager_cpu_seconds=statistics.median(theirs),
        max_error=error,
        anonymous_bytes=plan.anonymous_bytes,
        arena_bytes=plan.arena_bytes,
        workspace_bytes=plan.workspace_bytes,
        optimizer_bytes=plan.optimizer_bytes,
        io_bytes=plan.io_bytes,
        mapped_bytes=plan.file_bytes,
        preparation_seconds=prepared,
        asked_ratio=row.asked_ratio,
        asked_mb=row.asked_mb,
    )


def _settings(row: Row, layers: int | None) -> ProgramSettings:
    config = MODELS[row.model]
    family = family_for(config(layers) if layers else config())
    return ProgramSettings(
        family=family,
        batch_size=row.batch_size,
        seq_len=row.seq_len,
        adapter_dim=_ADAPTER_DIM,
        num_labels=0 if row.targets else _LABELS,
        task="language_modelling" if row.targets else "classification",
        max_target_tokens=row.targets,
        windows=(row.window_size,),
        pooling=family.default_pooling,
        dtype=row.dtype,
    )


def _inputs(settings: ProgramSettings, definition: ProgramDefinition) -> dict[str, torch.Tensor]:
    """Random inputs of sizes that a trained model has; an eighth of each row is padding."""
    generator = torch.Generator().manual_seed(0)
    constants = {f".{name}": tensor for name, tensor in settings.family.layer_constants(0).items()}
    scalars = {"adapter_lr": 1e-3, "head_lr": 1e-3, "final_head_lr": 1e-3, "global_loss_weight": 0.2}
    inputs: dict[str, torch.Tensor] = {}
    for spec in definition.inputs:
        noise = torch.randn(spec.shape, generator=generator)
        constant = next((tensor for name, tensor in constants.items() if spec.name.endswith(name)), None)
        if constant is not None:
            inputs[spec.name] = constant
        elif spec.dtype in ("int8", "uint8"):
            inputs[spec.name] = noise.mul_(40).clamp_(-127, 127).to(spec.torch_dtype)
        elif spec.name.endswith((SCALE, GROUP_SCALE)):
            inputs[spec.name] = torch.full(spec.shape, 0.02 / 40)
        elif spec.name in scalars:
            inputs[spec.name] = torch.tensor(scalars[spec.name])
        elif spec.name == "labels":
            inputs[spec.name] = torch.arange(spec.shape[0]) % settings.num_labels
        elif spec.name == "sample_weights":
            inputs[spec.name] = torch.full(spec.shape, 1.0 / spec.shape[0])
        elif spec.name == "target_places":
            inputs[spec.name] = torch.arange(spec.shape[1]).repeat(spec.shape[0], 1)
        elif spec.name == "targets":
            inputs[spec.name] = torch.randint(settings.family.vocab_size, spec.shape, generator=generator)
        elif spec.name == "target_weights":
            inputs[spec.name] = torch.full(spec.shape, 1.0 / (spec.shape[0] * spec.shape[1]))
        elif spec.name == "mask":
            inputs[spec.name] = (torch.arange(spec.shape[1]) < spec.shape[1] * 7 // 8).float().repeat(spec.shape[0], 1)
        elif spec.name.startswith("state."):
            inputs[spec.name] = torch.zeros(spec.shape)
        elif spec.name.endswith("rstd") or (spec.name.endswith("weight") and "norm" in spec.name.lower()):
            inputs[spec.name] = 1.0 + 0.1 * noise
        else:
            inputs[spec.name] = noise if spec.name == "h" else 0.02 * noise
    return inputs


Pairs = list[tuple[float, float]]


def _race(
    program: Program, reference: Reference, name: str, inputs: Mapping[str, torch.Tensor], pairs: int
) -> tuple[Pairs, Pairs, float]:
    """CPU and wall seconds of program and eager, in turn after a run of both; and their largest relative difference."""
    wide = wide_tensors(inputs)
    ours, theirs = program.run(inputs), reference.run(name, wide)
    error = max(relative_error(ours[key], tensor) for key, tensor in theirs.items())
    cpu: Pairs = []
    wall: Pairs = []
    for _ in range(pairs):
        times = []
        sides: tuple[Callable[[], object], ...] = (
            lambda: program.run(inputs, clone_outputs=False),
            lambda: reference.run(name, wide),
        )
        for run in sides:
            began = time.thread_time(), time.perf_counter()
            run()
            times.append((time.thread_time() - began[0], time.perf_counter() - began[1]))
        cpu.append((times[0][0], times[1][0]))
        wall.append((times[0][1], times[1][1]))
    return cpu, wall, error


_COLUMNS = (
    *("program", "tokens", "time / eager", "asked", "wall", "anonymous MB", "asked MB"),
    *("arena", "workspace", "optimiser", "inputs", "mapped MB", "largest error"),
)

_PRINTED = 7


def _cells(result: Result) -> list[str]:
    sizes = (result.arena_bytes, result.workspace_bytes, result.optimizer_bytes, result.io_bytes)
    return [
        f"{result.model} {result.program} {result.dtype}",
        f"{result.batch_size} x {result.seq_len}",
        f"{result.cpu_ratio:.2f}",
        "report" if result.asked_ratio is None else f"{result.asked_ratio:.2f}",
        f"{result.wall_ratio:.2f}",
        f"{result.anonymous_bytes / 1e6:.1f}",
        "report" if result.asked_mb is None else f"{result.asked_mb:.0f}",
        *(f"{size / 1e6:.1f}" for size in sizes),
        f"{result.mapped_bytes / 1e6:.0f}",
        f"{result.max_error:.1e}",
    ]


def _print(results: list[Result]) -> None:
    """The columns that a terminal has room for; the files have all."""
    rows = table("Programs of large models' sizes, one thread", *_COLUMNS[:_PRINTED])
    for result in results:
        rows.add_row(*_cells(result)[:_PRINTED])
    out.print(rows)


def _markdown(results: list[Result]) -> str:
    lines = [_COLUMNS, ["---"] * len(_COLUMNS), *(_cells(result) for result in results)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    main()
