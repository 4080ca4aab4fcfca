"""What `chainfed verify` feeds the programs: real and random batches at every place of the chain where they run.

B batch, S sequence, D hidden size, L layers, Q window size. Hidden states come from the eager reference, layer by
layer over the bundle's own weights; adapters and heads are random, so that no branch is trivial.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from chainfed.core.examples import Example
from chainfed.core.manifest import EMBEDDINGS_FILE, TOKENIZER_FILE, Bundle, layer_file, window_program
from chainfed.core.order import derive_seed
from chainfed.runtime.feeds import (
    adapter_feed,
    embedding_feed,
    head_feed,
    language_head_feed,
    layer_feed,
    output_feed,
    program_tensor,
    statistics_feed,
)
from chainfed.runtime.language_data import NO_TARGET, choose_targets
from chainfed.runtime.shards import Shard
from chainfed.runtime.tokenization import Tokenizer
from chainfed.toolchain.reference import Reference, wide_tensors

SENTENCES = (
    "The match ended in a draw after two late goals.",
    "Shares fell sharply when the central bank raised its rates.",
    "A new telescope has found water vapour around a distant planet.",
    "The food was cold and nobody came to take our order.",
    "Talks between the two governments will go on next week, officials said on Sunday.",
    "I have been here three times, and every dish was better than the last.",
    "The company says its phone lasts two days on one charge.",
    "Rain stopped play before lunch.",
    "No.",
)

_STEPS = 3
_DEVIATION = 0.05


@dataclass(frozen=True)
class Case:
    """A program's inputs at one place of the chain.

    Attributes:
        program: the program's name.
        description: where in the chain, for people.
        inputs: by name.
        rows: how many rows of the batch are real; what comes out for the others means nothing.
        steps: how often it is run, each time on the weights and the state that the time before gave.
        held: the weights that the program holds, by the names that they have where they are inputs.
    """

    program: str
    description: str
    inputs: Mapping[str, Tensor]
    rows: int
    steps: int = 1
    held: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Rows:
    """A batch of text: ids (B, S) int64, mask (B, S), and labels (B,), of a language model (B, S)."""

    ids: Tensor
    mask: Tensor
    labels: Tensor


def classified_rows(bundle: Bundle, examples: Sequence[Example]) -> Rows:
    """The first examples, as many as a batch has rows, over again where there are fewer."""
    manifest = bundle.manifest
    pad_token_id, seq_len = manifest.tokenizer.pad_token_id, manifest.shapes.seq_len
    chosen = [examples[row % len(examples)] for row in range(manifest.shapes.batch_size)]
    tokens = Tokenizer(bundle.path(TOKENIZER_FILE), pad_token_id, seq_len)([example.text for example in chosen])
    return Rows(tokens.ids, tokens.mask, torch.tensor([example.label for example in chosen]))


@dataclass(frozen=True)
class Batch:
    """Rows on their way through the model, the first `rows` of them real; layer i takes `hidden[i]`, gives the next."""

    description: str
    rows: int
    ids: Tensor
    mask: Tensor
    labels: Tensor
    hidden: list[Tensor] = field(default_factory=list)


class Cases:
    """All cases of a classifier's bundle, made one after the other; `total` of them."""

    num_task_programs = 3
    """Programs of the task beside the windows."""

    def __init__(self, bundle: Bundle, reference: Reference, text: Rows, seed: int = 0) -> None:
        """Runs the reference through the model over a full and a partial batch of text and a random batch."""
        self._manifest = bundle.manifest
        self._layers = bundle.manifest.model.num_layers
        self._generator = torch.Generator().manual_seed(derive_seed("verify", seed) >> 1)
        self._state = self._random_state()
        self._embeddings = Shard(bundle.path(EMBEDDINGS_FILE))
        self._shards = [Shard(bundle.path(layer_file(layer))) for layer in range(self._layers)]
        self._mapped = ExitStack()
        self._output = self._mapped.enter_context(output_feed(bundle.manifest, bundle.path))
        self._batches = self._make_batches(text)
        self._run_reference(reference)

    @property
    def total(self) -> int:
        """How many cases there are."""
        places = sum(len(self._places(size)) for size in self._manifest.windows)
        return len(self._batches) * (1 + self._layers + self.num_task_programs + places)

    def __iter__(self) -> Iterator[Case]:
        """Every program in turn."""
        for batch in self._batches:
            feed = {"input_ids": batch.ids, "mask": batch.mask} | embedding_feed(self._embeddings)
            yield Case("embed", batch.description, feed, batch.rows)
        for layer, shard in enumerate(self._shards):
            name, weights = self._manifest.block_program(layer), layer_feed(shard)
            given, held = ({}, weights) if self._manifest.blocks_hold_weights else (weights, {})
            for batch in self._batches:
                feed = {"h": batch.hidden[layer], "mask": batch.mask} | adapter_feed(self._state, layer) | given
                yield Case(name, f"layer {layer}, {batch.description}", feed, batch.rows, held=held)
        for batch in self._batches:
            yield from self.task_cases(batch)
        for size in self._manifest.windows:
            for first in self._places(size):
                for batch in self._batches:
                    yield self._window_case(size, first, batch)

    def _places(self, size: int) -> list[int]:
        """First layers of a window: at the start of the chain, in its middle, and in the final stage."""
        last = self._layers - size
        return sorted({0, last // 2, last})

    def task_cases(self, batch: Batch) -> Iterator[Case]:
        """The task's programs beside the windows."""
        head = head_feed(self._manifest, self._state, self._layers - 1)
        h = {"h": batch.hidden[self._layers], "mask": batch.mask} | self._output
        yield Case("pool", batch.description, h, batch.rows)
        yield Case("score", batch.description, h | head | _targets(batch, 1.0), batch.rows)
        features = {"features": self._randn(len(batch.ids), self._manifest.model.hidden_size)}
        feed = features | head | _targets(batch) | self._zero_state("head")
        feed["head_lr"] = torch.tensor(self._manifest.defaults.head_lr)
        yield Case("head", batch.description, feed, batch.rows, _STEPS)

    def _window_case(self, size: int, first: int, batch: Batch) -> Case:
        end = first + size - 1
        final_stage = end == self._layers - 1
        weight = 0.0 if final_stage else max(self._manifest.defaults.global_loss_weight, 0.1)
        feed: dict[str, Tensor] = {"h": batch.hidden[first], "mask": batch.mask} | self._output
        feed |= {"global_loss_weight": torch.tensor(weight)} | self.stage_feed(end, batch)
        for index in range(size):
            shard = self._shards[first + index]
            feed |= {f"window.{index}.layer.{name}": tensor for name, tensor in shard.tensors.items()}
            for part in ("down", "up"):
                feed[f"trainable.window.{index}.{part}"] = self._state[f"adapters.{first + index}.{part}"]
        feed |= self._auxiliary(size, end) | self._zero_state(window_program(size))
        place = f"layers {first} to {end}{' (final stage)' if final_stage else ''}, {batch.description}"
        return Case(window_program(size), place, feed, batch.rows, _STEPS)

    def stage_feed(self, end: int, batch: Batch) -> dict[str, Tensor]:
        """What a window that ends at layer `end` takes beside adapters and layers: targets, heads, rates."""
        last, defaults = self._layers - 1, self._manifest.defaults
        feed = _targets(batch)
        for head, layer in (("local_head", end), ("final_head", last)):
            for part in ("weight", "bias"):
                feed[f"trainable.{head}.{part}"] = program_tensor(self._manifest, self._state, f"heads.{layer}.{part}")
        feed |= statistics_feed(self._state, end, "local_")
        branch_end = end if defaults.global_branch_statistics == "window_end" else last
        feed |= statistics_feed(self._state, branch_end, "final_")
        rates = {"adapter_lr": defaults.adapter_lr, "head_lr": defaults.head_lr}
        rates["final_head_lr"] = 0.0 if end == last else defaults.head_lr
        return feed | {name: torch.tensor(rate) for name, rate in rates.items()}

    def random_labels(self, ids: Tensor) -> Tensor:
        """Labels of the batch of random tokens."""
        return torch.randint(self._manifest.num_labels, (len(ids),), generator=self._generator)

    def _auxiliary(self, size: int, end: int) -> dict[str, Tensor]:
        """The adapters after the window, padded with zeros to the length that the program takes."""
        if size == self._layers:
            return {}
        shape = (self._layers - size, self._manifest.adapter.bottleneck, self._manifest.model.hidden_size)
        stack = {"aux.down": torch.zeros(shape), "aux.up": torch.zeros(shape)}
        for index, layer in enumerate(range(end + 1, self._layers)):
            stack["aux.down"][index] = self._state[f"adapters.{layer}.down"]
            stack["aux.up"][index] = self._state[f"adapters.{layer}.up"]
        return stack

    def _zero_state(self, program: str) -> dict[str, Tensor]:
        specs = self._manifest.programs[program].inputs
        return {spec.name: torch.zeros(spec.shape) for spec in specs if spec.name.startswith("state.")}

    def _random_state(self) -> dict[str, Tensor]:
        """A model state in which nothing is zero; the statistics follow from the text later."""
        return {name: self._randn(*shape) * _DEVIATION for name, shape in self._manifest.state_shapes().items()}

    def _make_batches(self, text: Rows) -> list[Batch]:
        model, size = self._manifest.model, self._manifest.shapes.batch_size
        ids = torch.randint(model.vocab_size, text.ids.shape, generator=self._generator)
        pad = self._manifest.tokenizer.pad_token_id
        ids = torch.where(ids == pad, (pad + 1) % model.vocab_size, ids)  # some models find padding by its id
        some = max(1, size - 1 - size // 4)
        return [
            Batch("text, full batch", size, text.ids, text.mask, text.labels),
            Batch(f"text, {some} of {size} rows", some, text.ids, text.mask, text.labels),
            Batch("random tokens", size, ids, torch.ones_like(text.mask), self.random_labels(ids)),
        ]

    def _run_reference(self, reference: Reference) -> None:
        """Fills the batches' hidden states, and what else depends on them."""
        for batch in self._batches:
            feed = {"input_ids": batch.ids, "mask": batch.mask} | embedding_feed(self._embeddings)
            batch.hidden.append(reference.run("embed", wide_tensors(feed))["h"])
        for layer, shard in enumerate(self._shards):
            for batch in self._batches:
                feed = {"h": batch.hidden[layer], "mask": batch.mask}
                feed |= layer_feed(shard) | adapter_feed(self._state, layer)
                batch.hidden.append(reference.run("block", wide_tensors(feed))["h"])
            self.after_layer(layer, self._batches[0], reference)

    def after_layer(self, layer: int, text: Batch, reference: Reference) -> None:
        """The statistics as FOAT would find them: from the pooled features of the text."""
        features = reference.run("pool", {"h": text.hidden[-1], "mask": text.mask} | self._output)["features"]
        self._state[f"statistics.{layer}.mean"] = features.mean(dim=0)
        variance = features.var(dim=0, correction=0)
        self._state[f"statistics.{layer}.rstd"] = torch.rsqrt(variance + 1e-2)

    def _randn(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator)


class LanguageCases(Cases):
    """All cases of a language model's bundle."""

    num_task_programs = 2

    def __init__(self, bundle: Bundle, reference: Reference, text: Rows, seed: int = 0) -> None:
        """As for a classifier."""
        super().__init__(bundle, reference, text, seed)
        self._head = self._mapped.enter_context(language_head_feed(bundle.manifest, bundle.path))

    def task_cases(self, batch: Batch) -> Iterator[Case]:
        """Scores of the targets, and the logits at the last token of each row."""
        h = {"h": batch.hidden[self._layers], "mask": batch.mask} | self._output | self._head
        yield Case("score", batch.description, h | self._chosen_targets(batch, 1.0), batch.rows)
        last = batch.mask.sum(dim=1).long().clamp(min=1) - 1
        yield Case("next", batch.description, h | {"places": last}, batch.rows)

    def stage_feed(self, end: int, batch: Batch) -> dict[str, Tensor]:
        """Targets, head and rate."""
        del end
        rate = {"adapter_lr": torch.tensor(self._manifest.defaults.adapter_lr)}
        return self._chosen_targets(batch) | self._head | rate

    def random_labels(self, ids: Tensor) -> Tensor:
        """After every third position nothing is predicted."""
        labels = ids.roll(-1, dims=1)
        labels[:, -1] = NO_TARGET
        labels[:, ::3] = NO_TARGET
        return labels

    def after_layer(self, layer: int, text: Batch, reference: Reference) -> None:
        """Nothing: a language model's head takes features as they are."""

    def _chosen_targets(self, batch: Batch, weight: float | None = None) -> dict[str, Tensor]:
        labels = batch.labels.clone()
        labels[batch.rows :] = NO_TARGET
        chosen = choose_targets(labels, self._manifest.task.max_target_tokens)
        return chosen.feed(1.0 / chosen.count if weight is None else weight)


def _targets(batch: Batch, weight: float | None = None) -> dict[str, Tensor]:
    """Labels and sample weights: `weight` for every real row, or weights that sum to 1; 0 for the other rows."""
    weights = np.zeros(len(batch.ids), dtype=np.float32)
    weights[: batch.rows] = 1.0 / batch.rows if weight is None else weight
    return {"labels": batch.labels, "sample_weights": torch.from_numpy(weights)}
