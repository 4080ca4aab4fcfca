"""The four tasks of a device, each a function from a prepared `Work` to its outcome (Algorithm 1; Sec. 4.2 to 4.4).

Every one of them is a pass through the frozen chain and something small after it, and resumes where its journal ends.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial

import torch

from chainfed.core.errors import BundleError, NotFiniteError
from chainfed.core.manifest import window_program
from chainfed.core.order import batches
from chainfed.core.tensors import head_names
from chainfed.harness.arithmetic import sum_in_order
from chainfed.harness.bundle import DeviceBundle
from chainfed.harness.chain import Chain, Checkpoint, KeptDepth
from chainfed.harness.data import TokenData, pad
from chainfed.harness.hidden import HiddenView
from chainfed.harness.journal import Journal
from chainfed.harness.mapped import MappedFile
from chainfed.harness.objective import Classifier, objective_of, scalars
from chainfed.harness.outcome import EvaluationOutcome, UpdateOutcome, write_tensors
from chainfed.harness.training import auxiliary_adapters, changes, run_steps
from chainfed.runtime.feeds import Named, head_feed, program_tensor
from chainfed.runtime.memory import trim
from chainfed.runtime.program import Program
from chainfed.runtime.shards import Shard
from chainfed.v1 import device_service_pb2 as pb

_WINDOW_MEASURES = ("loss", "local_loss", "global_loss", "correct")
_HEAD_MEASURES = ("loss", "correct")


@dataclass(frozen=True)
class Work:
    """All that a task works with.

    state: the pieces of the model state that the assignment brought. kept: where the output of the layers that never
    change goes. checkpoint: see `Chain`; raises to stop the work.
    """

    bundle: DeviceBundle
    state: Mapping[str, torch.Tensor]
    data: TokenData
    journal: Journal
    seed: int
    kept: KeptDepth | None
    checkpoint: Checkpoint

    def kept_up_to(self, depth: int) -> KeptDepth | None:
        """The kept depth, when what is needed does not lie below it."""
        return self.kept if self.kept is not None and self.kept.depth <= depth else None

    def steps(self, epochs: int) -> list[list[int]]:
        """The examples of every training step, drawn from the assignment's seed."""
        return batches(len(self.data), self.bundle.manifest.shapes.batch_size, epochs, self.seed)


class FeatureFile:
    """Pooled features of some layers in a mapped file: for each of them (batches x batch size, hidden) float32."""

    def __init__(self, work: Work, num_layers: int) -> None:
        """Opens or makes the file of an assignment. Raises OSError when the disk has no room."""
        self._size = work.data.batch_size
        width = work.bundle.manifest.model.hidden_size
        shape = (num_layers, work.data.num_batches * self._size, width)
        self._file = MappedFile(work.journal.path("features"), math.prod(shape) * 4)
        self._features = self._file.tensor(0, shape)

    def put(self, index: int, batch: int, features: torch.Tensor) -> None:
        """Keeps the features of one batch of the layer at `index`: (batch, hidden)."""
        self._features[index, batch * self._size : (batch + 1) * self._size].copy_(features)

    def layer(self, index: int) -> torch.Tensor:
        """The features of all rows, padding included: a view."""
        return self._features[index]

    def close(self) -> None:
        """Ends the mapping."""
        self._features = torch.empty(0)
        self._file.close()


def train(work: Work, task: pb.TrainTask) -> UpdateOutcome:
    """Trains the adapters of a window, and a classifier's heads with them (Sec. 4.2, 4.3; Eq. 2)."""
    manifest = work.bundle.manifest
    num_layers = manifest.model.num_layers
    end = task.first_layer + task.window_size - 1
    if task.window_size < 1 or end >= num_layers:
        raise BundleError(f"The window {task.first_layer} to {end} is not within the bundle's {num_layers} layers.")
    final = end == num_layers - 1
    objective = objective_of(work.bundle, work.data)
    names = objective.trained(task.first_layer, task.window_size)
    steps = work.steps(task.local_epochs)
    kept = work.kept_up_to(task.first_layer)
    with closing(Chain(work.bundle, work.state, work.data, work.journal, kept, None, work.checkpoint)) as chain:
        chain.advance_to(task.first_layer)
        work.checkpoint(f"window {task.first_layer} to {end}")
        hidden = chain.view(task.first_layer)
        buffer = torch.empty(hidden.file.shape.batch)
        with ExitStack() as mapped, work.bundle.program(window_program(task.window_size)) as program:
            shards = [work.bundle.layer(task.first_layer + index) for index in range(task.window_size)]
            for shard in shards:
                mapped.enter_context(shard)
            output = mapped.enter_context(work.bundle.output())
            constant = output | objective.constants(task, work.state, mapped)
            stacks = auxiliary_adapters(work.journal.path("aux"), work.state, end, task.window_size, num_layers)
            constant |= mapped.enter_context(stacks) | _layers(shards)
            constant |= scalars(
                adapter_lr=task.adapter_lr, global_loss_weight=0.0 if final else task.global_loss_weight
            )
            trained, measured = run_steps(
                "window",
                program,
                {source: program_tensor(manifest, work.state, target) for source, target in names.items()},
                steps,
                constant,
                lambda rows: _window_batch(work, hidden, buffer, rows) | objective.targets(rows),
                _WINDOW_MEASURES,
                work.journal,
                work.checkpoint,
            )
            constant.clear()
    loss, local_loss, global_loss, correct = (sum_in_order(values) for values in zip(*measured, strict=True))
    return UpdateOutcome(
        num_examples=len(work.data),
        num_steps=len(steps),
        loss=loss / len(steps),
        local_loss=local_loss / len(steps),
        global_loss=global_loss / len(steps),
        accuracy=correct / sum(objective.num_targets(rows) for rows in steps),
        tensors_sha256=_write(work, changes(trained, work.state, objective.changed(task, names))),
    )


def warm_up(work: Work, task: pb.WarmupTask) -> UpdateOutcome:
    """Trains the heads of some layers on pooled features; the layers and adapters stay as they are."""
    layers = list(task.head_layers)
    if not layers or max(layers) >= work.bundle.manifest.model.num_layers:
        raise BundleError(f"The heads to train, {layers}, are not within the bundle's layers.")
    measured: list[list[float]] = []
    update: dict[str, torch.Tensor] = {}
    steps = work.steps(task.local_epochs)
    with closing(FeatureFile(work, len(layers))) as file:
        _pool_layers(work, layers, file)
        with work.bundle.program("head") as program:
            for index, layer in enumerate(layers):
                work.checkpoint(f"head {layer}")
                feed = head_feed(work.bundle.manifest, work.state, layer)
                trained, values = run_steps(
                    f"head.{layer}",
                    program,
                    {name: feed.pop(name) for name in ("head.weight", "head.bias")},
                    steps,
                    feed | scalars(head_lr=task.head_lr),
                    partial(_head_batch, work, file.layer(index)),
                    _HEAD_MEASURES,
                    work.journal,
                    work.checkpoint,
                )
                measured += values
                weight, bias = head_names(layer)
                update |= changes(trained, work.state, {"head.weight": weight, "head.bias": bias})
    loss, correct = (sum_in_order(values) for values in zip(*measured, strict=True))
    return UpdateOutcome(
        num_examples=len(work.data),
        num_steps=len(measured),
        loss=loss / len(measured),
        local_loss=loss / len(measured),
        global_loss=0.0,
        accuracy=correct / (len(work.data) * task.local_epochs * len(layers)),
        tensors_sha256=_write(work, update),
    )


def evaluate(work: Work) -> EvaluationOutcome:
    """Predicts with the final head on top of all layers, every label or every target token, and counts."""
    num_layers = work.bundle.manifest.model.num_layers
    kept = work.kept_up_to(num_layers)
    objective = objective_of(work.bundle, work.data)
    with closing(Chain(work.bundle, work.state, work.data, work.journal, kept, None, work.checkpoint)) as chain:
        chain.advance_to(num_layers)
        hidden = chain.view(num_layers)
        scored = work.journal.find("score")
        with ExitStack() as mapped, work.bundle.program("score") as program:
            feed = mapped.enter_context(work.bundle.output()) | objective.scoring(work.state, mapped)
            for batch in range(len(scored), work.data.num_batches):
                rows = work.data.stored_batch(batch)
                real = rows[: min(len(rows), len(work.data) - rows[0])]
                inputs = feed | {"h": hidden.batch(batch), "mask": work.data.mask[rows]}
                scored.append(_score(program, inputs, objective.scored(real)))
                hidden.file.release()
                work.journal.append({"score": scored[-1]})
                work.checkpoint("")
            feed.clear()
    loss, correct, count = (sum_in_order(values) for values in zip(*scored, strict=True))
    return EvaluationOutcome(num_examples=round(count), num_correct=round(correct), loss_sum=loss)


def _score(program: Program, inputs: Named, targets: Iterable[Named]) -> list[float]:
    """Loss, correct predictions and predictions of a batch."""
    loss = correct = count = 0.0
    for some in targets:
        outputs = program.run({**inputs, **some}, clone_outputs=False)
        loss += outputs["loss_sum"].item()
        correct += outputs["correct"].item()
        count += float(some["target_weights" if "target_weights" in some else "sample_weights"].sum())
    if not (math.isfinite(loss) and math.isfinite(correct)):
        raise NotFiniteError("The loss over held-out examples is not finite; the model has diverged.")
    return [loss, correct, count]


def _pool_layers(work: Work, layers: Sequence[int], file: FeatureFile) -> None:
    """Runs the chain to the last of `layers` and keeps the pooled features of each of them."""
    with work.bundle.program("pool") as pool, work.bundle.output() as output:

        def keep(depth: int, batch: int, h: torch.Tensor, mask: torch.Tensor) -> None:
            if depth - 1 in layers:
                pooled = pool.run({"h": h, "mask": mask} | output, clone_outputs=False)["features"]
                file.put(layers.index(depth - 1), batch, pooled)

        kept = work.kept_up_to(min(layers))
        with closing(Chain(work.bundle, work.state, work.data, work.journal, kept, keep, work.checkpoint)) as chain:
            chain.advance_to(max(layers) + 1)
    trim()


def _layers(shards: Sequence[Shard]) -> dict[str, torch.Tensor]:
    """The frozen weights of a window's layers."""
    return {
        f"window.{index}.layer.{name}": tensor
        for index, shard in enumerate(shards)
        for name, tensor in shard.tensors.items()
    }


def _window_batch(work: Work, hidden: HiddenView, buffer: torch.Tensor, rows: Sequence[int]) -> dict[str, torch.Tensor]:
    padded = pad(rows, buffer.shape[0])
    for place, row in enumerate(padded):
        buffer[place].copy_(hidden.row(row))
    hidden.file.release()
    return {"h": buffer, "mask": work.data.mask[padded]}


def _head_batch(work: Work, features: torch.Tensor, rows: Sequence[int]) -> dict[str, torch.Tensor]:
    manifest = work.bundle.manifest
    return {"features": features[pad(rows, manifest.shapes.batch_size)]} | Classifier(manifest, work.data).targets(rows)


def _write(work: Work, tensors: Mapping[str, torch.Tensor]) -> str:
    return write_tensors(work.journal, {name: tensor.numpy() for name, tensor in tensors.items()})
