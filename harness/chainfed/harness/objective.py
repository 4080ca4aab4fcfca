"""What the device algorithm does differently for a classifier and for a language model: targets, heads and counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Protocol

import torch

from chainfed.core.manifest import Manifest
from chainfed.core.tensors import adapter_names, head_names
from chainfed.harness.bundle import DeviceBundle
from chainfed.harness.data import TokenData, pad, sample_weights
from chainfed.runtime.feeds import Named, head_feed, statistics_feed
from chainfed.runtime.language_data import NO_TARGET, all_targets, choose_targets
from chainfed.v1 import device_service_pb2 as pb

Feed = dict[str, torch.Tensor]


class Objective(Protocol):
    """What is learnt by the windows and counted by evaluations. Layers are 0-based; `end` is a window's last one."""

    def trained(self, first_layer: int, window_size: int) -> dict[str, str]:
        """The trainable inputs of a window's program and the tensors of the model state that they are."""
        ...

    def changed(self, task: pb.TrainTask, names: dict[str, str]) -> dict[str, str]:
        """Those of the trained tensors whose change is handed in."""
        ...

    def constants(self, task: pb.TrainTask, state: Named, mapped: ExitStack) -> Feed:
        """The inputs of a window's program, beside layers, that no batch changes; maps what lies in files."""
        ...

    def targets(self, rows: Sequence[int]) -> Feed:
        """What a training step is to predict, the mean over it being the loss."""
        ...

    def num_targets(self, rows: Sequence[int]) -> int:
        """How many predictions `targets` asks for."""
        ...

    def scoring(self, state: Named, mapped: ExitStack) -> Feed:
        """The inputs of the program `score` that no batch changes."""
        ...

    def scored(self, rows: Sequence[int]) -> Iterator[Feed]:
        """All there is to predict in these rows of a stored batch, as often as `score` has to run for it."""
        ...


def objective_of(bundle: DeviceBundle, data: TokenData) -> Objective:
    """The objective of a bundle's task over a device's examples."""
    return LanguageModel(bundle, data) if bundle.manifest.is_language_model else Classifier(bundle.manifest, data)


class Classifier:
    """Labels of whole rows, predicted by heads that are trained with the adapters.

    In the final stage, whose window ends at the last layer, the final head stands at both places.
    """

    def __init__(self, manifest: Manifest, data: TokenData) -> None:
        self._manifest, self._data, self._batch_size = manifest, data, manifest.shapes.batch_size
        self._last = manifest.model.num_layers - 1

    def trained(self, first_layer: int, window_size: int) -> dict[str, str]:
        """The adapters, the head at the window's end, and the final head."""
        names = _adapters(first_layer, window_size)
        heads = (("trainable.local_head", first_layer + window_size - 1), ("trainable.final_head", self._last))
        for prefix, layer in heads:
            weight, bias = head_names(layer)
            names |= {f"{prefix}.weight": weight, f"{prefix}.bias": bias}
        return names

    def changed(self, task: pb.TrainTask, names: dict[str, str]) -> dict[str, str]:
        """All but a final head that is not trained, or is the local one."""
        if _end(task) < self._last and task.final_head_lr > 0:
            return names
        return {source: target for source, target in names.items() if ".final_head." not in source}

    def constants(self, task: pb.TrainTask, state: Named, mapped: ExitStack) -> Feed:
        """Statistics of both heads and their learning rates."""
        del mapped
        end, final = _end(task), _end(task) == self._last
        last_layer = task.global_branch_statistics == pb.GLOBAL_BRANCH_STATISTICS_LAST_LAYER
        feed = statistics_feed(state, end, "local_")
        feed |= statistics_feed(state, self._last if last_layer else end, "final_")
        return feed | scalars(head_lr=task.head_lr, final_head_lr=0.0 if final else task.final_head_lr)

    def targets(self, rows: Sequence[int]) -> Feed:
        """Labels and sample weights that sum to 1."""
        return self._labelled(rows, 1.0 / len(rows))

    def num_targets(self, rows: Sequence[int]) -> int:
        """One a row."""
        return len(rows)

    def scoring(self, state: Named, mapped: ExitStack) -> Feed:
        """The final head."""
        del mapped
        return head_feed(self._manifest, state, self._last)

    def scored(self, rows: Sequence[int]) -> Iterator[Feed]:
        """Every label once."""
        yield self._labelled(rows, 1.0)

    def _labelled(self, rows: Sequence[int], each: float) -> Feed:
        size = self._batch_size
        weights = sample_weights(len(rows), size, each)
        return {"labels": self._data.labels[pad(rows, size)], "sample_weights": weights}


class LanguageModel:
    """The tokens that follow, predicted by the model's own frozen head."""

    def __init__(self, bundle: DeviceBundle, data: TokenData) -> None:
        self._bundle, self._data = bundle, data
        self._most = bundle.manifest.task.max_target_tokens

    def trained(self, first_layer: int, window_size: int) -> dict[str, str]:
        """The adapters."""
        return _adapters(first_layer, window_size)

    def changed(self, task: pb.TrainTask, names: dict[str, str]) -> dict[str, str]:
        """All of them."""
        del task
        return names

    def constants(self, task: pb.TrainTask, state: Named, mapped: ExitStack) -> Feed:
        """The model's head."""
        del task
        return self.scoring(state, mapped)

    def targets(self, rows: Sequence[int]) -> Feed:
        """The first targets of each row, as many as the program takes; weights that sum to 1."""
        chosen = choose_targets(self._labels(rows), self._most)
        return chosen.feed(1.0 / chosen.count)

    def num_targets(self, rows: Sequence[int]) -> int:
        """At most what the program takes of each row."""
        return choose_targets(self._labels(rows), self._most).count

    def scoring(self, state: Named, mapped: ExitStack) -> Feed:
        """The model's head."""
        del state
        return mapped.enter_context(self._bundle.language_head())

    def scored(self, rows: Sequence[int]) -> Iterator[Feed]:
        """All targets, as many of a row at a time as the program takes."""
        for chosen in all_targets(self._labels(rows), self._most):
            yield chosen.feed(1.0)

    def _labels(self, rows: Sequence[int]) -> torch.Tensor:
        """Of a whole batch; padding has nothing to predict."""
        labels = self._data.labels[pad(rows, self._data.batch_size)]
        labels[len(rows) :] = NO_TARGET
        return labels


def scalars(**values: float) -> Feed:
    """float32 scalars by name."""
    return {name: torch.tensor(value, dtype=torch.float32) for name, value in values.items()}


def _adapters(first_layer: int, window_size: int) -> dict[str, str]:
    names: dict[str, str] = {}
    for index in range(window_size):
        down, up = adapter_names(first_layer + index)
        names |= {f"trainable.window.{index}.down": down, f"trainable.window.{index}.up": up}
    return names


def _end(task: pb.TrainTask) -> int:
    return task.first_layer + task.window_size - 1
