"""The estimate of a program's memory, from its graph, against what exports plan and measure."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from transformers import BertConfig, LlamaConfig

from chainfed.core.manifest import Bundle, MemoryPlan, ProgramEntry, TensorSpec
from chainfed.toolchain.families import family_for
from chainfed.toolchain.lowering import lower, trace
from chainfed.toolchain.memory_estimate import estimate_plan, graph_need
from chainfed.toolchain.memory_plan import plan_memory
from chainfed.toolchain.memory_probe import measure_peaks
from chainfed.toolchain.programs import ProgramDefinition, ProgramSettings
from chainfed.toolchain.steps import build_programs
from chainfed.toolchain.verify import settings_of

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells anonymous memory")


def test_values_between_parts_lie_in_the_arena_and_values_within_one_in_the_workspace() -> None:
    """XNNPACK has no sum over a dimension here, so `c` is handed over; `a` and `b` never leave their part."""

    def function(x: torch.Tensor) -> torch.Tensor:
        a = torch.exp(x)
        b = torch.sigmoid(a)
        c = a * b
        return torch.exp(c.sum(dim=1))

    graph = make_fx(function, tracing_mode="fake")(torch.zeros(64, 100))
    large, small, extra = 64 * 100 * 4, 64 * 4, 128
    need = graph_need(graph)
    assert need.workspaces == (2 * (large + extra), 0)
    assert need.arena == large + small


def test_the_packed_side_of_a_product_counts_while_it_is_computed() -> None:
    def function(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.mm(x, y)

    graph = make_fx(function, tracing_mode="fake")(torch.zeros(4, 50), torch.zeros(50, 40))
    need = graph_need(graph)
    assert need.workspaces == (64 * 51 * 4,)
    assert need.arena == 4 * 40 * 4


def test_the_arena_is_that_of_the_lowered_programs(tiny_bundle: Bundle) -> None:
    programs = build_programs(settings_of(tiny_bundle))
    for name in ("embed", "block", "pool", "window_q2", "window_q3"):
        planned = tiny_bundle.manifest.programs[name].arena_bytes
        assert graph_need(trace(programs[name])).arena == pytest.approx(planned, rel=0.15), name


def test_what_does_not_depend_on_the_graph_is_counted_as_at_export(tiny_bundle: Bundle) -> None:
    estimated = estimate_plan(build_programs(settings_of(tiny_bundle))["window_q1"])
    measured = tiny_bundle.manifest.windows[1]
    for part in ("optimizer_bytes", "io_bytes", "file_bytes"):
        assert getattr(estimated, part) == getattr(measured, part)
    parts = (estimated.arena_bytes, estimated.workspace_bytes, estimated.optimizer_bytes, estimated.io_bytes)
    assert estimated.anonymous_bytes == sum(parts)


_BERT = BertConfig(
    vocab_size=500,
    hidden_size=256,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=1024,
    max_position_embeddings=256,
)
_LLAMA = LlamaConfig(
    vocab_size=500,
    hidden_size=256,
    num_hidden_layers=3,
    num_attention_heads=8,
    num_key_value_heads=2,
    intermediate_size=688,
    max_position_embeddings=256,
)


@linux_only
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("config", "batch_size", "seq_len", "window_size"),
    [(_BERT, 4, 64, 2), (_BERT, 8, 128, 2), (_LLAMA, 4, 128, 2)],
    ids=["bert-4x64", "bert-8x128", "llama-4x128"],
)
def test_the_estimate_is_near_what_an_export_measures(
    config: Any, batch_size: int, seq_len: int, window_size: int, tmp_path: Path
) -> None:
    family = family_for(config)
    settings = ProgramSettings(
        family, batch_size, seq_len, 32, 4, windows=(window_size,), pooling=family.default_pooling
    )
    program = build_programs(settings)[f"window_q{window_size}"]
    measured, estimated = _measured_plan(program, tmp_path), estimate_plan(program)
    assert estimated.anonymous_bytes == pytest.approx(measured.anonymous_bytes, rel=0.2)


def _measured_plan(program: ProgramDefinition, folder: Path) -> MemoryPlan:
    lowered = lower(program)
    path = folder / "program.pte"
    path.write_bytes(lowered.data)
    inputs, outputs = (
        tuple(TensorSpec(name=spec.name, shape=spec.shape, dtype=spec.dtype) for spec in specs)
        for specs in (program.inputs, program.outputs)
    )
    entry = ProgramEntry(file=path.name, inputs=inputs, outputs=outputs, arena_bytes=lowered.arena_bytes)
    return plan_memory(program.name, entry, measure_peaks({program.name: (path, entry)})[program.name])
