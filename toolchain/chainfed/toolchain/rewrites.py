"""Rewrites of a traced graph that spare ExecuTorch work which eager PyTorch gets for free.

In eager PyTorch a transpose is a change of strides; in ExecuTorch it is a copy. Autograd and
transformers' attention are full of transposes, and most of them cancel, meet another one, or can move to
the other side of a matrix product where they do. The passes here say so in the graph: first all
layout operators are brought to two forms, ``permute_copy`` and ``view``, then they are composed, moved and
absorbed. Every pass keeps the values of the outputs up to the order of summation.

All tensors in a rewritten graph are contiguous, which is how ExecuTorch keeps them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from chainfed.toolchain.scheduling import compute_late, recompute_cheap
from chainfed.toolchain.widening import widen_at_each_use

aten = torch.ops.aten

_VIEWS = {
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.unsqueeze.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
}
_TRANSPOSES = {aten.t.default, aten.transpose.int, aten.permute.default}
_DEPTH, _PIECE = 4096, 2048
"""The longest sum in a product, and in the pieces of one that is longer."""
_WIDE = 2
"""How many times wider than its input a product's result is where the product is turned around."""
_NOT_MERGED = {aten.full.default, aten.bmm.default}
_ELEMENTWISE = {aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar, aten.add.Tensor, aten.sub.Tensor}
_SCALAR_FORMS = {
    aten.add.Scalar: aten.add.Tensor,
    aten.sub.Scalar: aten.sub.Tensor,
    aten.mul.Scalar: aten.mul.Tensor,
    aten.div.Scalar: aten.div.Tensor,
}
_COPIES = {aten.clone.default, aten.detach.default, aten.alias.default, aten.lift_fresh_copy.default}


def rewrite(graph_module: GraphModule) -> GraphModule:
    """Apply all rewrites in place, to the bodies of loops too, until none of them finds anything more to do."""
    for body in graph_module.children():
        if isinstance(body, GraphModule):
            rewrite(body)
    graph = graph_module.graph
    canonicalise_layout(graph)
    while sum(apply(graph) for apply in _PASSES):
        graph.eliminate_dead_code()
    split_deep_products(graph)
    subtract_from_constants(graph)
    scalars_as_tensors(graph)
    merge_equal_nodes(graph)
    graph.eliminate_dead_code()
    compute_late(graph)
    recompute_cheap(graph)
    widen_at_each_use(graph)
    graph.lint()
    graph_module.recompile()
    return graph_module


def canonicalise_layout(graph: Graph) -> None:
    """Bring every transpose to ``permute_copy``, every reshape to ``view``, and drop copies of what is contiguous."""
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in _TRANSPOSES:
            _replace(node, aten.permute_copy.default, node.args[0], _permutation(node))
        elif node.target in _VIEWS:
            _replace(node, aten.view.default, node.args[0], list(_shape(node)))
        elif node.target in _COPIES or (
            node.target is aten.expand.default and _shape(node) == _shape(node.all_input_nodes[0])
        ):
            source = node.all_input_nodes[0]
            if source.meta["val"].is_contiguous():
                _forward(node, source)


def compose_permutations(graph: Graph) -> int:
    """``permute(permute(x))`` -> one permute, or none if they cancel."""
    count = 0
    for node in _calls(graph, aten.permute_copy.default):
        source, order = _args(node)
        if list(order) == sorted(order):
            _forward(node, source)
            count += 1
        elif _is_call(source, aten.permute_copy.default):
            inner, inner_order = _args(source)
            _replace(node, aten.permute_copy.default, inner, [inner_order[axis] for axis in order])
            count += 1
    return count


def compose_views(graph: Graph) -> int:
    """``view(view(x))`` -> one view, or none if the shape is that of ``x``."""
    count = 0
    for node in _calls(graph, aten.view.default):
        (source, _) = _args(node)
        if _shape(node) == _shape(source):
            _forward(node, source)
            count += 1
        elif _is_call(source, aten.view.default):
            _replace(node, aten.view.default, source.args[0], list(_shape(node)))
            count += 1
    return count


def permute_before_merging_heads(graph: Graph) -> int:
    """``permute(view(permute(x)))``, where the view merges batch and heads: permute first, then merge.

    ``(B, H, X, Y) -view-> (B H, X, Y) -permute-> (B H, Y, X)`` becomes a permute of four dimensions, which
    composes with the one that split the heads, and a view.
    """
    count = 0
    for node in _calls(graph, aten.permute_copy.default):
        view, _ = _args(node)
        if not _is_permute(node, [0, 2, 1]) or not _is_call(view, aten.view.default):
            continue
        split, _ = _args(view)
        if not _is_call(split, aten.permute_copy.default) or not _merges_heads(_shape(split), _shape(view)):
            continue
        with graph.inserting_before(node):
            swapped = _call(graph, aten.permute_copy.default, split, [0, 1, 3, 2])
        _replace(node, aten.view.default, swapped, list(_shape(node)))
        count += 1
    return count


def permute_after_splitting_heads(graph: Graph) -> int:
    """``permute(view(permute(x)))``, where the view splits batch and heads: split first, then permute.

    ``(B H, X, Y) -permute-> (B H, Y, X) -view-> (B, H, Y, X)`` becomes a view and a permute of four
    dimensions, which composes with the one that merges the heads.
    """
    count = 0
    for node in _calls(graph, aten.permute_copy.default):
        view, order = _args(node)
        if not _is_call(view, aten.view.default) or not _is_permute(view.args[0], [0, 2, 1]):
            continue
        swapped, _ = _args(view)
        if not _merges_heads(_shape(view), _shape(swapped)):
            continue
        batch, heads, rows, columns = _shape(view)
        with graph.inserting_before(node):
            split = _call(graph, aten.view.default, swapped.args[0], [batch, heads, columns, rows])
        _replace(node, aten.permute_copy.default, split, [(0, 1, 3, 2)[axis] for axis in order])
        count += 1
    return count


def transpose_smaller_factor(graph: Graph) -> int:
    """``bmm(a.T, b)`` -> ``bmm(b.T, a).T`` where ``a`` is larger than ``b``.

    In the backward pass of attention ``a`` is the (S, S) matrix of probabilities and ``b`` has the width of
    a head; the transposes of ``b`` and of the result meet those that split and merge the heads.
    """
    count = 0
    for node in _calls(graph, aten.bmm.default):
        left, right = _args(node)
        if not _is_permute(left, [0, 2, 1]):
            continue
        if left.meta["val"].numel() <= right.meta["val"].numel():
            continue
        with graph.inserting_before(node):
            turned = _call(graph, aten.permute_copy.default, right, [0, 2, 1])
            product = _call(graph, aten.bmm.default, turned, left.args[0])
        _replace(node, aten.permute_copy.default, product, [0, 2, 1])
        count += 1
    return count


def products_with_transposed_right_side(graph: Graph) -> int:
    """``mm(x, W.T)`` and ``addmm(b, x, W.T)`` -> ``linear(x, W, b)``: XNNPACK takes W as it is stored."""
    count = 0
    for node in _calls(graph, aten.mm.default):
        x, weight = _args(node)
        if _is_permute(weight, [1, 0]):
            _replace(node, aten.linear.default, x, weight.args[0])
            count += 1
    for node in _calls(graph, aten.addmm.default):
        bias, x, weight = _args(node)
        if _is_permute(weight, [1, 0]) and not node.kwargs and bias.meta["val"].dim() == 1:
            _replace(node, aten.linear.default, x, weight.args[0], bias)
            count += 1
    return count


def turn_wide_products(graph: Graph) -> int:
    """``linear(x, W)`` -> ``permute(linear(W, x))`` where W, an input, is much taller than wide, and larger than x.

    XNNPACK packs the second factor at each call and then reads all of it again for every few rows of the first. The
    larger one had better be the first; a wide result costs less to transpose than that saves. A matrix that is widened
    first stays second: a frozen block puts a quantised constant in its place.
    """
    count = 0
    for node in _calls(graph, aten.linear.default):
        x, weight, *bias = _args(node)
        rows, depth = _shape(weight)
        if weight.op != "placeholder" or rows < _WIDE * depth or _shape(x)[0] >= rows:
            continue
        with graph.inserting_before(node):
            turned = _call(graph, aten.permute_copy.default, _call(graph, aten.linear.default, weight, x), [1, 0])
            if bias:
                turned = _call(graph, aten.add.Tensor, turned, bias[0])
        _forward(node, turned)
        count += 1
    return count


def broadcast_late(graph: Graph) -> int:
    """``expand(x) * c`` -> ``expand(x * c)``, and ``expand(x) * y`` -> ``x * y`` where y has the full shape anyway."""
    count = 0
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target not in _ELEMENTWISE or len(node.all_input_nodes) > 2:
            continue
        expanded = [source for source in node.all_input_nodes if _is_call(source, aten.expand.default)]
        if not expanded:
            continue
        (spread, *_), others = expanded, [source for source in node.all_input_nodes if source is not expanded[0]]
        source = _args(spread)[0]
        if not others and len(node.args) == 2:
            with graph.inserting_before(node):
                small = _call(graph, node.target, *(source if part is spread else part for part in node.args))
            _replace(node, aten.expand.default, small, list(_shape(node)))
        elif others and _shape(others[0]) == _shape(node):
            node.replace_input_with(spread, source)
        else:
            continue
        count += 1
    return count


def join_scattered_halves(graph: Graph) -> int:
    """Two pieces written into zeros and added -> one beside the other: the gradient of turning halves around."""
    count = 0
    for node in _calls(graph, aten.add.Tensor):
        pieces = node.all_input_nodes
        if len(pieces) != 2 or not all(_is_piece_in_zeros(piece) for piece in pieces):
            continue
        first, second = sorted(pieces, key=lambda piece: int(_args(piece)[3]))
        (_, low, axis, start, *_), (_, high, other_axis, middle, *_) = _args(first), _args(second)
        length = _shape(node)[axis]
        if axis != other_axis or start != 0 or _shape(low)[axis] != middle or middle + _shape(high)[axis] != length:
            continue
        with graph.inserting_before(node):
            joined = graph.call_function(aten.cat.default, ([low, high], axis))
        joined.meta["val"] = node.meta["val"]
        _forward(node, joined)
        count += 1
    return count


def _is_piece_in_zeros(node: Node) -> bool:
    if not _is_call(node, aten.slice_scatter.default) or len(node.args) < 4:
        return False
    around = _args(node)[0]
    return _is_call(around, aten.full.default) and _args(around)[1] == 0


def split_deep_products(graph: Graph) -> None:
    """A product that sums over more than ``_DEPTH`` numbers -> the sum of products over at most ``_PIECE`` of them.

    XNNPACK holds a strip of the weight in the cache of the second level, as long as the sum: at 8,192 it falls out of
    it, and a product takes almost three times as long.
    """
    for target, axis in ((aten.linear.default, 1), (aten.mm.default, 0)):
        for node in _calls(graph, target):
            x, weight, *bias = _args(node)
            depth = _shape(x)[1]
            if depth <= _DEPTH:
                continue
            pieces = -(-depth // _PIECE)
            bounds = [depth * piece // pieces for piece in range(pieces + 1)]
            with graph.inserting_before(node):
                total = None
                for start, end in pairwise(bounds):
                    part = _call(graph, aten.slice.Tensor, x, 1, start, end)
                    product = _call(
                        graph, target, part, _call(graph, aten.slice.Tensor, weight, axis, start, end), *bias
                    )
                    total = product if total is None else _call(graph, aten.add.Tensor, total, product)
                    bias = []
            _forward(node, total)


def subtract_from_constants(graph: Graph) -> None:
    """``c - x``, which autograd writes as two filled tensors, a copy and a difference in place -> ``-x + c``."""
    for node in _calls(graph, aten.sub_.Tensor):
        filled, x = _args(node)[:2]
        if not _is_call(filled, aten.copy_.default) or len(node.args) > 2 or node.kwargs:
            continue
        constant = _args(filled)[1]
        if _is_call(constant, aten.full_like.default):
            with graph.inserting_before(node):
                negative = _call(graph, aten.mul.Tensor, x, -1.0)
            _replace(node, aten.add.Tensor, negative, float(_args(constant)[1]))
            graph.erase_node(filled)


def scalars_as_tensors(graph: Graph) -> None:
    """``mul.Scalar(x, c)`` -> ``mul.Tensor(x, c)``, and so on: XNNPACK computes only those, which take a constant."""
    for scalar, tensor in _SCALAR_FORMS.items():
        for node in _calls(graph, scalar):
            if len(node.args) == 2 and not node.kwargs:
                node.target = tensor


def merge_equal_nodes(graph: Graph) -> int:
    """Compute equal expressions once.

    Not those of ``_NOT_MERGED``: a loop wants its sums to start in tensors of their own, and where attention's backward
    pass computes the products of the forward pass again, it does so in order not to keep them.
    """
    count = 0
    seen: dict[Any, Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target in _NOT_MERGED:
            continue
        key = _key((node.target, node.args, node.kwargs))
        if key in seen:
            _forward(node, seen[key])
            count += 1
        else:
            seen[key] = node
    return count


_PASSES: tuple[Callable[[Graph], int], ...] = (
    compose_permutations,
    compose_views,
    permute_before_merging_heads,
    permute_after_splitting_heads,
    transpose_smaller_factor,
    products_with_transposed_right_side,
    turn_wide_products,
    broadcast_late,
    join_scattered_halves,
    merge_equal_nodes,
)


def _calls(graph: Graph, target: Any) -> list[Node]:
    return [node for node in graph.nodes if _is_call(node, target)]


def _is_call(node: Any, target: Any) -> bool:
    return isinstance(node, Node) and node.op == "call_function" and node.target is target


def _args(node: Node) -> tuple[Any, ...]:
    """A node's arguments, which torch types more broadly than is of use."""
    return node.args


def _is_permute(node: Any, order: list[int]) -> bool:
    return _is_call(node, aten.permute_copy.default) and list(_args(node)[1]) == order


def _shape(node: Any) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)


def _permutation(node: Node) -> list[int]:
    """The order of dimensions that a transpose of any kind stands for."""
    rank = len(_shape(node))
    if node.target is aten.permute.default:
        return [axis % rank for axis in _args(node)[1]]
    order = list(range(rank))
    first, second = (0, rank - 1) if node.target is aten.t.default else _args(node)[1:3]
    order[first], order[second] = order[second], order[first]
    return order


def _merges_heads(split: Sequence[int], merged: Sequence[int]) -> bool:
    """Whether (B, H, X, Y) -> (B H, X, Y) is what a view does."""
    return len(split) == 4 and len(merged) == 3 and tuple(split[2:]) == tuple(merged[1:])


def _call(graph: Graph, target: Any, *args: Any) -> Node:
    """Add a call at the insertion point, with the value its meta data has to carry."""
    node = graph.call_function(target, args)
    values = [argument.meta["val"] if isinstance(argument, Node) else argument for argument in args]
    node.meta["val"] = target(*values).contiguous()
    return node


def _replace(node: Node, target: Any, *args: Any) -> None:
    with node.graph.inserting_before(node):
        _forward(node, _call(node.graph, target, *args))


def _forward(node: Node, replacement: Any) -> None:
    """Let the users of a node use another one instead."""
    node.replace_all_uses_with(replacement)
    node.graph.erase_node(node)


def _key(value: Any) -> Any:
    """A hashable image of a node's arguments that tells 1 from 1.0."""
    if isinstance(value, (list, tuple)):
        return tuple(_key(item) for item in value)
    if isinstance(value, dict):
        return tuple(sorted((name, _key(item)) for name, item in value.items()))
    return value if isinstance(value, Node) else (type(value), value)
