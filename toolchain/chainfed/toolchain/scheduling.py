"""What a graph computes when, and what it computes twice, so that little is held at a time.

A traced training step keeps every intermediate that its backward pass uses again. Products are worth keeping;
an activation or the output of a norm costs a thousandth of the product before it, so it is computed again from what is
kept anyway.
"""

from __future__ import annotations

from itertools import accumulate, pairwise

import torch
from torch.fx import Graph, Node

aten = torch.ops.aten

_PRODUCTS = {aten.linear.default, aten.mm.default, aten.addmm.default, aten.bmm.default}
_CHEAP = {
    aten.add.Tensor,
    aten.sub.Tensor,
    aten.mul.Tensor,
    aten.div.Tensor,
    aten.sigmoid.default,
    aten.gelu.default,
    aten.tanh.default,
    aten.exp.default,
    aten.neg.default,
    aten.view.default,
}


def compute_late(graph: Graph) -> None:
    """Move each product that gives more than it takes, with the views of it, to where its result is first used."""
    for node in list(graph.nodes):
        taken = node.args[1 if node.target is aten.addmm.default else 0] if node.target in _PRODUCTS else None
        if not isinstance(taken, Node) or _size(node) <= _size(taken):
            continue
        chain = [node]
        while len(chain[-1].users) == 1 and next(iter(chain[-1].users)).target is aten.view.default:
            chain += chain[-1].users
        first = min(chain[-1].users, key=_places(graph).__getitem__)
        if first.op != "output":
            for moved in chain:
                first.prepend(moved)


def recompute_cheap(graph: Graph) -> None:
    """Compute an elementwise result a second time for uses far away, where its inputs are held until there anyway.

    Far away is where products are computed in between; what is used in several places is computed twice at most.
    """
    for node in reversed(list(graph.nodes)):
        if node.target not in _CHEAP or _size(node) < 2:
            continue
        places = _places(graph)
        users = sorted(node.users, key=places.__getitem__)
        products = list(accumulate(other.target in _PRODUCTS for other in graph.nodes))
        gaps = [products[places[later]] - products[places[earlier]] for earlier, later in pairwise(users)]
        if not any(gaps):
            continue
        far = users[gaps.index(max(gaps)) + 1 :]
        if far[0].op != "output" and all(_held_until(source, far[0], places) for source in node.all_input_nodes):
            with graph.inserting_before(far[0]):
                again = graph.node_copy(node, lambda source: source)
            for user in far:
                user.replace_input_with(node, again)


def _held_until(node: Node, last: Node, places: dict[Node, int]) -> bool:
    return node.op in ("placeholder", "get_attr") or any(places[user] >= places[last] for user in node.users)


def _places(graph: Graph) -> dict[Node, int]:
    return {node: place for place, node in enumerate(graph.nodes)}


def _size(node: Node) -> int:
    """The number of elements of a node's result; 0 for one that is no tensor."""
    value = node.meta.get("val")
    return value.numel() if isinstance(value, torch.Tensor) else 0
