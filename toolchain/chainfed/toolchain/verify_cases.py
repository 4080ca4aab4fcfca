"""What `chainfed verify` feeds the programs: real and random batches at every place of the chain where they run.

B batch, S sequence, D hidden size, L layers, Q window size. Hidden states come from the eager reference, layer by
layer over the bundle's own weights; adapters and heads are random, so that no branch is trivial.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from chainfed.core.examples import Example
from chainfed.core.manifest import EMBEDDINGS_FILE, TOKENIZER_FILE, Bundle, layer_file, window_program
from chainfed.core.order import derive_seed
from chainfed.runtime.feeds import adapter_feed, embedding_feed, head_feed, layer_feed, output_feed, statistics_feed
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
class _Batch:
    """Rows of token ids on their way through the model; layer i takes `hidden[i]` and gives `hidden[i + 1]`."""

    description: str
    rows: int
    ids: Tensor
    mask: Tensor
    labels: Tensor
    hidden: list[Tensor] = field(default_factory=list)


class Cases:
    """All cases of a bundle, made one after the other; `total` of them."""

    def __init__(self, bundle: Bundle, reference: Reference, examples: list[Example], seed: int = 0) -> None:
        """Runs the reference through the model over a full and a partial batch of `examples` and a random batch."""
        self._bundle = bundle
        self._manifest = bundle.manifest
        self._layers = bundle.manifest.model.num_layers
        self._generator = torch.Generator().manual_seed(derive_seed("verify", seed) >> 1)
        self._state = self._random_state()
        self._embeddings = Shard(bundle.path(EMBEDDINGS_FILE))
        self._shards = [Shard(bundle.path(layer_file(layer))) for layer in range(self._layers)]
        self._mapped = ExitStack()
        self._output = self._mapped.enter_context(output_feed(bundle.manifest, bundle.path))
        self._batches = self._make_batches(examples)
        self._run_reference(reference)

    @property
    def total(self) -> int:
        """How many cases there are."""
        places = sum(len(self._places(size)) for size in self._manifest.windows)
        return len(self._batches) * (1 + self._layers + 1 + 1 + 1 + places)

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
            yield from self._head_cases(batch)
        for size in self._manifest.windows:
            for first in self._places(size):
                for batch in self._batches:
                    yield self._window_case(size, first, batch)

    def _places(self, size: int) -> list[int]:
        """First layers of a window: at the start of the chain, in its middle, and in the final stage."""
        last = self._layers - size
        return sorted({0, last // 2, last})

    def _head_cases(self, batch: _Batch) -> Iterator[Case]:
        last = self._layers - 1
        h = {"h": batch.hidden[self._layers], "mask": batch.mask} | self._output
        yield Case("pool", batch.description, h, batch.rows)
        yield Case("score", batch.description, h | head_feed(self._state, last) | _targets(batch, 1.0), batch.rows)
        features = {"features": self._randn(len(batch.ids), self._manifest.model.hidden_size)}
        feed = features | head_feed(self._state, last) | _targets(batch) | self._zero_state("head")
        feed["head_lr"] = torch.tensor(self._manifest.defaults.head_lr)
        yield Case("head", batch.description, feed, batch.rows, _STEPS)

    def _window_case(self, size: int, first: int, batch: _Batch) -> Case:
        end, last = first + size - 1, self._layers - 1
        final_stage = end == last
        defaults = self._manifest.defaults
        feed: dict[str, Tensor] = {"h": batch.hidden[first], "mask": batch.mask} | _targets(batch) | self._output
        for index in range(size):
            shard = self._shards[first + index]
            feed |= {f"window.{index}.layer.{name}": tensor for name, tensor in shard.tensors.items()}
            for part in ("down", "up"):
                feed[f"trainable.window.{index}.{part}"] = self._state[f"adapters.{first + index}.{part}"]
        for part in ("weight", "bias"):
            feed[f"trainable.local_head.{part}"] = self._state[f"heads.{end}.{part}"]
            feed[f"trainable.final_head.{part}"] = self._state[f"heads.{last}.{part}"]
        feed |= statistics_feed(self._state, end, "local_")
        branch_end = end if defaults.global_branch_statistics == "window_end" else last
        feed |= statistics_feed(self._state, branch_end, "final_")
        feed |= self._auxiliary(size, end) | self._zero_state(window_program(size))
        rates = {"adapter_lr": defaults.adapter_lr, "head_lr": defaults.head_lr}
        rates["final_head_lr"] = 0.0 if final_stage else defaults.head_lr
        rates["global_loss_weight"] = 0.0 if final_stage else max(defaults.global_loss_weight, 0.1)
        feed |= {name: torch.tensor(rate) for name, rate in rates.items()}
        place = f"layers {first} to {end}{' (final stage)' if final_stage else ''}, {batch.description}"
        return Case(window_program(size), place, feed, batch.rows, _STEPS)

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

    def _make_batches(self, examples: list[Example]) -> list[_Batch]:
        shapes, model = self._manifest.shapes, self._manifest.model
        size = shapes.batch_size
        tokenizer = Tokenizer(self._bundle.path(TOKENIZER_FILE), self._manifest.tokenizer.pad_token_id, shapes.seq_len)
        chosen = [examples[row % len(examples)] for row in range(size)]
        tokens = tokenizer([example.text for example in chosen])
        labels = torch.tensor([example.label for example in chosen])
        ids = torch.randint(model.vocab_size, tokens.ids.shape, generator=self._generator)
        pad = self._manifest.tokenizer.pad_token_id
        ids = torch.where(ids == pad, (pad + 1) % model.vocab_size, ids)  # some models find padding by its id
        random_labels = torch.randint(self._manifest.num_labels, (size,), generator=self._generator)
        some = max(1, size - 1 - size // 4)
        return [
            _Batch("text, full batch", size, tokens.ids, tokens.mask, labels),
            _Batch(f"text, {some} of {size} rows", some, tokens.ids, tokens.mask, labels),
            _Batch("random tokens", size, ids, torch.ones_like(tokens.mask), random_labels),
        ]

    def _run_reference(self, reference: Reference) -> None:
        """Fills the batches' hidden states, and the statistics as FOAT would: from the pooled features of the text."""
        for batch in self._batches:
            feed = {"input_ids": batch.ids, "mask": batch.mask} | embedding_feed(self._embeddings)
            batch.hidden.append(reference.run("embed", wide_tensors(feed))["h"])
        for layer, shard in enumerate(self._shards):
            for batch in self._batches:
                feed = {"h": batch.hidden[layer], "mask": batch.mask}
                feed |= layer_feed(shard) | adapter_feed(self._state, layer)
                batch.hidden.append(reference.run("block", wide_tensors(feed))["h"])
            text = self._batches[0]
            features = reference.run("pool", {"h": text.hidden[-1], "mask": text.mask} | self._output)["features"]
            self._state[f"statistics.{layer}.mean"] = features.mean(dim=0)
            variance = features.var(dim=0, correction=0)
            self._state[f"statistics.{layer}.rstd"] = torch.rsqrt(variance + 1e-2)

    def _randn(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator)


def _targets(batch: _Batch, weight: float | None = None) -> dict[str, Tensor]:
    """Labels and sample weights: `weight` for every real row, or weights that sum to 1; 0 for the other rows."""
    weights = np.zeros(len(batch.ids), dtype=np.float32)
    weights[: batch.rows] = 1.0 / batch.rows if weight is None else weight
    return {"labels": batch.labels, "sample_weights": torch.from_numpy(weights)}
