"""Which parts of a program XNNPACK computes.

ExecuTorch's own partitioner makes parts as large as it can, from wherever in the graph their nodes stand, and sorts the
graph anew. A part is computed at once, so the first steps of the backward pass would be taken right after the forward
pass, and their results kept until they are used: arenas of two to four times the size. The parts made here are runs of
neighbours in the order of the trace, and ``restore_order`` puts them back there.
"""

from __future__ import annotations

import copy
import heapq
from collections.abc import Iterator

from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.backends.xnnpack.xnnpack_preprocess import XnnpackBackend
from executorch.exir.backend.backend_details import CompileSpec
from executorch.exir.backend.partitioner import DelegationSpec, PartitionResult
from executorch.exir.delegate import executorch_call_delegate
from executorch.exir.dialects._ops import ops as exir_ops
from executorch.exir.graph_module import get_control_flow_submodules
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from chainfed.toolchain.xnnpack_workspace import cut_to_workspace

_POSITION = "chainfed_position"
_JOINED_AT_ONCE = 5


class RunPartitioner(XnnpackPartitioner):  # type: ignore[misc]
    """Hands XNNPACK every operator it can compute, weights as inputs included, without rewriting them first.

    XNNPACK's own export runs seventeen passes over each delegated piece, to find convolutions, upsampling,
    batch norms and the like; our graphs have none and come rewritten, and those passes were more than half
    of the time of an export. The compile spec below is XNNPACK's switch that leaves only one of them.
    """

    def __init__(self) -> None:
        super().__init__(force_non_static_weights_for_f32_linear=True)
        self.delegation_spec = DelegationSpec(XnnpackBackend.__name__, [CompileSpec("dqlinear_partitioner", b"")])

    def partition(self, exported_program: ExportedProgram) -> PartitionResult:
        """Mark the runs, in the bodies of loops as well, and note every node's place."""
        tags: dict[str, DelegationSpec] = {}
        for number, graph_module in enumerate(graph_modules(exported_program.graph_module)):
            for place, node in enumerate(graph_module.graph.nodes):
                node.meta[_POSITION] = place
            part = copy.copy(exported_program)
            part._graph_module = graph_module
            matched = (node for group in self.get_matched_nodes_from_configs(part) for node in group)
            supported = {node for node in matched if not _joins_too_many(node)}
            for run in filter(None, map(_without_views_around, cut_to_workspace(list(_runs(graph_module, supported))))):
                tag = f"run_{number}_{run[0].meta[_POSITION]}"
                tags[tag] = self.delegation_spec
                for node in run:
                    node.meta["delegation_tag"] = tag
        return PartitionResult(tagged_exported_program=exported_program, partition_tags=tags)


def graph_modules(graph_module: GraphModule) -> Iterator[GraphModule]:
    """A graph and the bodies of the loops in it."""
    yield graph_module
    for _, body, _ in get_control_flow_submodules(graph_module):
        yield from graph_modules(body)


def restore_order(graph_module: GraphModule) -> None:
    """Sort a partitioned graph, in place: each node to the place it was noted at, as far as its inputs allow."""
    graph = graph_module.graph
    places: dict[Node, int] = {}
    for node in graph.nodes:
        given = [node.meta[_POSITION]] if _POSITION in node.meta else []
        if node.target is executorch_call_delegate:
            lowered = getattr(graph_module, node.args[0].target)
            given = [part.meta[_POSITION] for part in lowered.original_module.graph.nodes if _POSITION in part.meta]
        after = [places[source] for source in node.all_input_nodes]
        places[node] = min(given) if given and node.op != "output" else max(after, default=0)
    order = {node: number for number, node in enumerate(graph.nodes)}
    waiting = {node: len(node.all_input_nodes) for node in graph.nodes}
    ready = [(places[node], order[node], node) for node, count in waiting.items() if count == 0]
    heapq.heapify(ready)
    last = graph._root
    while ready:
        _, _, node = heapq.heappop(ready)
        last.append(node)
        last = node
        for user in node.users:
            waiting[user] -= 1
            if waiting[user] == 0 and user.op != "output":
                heapq.heappush(ready, (places[user], order[user], user))
    graph.lint()
    graph_module.recompile()


def _joins_too_many(node: Node) -> bool:
    """Whether it is a concatenation that XNNPACK has no operator for, though the partitioner takes it."""
    return node.target is exir_ops.edge.aten.cat.default and len(node.all_input_nodes) > _JOINED_AT_ONCE


def _runs(graph_module: GraphModule, supported: set[Node]) -> Iterator[list[Node]]:
    """Neighbours that XNNPACK can compute."""
    run: list[Node] = []
    for node in graph_module.graph.nodes:
        if node in supported:
            run.append(node)
        elif node.op not in ("placeholder", "get_attr"):
            yield run
            run = []


def _without_views_around(run: list[Node]) -> list[Node]:
    """A run without the views at either end, which ExecuTorch makes for nothing."""
    computing = [index for index, node in enumerate(run) if node.target is not exir_ops.edge.aten.view_copy.default]
    return run[computing[0] : computing[-1] + 1] if computing else []
