"""Static 8-bit quantization of chosen layers with onnxruntime's writer.

Activations are unsigned 8-bit, asymmetric, one scale per tensor from the smallest and largest value seen in
calibration; weights are signed 8-bit, symmetric, one scale per output channel, so that a zero weight stays zero. On x86
with VNNI this pair is the fast one; signed activations are slower than floats there.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process

from autocompress.compress.artifact import WEIGHTED
from autocompress.compress.export import canonical
from autocompress.errors import CompressionError, InfeasibleError

#: Examples per calibration run of the float model.
_BATCH = 64
#: Operators that the runtime computes on 8-bit values without weights, by how they are treated.
_FOLLOWS = frozenset(
    {"Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool", "Flatten", "Reshape", "Transpose", "Slice", "Pad"}
)
_JOINS = frozenset({"Add", "Concat", "Mul"})
#: Float layers that the runtime would quantize of its own accord.
_RUNTIME_QUANTIZES = frozenset({"Conv", "ConvTranspose", "Gemm"})


def quantize_static(model: bytes, layers: Collection[str], calibration: np.ndarray) -> bytes:
    """Quantize exactly `layers` to 8 bits; every other layer keeps its float weights.

    Operators without weights are quantized where most of their neighbours are, so that int8 layers in a row exchange
    8-bit values and float layers in a row exchange floats. Node and weight names stay. The same arguments give the
    same bytes.

    Args:
        model: an ONNX model as `export_onnx` writes it.
        layers: names of nodes with weights; empty returns `model` as it is.
        calibration: shape (n, ...), inputs from the training split; n >= 1.

    Raises:
        InfeasibleError: a layer is not in the model, or has no constant weights that could be quantized.
        CompressionError: the calibration inputs are empty or not finite, or onnxruntime's writer failed.
    """
    if not layers:
        return model
    if len(calibration) == 0 or not np.all(np.isfinite(calibration)):
        raise CompressionError(
            f"quantize: expected at least one calibration input, all finite, got shape {calibration.shape}"
        )
    proto = onnx.load_model_from_string(model)
    chosen = _weighted_nodes(proto.graph, layers)
    nodes = chosen | _between(proto.graph, chosen)
    written = _write(proto, sorted(nodes), np.ascontiguousarray(calibration, dtype=np.float32))
    _keep_float_readers(written.graph, nodes)
    _drop_output_pair(written.graph)
    _hold_floats(written.graph, nodes)
    _drop_unread(written.graph)
    written.producer_name, written.producer_version = proto.producer_name, proto.producer_version
    return canonical(written)


class _Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
    """Feeds calibration inputs in batches."""

    def __init__(self, inputs: np.ndarray) -> None:
        self._batches = iter(np.array_split(inputs, max(1, -(-len(inputs) // _BATCH))))

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch; None at the end."""
        batch = next(self._batches, None)
        return None if batch is None else {"input": batch}


def _write(proto: ModelProto, nodes: list[str], calibration: np.ndarray) -> ModelProto:
    types = sorted({node.op_type for node in proto.graph.node if node.name in set(nodes)})
    with tempfile.TemporaryDirectory(prefix="autocompress-") as folder, _quiet():
        prepared, quantized = Path(folder) / "prepared.onnx", Path(folder) / "quantized.onnx"
        try:
            # Normalization is folded already, and the runtime's optimizer would rename nodes: shapes are all we need.
            quant_pre_process(proto, prepared, skip_optimization=True, skip_symbolic_shape=True)
            quantization.quantize_static(
                prepared,
                quantized,
                _Reader(calibration),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=types,
                nodes_to_quantize=nodes,
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                extra_options={"ActivationSymmetric": False, "WeightSymmetric": True},
            )
        except Exception as error:  # the writer raises every kind of error
            raise CompressionError(
                f"quantize: onnxruntime could not quantize {len(nodes)} nodes: {type(error).__name__}: {error}"
            ) from error
        return onnx.load_model(quantized)


@contextmanager
def _quiet() -> Iterator[None]:
    """The writer logs advice to the root logger; warnings and below are not for the user."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(max(level, logging.ERROR))
    try:
        yield
    finally:
        root.setLevel(level)


def _weighted_nodes(graph: GraphProto, layers: Collection[str]) -> set[str]:
    constants = {tensor.name for tensor in graph.initializer}
    found: dict[str, set[str]] = {}
    for node in graph.node:
        if node.op_type in WEIGHTED and node.input[1] in constants:
            found.setdefault(node.name.partition("@")[0], set()).add(node.name)
    missing = sorted(set(layers) - found.keys())
    if missing:
        raise InfeasibleError(
            f"quantize: no layer {missing[0]!r} with constant weights in the model; it has {', '.join(sorted(found))}"
        )
    return {name for layer in layers for name in found[layer]}


def _between(graph: GraphProto, chosen: set[str]) -> set[str]:
    """Nodes without weights to quantize as well, so that few tensors change between 8-bit and float.

    A following operator (activation, pooling) is quantized with its producer. A joining one (addition) is quantized if
    all its sides are 8-bit: its inputs by their producer or another reader, its output by its readers. Quantizing it
    with fewer sides was not faster on a residual network, and less accurate. Repeated until nothing changes, because
    chains of additions depend on one another; the set only grows, so that it ends.
    """
    producer = {output: node for node in graph.node for output in node.output}
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    constants = {tensor.name for tensor in graph.initializer}
    quantized = set(chosen)

    def feeds_8bit(tensor: str) -> bool:
        return any(
            node.name in quantized or (node.op_type in _FOLLOWS and feeds_8bit(node.output[0]))
            for node in readers.get(tensor, [])
        )

    def is_8bit(tensor: str) -> bool:
        return (tensor in producer and producer[tensor].name in quantized) or feeds_8bit(tensor)

    while True:
        before = len(quantized)
        for node in graph.node:
            inputs = [name for name in node.input if name and name not in constants]
            if node.op_type in _FOLLOWS and inputs and inputs[0] in producer:
                grows = producer[inputs[0]].name in quantized
            elif node.op_type in _JOINS and len(inputs) >= 2:
                sides = [is_8bit(name) for name in inputs] + [feeds_8bit(node.output[0])]
                grows = all(sides)
            else:
                continue
            if grows:
                quantized.add(node.name)
        if len(quantized) == before:
            return quantized - chosen


def _keep_float_readers(graph: GraphProto, quantized: set[str]) -> None:
    """Let float nodes read a float tensor itself, not the copy of it that was quantized for an int8 reader."""
    producer = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        if node.name in quantized or node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            continue
        for position, name in enumerate(node.input):
            original = _behind_pair(producer, name)
            source = producer.get(original) if original else None
            # What an int8 layer computed has to pass through its pair: the runtime merges it into the layer.
            if original and (source is None or source.name not in quantized):
                node.input[position] = original


def _behind_pair(producer: dict[str, NodeProto], tensor: str) -> str | None:
    dequantize = producer.get(tensor)
    if dequantize is None or dequantize.op_type != "DequantizeLinear":
        return None
    quantize = producer.get(dequantize.input[0])
    return quantize.input[0] if quantize is not None and quantize.op_type == "QuantizeLinear" else None


def _drop_output_pair(graph: GraphProto) -> None:
    """Let a last linear layer return floats: the runtime's int8 kernel can, and the outputs keep their resolution."""
    producer = {output: node for node in graph.node for output in node.output}
    for value in graph.output:
        original = _behind_pair(producer, value.name)
        source = producer.get(original) if original else None
        readers = [node for node in graph.node if original in node.input]
        if source is None or source.op_type not in ("Gemm", "MatMul") or len(readers) != 1:
            continue
        pair = (readers[0], producer[value.name])
        source.output[0] = value.name
        for node in pair:
            graph.node.remove(node)


def _hold_floats(graph: GraphProto, quantized: set[str]) -> None:
    """Keep the runtime from computing a float layer in 8 bits because its neighbours are.

    ONNX Runtime (1.20 and later) quantizes the float weights of a layer between a dequantizing and a quantizing node
    by itself, per tensor, looking through Relu and Clip only. A LeakyRelu ends its search: with slope 0 it is a Relu,
    with slope 1 the identity, and the runtime merges either into the float layer, so that it costs nothing.

    References:
        onnxruntime/core/optimizer/qdq_transformer/weight_bias_quantization.cc
    """
    producer = {output: node for node in graph.node for output in node.output}
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for node in list(graph.node):
        source = producer.get(node.input[0]) if node.op_type in _RUNTIME_QUANTIZES else None
        if node.name in quantized or source is None or source.op_type != "DequantizeLinear":
            continue
        following = readers.get(node.output[0], [])
        if len(following) == 1 and following[0].op_type == "Relu":
            following[0].op_type = "LeakyRelu"
            following[0].attribute.append(onnx.helper.make_attribute("alpha", 0.0))
        elif len(following) == 1 and following[0].op_type in ("QuantizeLinear", "Clip"):
            held = f"{node.output[0]}_float"
            graph.node.append(
                onnx.helper.make_node("LeakyRelu", [held], [node.output[0]], f"{node.name}/float", alpha=1.0)
            )
            node.output[0] = held


def _drop_unread(graph: GraphProto) -> None:
    """Remove nodes and constants that nothing reads any more, and bring the rest into order of computation."""
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
    known = {tensor.name for tensor in graph.initializer} | {value.name for value in graph.input} | {""}
    waiting, ordered = list(graph.node), []
    while waiting:
        ready = [node for node in waiting if all(name in known for name in node.input)]
        if not ready:
            raise CompressionError("quantize: the quantized model has a cycle")
        ordered += ready
        known.update(name for node in ready for name in node.output)
        done = {id(node) for node in ready}
        waiting = [node for node in waiting if id(node) not in done]
    del graph.node[:]
    graph.node.extend(ordered)
