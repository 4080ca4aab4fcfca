"""Where a program's intermediate tensors lie in its arena."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from executorch.exir.memory_planning import MemoryPlanningAlgorithmSuite, get_scan_nodes
from executorch.exir.passes import MemoryPlanningPass
from torch.fx import GraphModule, Node
from torch.fx.passes.infra.pass_base import PassResult


class ArenaPlanning(MemoryPlanningPass):  # type: ignore[misc]
    """ExecuTorch's planning, but what a loop takes from around it gets no place of its own in the loop's body.

    ExecuTorch hands the loop's body those tensors themselves, weights among them, and yet plans room for each.
    """

    def __init__(self) -> None:
        super().__init__(memory_planning_algo=self._plan, alloc_graph_input=False, alloc_graph_output=True)
        self._algorithm = MemoryPlanningAlgorithmSuite()
        self._placed_outside: set[int] = set()

    def run(self, graph_module: GraphModule, graph_signature: Any = None) -> PassResult:
        """Plan the arena of a program and of the loops in it."""
        self._placed_outside = {id(node.meta["spec"]) for node in _given_to_loops(graph_module)}
        planned: PassResult = super().run(graph_module, graph_signature)
        return planned

    def _plan(self, alignment: int, specs: Collection[Any], *others: Any) -> list[int]:
        inside = type(specs)(spec for spec in specs if id(spec) not in self._placed_outside)  # type: ignore[call-arg]
        sizes: list[int] = self._algorithm(alignment, inside, *others)
        return sizes


def _given_to_loops(graph_module: GraphModule) -> Iterator[Node]:
    """The inputs of loop bodies that are tensors of the graph around them: the sums so far, and what never changes."""
    for loop in get_scan_nodes(graph_module):
        body, sums, parts, _ = loop.args
        inputs = [node for node in getattr(graph_module, body.target).graph.nodes if node.op == "placeholder"]
        yield from inputs[: len(sums)]
        yield from inputs[len(sums) + len(parts) :]
