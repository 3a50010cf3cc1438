"""What a model file really is, read from its bytes alone: never from the module that it was made of."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from math import prod

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto

from autocompress.compress.onnx_names import RECURRENT
from autocompress.compress.stored import Reader, parameters, shapes_of
from autocompress.errors import ExportError
from autocompress.records import Artifact, LayerReport

#: Operators whose multiply-adds count.
_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "MatMulNBits", *RECURRENT})
#: Rows of a recurrent layer's matrices per hidden unit.
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def describe(model: bytes) -> Artifact:
    """Read the layers of an ONNX model: real widths, bit widths and zeros, and what they cost.

    Bits are those of the grid that the stored integers lie on, whatever the file spends on each of them; 16 for half
    precision. A layer computes in integers if its weights are stored in 8 bits, its input is quantized and, for a
    convolution, its output too: that is what onnxruntime has kernels for. Embeddings and products with packed weights
    read integer weights and floats. Every other layer with fewer bits is dequantized first. A zero of integer weights
    is a value equal to their zero point.

    Multiply-adds are those of convolutions, matrix products and recurrent layers (for every step and direction, hidden
    units × gates × (inputs + hidden units)) for one example; a lookup has none. Parameters are the elements of
    weights, biases and other constants of rank >= 1 that enter the computation, without quantization scales, zero
    points and shapes.

    Args:
        model: as `export_onnx` or `quantize` writes it.

    Returns:
        Layers in the order of computation, their weights in torch's shape. A layer that runs twice is listed once;
        its multiply-adds count twice.

    Raises:
        ExportError: the bytes are no ONNX model, or shapes cannot be inferred from them.
    """
    proto = _load(model)
    reader = Reader(proto.graph)
    shapes = _shapes(proto)
    reports: dict[str, LayerReport] = {}
    macs = 0
    for node in proto.graph.node:
        if node.op_type in _PRODUCTS:
            macs += _macs(node, shapes)
        for weight in reader.weights(node):
            report = LayerReport(
                name=weight.layer,
                shape=weight.values.shape,
                bits=weight.bits,
                zeros=int(weight.values.size - np.count_nonzero(weight.values)),
                weights=int(weight.values.size),
                stored_bits=weight.stored_bits,
                compute=weight.compute,
            )
            known = reports.setdefault(report.name, report)
            if report.bits != known.bits:
                reports[report.name] = max(known, report, key=lambda entry: entry.bits)
            elif report.compute != known.compute:
                reports[report.name] = known.model_copy(update={"compute": "float"})
    return Artifact(
        sha256=hashlib.sha256(model).hexdigest(),
        size_bytes=len(model),
        macs=macs,
        parameters=parameters(proto.graph, reader),
        layers=tuple(reports.values()),
    )


def layer_nodes(model: bytes) -> dict[str, tuple[str, ...]]:
    """Layer name -> names of the nodes that read its weights: one, more for a layer that runs more than once.

    Raises:
        ExportError: the bytes are no ONNX model.
    """
    proto = _load(model)
    reader = Reader(proto.graph)
    found: dict[str, dict[str, None]] = {}
    for node in proto.graph.node:
        for weight in reader.weights(node):
            found.setdefault(weight.layer, {})[node.name] = None
    return {layer: tuple(nodes) for layer, nodes in found.items()}


def distinct_values(model: bytes) -> dict[str, int]:
    """Layer name -> how many different values its weights have, zero not counted.

    Raises:
        ExportError: the bytes are no ONNX model.
    """
    proto = _load(model)
    reader = Reader(proto.graph)
    found: dict[str, int] = {}
    for node in proto.graph.node:
        for weight in reader.weights(node):
            values = np.unique(weight.values)
            found[weight.layer] = max(found.get(weight.layer, 0), int(np.count_nonzero(values)))
    return found


def _load(model: bytes) -> ModelProto:
    try:
        proto = onnx.load_model_from_string(model)
    except Exception as error:
        raise ExportError(f"artifact: expected an ONNX model, got {len(model)} bytes that are none: {error}") from error
    if not proto.graph.node:
        raise ExportError(f"artifact: expected an ONNX model, got {len(model)} bytes without a graph")
    return proto


def _integer(node: NodeProto, name: str, default: int) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == name), default)


def _shapes(proto: ModelProto) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor whose sizes are all known when one example is given."""
    single = ModelProto()
    single.CopyFrom(proto)
    for value in single.graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = 1
    del single.graph.value_info[:]
    for value in single.graph.output:
        value.type.tensor_type.ClearField("shape")
    for node in single.graph.node:
        if node.op_type == "MatMulNBits":
            _as_product(single, node)
    try:
        inferred = onnx.shape_inference.infer_shapes(single, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise ExportError(f"artifact: shapes cannot be inferred: {error}") from error
    shapes = shapes_of({tensor.name: tensor for tensor in proto.graph.initializer})
    for value in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
        dims = value.type.tensor_type.shape.dim
        if all(dim.HasField("dim_value") for dim in dims):
            shapes[value.name] = tuple(dim.dim_value for dim in dims)
    return shapes


def _as_product(proto: ModelProto, node: NodeProto) -> None:
    """Let shape inference, which does not know the runtime's own operator, see a plain product instead."""
    shape = (_integer(node, "K", 0), _integer(node, "N", 0))
    weight = f"{node.input[1]}/float"
    if all(value.name != weight for value in proto.graph.input):
        proto.graph.input.append(onnx.helper.make_tensor_value_info(weight, TensorProto.FLOAT, shape))
    node.op_type, node.domain = "MatMul", ""
    del node.attribute[:]
    first = node.input[0]
    del node.input[:]
    node.input.extend([first, weight])


def _macs(node: NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Multiply-adds of one node for one example."""
    try:
        first = shapes[node.input[0]]
        if node.op_type == "MatMulNBits":
            return prod(first) * _integer(node, "N", 0)
        weight = shapes[node.input[1]]
        if node.op_type in RECURRENT:
            steps, hidden = first[0] * first[1], _integer(node, "hidden_size", 0)
            return steps * weight[0] * _GATES[node.op_type] * hidden * (first[2] + hidden)
        output = shapes[node.output[0]]
    except KeyError as error:
        raise ExportError(
            f"artifact: the shape of tensor {error} at node {node.name!r} is not known; expected sizes that depend "
            "on nothing but the batch"
        ) from error
    if node.op_type == "Conv":
        return prod(output) * prod(weight[1:])
    if node.op_type == "ConvTranspose":
        return prod(first) * prod(weight[1:])
    # Gemm and MatMul: every output element sums over the inner axis.
    inner = first[-2] if node.op_type == "Gemm" and _integer(node, "transA", 0) else first[-1]
    return prod(output) * inner
