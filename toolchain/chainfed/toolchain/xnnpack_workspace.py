"""How much memory XNNPACK takes beside the arena to compute a part of a program, and parts cut so that it stays small.

All parts of a program share one workspace, as large as the largest part needs. When a part needs more than those before
it, XNNPACK allocates the larger workspace before it frees the smaller: a program whose parts need 120 and then 130 MB
holds 250 MB for a moment. So a part that would need a little more than those before it is cut.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from executorch.exir.dialects.edge._ops import EdgeOpOverload
from torch.fx import Node

_SECOND_FACTOR = {"aten.linear.default": 1, "aten.mm.default": 1, "aten.bmm.default": 1, "aten.addmm.default": 2}
"""Which argument of a product XNNPACK packs, anew at each call."""
_ROUNDING = "quantized_decomposed.choose_qparams.tensor"
_NOT_IN_PLACE = {*_SECOND_FACTOR, "aten.slice.Tensor", "aten.slice_copy.Tensor", "aten.permute_copy.default"}
_KERNEL_COLUMNS = 32
"""XNNPACK packs the second factor of a product in panels of so many columns."""
_EXTRA_BYTES = 128
"""XNNPACK lets its kernels read so far past a tensor's end."""
_SLACK = 3
"""How many times the workspace of one operator a run may need."""
_LONGEST = 40
"""Nodes in a run that is cut: of many values of one size XNNPACK places some worse than is foreseen here."""


def cut_to_workspace(runs: Sequence[list[Node]]) -> Iterator[list[Node]]:
    """Runs of nodes in the order in which they are computed -> the same, cut so that none needs more than the first.

    The first, that is, of those that need as much as one operator does at least: before it, there is little to replace.
    Runs without a product stay whole, and so do those that round activations for the product that takes them.
    """
    runs = [run for run in runs if run]
    unavoidable = max((workspace_bytes([node]) for run in runs for node in run), default=0)
    first = next((size for size in map(workspace_bytes, runs) if size >= unavoidable), 0)
    for run in runs:
        whole = unavoidable == 0 or any(_operator(node) == _ROUNDING for node in run)
        yield from [run] if whole else _pieces(run, min(first, _SLACK * unavoidable))


def workspace_bytes(run: Sequence[Node]) -> int:
    """The workspace of a run of nodes, float32, within a few per cent.

    It holds what is computed and used within the run, in place where that can be, and the packed factor of the product
    under way. XNNPACK lays out the largest first: each in the smallest gap between those that live at the same time, or
    after them all; a gap before the first is not used.
    """
    placed: list[tuple[_Block, int]] = []
    for block in sorted(_blocks(run), key=lambda block: -block.num_bytes):
        beside = sorted((start, start + other.num_bytes) for other, start in placed if other.overlaps(block))
        placed.append((block, _place(beside, block.num_bytes)))
    return max((start + block.num_bytes for block, start in placed), default=0)


@dataclass
class _Block:
    """Memory in use from the node of one place in the run to that of another."""

    num_bytes: int
    first: int
    last: int

    def overlaps(self, other: _Block) -> bool:
        return self.first <= other.last and other.first <= self.last


def _blocks(run: Sequence[Node]) -> list[_Block]:
    places = {node: place for place, node in enumerate(run)}
    values: dict[Node, _Block] = {}
    packed = []
    for place, node in enumerate(run):
        if _operator(node) in _SECOND_FACTOR:
            packed.append(_Block(_packed_bytes(node), place, place))
        if not node.users.keys() <= places.keys():
            continue  # it leaves the run, so it lies in the arena
        last = max((places[user] for user in node.users), default=place)
        sources = [source for source in node.args if isinstance(source, Node) and source in values]
        given = [source for source in sources if len(source.users) == 1 and sources.count(source) == 1]
        given = [source for source in given if _num_bytes(source) == _num_bytes(node)]
        if given and _operator(node) not in _NOT_IN_PLACE:
            values[node] = values[given[0]]
            values[node].last = last
        else:
            values[node] = _Block(_num_bytes(node), place, last)
    return packed + list({id(block): block for block in values.values()}.values())


def _place(taken: list[tuple[int, int]], num_bytes: int) -> int:
    """The start of the smallest gap between intervals that are sorted by their starts, else the end of them all."""
    smallest, chosen, end = math.inf, None, taken[0][1] if taken else 0
    for _, (start, stop) in pairwise(taken):
        if num_bytes <= start - end < smallest and start > end:
            smallest, chosen = start - end, end
        end = max(end, stop)
    return end if chosen is None else chosen


def _pieces(run: list[Node], limit: int) -> list[list[Node]]:
    """Each piece as long as its workspace stays within the limit, and no longer than `_LONGEST`."""
    cuts = [0]
    for end in range(1, len(run)):
        if end - cuts[-1] == _LONGEST or workspace_bytes(run[cuts[-1] : end + 1]) > limit:
            cuts.append(end)
    return [run[start:end] for start, end in pairwise([*cuts, len(run)])]


def _operator(node: Node) -> str:
    """The name of a node's operator, in torch's graphs and in ExecuTorch's."""
    return str(node.target._op if isinstance(node.target, EdgeOpOverload) else node.target)


def _packed_bytes(product: Node) -> int:
    factor = product.args[_SECOND_FACTOR[_operator(product)]]
    assert isinstance(factor, Node)
    shape = factor.meta["val"].shape
    *batch, depth, columns = (*shape[:-2], shape[-1], shape[-2]) if "linear" in _operator(product) else shape
    panels = -(-columns // _KERNEL_COLUMNS) * _KERNEL_COLUMNS
    return int(math.prod(batch) * panels * (depth + 1) * 4)


def _num_bytes(node: Node) -> int:
    value = node.meta["val"]
    tensors = value if isinstance(value, (tuple, list)) else [value]
    sizes = [tensor.numel() * tensor.element_size() for tensor in tensors if isinstance(tensor, torch.Tensor)]
    return sum(sizes) + _EXTRA_BYTES
