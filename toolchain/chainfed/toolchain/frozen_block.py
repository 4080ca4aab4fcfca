"""A block program that holds its layer's quantised weights: XNNPACK multiplies int8 by int8 or int4 then.

XNNPACK computes with quantised weights only where they are constants of a program. Such a program serves one layer, and
what it takes beside hidden states and mask is the layer's adapter. The activations that meet a quantised matrix are
rounded to int8 as well, each row (token) with a scale and a zero point of its own, at run time.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from chainfed.toolchain.lowering import LoweredProgram, lower_graph, trace
from chainfed.toolchain.programs import ProgramDefinition, ProgramSettings
from chainfed.toolchain.quantization import GROUP_SCALE, GROUP_SIZE, SCALE, StoredArray
from chainfed.toolchain.steps import block_program, block_programs

aten = torch.ops.aten
decomposed = torch.ops.quantized_decomposed

_PREFIX = "layer."
_EPSILON = torch.finfo(torch.float32).eps


def lower_frozen_block(settings: ProgramSettings, layer: int, weights: Mapping[str, StoredArray]) -> LoweredProgram:
    """Lower the block program of one layer, whose stored tensors it will hold."""
    shared = block_program(settings)
    return lower_graph(block_programs(settings)[layer], freeze(trace(shared), shared, weights))


def freeze(graph_module: GraphModule, program: ProgramDefinition, weights: Mapping[str, StoredArray]) -> GraphModule:
    """Put a layer's stored weights into the traced graph of ``block``, and let XNNPACK multiply by them.

    Args:
        graph_module: the rewritten trace of `program`; it is changed.
        program: the definition of ``block`` for stored weights.
        weights: what the layer's weight file holds.

    Returns:
        A graph that takes the inputs of `program` but for the layer's.
    """
    graph = graph_module.graph
    stored: dict[Node, str] = {}
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    for number, (node, spec) in enumerate(zip(placeholders, program.inputs, strict=True)):
        if spec.name.startswith(_PREFIX):
            name = spec.name.removeprefix(_PREFIX)
            constant = _constant(graph_module, node, f"weight_{number}", torch.from_numpy(weights[name]))
            node.replace_all_uses_with(constant)
            graph.erase_node(node)
            stored[constant] = name
    activations: dict[Node, Node] = {}
    for node in [node for node in graph.nodes if node.target is aten.linear.default]:
        matrix = _matrix_of(node.args[1], stored)
        if matrix is not None:
            _quantise(graph_module, node, matrix, weights, activations)
    graph.eliminate_dead_code()
    used = {node.target for node in graph.nodes if node.op == "get_attr"}
    for name in [name for name, _ in graph_module.named_buffers() if name not in used]:
        delattr(graph_module, name)
    graph.lint()
    graph_module.recompile()
    return graph_module


def _matrix_of(weight: Any, stored: Mapping[Node, str]) -> str | None:
    """The name of the quantised matrix that a node widens, all of it and nothing else."""
    pending, found = [weight], set()
    while pending:
        node = pending.pop()
        if node in stored:
            found.add(stored[node].removesuffix(SCALE).removesuffix(GROUP_SCALE))
        else:
            pending += node.all_input_nodes
            if node.op == "placeholder" or not node.all_input_nodes:
                return None
    return found.pop() if len(found) == 1 and weight not in stored else None


def _quantise(
    graph_module: GraphModule,
    linear: Node,
    matrix: str,
    weights: Mapping[str, StoredArray],
    activations: dict[Node, Node],
) -> None:
    graph = graph_module.graph
    source = linear.all_input_nodes[0]
    with graph.inserting_before(linear):
        if source not in activations:
            activations[source] = _rounded_activations(graph, source)
        linear.replace_input_with(source, activations[source])
        linear.args = (linear.args[0], _rounded_weights(graph_module, matrix, weights), *linear.args[2:])


def _rounded_activations(graph: Graph, source: Node) -> Node:
    """`source` rounded to int8 and back: what XNNPACK takes as the sign to round at run time."""
    limits = (-128, 127)
    chosen = graph.call_function(decomposed.choose_qparams.tensor, (source, *limits, _EPSILON, torch.int8))
    scale, zero_point = (graph.call_function(operator.getitem, (chosen, index)) for index in (0, 1))
    arguments = (scale, zero_point, *limits, torch.int8)
    rounded = graph.call_function(decomposed.quantize_per_tensor.tensor, (source, *arguments))
    return graph.call_function(decomposed.dequantize_per_tensor.tensor, (rounded, *arguments))


def _rounded_weights(graph_module: GraphModule, matrix: str, weights: Mapping[str, StoredArray]) -> Node:
    codes, name = torch.from_numpy(weights[matrix]), matrix.replace(".", "_")
    graph = graph_module.graph
    if matrix + SCALE in weights:
        scale = torch.from_numpy(weights[matrix + SCALE]).flatten()
        zeros = torch.zeros(scale.shape, dtype=torch.int64)
        parts = (codes, scale, zeros)
        nodes = [_attribute(graph_module, f"{name}_{part}", value) for part, value in zip("wsz", parts, strict=True)]
        return graph.call_function(decomposed.dequantize_per_channel.default, (*nodes, 0, -127, 127, torch.int8))
    scale = torch.from_numpy(weights[matrix + GROUP_SCALE])
    parts = (torch.cat(((codes & 15) - 8, codes >> 4), dim=1), scale, torch.zeros(scale.shape, dtype=torch.int32))
    nodes = [_attribute(graph_module, f"{name}_{part}", value) for part, value in zip("wsz", parts, strict=True)]
    limits = (-8, 7, torch.int8, GROUP_SIZE, torch.float32)
    return graph.call_function(decomposed.dequantize_per_channel_group.default, (*nodes, *limits))


def _constant(graph_module: GraphModule, before: Node, name: str, value: Tensor) -> Node:
    with graph_module.graph.inserting_before(before):
        return _attribute(graph_module, name, value)


def _attribute(graph_module: GraphModule, name: str, value: Tensor) -> Node:
    graph_module.register_buffer(name, value)
    node = graph_module.graph.get_attr(name)
    node.meta["val"] = value
    return node
