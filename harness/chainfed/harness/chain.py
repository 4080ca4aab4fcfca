"""The frozen chain on a device: all batches through one layer, then all through the next (Appendix G.2).

Each layer's weights are read once, whatever the number of batches, and hidden states lie in files. Depth d is the
output of d layers: depth 0 comes from the embeddings. Every batch is journalled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from chainfed.harness.bundle import DeviceBundle
from chainfed.harness.data import TokenData
from chainfed.harness.hidden import HiddenFile, HiddenShape, HiddenView, batch_order
from chainfed.harness.journal import Journal
from chainfed.runtime.blocks import RunLayer
from chainfed.runtime.feeds import embedding_feed
from chainfed.runtime.memory import trim

Checkpoint = Callable[[str], None]
OnBatch = Callable[[int, int, torch.Tensor, torch.Tensor], None]


@dataclass(frozen=True)
class KeptDepth:
    """A depth whose output goes to a file of its own: `path` appears, whole, when the depth is done.

    num_batches: what the file holds; data of fewer batches can use the file (they are its first ones), not make it.
    """

    depth: int
    path: Path
    num_batches: int


class Chain:
    """Runs `data` through the frozen layers and resumes where its journal ends."""

    def __init__(
        self,
        bundle: DeviceBundle,
        state: Mapping[str, torch.Tensor],
        data: TokenData,
        journal: Journal,
        kept: KeptDepth | None = None,
        on_batch: OnBatch | None = None,
        checkpoint: Checkpoint = lambda message: None,
    ) -> None:
        """Nothing is computed yet.

        kept: a depth to keep; when its file is already there, the layers below it are not run.
        on_batch: called with (depth, batch, h, mask) before the batch is journalled; may be called twice for one batch.
        checkpoint: called with what is being done, before every pass and after every batch (then with an empty
        text); raises to stop the work.
        """
        self._bundle, self._state, self._data, self._journal = bundle, state, data, journal
        self._on_batch, self._checkpoint = on_batch, checkpoint
        shapes, hidden_size = bundle.manifest.shapes, bundle.manifest.model.hidden_size
        self._shape = HiddenShape(data.num_batches, (shapes.batch_size, shapes.seq_len, hidden_size))
        self._kept = kept
        if kept is not None and kept.num_batches != data.num_batches and not self._is_kept(kept):
            self._kept = None
        self._hidden: HiddenFile | None = None
        self._kept_file: HiddenFile | None = None
        self._done: dict[int, int] = {}
        for depth, batches in journal.find("pass"):
            self._done[depth] = batches

    @property
    def depth(self) -> int:
        """The deepest output that is complete; -1 before the embeddings are done."""
        complete = [depth for depth, batches in self._done.items() if batches == self._shape.num_batches]
        if self._kept is not None and self._is_kept(self._kept):
            complete.append(self._kept.depth)
        return max(complete, default=-1)

    def advance_to(self, depth: int) -> None:
        """Runs the passes that are missing up to `depth`, one layer of weights mapped at a time."""
        self._publish()
        first = self.depth + 1
        if first == 0 and depth >= 0:
            self._checkpoint("embeddings")
            with self._bundle.program("embed") as program, self._bundle.embeddings() as shard:
                feed = embedding_feed(shard)
                for batch, rows in self._pending(0, range(self._shape.num_batches)):
                    inputs = {"input_ids": self._data.ids[rows], "mask": self._data.mask[rows]}
                    self._finish(0, batch, inputs["mask"], program.run(inputs | feed, clone_outputs=False)["h"])
                    shard.evict()  # the pages around a batch's tokens are much of the table
                feed.clear()
            self._publish()
        if depth >= max(first, 1):
            self._run_layers(max(first, 1), depth)
        trim()

    def view(self, depth: int) -> HiddenView:
        """The output of a depth: the one that the chain stands at, or the kept one.

        Raises ValueError for another, which a later layer has overwritten.
        """
        if self._kept is not None and depth == self._kept.depth:
            if self._kept_file is None:
                path = self._kept.path if self._is_kept(self._kept) else self._journal.path("kept")
                self._kept_file = HiddenFile(path, self._kept_shape(self._kept), spare=0)
            return HiddenView(self._kept_file, 0)
        if depth < self.depth:
            raise ValueError(f"depth {depth} is overwritten, the chain stands at {self.depth}")
        return self._destination(depth)

    def close(self) -> None:
        """Ends the mappings; the files stay."""
        for file in (self._hidden, self._kept_file):
            if file is not None:
                file.close()
        self._hidden = self._kept_file = None

    def _kept_shape(self, kept: KeptDepth) -> HiddenShape:
        return HiddenShape(kept.num_batches, self._shape.batch)

    def _is_kept(self, kept: KeptDepth) -> bool:
        return HiddenFile.exists(kept.path, self._kept_shape(kept), spare=0)

    def _run_layers(self, first: int, last: int) -> None:
        with self._bundle.blocks() as blocks:
            for depth in range(first, last + 1):
                self._checkpoint(f"layer {depth} of {self._bundle.manifest.model.num_layers}")
                source = self.view(depth - 1)
                with blocks.layer(depth - 1, self._state) as run:
                    if depth < last:
                        blocks.prefetch(depth)
                    self._run_layer(depth, source, run)
                self._publish()

    def _run_layer(self, depth: int, source: HiddenView, run: RunLayer) -> None:
        order = batch_order(self._shape.num_batches, self._destination(depth).base)
        for batch, rows in self._pending(depth, order):
            mask = self._data.mask[rows]
            self._finish(depth, batch, mask, run(source.batch(batch), mask))

    def _pending(self, depth: int, order: range) -> Iterator[tuple[int, list[int]]]:
        for batch in order[self._done.get(depth, 0) :]:
            yield batch, self._data.stored_batch(batch)
            self._checkpoint("")

    def _finish(self, depth: int, batch: int, mask: torch.Tensor, h: torch.Tensor) -> None:
        target = self._destination(depth).batch(batch)
        target.copy_(h)
        if self._on_batch is not None:
            self._on_batch(depth, batch, target, mask)
        self._done[depth] = self._done.get(depth, 0) + 1
        self._journal.append({"pass": [depth, self._done[depth]]})
        self._release()

    def _release(self) -> None:
        """Lets the pages of the hidden states go, so that as many are resident as a batch has."""
        for file in (self._hidden, self._kept_file):
            if file is not None:
                file.release()

    def _publish(self) -> None:
        """Gives the kept file its name as soon as it is whole and on the disk."""
        kept = self._kept
        if kept is None or self._done.get(kept.depth, 0) < self._shape.num_batches or kept.path.exists():
            return
        file = self.view(kept.depth).file
        file.flush()
        file.close()
        self._kept_file = None
        self._journal.path("kept").replace(kept.path)

    def _destination(self, depth: int) -> HiddenView:
        """Where a depth's output goes. The first depth in the hidden file has base 1, the next 0, and so on."""
        if self._kept is not None and depth == self._kept.depth:
            return self.view(depth)
        if self._hidden is None:
            self._hidden = HiddenFile(self._journal.path("hidden"), self._shape)
        before = 0 if self._kept is None or depth < self._kept.depth else self._kept.depth + 1
        return HiddenView(self._hidden, 1 - (depth - before) % 2)
