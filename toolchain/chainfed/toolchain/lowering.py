"""From a program definition to the bytes of an ExecuTorch program."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from chainfed.toolchain.arena_planning import ArenaPlanning
from chainfed.toolchain.decompositions import decomposition_table
from chainfed.toolchain.partitioning import RunPartitioner, graph_modules, restore_order
from chainfed.toolchain.programs import ProgramDefinition
from chainfed.toolchain.rewrites import rewrite


@dataclass(frozen=True)
class LoweredProgram:
    """An ExecuTorch program and what it plans to use.

    Attributes:
        name: the name of the definition it was made from.
        data: the bytes of the ``.pte`` file; one method, ``forward``.
        arena_bytes: the planned arena, outputs included and inputs not. XNNPACK's workspace comes on top.
    """

    name: str
    data: bytes
    arena_bytes: int


class _Traced(nn.Module):
    """A traced graph as a module, which is what torch.export takes."""

    def __init__(self, graph_module: GraphModule) -> None:
        super().__init__()
        self.graph_module = graph_module

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = self.graph_module(*tensors)
        return outputs


def trace(program: ProgramDefinition) -> GraphModule:
    """Trace a program, backward pass and optimiser included, to one graph of phone-friendly operators."""
    tracer = make_fx(program.function, decomposition_table=decomposition_table(), tracing_mode="fake")
    return rewrite(tracer(*program.example_inputs()))


def lower(program: ProgramDefinition) -> LoweredProgram:
    """Trace a program and lower it to ExecuTorch, computed by XNNPACK where it can be.

    The same definition gives the same bytes.
    """
    module = _Traced(trace(program))
    exported = torch.export.export(module, program.example_inputs(), strict=False)
    config = EdgeCompileConfig(
        preserve_ops=[torch.ops.aten.linear.default], _check_ir_validity=False, _skip_dim_order=True
    )
    edge = to_edge(exported, compile_config=config).to_backend(RunPartitioner())
    for graph_module in graph_modules(edge.exported_program().graph_module):
        restore_order(graph_module)
    executable = edge.to_executorch(ExecutorchBackendConfig(memory_planning_pass=ArenaPlanning()))
    arena_bytes = sum(executable.executorch_program.execution_plan[0].non_const_buffer_sizes)
    return LoweredProgram(program.name, bytes(executable.buffer), int(arena_bytes))
