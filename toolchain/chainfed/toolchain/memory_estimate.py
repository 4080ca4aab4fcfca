"""What a program will hold of its own, from its traced graph alone: nothing is lowered, and nothing runs.

ExecuTorch keeps in its arena what one part of a program hands to another, and XNNPACK keeps in its workspace what
stays within a part that it computes. Both are found by walking the graph in its order: a tensor lives from where it is
made to where it is last used. The parts share one workspace. It grows when a part needs more than those before, and
XNNPACK takes the larger block before it frees the smaller one, so both count. What XNNPACK takes beyond that is not in
the graph and was measured.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch.fx import GraphModule, Node

from chainfed.core.manifest import MemoryPlan, ProgramEntry
from chainfed.core.manifest import TensorSpec as EntrySpec
from chainfed.toolchain.lowering import trace
from chainfed.toolchain.memory_plan import plan_memory
from chainfed.toolchain.partitioning import RunPartitioner
from chainfed.toolchain.programs import ProgramDefinition
from chainfed.toolchain.xnnpack_workspace import cut_to_workspace, workspace_bytes

aten = torch.ops.aten

_PART_BYTES = 20_000
"""What each part that XNNPACK computes takes beside its workspace: it is a runtime with operators of its own."""


@dataclass(frozen=True)
class GraphNeed:
    """What a graph needs, in bytes: its arena, and the workspace of every part that XNNPACK computes, in order."""

    arena: int
    workspaces: tuple[int, ...]


@dataclass(frozen=True)
class _Part:
    """Neighbours that XNNPACK computes at once, or one node that ExecuTorch computes."""

    nodes: tuple[Node, ...]
    delegated: bool


def estimate_plan(program: ProgramDefinition, need: GraphNeed | None = None) -> MemoryPlan:
    """The memory plan that an export would measure, estimated; `need`: of the program's graph, where it is known."""
    need = need or graph_need(trace(program))
    inputs, outputs = (
        tuple(EntrySpec(name=spec.name, shape=spec.shape, dtype=spec.dtype) for spec in specs)
        for specs in (program.inputs, program.outputs)
    )
    entry = ProgramEntry(file="", inputs=inputs, outputs=outputs, arena_bytes=need.arena)
    plan = plan_memory(program.name, entry, need.arena)  # the rest of it follows from the tensors alone
    workspace = _peak_while_growing(need.workspaces) + _PART_BYTES * len(need.workspaces)
    return with_workspace(plan, workspace)


def _peak_while_growing(workspaces: Sequence[int]) -> int:
    """The most that is held while one workspace serves these needs in turn, old and new block counted together."""
    held = peak = 0
    for needed in workspaces:
        if needed > held:
            peak = max(peak, held + needed)
            held = needed
    return peak


def with_workspace(plan: MemoryPlan, workspace_bytes: int) -> MemoryPlan:
    """A plan with another workspace."""
    anonymous = plan.anonymous_bytes - plan.workspace_bytes + workspace_bytes
    return plan.model_copy(update={"workspace_bytes": workspace_bytes, "anonymous_bytes": anonymous})


def graph_need(graph_module: GraphModule) -> GraphNeed:
    """Arena and workspaces of a traced graph and of the loops in it."""
    parts = _parts(graph_module)
    place = {node: number for number, part in enumerate(parts) for node in part.nodes}
    live = [0] * len(parts)
    workspaces: list[int] = []
    for number, part in enumerate(parts):
        shared = [node for node in part.nodes if any(place.get(user) != number for user in node.users)]
        for node in shared:
            if not _is_alias(node, part.delegated):
                for later in range(number, _last_use(node, parts, place) + 1):
                    live[later] += _nbytes(node)
        if part.delegated:
            workspaces.append(workspace_bytes(part.nodes))
        elif part.nodes[0].target is torch.ops.higher_order.scan:
            body = graph_need(getattr(graph_module, str(_argument(part.nodes[0], 0).target)))
            live[number] += body.arena
            workspaces += body.workspaces
    return GraphNeed(max(live, default=0), tuple(workspaces))


def _parts(graph_module: GraphModule) -> list[_Part]:
    """A graph as the partitioner divides it: views at either end of a run that XNNPACK computes are not part of it."""
    operators = _delegated_operators()
    nodes = [node for node in graph_module.graph.nodes if node.op not in ("placeholder", "get_attr", "output")]
    groups = [list(group) for _, group in groupby(nodes, lambda node: _is_delegated(node, operators))]
    runs = cut_to_workspace([group for group in groups if _is_delegated(group[0], operators)])
    first = {run[0]: run for run in runs}
    parts: list[_Part] = []
    for node in nodes:
        if node in first:
            parts += _run_parts(first[node])
        elif not _is_delegated(node, operators):
            parts.append(_Part((node,), False))
    return parts


def _run_parts(run: Sequence[Node]) -> list[_Part]:
    computing = [index for index, node in enumerate(run) if not _is_view(node)]
    first, last = (computing[0], computing[-1]) if computing else (len(run), len(run))
    inner = [_Part(tuple(run[first : last + 1]), True)] if computing else []
    return [
        *(_Part((node,), False) for node in run[:first]),
        *inner,
        *(_Part((node,), False) for node in run[last + 1 :]),
    ]


def _is_delegated(node: Node, operators: frozenset[str]) -> bool:
    floats = all(value.dtype == torch.float32 for value in _values(node))
    return node.op == "call_function" and floats and _operator(node) in operators


def _is_alias(node: Node, delegated: bool) -> bool:
    """Whether a node lies in the memory of what it is made from: items of a tuple, and views that are no output."""
    if delegated:
        return False
    returned = any(user.op == "output" for user in node.users)
    return node.target is operator.getitem or (_is_view(node) and not returned)


def _last_use(node: Node, parts: Sequence[_Part], place: Mapping[Node, int]) -> int:
    """The number of the last part that uses a node's memory, whether by itself or by a view of it."""
    last = place[node]
    for user in node.users:
        if user.op == "output":
            return len(parts) - 1
        last = max(last, place[user])
        if _is_alias(user, parts[place[user]].delegated):
            last = max(last, _last_use(user, parts, place))
    return last


def _delegated_operators() -> frozenset[str]:
    """The operators that the partitioner hands to XNNPACK, such as `mm.default`."""
    return frozenset(RunPartitioner().target_partitioner_configs)


def _operator(node: Node) -> str:
    """The name by which the partitioner knows a node's operator: that of the copying variant of a view."""
    if _is_view(node):
        return "view_copy.default"
    return str(node.target).removeprefix("aten.").replace("slice.", "slice_copy.")


def _is_view(node: Node) -> bool:
    return node.target is aten.view.default


def _argument(node: Node, index: int) -> Any:
    return node.args[index]


def _values(node: Node) -> list[torch.Tensor]:
    value = node.meta.get("val")
    return [part for part in (value if isinstance(value, (tuple, list)) else [value]) if isinstance(part, torch.Tensor)]


def _nbytes(node: Node) -> int:
    return sum(value.numel() * value.itemsize for value in _values(node))
