"""What the programs of the frozen chain are fed: named inputs from mapped weights and the model state.

A state is a mapping from the tensor names of `chainfed.core.tensors` to float32 tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from chainfed.core.errors import BundleError
from chainfed.core.manifest import OUTPUT_FILE, Manifest
from chainfed.core.tensors import adapter_names, head_names, statistics_names
from chainfed.runtime.shards import Shard

Named = Mapping[str, torch.Tensor]


def embedding_feed(shard: Shard) -> dict[str, torch.Tensor]:
    """The weights that the program `embed` takes."""
    return {f"embeddings.{name}": tensor for name, tensor in shard.tensors.items()}


def block_feed(shard: Shard, state: Named, layer: int) -> dict[str, torch.Tensor]:
    """The weights of `layer` and of the adapter after it, for the program `block`."""
    down, up = adapter_names(layer)
    feed = {f"layer.{name}": tensor for name, tensor in shard.tensors.items()}
    return feed | {"adapter.down": take(state, down), "adapter.up": take(state, up)}


@contextmanager
def output_feed(manifest: Manifest, path: Callable[[str], Path]) -> Iterator[dict[str, torch.Tensor]]:
    """What stands between a layer and a head, mapped while the context is open, for `pool`, `score` and the windows.

    `path`: where a file of the bundle lies. Nothing is yielded for a model that has nothing there.
    """
    if not manifest.model.output_tensors:
        yield {}
        return
    with Shard(path(OUTPUT_FILE)) as shard:
        feed = {f"output.{name}": tensor for name, tensor in shard.tensors.items()}
        yield feed
        feed.clear()


@contextmanager
def language_head_feed(manifest: Manifest, path: Callable[[str], Path]) -> Iterator[dict[str, torch.Tensor]]:
    """A language model's head as the input `lm_head.weight`, mapped while the context is open.

    `path`: where a file of the bundle lies. Raises BundleError when the bundle has no such head.
    """
    place = manifest.model.language_head
    if place is None:
        raise BundleError("The bundle says not where its language-model head lies; export it again.")
    with Shard(path(place.file)) as shard:
        feed = {"lm_head.weight": take(shard.tensors, place.tensor)}
        yield feed
        feed.clear()


def head_feed(state: Named, layer: int) -> dict[str, torch.Tensor]:
    """The head at `layer` and the statistics that standardise its features, for the programs `head` and `score`."""
    weight, bias = head_names(layer)
    return {"head.weight": take(state, weight), "head.bias": take(state, bias)} | statistics_feed(state, layer)


def statistics_feed(state: Named, layer: int, prefix: str = "") -> dict[str, torch.Tensor]:
    """Mean and reciprocal deviation of the pooled features of `layer`, as inputs `{prefix}mean` and `{prefix}rstd`."""
    mean, rstd = statistics_names(layer)
    return {f"{prefix}mean": take(state, mean), f"{prefix}rstd": take(state, rstd)}


def take(state: Named, name: str) -> torch.Tensor:
    """One tensor of the model state. Raises BundleError when it is not there."""
    if name not in state:
        raise BundleError(f"the model state lacks {name}; it was made for another model.")
    return state[name]
