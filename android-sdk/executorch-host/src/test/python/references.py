"""Writes what the Java tests are held against: usage `references.py VECTORS OUT`.

OUT/<bundle>/<case>.<step>.bin has what Python's ExecuTorch gives on one thread for a case of tests/vectors: the bytes
of all outputs, in the program's order. OUT/*.pte are programs for the tests of memory and of values.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import executorch.extension.pybindings._portable_lib as runtime
import torch
from executorch.exir import ExecutorchBackendConfig, to_edge_transform_and_lower
from executorch.exir.passes import MemoryPlanningPass
from safetensors.torch import load_file

ROWS, COLUMNS = 4096, 4096


class Fold(torch.nn.Module):
    """A large input, small memory of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.amax(dim=0)


class Widen(torch.nn.Module):
    """A small input; an intermediate value of ROWS x COLUMNS float32 lies in the arena."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x.reshape(ROWS, 1) + x).amax(dim=0)


class Keep(torch.nn.Module):
    """ROWS x COLUMNS float32 lie in the file."""

    kept: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kept", torch.arange(ROWS * COLUMNS, dtype=torch.float32).reshape(ROWS, COLUMNS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.kept.amax(dim=0) + x


class Convert(torch.nn.Module):
    """Values of every kind, in and out."""

    def forward(
        self, f32: torch.Tensor, f16: torch.Tensor, i8: torch.Tensor, i64: torch.Tensor, n: int, r: float, b: bool
    ) -> tuple[Any, ...]:
        wide = i8.to(torch.int32)
        return (
            f32.to(torch.float16),
            f16.to(torch.float32),
            wide,
            i64.to(torch.float64),
            wide.to(torch.uint8),
            i64.to(torch.int8),
            f32.to(torch.int64),
            f32 > 0,
            n,
            r,
            b,
        )


def write_program(model: torch.nn.Module, inputs: tuple[Any, ...], path: Path) -> None:
    """Exports `model` for inputs like these, on ExecuTorch's own kernels, with inputs outside the arena."""
    planning = ExecutorchBackendConfig(memory_planning_pass=MemoryPlanningPass(alloc_graph_input=False))
    program = to_edge_transform_and_lower(torch.export.export(model, inputs)).to_executorch(planning)
    path.write_bytes(program.buffer)


def write_case(folder: Path, programs: dict[str, Any], case: dict[str, Any], out: Path) -> None:
    """Runs each step of a case as tests/vectors/README.md has it."""
    entry = programs[case["program"]]
    given = {
        name.removeprefix("input/"): tensor
        for name, tensor in load_file(folder / case["tensors"]).items()
        if name.startswith("input/")
    }
    for prefix, file in case["weights"].items():
        given |= {prefix + name: tensor for name, tensor in load_file(folder / "bundle" / file).items()}
    program = runtime._load_for_executorch(str(folder / "bundle" / entry["file"]))
    for step in range(1, case["steps"] + 1):
        outputs = program.run_method("forward", [given[spec["name"]] for spec in entry["inputs"]])
        (out / f"{case['name']}.{step}.bin").write_bytes(b"".join(output.numpy().tobytes() for output in outputs))
        named = {spec["name"]: output for spec, output in zip(entry["outputs"], outputs, strict=True)}
        given |= {name: output for name, output in named.items() if name in given}


@contextlib.contextmanager
def quiet_errors() -> Iterator[None]:
    """Drops what native code writes to standard error."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)


def main(vectors: Path, out: Path) -> None:
    torch.set_num_threads(1)
    with quiet_errors():
        runtime._unsafe_reset_threadpool(1)
    for index in sorted(vectors.glob("bundles/*/cases.json")):
        folder, results = index.parent, out / index.parent.name
        results.mkdir(parents=True, exist_ok=True)
        programs = json.loads((folder / "bundle/manifest.json").read_text())["programs"]
        for case in json.loads(index.read_text())["cases"]:
            write_case(folder, programs, case, results)
    row = torch.zeros(COLUMNS)
    write_program(Fold(), (torch.zeros(ROWS, COLUMNS),), out / "fold.pte")
    write_program(Widen(), (row,), out / "widen.pte")
    write_program(Keep(), (row,), out / "keep.pte")
    kinds = [torch.zeros(2, 3).to(dtype) for dtype in (torch.float32, torch.float16, torch.int8, torch.int64)]
    write_program(Convert(), (*kinds, 3, 0.5, True), out / "convert.pte")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
