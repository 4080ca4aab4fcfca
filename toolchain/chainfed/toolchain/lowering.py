"""From a program definition to the bytes of an ExecuTorch program."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import executorch.exir.lowered_backend_module as lowered_backend_module
import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.backends.xnnpack.xnnpack_preprocess import XnnpackBackend
from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge
from executorch.exir.backend.backend_details import CompileSpec
from executorch.exir.backend.partitioner import DelegationSpec, PartitionResult
from executorch.exir.passes import MemoryPlanningPass
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.passes.tools_common import stable_topological_sort

from chainfed.toolchain.decompositions import decomposition_table
from chainfed.toolchain.rewrites import rewrite
from chainfed.toolchain.steps import ProgramDefinition


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


class _DirectPartitioner(XnnpackPartitioner):  # type: ignore[misc]
    """Hands XNNPACK every operator it can compute, weights as inputs included, without rewriting them first.

    XNNPACK's own export runs seventeen passes over each delegated piece, to find convolutions, upsampling,
    batch norms and the like; our graphs have none and come rewritten, and those passes were more than half
    of the time of an export. The compile spec below is XNNPACK's switch that leaves only one of them.
    """

    def __init__(self) -> None:
        super().__init__(force_non_static_weights_for_f32_linear=True)
        self.delegation_spec = DelegationSpec(XnnpackBackend.__name__, [CompileSpec("dqlinear_partitioner", b"")])

    def partition(self, exported_program: ExportedProgram) -> PartitionResult:
        """Skip the parent's warning against ``to_edge``: the graph is core ATen already."""
        return super(XnnpackPartitioner, self).partition(exported_program)


@contextmanager
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
    edge = to_edge(exported, compile_config=config)
    with _order_kept():
        edge = edge.to_backend(_DirectPartitioner())
    planning = MemoryPlanningPass(alloc_graph_input=False, alloc_graph_output=True)
    executable = edge.to_executorch(ExecutorchBackendConfig(memory_planning_pass=planning))
    arena_bytes = sum(executable.executorch_program.execution_plan[0].non_const_buffer_sizes)
    return LoweredProgram(program.name, bytes(executable.buffer), int(arena_bytes))
