"""The frozen layers of a bundle, one after the other, each with its adapter and as the bundle has it.

Either one program serves all layers and takes a layer's weights from a mapped shard, or every layer has a program of
its own that holds them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import torch

from chainfed.core.errors import BundleError
from chainfed.core.manifest import Manifest, layer_file
from chainfed.runtime.feeds import Named, adapter_feed, layer_feed
from chainfed.runtime.program import Program
from chainfed.runtime.shards import Shard, prefetch

RunLayer = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Hidden states (B, S, D) and mask (B, S) -> hidden states, which hold until the next call."""


class Blocks:
    """Opens the layers; at most one program and one shard are open at a time."""

    def __init__(self, manifest: Manifest, path: Callable[[str], Path]) -> None:
        """`path`: where a file of the bundle lies. Nothing is opened yet."""
        self._manifest, self._path = manifest, path
        self._program: Program | None = None

    def prefetch(self, layer: int) -> None:
        """Asks the system to read the weights of a layer ahead (Appendix G.2)."""
        prefetch(self._path(self._program_file(layer) if self._manifest.blocks_hold_weights else layer_file(layer)))

    @contextmanager
    def layer(self, layer: int, state: Named) -> Iterator[RunLayer]:
        """A layer and its adapter, ready to run while the context is open.

        Raises BundleError when a file is absent or damaged, or the state lacks the adapter.
        """
        program, feed = self._open(layer), adapter_feed(state, layer)

        def run(h: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return program.run({"h": h, "mask": mask} | feed, clone_outputs=False)["h"]

        if self._manifest.blocks_hold_weights:
            yield run
        else:
            with Shard(self._path(layer_file(layer))) as shard:
                feed |= layer_feed(shard)
                yield run
                feed.clear()

    def close(self) -> None:
        """Frees the program."""
        program, self._program = self._program, None
        if program is not None:
            program.close()

    def __enter__(self) -> Blocks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self, layer: int) -> Program:
        path = self._path(self._program_file(layer))
        if self._program is None or self._program.path != path:
            self.close()
            self._program = Program(path, self._manifest.programs[self._manifest.block_program(layer)])
        return self._program

    def _program_file(self, layer: int) -> str:
        name = self._manifest.block_program(layer)
        if name not in self._manifest.programs:
            raise BundleError(f"The bundle has no program {name!r}; export it again.")
        return self._manifest.programs[name].file
