"""From a program definition to the bytes of an ExecuTorch program."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import executorch.exir.lowered_backend_module as lowered_backend_module
import torch
from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.graph import _PyTreeCodeGen
from torch.fx.passes.tools_common import stable_topological_sort

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


@contextlib.contextmanager
def _order_kept() -> Iterator[None]:
    """Keep the order of the graph while pieces of it go to XNNPACK.

    ExecuTorch sorts the graph again after each piece, and its sort puts first what depends on inputs alone: every
    widened weight would be made at the start and live until it is used. XNNPACK plans its workspace in this order.
    """
    legalize = lowered_backend_module.legalize_graph
    lowered_backend_module.legalize_graph = stable_topological_sort
    try:
        yield
    finally:
        lowered_backend_module.legalize_graph = legalize


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
    return lower_graph(program, trace(program))


def lower_graph(program: ProgramDefinition, graph_module: GraphModule) -> LoweredProgram:
    """Lower a traced graph that takes the inputs of a program and gives its outputs."""
    exported = torch.export.export(_Traced(graph_module), program.example_inputs(), strict=False)
    config = EdgeCompileConfig(
        preserve_ops=[torch.ops.aten.linear.default], _check_ir_validity=False, _skip_dim_order=True
    )
    with _graphs_compiled_when_called():
        with _order_kept():
            edge = to_edge(exported, compile_config=config).to_backend(RunPartitioner())
        for graph_module in graph_modules(edge.exported_program().graph_module):
            restore_order(graph_module)
        executable = edge.to_executorch(ExecutorchBackendConfig(memory_planning_pass=ArenaPlanning()))
    arena_bytes = sum(executable.executorch_program.execution_plan[0].non_const_buffer_sizes)
    return LoweredProgram(program.name, bytes(executable.buffer), int(arena_bytes))


@contextlib.contextmanager
def _graphs_compiled_when_called() -> Iterator[None]:
    """Put off what torch does after each change of a graph: writing it as Python source and compiling that.

    Lowering changes graphs thousands of times, the whole one for every delegate, and calls hardly any of them.
    """
    compile_now = GraphModule.recompile

    def compile_when_called(graph_module: Any) -> None:
        if isinstance(graph_module.graph._codegen, _PyTreeCodeGen):
            info = graph_module.graph._codegen.pytree_info
            graph_module._in_spec, graph_module._out_spec = info.in_spec, info.out_spec
        graph_module._code = ""
        type(graph_module).forward = forward

    def forward(graph_module: Any, *arguments: Any, **options: Any) -> Any:
        compile_now(graph_module)
        return graph_module.forward(*arguments, **options)

    GraphModule.recompile = compile_when_called  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        GraphModule.recompile = compile_now  # type: ignore[method-assign]
