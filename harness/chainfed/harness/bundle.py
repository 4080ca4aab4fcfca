"""A bundle and a model state as a device has them: the files that its task needs, under the names of the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch

from chainfed.core.errors import BundleError
from chainfed.core.manifest import EMBEDDINGS_FILE, Manifest, layer_file
from chainfed.runtime.feeds import language_head_feed, output_feed
from chainfed.runtime.program import Program
from chainfed.runtime.shards import Shard


@dataclass(frozen=True)
class DeviceBundle:
    """The manifest, its SHA-256 (hexadecimal), and where the fetched files lie."""

    manifest: Manifest
    manifest_sha256: str
    files: Mapping[str, Path]

    def path(self, name: str) -> Path:
        """Where a file lies. Raises BundleError when the task did not bring it."""
        if name not in self.files:
            raise BundleError(f"The assignment does not bring {name}, which it needs; export the bundle again.")
        return self.files[name]

    def program(self, name: str) -> Program:
        """Loads a program. Raises BundleError when the bundle has none of this name."""
        entry = self.manifest.programs.get(name)
        if entry is None:
            raise BundleError(f"The bundle has no program {name!r}; export it again with what the run needs.")
        return Program(self.path(entry.file), entry)

    def embeddings(self) -> Shard:
        """Maps the weights of the embeddings."""
        return Shard(self.path(EMBEDDINGS_FILE))

    def layer(self, index: int) -> Shard:
        """Maps the weights of one layer, 0-based."""
        return Shard(self.path(layer_file(index)))

    def output(self) -> AbstractContextManager[dict[str, torch.Tensor]]:
        """Maps what stands between a layer and a head, as inputs of the programs that have a head or pool."""
        return output_feed(self.manifest, self.path)

    def language_head(self) -> AbstractContextManager[dict[str, torch.Tensor]]:
        """Maps a language model's head, as an input of the programs that predict tokens."""
        return language_head_feed(self.manifest, self.path)


def map_state(manifest: Manifest, pieces: Mapping[str, Path]) -> dict[str, torch.Tensor]:
    """The tensors of some pieces of the model state, mapped where they lie, by the names of `chainfed.core.tensors`.

    Raises BundleError when a piece is damaged or holds what the manifest does not know.
    """
    shapes = manifest.state_shapes()
    state: dict[str, torch.Tensor] = {}
    for piece, path in pieces.items():
        for name, tensor in Shard(path).tensors.items():
            if shapes.get(name) != tuple(tensor.shape) or tensor.dtype != torch.float32:
                raise BundleError(
                    f"Piece {piece} of the model state: tensor {name} is not one of this bundle's; "
                    "the run's state belongs to another bundle."
                )
            state[name] = tensor
    return state
