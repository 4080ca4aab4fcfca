"""What training carries from step to step (weights and optimiser state) in two files that are written in turn."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch

from chainfed.core.manifest import ProgramEntry, TensorSpec
from chainfed.harness.mapped import MappedFile

_ALIGNMENT = 64
_FLOAT_BYTES = 4


def carried_specs(entry: ProgramEntry) -> tuple[TensorSpec, ...]:
    """The tensors of a training program that are both input and output: its trainables and its optimiser's state."""
    outputs = {spec.name for spec in entry.outputs}
    return tuple(spec for spec in entry.inputs if spec.name in outputs)


class StateSlots:
    """Two generations of the carried tensors: step t reads generation t and writes t + 1 into the other file.

    The generation that a step reads is untouched until the step after the next one, so a process killed during step t
    finds generation t as it was.
    """

    def __init__(self, folder: Path, name: str, entry: ProgramEntry) -> None:
        """Opens or makes `{name}.0` and `{name}.1` in `folder`. Raises OSError when the disk has no room."""
        offset = 0
        places: dict[str, tuple[int, tuple[int, ...]]] = {}
        for spec in carried_specs(entry):
            places[spec.name] = (offset, spec.shape)
            num_bytes = math.prod(spec.shape) * _FLOAT_BYTES
            offset += -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
        self._files = tuple(MappedFile(folder / f"{name}.{number}", offset) for number in (0, 1))
        self._tensors = tuple(
            {tensor: file.tensor(start, shape) for tensor, (start, shape) in places.items()} for file in self._files
        )

    def generation(self, step: int) -> Mapping[str, torch.Tensor]:
        """Views of the tensors that step `step` reads (0: the initial ones), float32."""
        return self._tensors[step % 2]

    def fill(self, initial: Mapping[str, torch.Tensor]) -> None:
        """Writes generation 0. What `initial` does not name (optimiser state) becomes zero."""
        for name, tensor in self.generation(0).items():
            if name in initial:
                tensor.copy_(initial[name])
            else:
                tensor.zero_()

    def store(self, step: int, outputs: Mapping[str, torch.Tensor]) -> None:
        """Writes what step `step` gave as generation `step + 1`."""
        for name, tensor in self.generation(step + 1).items():
            tensor.copy_(outputs[name])

    def close(self) -> None:
        """Ends both mappings."""
        self._tensors = ({}, {})
        for file in self._files:
            file.close()
