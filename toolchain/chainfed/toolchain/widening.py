"""Programs whose weights are stored in fewer bits: how the graph widens them, and when.

A program takes the tensors of a weight file as inputs and widens each where it is used, in the forward and again in the
backward pass, so that wide copies come and go one after the other. `chainfed.toolchain.quantization` says what the
stored numbers mean. int8 numbers are widened by XNNPACK itself (`dequantize_per_tensor`), whose workspace then holds
one wide matrix at a time; float16 by ExecuTorch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed  # registers the operator `dequantize_per_tensor`
from torch import Tensor
from torch.fx import Graph, Node
from torch.nn import functional

from chainfed.toolchain.quantization import GROUP_SCALE, GROUP_SIZE, SCALE, is_scale

Named = Mapping[str, Tensor]

aten = torch.ops.aten
_dequantize = torch.ops.quantized_decomposed.dequantize_per_tensor.default

_WIDENING = {
    _dequantize,
    aten._to_copy.default,
    aten.mul.Tensor,
    aten.sub.Tensor,
    aten.floor.default,
    aten.cat.default,
    aten.view.default,
    aten.permute_copy.default,
    aten.slice_copy.Tensor,
    aten.slice.Tensor,
}


def widened(stored: Named) -> dict[str, Tensor]:
    """The float32 tensors that the stored ones of a part of the model stand for; float32 ones are handed on."""
    wide: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        if name + SCALE in stored:
            wide[name] = _as_float(tensor, 1.0) * stored[name + SCALE]
        elif name + GROUP_SCALE in stored:
            wide[name] = _ungroup(tensor, stored[name + GROUP_SCALE])
        elif not is_scale(name, stored):
            wide[name] = tensor if tensor.dtype == torch.float32 else tensor.to(torch.float32)
    return wide


def narrow_tables(stored: Named) -> list[str]:
    """The names of matrices that are not stored as float32."""
    return [name for name, tensor in stored.items() if tensor.dtype != torch.float32]


def gather_rows(stored: Named, table: str, ids: Tensor) -> Tensor:
    """The rows of a stored table that are asked for, float32: ids of any shape, n of them -> (n, columns)."""
    names = [name for name in (table, table + SCALE, table + GROUP_SCALE) if name in stored]
    return widened({name: functional.embedding(ids.reshape(-1), stored[name]) for name in names})[table]


def widen_at_each_use(graph: Graph) -> int:
    """Give every use of a widened weight a widening of its own, right before it; returns how many it made.

    To be applied last: what merges equal nodes would undo it.
    """
    widening = _widening_nodes(graph)
    count = 0
    for node in [node for node in graph.nodes if node not in widening]:
        copies: dict[Node, Node] = {}
        with graph.inserting_before(node):
            for source in node.all_input_nodes:
                if source in widening:
                    node.replace_input_with(source, _copy(graph, source, widening, copies))
                    count += 1
    graph.eliminate_dead_code()
    return count


def _widening_nodes(graph: Graph) -> set[Node]:
    """What is computed from weights alone, at least one of which is not stored as float32."""
    constant: set[Node] = set()
    widening: set[Node] = set()
    for node in graph.nodes:
        inputs = node.all_input_nodes
        if node.op == "placeholder":
            constant.add(node)
        elif node.op == "call_function" and node.target in _WIDENING and constant.issuperset(inputs):
            constant.add(node)
            narrow = any(source.op == "placeholder" and _is_narrow(source) for source in inputs)
            if narrow or not widening.isdisjoint(inputs):
                widening.add(node)
    return widening


def _is_narrow(node: Node) -> bool:
    return node.meta["val"].dtype in (torch.float16, torch.int8)


def _copy(graph: Graph, node: Node, widening: set[Node], copies: dict[Node, Node]) -> Node:
    if node not in widening:
        return node
    if node not in copies:
        for source in node.all_input_nodes:
            _copy(graph, source, widening, copies)
        copies[node] = graph.node_copy(node, lambda source: copies.get(source, source))
    return copies[node]


def _as_float(codes: Tensor, unit: float) -> Tensor:
    """int8 codes times a power of two, exactly."""
    wide: Any = _dequantize(codes, unit, 0, -128, 127, torch.int8)
    result: Tensor = wide
    return result


def _ungroup(packed: Tensor, scale: Tensor) -> Tensor:
    """Two codes a byte, and a scale for each group of neighbours: (N, K / 2) and (N, K / 32) -> (N, K)."""
    sixteenths = _as_float(packed, 1.0 / 16.0)
    upper = sixteenths.floor()
    lower = (sixteenths - upper) * 16.0 - 8.0
    rows, columns = packed.shape[0], 2 * packed.shape[1]
    groups = torch.cat((lower, upper), dim=1).view(rows, columns // GROUP_SIZE, GROUP_SIZE)
    return (groups * scale[:, :, None]).view(rows, columns)
