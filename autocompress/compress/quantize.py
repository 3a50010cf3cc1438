"""Quantization of chosen layers of an ONNX model.

Activations are unsigned 8-bit, asymmetric, one grid per tensor from calibration data; weights are signed, symmetric,
one scale per output channel, so that a zero weight stays zero. On x86 with VNNI this pair is the fast one; signed
activations are slower than floats there. Weights of fewer than 8 bits lie on a coarser grid but are stored as 8-bit
integers: onnxruntime has integer kernels for those, and computes convolutions and matrix products with packed 4-bit
weights and quantized activations in floats, dequantizing at every run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
from onnx import GraphProto, ModelProto, NodeProto

from autocompress.compress.between import tidy
from autocompress.compress.calibrate import check_calibration, ranges
from autocompress.compress.export import canonical
from autocompress.compress.grids import Grid
from autocompress.compress.half import store_half
from autocompress.compress.onnx_names import WEIGHT_INPUT, layer_of
from autocompress.compress.qdq import quantize_layers
from autocompress.compress.weights_only import (
    in_onnx_order,
    quantize_embeddings,
    quantize_products,
    quantize_recurrent,
    recurrent_layers,
    split_directions,
)
from autocompress.errors import CompressionError, InfeasibleError
from autocompress.inputs import Inputs
from autocompress.records import LayerBits, Quantizer

_LINEAR = frozenset({"Gemm", "MatMul"})


def quantize(
    model: bytes,
    bits: Sequence[LayerBits],
    quantizer: Quantizer,
    calibration: Inputs,
    grids: Mapping[str, Grid] | None = None,
) -> bytes:
    """Quantize exactly the layers in `bits`; every other layer keeps its float weights.

    - 8 to 2 bits, convolutions and linear layers: integer weights and input activations. Operators without weights are
      quantized where most of their neighbours are, so that int8 layers in a row exchange 8-bit values and float layers
      in a row exchange floats.
    - 8 to 2 bits, embeddings and matrices of recurrent layers: integer weights in the file, one scale per column of a
      table and per row of a matrix. A recurrent kernel computes in floats.
    - 8 or 4 bits, weights only, linear layers: integer weights in blocks of 32 or 16 inputs (`MatMulNBits`).
    - 16 bits: half precision in the file, floats in the runtime.

    Node names stay. The same arguments give the same bytes.

    Args:
        model: an ONNX model as `export_onnx` writes it.
        bits: what is asked; empty returns `model` as it is.
        quantizer: how ranges of activations are found.
        calibration: tensors of shape (n, ...), inputs from the training split; n >= 1.
        grids: layer name -> its trained grid; see `autocompress.compress.qat.train_quantized`. Weights of these layers
            have to lie on their grid; the file gets exactly these integers and scales.

    Raises:
        InfeasibleError: a layer is not in the model, or cannot be quantized as asked.
        CompressionError: the calibration inputs are empty or not finite, or a grid is not its layer's.
    """
    if not bits:
        return model
    check_calibration(calibration)
    proto = onnx.load_model_from_string(model)
    grids = grids or {}
    nodes = _nodes(proto.graph)
    matrices = recurrent_layers(proto.graph)
    bits = _parts(bits, nodes)
    _check(bits, nodes, set(matrices))
    by_kind: dict[str, dict[str, int]] = {"static": {}, "blocks": {}, "table": {}, "matrix": {}}
    half: list[str] = []
    for entry in bits:
        if entry.bits == 16:
            half.append(entry.layer)
        elif entry.layer in matrices:
            by_kind["matrix"][entry.layer] = entry.bits
        else:
            kind = "blocks" if entry.weights_only else "static"
            kind = "table" if nodes[entry.layer][0].op_type == "Gather" else kind
            by_kind[kind].update({node.name: entry.bits for node in nodes[entry.layer]})
    floats = ModelProto()
    floats.CopyFrom(proto)
    parts = split_directions(proto.graph, [entry.layer for entry in bits if entry.layer in matrices])
    halves = [(layer, parts[layer] if layer in parts else _weight_of(nodes[layer][0])) for layer in half]
    if by_kind["static"]:
        quantize_layers(
            proto.graph,
            by_kind["static"],
            grids,
            lambda tensors: ranges(floats, tensors, calibration, quantizer.calibrator),
        )
    if by_kind["blocks"]:
        quantize_products(proto, by_kind["blocks"])
    quantize_embeddings(proto.graph, by_kind["table"], {name: grid.weight_scale for name, grid in grids.items()})
    operators = {layer: node.op_type for layer, (node, _, _) in matrices.items()}
    rows = {
        layer: in_onnx_order(grid.weight_scale, operators[layer]) for layer, grid in grids.items() if layer in operators
    }
    quantize_recurrent(proto.graph, by_kind["matrix"], parts, rows)
    store_half(proto.graph, halves)
    tidy(proto.graph)
    return canonical(proto)


def _nodes(graph: GraphProto) -> dict[str, list[NodeProto]]:
    """Layer name -> its nodes with constant weights."""
    constants = {tensor.name for tensor in graph.initializer}
    found: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        position = WEIGHT_INPUT.get(node.op_type)
        if position is None or len(node.input) <= position or node.input[position] not in constants:
            continue
        if node.op_type == "Gather" and node.name.startswith("Gather_"):
            continue
        found.setdefault(layer_of(node.name), []).append(node)
    return found


def _parts(bits: Sequence[LayerBits], nodes: Mapping[str, list[NodeProto]]) -> list[LayerBits]:
    """The request with factorized layers replaced by their parts."""
    found: list[LayerBits] = []
    for entry in bits:
        parts = [name for name in (f"{entry.layer}.{index}" for index in range(3)) if name in nodes]
        whole = entry.layer in nodes or not parts
        found += [entry] if whole else [entry.model_copy(update={"layer": name}) for name in parts]
    return found


def _check(bits: Sequence[LayerBits], nodes: Mapping[str, list[NodeProto]], matrices: set[str]) -> None:
    asked = [entry.layer for entry in bits]
    twice = sorted({layer for layer in asked if asked.count(layer) > 1})
    if twice:
        raise CompressionError(f"plan.bits: expected every layer once, got {twice[0]!r} again")
    known = sorted({*nodes, *matrices})
    for entry in bits:
        if entry.layer not in known:
            raise InfeasibleError(
                f"quantize: no layer {entry.layer!r} with constant weights in the model; it has {', '.join(known)}"
            )
        if entry.weights_only:
            kind = "a recurrent matrix" if entry.layer in matrices else nodes[entry.layer][0].op_type
            if kind not in (*_LINEAR, "Gather"):
                raise InfeasibleError(
                    f"plan.bits: layer {entry.layer!r}: expected a linear layer or an embedding for weights_only, got "
                    f"{kind}; possible without weights_only: 16, 8, 7, 6, 5, 4, 3, 2 bits"
                )


def _weight_of(node: NodeProto) -> str:
    return str(node.input[WEIGHT_INPUT[node.op_type]])
