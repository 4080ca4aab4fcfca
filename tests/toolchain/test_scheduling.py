"""What a graph computes late and twice: fewer tensors held, the same values to the bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from chainfed.toolchain.scheduling import compute_late, recompute_cheap

aten = torch.ops.aten


def _scheduled(schedule: Callable[[Any], None], function: Callable[..., Tensor], *shapes: tuple[int, ...]) -> list[Any]:
    """The operators of the scheduled graph, which must give the same bits, in their order."""
    tensors = [torch.randn(shape) for shape in shapes]
    graph_module: GraphModule = make_fx(function, tracing_mode="fake")(*tensors)
    schedule(graph_module.graph)
    graph_module.graph.lint()
    graph_module.recompile()
    assert torch.equal(graph_module(*tensors), function(*tensors))
    return [node.target for node in graph_module.graph.nodes if node.op == "call_function"]


def _product_and_sine(x: Tensor, weight: Tensor, y: Tensor) -> Tensor:
    product = (x @ weight).view(4, 2, 4)
    return y.sin().cos() * product


def test_a_product_that_widens_is_computed_where_it_is_used() -> None:
    order = _scheduled(compute_late, _product_and_sine, (4, 3), (3, 8), (4, 2, 4))
    assert order == [aten.sin.default, aten.cos.default, aten.mm.default, aten.view.default, aten.mul.Tensor]


def test_a_product_that_narrows_stays() -> None:
    order = _scheduled(compute_late, _product_and_sine, (4, 9), (9, 8), (4, 2, 4))
    assert order[0] is aten.mm.default


def test_an_activation_is_computed_again_for_the_backward_pass() -> None:
    """``x`` is used at the end anyway, so its sigmoid needs not be kept over the products."""

    def function(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        activation = x.sigmoid()
        return (activation @ first @ second) * activation * x

    order = _scheduled(recompute_cheap, function, (4, 4), (4, 4), (4, 4))
    assert order == [
        *(aten.sigmoid.default, aten.mm.default, aten.mm.default),
        *(aten.sigmoid.default, aten.mul.Tensor, aten.mul.Tensor),
    ]


def test_what_would_keep_its_own_input_is_kept_instead() -> None:
    def function(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        activation = (x @ first).sigmoid()
        return (activation @ second) * activation

    order = _scheduled(recompute_cheap, function, (4, 4), (4, 4), (4, 4))
    assert order.count(aten.sigmoid.default) == 1


def test_a_chain_is_computed_again_as_a_whole() -> None:
    """The gate of a feed-forward and its sigmoid: both are made of what the gradient needs anyway."""

    def function(x: Tensor, weight: Tensor) -> Tensor:
        gate = x @ weight
        sigmoid = gate.sigmoid()
        activation = gate * sigmoid
        return (activation @ weight) * activation * sigmoid * gate

    order = _scheduled(recompute_cheap, function, (4, 4), (4, 4))
    assert order.count(aten.sigmoid.default) == 2
    assert order.index(aten.mm.default, 1) < len(order) - order[::-1].index(aten.sigmoid.default) - 1


def test_uses_close_together_share_one_result() -> None:
    order = _scheduled(recompute_cheap, lambda x, y: x.sigmoid() * y + x.sigmoid(), (4, 4), (4, 4))
    assert order.count(aten.sigmoid.default) == 2  # as it was traced
