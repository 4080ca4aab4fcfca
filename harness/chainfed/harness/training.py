"""The steps of a training program over local batches, one journalled step after the other (Algorithm 1, line 8)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import torch

from chainfed.core.errors import NotFiniteError
from chainfed.core.tensors import adapter_names
from chainfed.harness.chain import Checkpoint
from chainfed.harness.journal import Journal
from chainfed.harness.mapped import MappedFile
from chainfed.harness.slots import StateSlots
from chainfed.runtime.feeds import Named, take
from chainfed.runtime.program import Program

_FLOAT_BYTES = 4


def run_steps(
    label: str,
    program: Program,
    initial: Named,
    steps: Sequence[Sequence[int]],
    constant: Named,
    batch_feed: Callable[[Sequence[int]], Named],
    measured: tuple[str, ...],
    journal: Journal,
    checkpoint: Checkpoint,
) -> tuple[dict[str, torch.Tensor], list[list[float]]]:
    """Runs a training program once a step and returns what it trained and what it measured.

    label: names these steps in the journal. initial: trainables at the start; optimiser state starts at zero.
    steps: the examples of each step. constant: inputs that stay. batch_feed: the inputs that depend on the examples.
    measured: the scalar outputs to keep. Returns the carried tensors after the last step (copies, float32) and
    for each step the values of `measured`. Raises NotFiniteError when one of them is not finite.
    """
    slots = StateSlots(journal.folder, label, program.entry)
    done = [values for name, values in journal.find("step") if name == label]
    if not done:
        slots.fill(initial)
    for number in range(len(done), len(steps)):
        inputs = {**constant, **slots.generation(number), **batch_feed(steps[number])}
        outputs = program.run(inputs, clone_outputs=False)
        values = [outputs[name].item() for name in measured]
        if not all(math.isfinite(value) for value in values):
            raise NotFiniteError(f"The loss of step {number + 1} is not finite; lower the learning rate.")
        slots.store(number, outputs)
        journal.append({"step": [label, values]})
        done.append(values)
        checkpoint("")
    trained = {name: tensor.clone() for name, tensor in slots.generation(len(steps)).items()}
    slots.close()
    return trained, done


@contextmanager
def auxiliary_adapters(
    path: Path, state: Named, end: int, window_size: int, num_layers: int
) -> Iterator[dict[str, torch.Tensor]]:
    """The adapters after layer `end` as one stack [L - Q, A, D] each of `down` and `up`; none when L = Q.

    The stacks lie in the file `path`, mapped. The rest of each is zero: an adapter of zeros changes nothing (Sec. 4.3).
    """
    after = num_layers - window_size
    if after == 0:
        yield {}
        return
    shape = (after, *take(state, adapter_names(end)[0]).shape)
    num_bytes = math.prod(shape) * _FLOAT_BYTES
    with closing(MappedFile(path, 2 * num_bytes)) as file:
        feed = {f"aux.{name}": file.tensor(place, shape) for name, place in (("down", 0), ("up", num_bytes))}
        for number, stack in enumerate(feed.values()):
            stack.zero_()
            for index, layer in enumerate(range(end + 1, num_layers)):
                stack[index] = take(state, adapter_names(layer)[number])
        del stack
        yield feed
        feed.clear()


def changes(trained: Named, before: Named, names: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """After minus before of the tensors that `names` maps from the program's inputs to the model state's names.

    The rows of a head that stand for no label stay behind.
    """
    pairs = {target: (trained[source], take(before, target)) for source, target in names.items()}
    return {target: after[: len(tensor)] - tensor for target, (after, tensor) in pairs.items()}
