"""Measuring what a program allocates at run time, in processes of their own that hold nothing else.

`measure_peaks` starts `python -m chainfed.toolchain.memory_probe`, which loads the runtime once and then forks for each
program, so that every program is measured from the same clean, idle state, as a device runs it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping
from pathlib import Path

import torch

from chainfed.core.errors import ChainFedError
from chainfed.core.manifest import ProgramEntry, TensorSpec
from chainfed.runtime.dtypes import TORCH_DTYPES
from chainfed.runtime.memory import PeakSampler
from chainfed.runtime.program import Program, set_threads
from chainfed.toolchain.memory_plan import is_mapped

_STEPS = 3
_FORKS = 2  # the larger of the two counts: how much the allocator gives back differs a little from process to process


def measure_peaks(programs: Mapping[str, tuple[Path, ProgramEntry]]) -> dict[str, int]:
    """Peak anonymous bytes of each program over an idle process; 0 where the system does not tell.

    `programs`: name -> where the program lies, and its tensors. Raises ChainFedError when a program does not
    run.
    """
    request = {
        name: {"path": str(path), "entry": entry.model_dump(mode="json")} for name, (path, entry) in programs.items()
    }
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    finished = subprocess.run(
        [sys.executable, "-m", "chainfed.toolchain.memory_probe"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    try:
        peaks: dict[str, int] = json.loads(finished.stdout.strip().split("\n")[-1])
    except ValueError as error:
        last = (finished.stderr.strip().split("\n") or [""])[-1]
        raise ChainFedError(
            f"measuring the programs' memory failed (exit code {finished.returncode}): {last}"
        ) from error
    return peaks


def probe(name: str, path: Path, entry: ProgramEntry) -> int:
    """Runs a program a few steps as a device would; returns this process's peak anonymous bytes over idle."""
    set_threads(1)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        specs = [spec for spec in entry.inputs if is_mapped(name, spec)]
        mapped = {spec.name: _map_tensor(Path(folder) / str(index), spec) for index, spec in enumerate(specs)}
        with PeakSampler() as sampler:
            program = Program(path, entry)
            own = {
                spec.name: torch.ones(spec.shape, dtype=TORCH_DTYPES[spec.dtype])
                for spec in entry.inputs
                if spec.name not in mapped
            }
            for _ in range(_STEPS):
                outputs = program.run(own | mapped, clone_outputs=False)
                for output, tensor in outputs.items():
                    if output in mapped:
                        mapped[output].copy_(tensor)
            peak = sampler.peak_bytes
            program.close()
    return peak


def _map_tensor(path: Path, spec: TensorSpec) -> torch.Tensor:
    """A zero tensor over a shared mapping of a fresh file, with room after it for kernels that read ahead."""
    dtype = TORCH_DTYPES[spec.dtype]
    count = spec.nbytes // dtype.itemsize
    with path.open("wb") as file:
        file.truncate(max(1, spec.nbytes) + 4096)
    flat = torch.from_file(str(path), shared=True, size=count + 4096 // dtype.itemsize, dtype=dtype)
    return flat[:count].view(spec.shape)


def _serve() -> None:
    """Reads a request on standard input, forks for each program, and prints the peaks."""
    request = json.load(sys.stdin)
    peaks = {
        name: max(
            _probe_in_fork(name, Path(part["path"]), ProgramEntry.model_validate(part["entry"])) for _ in range(_FORKS)
        )
        for name, part in request.items()
    }
    sys.stdout.write(json.dumps(peaks) + "\n")


def _probe_in_fork(name: str, path: Path, entry: ProgramEntry) -> int:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.write(writer, str(probe(name, path, entry)).encode())
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as result:
        text = result.read()
    _, status = os.waitpid(child, 0)
    if status != 0 or not text:
        raise SystemExit(f"program {name} failed while its memory was measured")
    return int(text)


if __name__ == "__main__":
    _serve()
