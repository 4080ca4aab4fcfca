"""Programs over narrow weights: what they widen is what numpy says, and each use widens anew."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig

from chainfed.core import manifest
from chainfed.core.manifest import ProgramEntry
from chainfed.toolchain.families import family_for
from chainfed.toolchain.lowering import lower, trace
from chainfed.toolchain.memory_probe import measure_peaks
from chainfed.toolchain.programs import ProgramDefinition, ProgramSettings, TensorSpec
from chainfed.toolchain.quantization import narrow, widen
from chainfed.toolchain.steps import block_program, build_programs
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
    graph = trace(build_programs(settings)["window_q2"]).graph
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


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells anonymous memory")
def test_wide_copies_come_and_go_one_after_the_other(tmp_path: Path) -> None:
    """A block's matrices take 12 MiB widened, the largest two 4 MiB each: int8 adds no more than one and a half."""
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "num_hidden_layers": 1}
    family = family_for(BertConfig(vocab_size=50, max_position_embeddings=16, **sizes))
    settings = ProgramSettings(family, 2, 8, 8, 2, windows=(1,))
    programs = {
        dtype: _written(block_program(replace(settings, dtype=dtype)), tmp_path / dtype) for dtype in ("f32", "int8")
    }
    peaks = measure_peaks(programs)
    assert peaks["int8"] - peaks["f32"] < 6 << 20


def _written(program: ProgramDefinition, path: Path) -> tuple[Path, ProgramEntry]:
    lowered = lower(program)
    path.write_bytes(lowered.data)
    inputs, outputs = (tuple(_entry_spec(spec) for spec in part) for part in (program.inputs, program.outputs))
    return path, ProgramEntry(file=path.name, inputs=inputs, outputs=outputs, arena_bytes=lowered.arena_bytes)


def _entry_spec(spec: TensorSpec) -> manifest.TensorSpec:
    return manifest.TensorSpec(name=spec.name, shape=spec.shape, dtype=spec.dtype)
