"""The workspace that XNNPACK is expected to need, against what it takes in a process."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from executorch.exir import EdgeCompileConfig, to_edge
from torch import Tensor, nn
from torch.fx import Node

from chainfed.core.manifest import ProgramEntry
from chainfed.core.manifest import TensorSpec as EntrySpec
from chainfed.runtime.memory import anonymous_bytes
from chainfed.toolchain import partitioning
from chainfed.toolchain.lowering import lower
from chainfed.toolchain.memory_probe import measure_peaks
from chainfed.toolchain.programs import Named, ProgramDefinition, TensorSpec
from chainfed.toolchain.xnnpack_workspace import cut_to_workspace, workspace_bytes

ROWS, NARROW, WIDE = 512, 768, 3072
WEIGHT = 4 * NARROW * WIDE
HIDDEN = 4 * ROWS * WIDE


def _gate(tensors: Named) -> Tensor:
    gate = tensors["x"] @ tensors["layer.gate"]
    return gate * gate.sigmoid()


def _feed_forward(tensors: Named) -> Tensor:
    return (_gate(tensors) * (tensors["x"] @ tensors["layer.up"])) @ tensors["layer.down"]


def _program(compute: Callable[[Named], Tensor], width: int, *weights: str) -> ProgramDefinition:
    shapes = {"gate": (NARROW, WIDE), "up": (NARROW, WIDE), "down": (WIDE, NARROW)}
    inputs = (TensorSpec("x", (ROWS, NARROW)), *(TensorSpec(f"layer.{name}", shapes[name]) for name in weights))
    return ProgramDefinition("block", inputs, (TensorSpec("h", (ROWS, width)),), lambda given: {"h": compute(given)})


@pytest.mark.skipif(anonymous_bytes() == 0, reason="the system does not say how much memory a process has")
@pytest.mark.parametrize(
    ("program", "expected"),
    [
        (_program(_gate, WIDE, "gate"), WEIGHT + 2 * HIDDEN),
        (_program(_feed_forward, NARROW, "gate", "up", "down"), WEIGHT + 2 * HIDDEN),
    ],
    ids=["gate", "feed-forward"],
)
def test_a_process_takes_what_is_expected(
    program: ProgramDefinition, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest matrix, packed, and the values that are held together."""
    counted: list[int] = []

    def count_and_keep_whole(runs: list[list[Node]]) -> list[list[Node]]:
        counted.extend(map(workspace_bytes, runs))
        return runs

    monkeypatch.setattr(partitioning, "cut_to_workspace", count_and_keep_whole)
    lowered = lower(program)
    (tmp_path / "program.pte").write_bytes(lowered.data)
    entry = ProgramEntry(
        file="program.pte",
        inputs=tuple(EntrySpec(name=spec.name, shape=spec.shape, dtype=spec.dtype) for spec in program.inputs),
        outputs=tuple(EntrySpec(name=spec.name, shape=spec.shape, dtype=spec.dtype) for spec in program.outputs),
        arena_bytes=lowered.arena_bytes,
    )
    peak = measure_peaks({"block": (tmp_path / "program.pte", entry)})["block"]
    assert max(counted) == pytest.approx(expected, rel=0.03)
    assert peak - lowered.arena_bytes - program.inputs[0].nbytes == pytest.approx(expected, rel=0.03)


class _Chain(nn.Module):
    """Products of these widths, one after the other."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.widths = widths

    def forward(self, x: Tensor, *weights: Tensor) -> Tensor:
        for weight in weights:
            x = (x @ weight).sigmoid()
        return x


def _nodes(*widths: int) -> list[Node]:
    """The operators of a chain of products, (4, widths[0]) first, as ExecuTorch's partitioners see them."""
    weights = [torch.zeros(before, after) for before, after in pairwise(widths)]
    exported = torch.export.export(_Chain(*widths), (torch.zeros(4, widths[0]), *weights))
    graph = to_edge(exported, compile_config=EdgeCompileConfig(_check_ir_validity=False)).exported_program().graph
    return [node for node in graph.nodes if node.op == "call_function"]


PACKED, VALUE = 4 * 33 * 32, 4 * 4 * 32 + 128
"""Bytes of a (32, 32) matrix packed with room for a bias, and of a (4, 32) value with room for kernels to read on."""


def test_the_largest_packed_matrix_counts_and_values_that_leave_do_not() -> None:
    product, sigmoid = _nodes(32, 32)
    assert workspace_bytes([product]) == PACKED
    assert workspace_bytes([product, sigmoid]) == PACKED + VALUE


def test_a_value_is_written_over_the_one_it_is_made_of() -> None:
    first, sigmoid, second, _ = _nodes(32, 32, 32)
    assert workspace_bytes([first, sigmoid]) == PACKED + VALUE  # the sigmoid is used outside: it lies in the arena
    assert workspace_bytes([first, sigmoid, second]) == PACKED + VALUE


def test_a_run_is_cut_where_the_workspace_would_grow_a_little() -> None:
    first, second = _nodes(32, 32), _nodes(32, 32, 32)
    assert workspace_bytes(first) < workspace_bytes(second)
    pieces = list(cut_to_workspace([first, second]))
    assert [node for piece in pieces for node in piece] == first + second
    assert len(pieces) == 3
    assert max(map(workspace_bytes, pieces)) == workspace_bytes(first)


def test_runs_before_the_first_large_one_and_those_that_need_less_stay_whole() -> None:
    small, large, less = _nodes(8, 8), _nodes(64, 64, 64), _nodes(64, 64)
    assert list(cut_to_workspace([small, large, less])) == [small, large, less]
    assert list(cut_to_workspace([])) == []
