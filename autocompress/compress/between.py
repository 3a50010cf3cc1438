"""Which operators without weights are computed in 8 bits, given the layers that are."""

from __future__ import annotations

import heapq
from collections.abc import Collection

import onnx
from onnx import GraphProto, NodeProto

from autocompress.compress.onnx_names import readers
from autocompress.errors import CompressionError

#: Operators that pass 8-bit values on: their output has the grid of their input.
DIRECT = frozenset({"MaxPool", "Flatten", "Reshape", "Transpose", "Slice", "Pad"})
#: Operators that the runtime computes on 8-bit values without weights, by how they are treated.
_FOLLOWS = DIRECT | {"Relu", "Clip", "AveragePool", "GlobalAveragePool"}
JOINS = frozenset({"Add", "Concat", "Mul"})
#: Layers whose integer kernel can return floats, so that a float reader gets them without another rounding.
RETURNS_FLOATS = frozenset({"Gemm", "MatMul"})
#: Float layers that the runtime would quantize of its own accord.
_RUNTIME_QUANTIZES = frozenset({"Conv", "ConvTranspose", "Gemm"})


def activation_inputs(node: NodeProto, constants: Collection[str]) -> list[int]:
    """Positions of the inputs that are activations: all sides of a joining operator, else the first input."""
    if node.op_type in JOINS:
        return [at for at, name in enumerate(node.input) if name and name not in constants]
    return [] if node.input[0] in constants else [0]


def between(graph: GraphProto, chosen: set[str]) -> set[str]:
    """Nodes without weights to quantize as well, so that few tensors change between 8-bit and float.

    A following operator (activation, pooling) is quantized with its producer. A joining one (addition) is quantized if
    all its sides are 8-bit: its inputs by their producer or another reader, its output by its readers. Quantizing it
    with fewer sides was not faster on a residual network, and less accurate. Repeated until nothing changes, because
    chains of additions depend on one another; the set only grows, so that it ends.
    """
    producer = {output: node for node in graph.node for output in node.output}
    read_by = readers(graph.node)
    constants = {tensor.name for tensor in graph.initializer}
    quantized = set(chosen)

    def feeds_8bit(tensor: str) -> bool:
        return any(
            node.name in quantized or (node.op_type in _FOLLOWS and feeds_8bit(node.output[0]))
            for node in read_by.get(tensor, [])
            if tensor == node.input[0] or node.op_type in JOINS
        )

    def is_8bit(tensor: str) -> bool:
        return (tensor in producer and producer[tensor].name in quantized) or feeds_8bit(tensor)

    while True:
        before = len(quantized)
        for node in graph.node:
            inputs = [name for name in node.input if name and name not in constants]
            if node.op_type in _FOLLOWS and inputs and node.input[0] in producer:
                source = producer[node.input[0]]
                # After a kernel that can return floats, 8-bit values are worth it for an 8-bit reader only.
                grows = source.name in quantized and (
                    source.op_type not in RETURNS_FLOATS or feeds_8bit(node.output[0])
                )
            elif node.op_type in JOINS and len(inputs) >= 2:
                grows = all([*(is_8bit(name) for name in inputs), feeds_8bit(node.output[0])])
            else:
                continue
            if grows:
                quantized.add(node.name)
        if len(quantized) == before:
            return quantized - chosen


def hold_floats(graph: GraphProto, quantized: set[str]) -> None:
    """Keep the runtime from computing a float layer in 8 bits because its neighbours are.

    ONNX Runtime (1.20 and later) quantizes the float weights of a layer between a dequantizing and a quantizing node
    by itself, per tensor, looking through Relu and Clip only. A LeakyRelu ends its search: with slope 0 it is a Relu,
    with slope 1 the identity, and the runtime merges either into the float layer, so that it costs nothing.

    References:
        onnxruntime/core/optimizer/qdq_transformer/weight_bias_quantization.cc
    """
    producer = {output: node for node in graph.node for output in node.output}
    read_by = readers(graph.node)
    for node in list(graph.node):
        source = producer.get(node.input[0]) if node.op_type in _RUNTIME_QUANTIZES else None
        if node.name in quantized or source is None or source.op_type != "DequantizeLinear":
            continue
        following = read_by.get(node.output[0], [])
        if len(following) == 1 and following[0].op_type == "Relu":
            following[0].op_type = "LeakyRelu"
            following[0].attribute.append(onnx.helper.make_attribute("alpha", 0.0))
        elif len(following) == 1 and following[0].op_type in ("QuantizeLinear", "Clip"):
            held = f"{node.output[0]}_float"
            graph.node.append(
                onnx.helper.make_node("LeakyRelu", [held], [node.output[0]], f"{node.name}/float", alpha=1.0)
            )
            node.output[0] = held


def tidy(graph: GraphProto) -> None:
    """Remove nodes and constants that nothing reads, and bring the rest into order of computation, in place.

    Nodes stay in the order in which they are as far as that is possible.
    """
    outputs = {value.name for value in graph.output}
    while True:
        read = outputs | {name for node in graph.node for name in node.input}
        dead = [node for node in graph.node if not any(name in read for name in node.output)]
        if not dead:
            break
        for node in dead:
            graph.node.remove(node)
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in read]:
        graph.initializer.remove(tensor)
    nodes = list(graph.node)
    produced = {name for node in nodes for name in node.output}
    missing = [len({name for name in node.input if name in produced}) for node in nodes]
    waiting: dict[str, list[int]] = {}
    for index, node in enumerate(nodes):
        for name in set(node.input):
            waiting.setdefault(name, []).append(index)
    ready = [index for index, count in enumerate(missing) if count == 0]
    ordered: list[NodeProto] = []
    while ready:
        index = heapq.heappop(ready)
        ordered.append(nodes[index])
        for name in nodes[index].output:
            for reader in waiting.get(name, []):
                missing[reader] -= 1
                if missing[reader] == 0:
                    heapq.heappush(ready, reader)
    if len(ordered) < len(nodes):
        raise CompressionError("quantize: the quantized model has a cycle")
    del graph.node[:]
    graph.node.extend(ordered)
