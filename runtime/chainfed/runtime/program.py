"""A bundle's program on the ExecuTorch runtime, called by tensor names.

Importing this module starts no thread: ExecuTorch makes its pool at the first call of a program or of `set_threads`.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import executorch.extension.pybindings._portable_lib as executorch_runtime
import torch

from chainfed.core.errors import BundleError
from chainfed.core.manifest import ProgramEntry, TensorSpec
from chainfed.runtime.dtypes import TORCH_DTYPES
from chainfed.runtime.memory import return_large_blocks

_METHOD = "forward"


def set_threads(count: int) -> None:
    """Makes this process ready to run programs: `count` threads each for ExecuTorch and torch, large blocks given back.

    Call it after a fork and before the first program runs: a pool does not survive a fork.
    """
    return_large_blocks()
    with _quiet_stderr():
        executorch_runtime._unsafe_reset_threadpool(count)
    torch.set_num_threads(count)


class Program:
    """A loaded `.pte` whose inputs and outputs carry the names of the manifest.

    Inputs are not copied: a tensor over a mapped file stays in that file. Outputs lie in the program's arena.
    """

    def __init__(self, path: Path, entry: ProgramEntry) -> None:
        """Loads `path`. Raises BundleError when it is no program, or not the one that `entry` describes."""
        self.path = path
        self.entry = entry
        if not path.is_file():
            raise BundleError(f"{path} does not exist; fetch or export the bundle again.")
        try:
            self._module: Any = executorch_runtime._load_for_executorch(str(path))
            meta = self._module.method_meta(_METHOD)
        except RuntimeError as error:
            raise BundleError(
                f"{path} is no program that ExecuTorch can load ({error}); export the bundle again."
            ) from error
        for what, given, specs in (
            ("inputs", meta.num_inputs(), entry.inputs),
            ("outputs", meta.num_outputs(), entry.outputs),
        ):
            if given != len(specs):
                raise BundleError(
                    f"{path} has {given} {what}, the manifest names {len(specs)}: they do not belong together; "
                    "export the bundle again."
                )

    def run(self, inputs: Mapping[str, torch.Tensor], clone_outputs: bool = True) -> dict[str, torch.Tensor]:
        """Runs the program once.

        inputs: exactly the manifest's names, with its shapes and dtypes, contiguous, in any order.
        clone_outputs: False returns views of the arena, which hold until the next call or `close`.
        Raises BundleError when an input is missing, unknown or of another shape or dtype, or when the program fails.
        """
        arguments = arrange(inputs, self.entry.inputs, self.path.name)
        if self._module is None:
            raise ValueError(f"{self.path} is closed")
        try:
            outputs = self._module.run_method(_METHOD, arguments, clone_outputs=clone_outputs)
        except RuntimeError as error:
            raise BundleError(f"{self.path} failed while it ran ({error}); export the bundle again.") from error
        return {spec.name: output for spec, output in zip(self.entry.outputs, outputs, strict=True)}

    def close(self) -> None:
        """Frees the arena. Views that `run` returned are void from now on."""
        self._module = None

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def arrange(inputs: Mapping[str, torch.Tensor], specs: Sequence[TensorSpec], what: str) -> list[torch.Tensor]:
    """The tensors in the order of `specs`. Raises BundleError, naming `what`, when they do not fit."""
    if len(inputs) != len(specs):
        names = {spec.name for spec in specs}
        missing = sorted(names - inputs.keys())
        unknown = sorted(inputs.keys() - names)
        raise BundleError(
            f"{what}: inputs missing: {', '.join(missing[:4]) or 'none'}; unknown: {', '.join(unknown[:4]) or 'none'}; "
            "the bundle was made for another model."
        )
    arranged = []
    for spec in specs:
        tensor = inputs.get(spec.name)
        if tensor is None:
            raise BundleError(f"{what}: input {spec.name} is missing; the bundle was made for another model.")
        if tuple(tensor.shape) != spec.shape or tensor.dtype != TORCH_DTYPES[spec.dtype]:
            raise BundleError(
                f"{what}: input {spec.name} is {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}, the "
                f"program takes {spec.dtype} {list(spec.shape)}; weights and programs do not belong together."
            )
        if not tensor.is_contiguous():
            raise ValueError(f"{what}: input {spec.name} is not contiguous")
        arranged.append(tensor)
    return arranged


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Drops what native code writes to standard error: ExecuTorch logs what it reads about the processor there."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
