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
from chainfed.core.tensors import NO_LABEL, adapter_names, head_names, head_rows, statistics_names
from chainfed.runtime.shards import Shard

Named = Mapping[str, torch.Tensor]


def embedding_feed(shard: Shard) -> dict[str, torch.Tensor]:
    """The weights that the program `embed` takes."""
    return {f"embeddings.{name}": tensor for name, tensor in shard.tensors.items()}


def layer_feed(shard: Shard) -> dict[str, torch.Tensor]:
    """The weights of a layer, for the program `block`."""
    return {f"layer.{name}": tensor for name, tensor in shard.tensors.items()}


def adapter_feed(state: Named, layer: int) -> dict[str, torch.Tensor]:
    """The adapter after `layer`, for its block program."""
    down, up = adapter_names(layer)
    return {"adapter.down": take(state, down), "adapter.up": take(state, up)}


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
    """A language model's head as the input `lm_head.weight`, and its scales, mapped while the context is open.

    `path`: where a file of the bundle lies. Raises BundleError when the bundle has no such head.
    """
    place = manifest.model.language_head
    if place is None:
        raise BundleError("The bundle says not where its language-model head lies; export it again.")
    with Shard(path(place.file)) as shard:
        take(shard.tensors, place.tensor)
        feed = {
            f"lm_head.weight{name.removeprefix(place.tensor)}": tensor
            for name, tensor in shard.tensors.items()
            if name == place.tensor or name.startswith(f"{place.tensor}.")
        }
        yield feed
        feed.clear()


def head_feed(manifest: Manifest, state: Named, layer: int) -> dict[str, torch.Tensor]:
    """The head at `layer` and the statistics that standardise its features, for the programs `head` and `score`."""
    weight, bias = (program_tensor(manifest, state, name) for name in head_names(layer))
    return {"head.weight": weight, "head.bias": bias} | statistics_feed(state, layer)


def statistics_feed(state: Named, layer: int, prefix: str = "") -> dict[str, torch.Tensor]:
    """Mean and reciprocal deviation of the pooled features of `layer`, as inputs `{prefix}mean` and `{prefix}rstd`."""
    mean, rstd = statistics_names(layer)
    return {f"{prefix}mean": take(state, mean), f"{prefix}rstd": take(state, rstd)}


def program_tensor(manifest: Manifest, state: Named, name: str) -> torch.Tensor:
    """One tensor of the model state as programs take it: a head gets the rows that stand for no label.

    Raises BundleError when it is not there, or a head has other labels than the bundle.
    """
    tensor = take(state, name)
    if not name.startswith("heads."):
        return tensor
    if len(tensor) != manifest.num_labels:
        raise BundleError(
            f"the model state's {name} is for {len(tensor)} labels, the bundle has {manifest.num_labels}; it was made "
            "for another label set."
        )
    shape = (head_rows(manifest.num_labels) - len(tensor), *tensor.shape[1:])
    return torch.cat([tensor, torch.full(shape, NO_LABEL if tensor.dim() == 1 else 0.0)])


def take(state: Named, name: str) -> torch.Tensor:
    """One tensor of the model state. Raises BundleError when it is not there."""
    if name not in state:
        raise BundleError(f"the model state lacks {name}; it was made for another model.")
    return state[name]
