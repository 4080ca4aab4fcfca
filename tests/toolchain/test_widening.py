"""Programs over narrow weights: what they widen is what numpy says, and each use widens anew."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from chainfed.toolchain.lowering import trace
from chainfed.toolchain.quantization import narrow, widen
from chainfed.toolchain.steps import ProgramSettings, block_program, window_program
from chainfed.toolchain.widening import gather_rows, widened

MATRICES_A_LAYER = 6


@pytest.fixture(params=["f16", "int8", "int4"])
def stored(request: pytest.FixtureRequest) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(1)
    tensors = {"w": generator.normal(size=(10, 64)).astype(np.float32), "b": np.ones(10, np.float32)}
    return narrow(tensors, {"w"}, request.param)


def test_the_graph_widens_as_numpy_does(stored: dict[str, np.ndarray]) -> None:
    expected = widen(stored)
    actual = widened({name: torch.from_numpy(array) for name, array in stored.items()})
    assert actual.keys() == expected.keys() == {"w", "b"}
    for name, array in expected.items():
        assert actual[name].dtype == torch.float32
        assert np.array_equal(actual[name].numpy(), array)


def test_only_the_rows_that_are_asked_for_are_widened(stored: dict[str, np.ndarray]) -> None:
    ids = torch.tensor([[3, 0], [9, 3]])
    rows = gather_rows({name: torch.from_numpy(array) for name, array in stored.items()}, "w", ids)
    assert np.array_equal(rows.numpy(), widen(stored)["w"][[3, 0, 9, 3]])


@pytest.mark.parametrize("dtype", ["f16", "int8", "int4"])
def test_forward_and_backward_widen_each_matrix_for_themselves(
    dtype, make_settings: Callable[..., ProgramSettings]
) -> None:
    settings = replace(make_settings("sgd"), dtype=dtype)
    graph = trace(window_program(settings, 2)).graph
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    narrow_inputs = [node for node in inputs if node.meta["val"].dtype in (torch.float16, torch.int8)]
    assert len(narrow_inputs) == 2 * MATRICES_A_LAYER
    uses = [len(node.users) for node in narrow_inputs]
    assert uses == [1] * MATRICES_A_LAYER + [2] * MATRICES_A_LAYER  # only the second layer has a backward pass
    order = {node: place for place, node in enumerate(graph.nodes)}
    for node in narrow_inputs:
        for first in node.users:
            assert order[_product(first)] - order[first] < 20, f"{node} is widened long before it is used"


def _product(node: torch.fx.Node) -> torch.fx.Node:
    """The matrix product that a widening ends in, through nodes of one user each."""
    while node.target not in (torch.ops.aten.linear.default, torch.ops.aten.mm.default):
        assert node.users, f"{node} is no part of a product"
        node = max(node.users, key=lambda user: user.name)
    return node


def test_f32_programs_take_what_they_always_took(make_settings: Callable[..., ProgramSettings]) -> None:
    program = block_program(make_settings("sgd"))
    assert {spec.dtype for spec in program.inputs} == {"float32"}
    assert not any(spec.name.endswith("scale") for spec in program.inputs)
