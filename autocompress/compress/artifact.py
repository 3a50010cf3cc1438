"""What a model file really is, read from its bytes alone: never from the module that it was made of."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from math import prod

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from autocompress.errors import CompressionError, ExportError
from autocompress.records import Artifact, LayerReport, Plan, Structure

#: Operators that a layer with weights becomes. Their nodes carry the layer's qualified name.
WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16})
_PAIR = ("QuantizeLinear", "DequantizeLinear")


def describe(model: bytes) -> Artifact:
    """Read the layers of an ONNX model: real widths, bit widths and zeros, and what they cost.

    A layer is 8-bit if its weights are stored as 8-bit integers and its input is quantized, so that a runtime
    computes it in integers; weights alone being stored so does not count. A zero of an 8-bit weight is a value equal
    to its zero point. Multiply-adds are those of convolutions and matrix products for one example. Parameters are
    the elements of weights, biases and other constants of rank >= 1 that enter the computation, without
    quantization scales, zero points and shapes.

    Args:
        model: as `export_onnx` or `quantize_static` writes it.

    Returns:
        Layers in the order of computation, weights with output channels first. A layer that runs twice is listed
        once; its multiply-adds count twice.

    Raises:
        ExportError: the bytes are no ONNX model, or shapes cannot be inferred from them.
    """
    try:
        proto = onnx.load_model_from_string(model)
    except Exception as error:
        raise ExportError(f"artifact: expected an ONNX model, got {len(model)} bytes that are none: {error}") from error
    if not proto.graph.node:
        raise ExportError(f"artifact: expected an ONNX model, got {len(model)} bytes without a graph")
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    producer = {output: node for node in proto.graph.node for output in node.output}
    shapes = _shapes(proto)
    reports: dict[str, LayerReport] = {}
    macs = 0
    for node in proto.graph.node:
        if node.op_type not in WEIGHTED:
            continue
        macs += _macs(node, shapes)
        weight = _constant(node.input[1], constants, producer)
        if weight is None:
            continue
        report = _report(node, weight, constants, producer)
        known = reports.setdefault(report.name, report)
        if report.bits != known.bits:
            reports[report.name] = known.model_copy(update={"bits": 32})
    return Artifact(
        sha256=hashlib.sha256(model).hexdigest(),
        size_bytes=len(model),
        macs=macs,
        parameters=_parameters(proto.graph, constants, producer),
        layers=tuple(reports.values()),
    )


def verify(plan: Plan, structure: Structure, artifact: Artifact) -> None:
    """Check that a model file is what its plan asked for.

    Args:
        plan: the request.
        structure: of the dense network that the plan is for.
        artifact: what `describe` read from the file.

    Raises:
        CompressionError: naming the layer, what was expected of its width, zeros or bits, and what the file has.
    """
    layers = {layer.name: layer for layer in artifact.layers}
    kept = {cut.group: cut.keep for cut in plan.cuts}
    eight = {entry.layer for entry in plan.bits}
    masks = {mask.layer: mask for mask in plan.masks}
    for asked in structure.layers:
        layer = layers.get(asked.name)
        if layer is None:
            raise CompressionError(f"artifact: layer {asked.name!r} is not in the model; it has {', '.join(layers)}")
        width = kept.get(asked.group or "", asked.shape[0])
        if layer.shape[0] != width:
            raise CompressionError(
                f"artifact: layer {asked.name!r}: expected {width} output channels, got {layer.shape[0]}"
            )
        bits = 8 if asked.name in eight else 32
        if layer.bits != bits:
            raise CompressionError(f"artifact: layer {asked.name!r}: expected {bits} bits, got {layer.bits}")
        # The weights that are there after the cuts, as `make_masks` counts them.
        zeros = round(masks[asked.name].sparsity * layer.weights) if asked.name in masks else 0
        if layer.zeros < zeros:
            raise CompressionError(
                f"artifact: layer {asked.name!r}: expected at least {zeros} zeros of {layer.weights} weights, "
                f"got {layer.zeros}"
            )
    for what, names in (("masks", masks.keys()), ("bits", eight)):
        unknown = sorted(names - {layer.name for layer in structure.layers})
        if unknown:
            raise CompressionError(f"plan.{what}: expected layers of the network, got {unknown[0]!r}")
    _check_groups(plan, structure, layers)


def _check_groups(plan: Plan, structure: Structure, layers: Mapping[str, LayerReport]) -> None:
    """Every layer of a cut group has its width, also where the layer's own record names no group."""
    groups = {group.name: group for group in structure.groups}
    for cut in plan.cuts:
        if cut.group not in groups:
            raise CompressionError(f"plan.cuts: expected a group of the network, got {cut.group!r}")
        for name in groups[cut.group].layers:
            if name in layers and layers[name].shape[0] != cut.keep:
                raise CompressionError(
                    f"artifact: layer {name!r}: expected {cut.keep} output channels, got {layers[name].shape[0]}"
                )


def _constant(
    name: str, constants: Mapping[str, TensorProto], producer: Mapping[str, NodeProto]
) -> tuple[TensorProto, NodeProto | None] | None:
    """The stored tensor behind an input, and the node that dequantizes it if one does."""
    if name in constants:
        return constants[name], None
    node = producer.get(name)
    if node is not None and node.op_type == "DequantizeLinear" and node.input[0] in constants:
        return constants[node.input[0]], node
    return None


def _report(
    node: NodeProto,
    weight: tuple[TensorProto, NodeProto | None],
    constants: Mapping[str, TensorProto],
    producer: Mapping[str, NodeProto],
) -> LayerReport:
    tensor, dequantize = weight
    values = numpy_helper.to_array(tensor)
    source = producer.get(node.input[0])
    integers = dequantize is not None and tensor.data_type in (TensorProto.INT8, TensorProto.UINT8)
    quantized = source is not None and source.op_type == "DequantizeLinear"
    zero: np.ndarray = np.zeros((), values.dtype)
    if dequantize is not None and len(dequantize.input) > 2 and dequantize.input[2]:
        zero = numpy_helper.to_array(constants[dequantize.input[2]])
        if zero.ndim == 1 and zero.size > 1:
            axis = next((a.i for a in dequantize.attribute if a.name == "axis"), 1)
            zero = np.expand_dims(zero, [i for i in range(values.ndim) if i != axis % values.ndim])
    shape = tuple(values.shape)
    if node.op_type == "MatMul" or (node.op_type == "Gemm" and not _integer(node, "transB", 0)):
        shape = (*shape[:-2], shape[-1], shape[-2])
    elif node.op_type == "ConvTranspose":
        shape = (shape[1] * _integer(node, "group", 1), shape[0], *shape[2:])
    return LayerReport(
        name=node.name.partition("@")[0],
        shape=shape,
        bits=8 if integers and quantized else 32,
        zeros=int(np.count_nonzero(values == zero)),
        weights=int(values.size),
    )


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
    try:
        inferred = onnx.shape_inference.infer_shapes(single, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise ExportError(f"artifact: shapes cannot be inferred: {error}") from error
    shapes = {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}
    for value in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
        dims = value.type.tensor_type.shape.dim
        if all(dim.HasField("dim_value") for dim in dims):
            shapes[value.name] = tuple(dim.dim_value for dim in dims)
    return shapes


def _macs(node: NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Multiply-adds of one node for one example."""
    try:
        first, weight, output = shapes[node.input[0]], shapes[node.input[1]], shapes[node.output[0]]
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


def _parameters(graph: GraphProto, constants: Mapping[str, TensorProto], producer: Mapping[str, NodeProto]) -> int:
    counted: dict[str, int] = {}
    for node in graph.node:
        if node.op_type in _PAIR:
            continue
        for name in node.input:
            found = _constant(name, constants, producer)
            if found is None:
                continue
            tensor, dequantize = found
            if tensor.dims and (dequantize is not None or tensor.data_type in _FLOATS):
                counted[tensor.name] = prod(tensor.dims)
    return sum(counted.values())
