"""Lowering several programs at once, each worker a process of its own.

Lowering is pure Python and takes a core for up to a minute a program, so threads would not help. A worker is
`python -m chainfed.toolchain.parallel_lowering FOLDER`: the settings come on its first line of input, then a program's
name a line; it writes that program into the folder and answers with one line of JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from chainfed.core.errors import ChainFedError
from chainfed.toolchain.checkpoint import parse_model_config
from chainfed.toolchain.families import family_for
from chainfed.toolchain.optimizers import OptimizerSettings
from chainfed.toolchain.programs import ProgramSettings
from chainfed.toolchain.steps import build_programs

_MAX_WORKERS = 4
"""A worker holds most of a gigabyte."""

Lowered = tuple[str, bytes, int]
"""A program's name, its bytes, and the bytes of its arena."""


def lower_programs(settings: ProgramSettings, names: Sequence[str], workers: int | None = None) -> Iterator[Lowered]:
    """Lowers the named programs and yields each when it is ready, in any order.

    Args:
        settings: what the programs are made from.
        names: some of the programs of `build_programs`.
        workers: processes to use; 1 for this process alone, None for as many as there are cores (at most 4).

    Raises:
        ChainFedError: a worker ended before its time.
    """
    count = min(workers or _cores(), len(names), _MAX_WORKERS)
    if count <= 1:
        yield from (_lower_here(settings, name) for name in names)
        return
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        pool = ThreadPoolExecutor(count)
        stack.callback(pool.shutdown, cancel_futures=True)  # after the workers have ended, so no thread waits for one
        idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for number in range(count):
            idle.put(stack.enter_context(_Worker(settings, Path(folder), number)))

        def lower_there(name: str) -> Lowered:
            worker = idle.get()
            try:
                return worker.lower(name)
            finally:
                idle.put(worker)

        largest_first = sorted(names, reverse=True)  # window_q3, window_q2, ...: the longest first
        for future in as_completed([pool.submit(lower_there, name) for name in largest_first]):
            yield future.result()


class _Worker:
    """A process that lowers one program after the other."""

    def __init__(self, settings: ProgramSettings, folder: Path, number: int) -> None:
        self._folder = folder
        self._errors = folder / f"errors-{number}"
        paths = os.pathsep.join(filter(None, sys.path))
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "chainfed.toolchain.parallel_lowering", str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
            )
        self._send(json.dumps(_settings_to_json(settings)))

    def lower(self, name: str) -> Lowered:
        """Lowers one program. Raises ChainFedError when the process ends instead."""
        self._send(name)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            said = self._errors.read_text(errors="replace").strip().split("\n")[-1]
            raise ChainFedError(f"lowering the program {name} failed (exit code {self._process.wait()}): {said}")
        return name, (self._folder / f"{name}.pte").read_bytes(), int(json.loads(line)["arena_bytes"])

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


def _lower_here(settings: ProgramSettings, name: str) -> Lowered:
    from chainfed.toolchain.lowering import lower  # takes seconds to import, and a cached program does not need it

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about its own insides
        lowered = lower(build_programs(settings)[name])
    return name, lowered.data, lowered.arena_bytes


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _settings_to_json(settings: ProgramSettings) -> dict[str, Any]:
    values = {name: value for name, value in vars(settings).items() if name not in ("family", "optimizer")}
    return values | {"config": settings.family.config.to_dict(), "optimizer": vars(settings.optimizer)}


def _settings_from_json(values: dict[str, Any]) -> ProgramSettings:
    family = family_for(parse_model_config(values.pop("config")))
    optimizer = OptimizerSettings(**values.pop("optimizer"))
    return ProgramSettings(family=family, optimizer=optimizer, **(values | {"windows": tuple(values["windows"])}))


def _serve(folder: Path) -> None:
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is no answer
    settings = _settings_from_json(json.loads(sys.stdin.readline()))
    for line in sys.stdin:
        name, data, arena_bytes = _lower_here(settings, line.strip())
        (folder / f"{name}.pte").write_bytes(data)
        answers.write(json.dumps({"arena_bytes": arena_bytes}) + "\n")
        answers.flush()


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
