"""Layers of which only the weights are integers: linear layers in blocks, embeddings, matrices of recurrent layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, DefaultWeightOnlyQuantizer

from autocompress.compress.grids import to_integers, weight_scales
from autocompress.compress.onnx_names import MATRICES, layer_of, matrix_name

#: Input weights that share a scale. Smaller blocks for layers whose inputs are a multiple of 16 only.
BLOCK, SMALL_BLOCK = 32, 16
_DOMAIN = "com.microsoft"


def block_size(inputs: int) -> int:
    """32, or 16 where only that divides the number of inputs; else 32, the last block filled up with zeros.

    Examples:
        >>> [block_size(n) for n in (64, 48, 50)]
        [32, 16, 32]
    """
    return SMALL_BLOCK if inputs % BLOCK and inputs % SMALL_BLOCK == 0 else BLOCK


def block_quantize(weight: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Onnxruntime's symmetric blocks: the weight with the largest magnitude of a block becomes -2^(b-1).

    Args:
        weight: shape (inputs, outputs), as a MatMul reads it.
        bits: 8 or 4.

    Returns:
        Packed integers, shape (outputs, blocks, bytes), offset by 2^(b-1); scales, shape (outputs, blocks).
    """
    config = DefaultWeightOnlyQuantConfig(block_size=block_size(len(weight)), is_symmetric=True, bits=bits)
    packed, scales, _ = DefaultWeightOnlyQuantizer(config).qbits_block_quant(
        np.ascontiguousarray(weight, dtype=np.float32)
    )
    return packed, scales


def unpack_blocks(packed: np.ndarray, bits: int, inputs: int) -> np.ndarray:
    """The integers of `block_quantize` without their offset, shape (outputs, inputs)."""
    values = packed if bits == 8 else np.stack((packed & 15, packed >> 4), axis=-1)
    flat = values.reshape(len(packed), -1)[:, :inputs].astype(np.int16)
    return np.asarray(flat - 2 ** (bits - 1))


def block_values(weight: np.ndarray, bits: int) -> np.ndarray:
    """What a runtime computes with in place of `weight`, shape (inputs, outputs), float32."""
    packed, scales = block_quantize(weight, bits)
    integers = unpack_blocks(packed, bits, len(weight)).astype(np.float32)
    repeated = np.repeat(scales, block_size(len(weight)), axis=1)[:, : len(weight)]
    return np.ascontiguousarray((integers * repeated).T)


def quantize_products(proto: ModelProto, bits: Mapping[str, int]) -> None:
    """Turn linear layers into MatMulNBits nodes, which read integer weights and float activations, in place.

    Weights are integers in blocks of inputs; see `block_size`. The kernel is asked to compute with 8-bit activations
    (``accuracy_level=4``), which it makes on the way; with floats it is many times slower.

    Args:
        proto: a float model.
        bits: node name -> 8 or 4; nodes are Gemm or MatMul with constant weights.
    """
    graph = proto.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    written: set[str] = set()
    for position, node in reversed(list(enumerate(graph.node))):
        if node.name not in bits:
            continue
        layer, width = layer_of(node.name), bits[node.name]
        weight = numpy_helper.to_array(constants[node.input[1]])
        if node.op_type == "Gemm" and any(a.name == "transB" and a.i for a in node.attribute):
            weight = weight.T
        names = [f"{layer}.weight_q{width}", f"{layer}.weight_q{width}_scale"]
        if layer not in written:
            written.add(layer)
            for name, values in zip(names, block_quantize(weight, width), strict=True):
                graph.initializer.append(numpy_helper.from_array(values, name))
        bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
        product = f"{node.output[0]}_product" if bias else node.output[0]
        replacement = [
            onnx.helper.make_node(
                "MatMulNBits",
                [node.input[0], *names],
                [product],
                node.name,
                domain=_DOMAIN,
                K=weight.shape[0],
                N=weight.shape[1],
                bits=width,
                block_size=block_size(weight.shape[0]),
                accuracy_level=4,
            )
        ]
        if bias:
            replacement.append(onnx.helper.make_node("Add", [product, bias], [node.output[0]], f"{node.name}/bias"))
        del graph.node[position]
        for offset, new in enumerate(replacement):
            graph.node.insert(position + offset, new)
    if all(entry.domain != _DOMAIN for entry in proto.opset_import):
        proto.opset_import.append(onnx.helper.make_opsetid(_DOMAIN, 1))


def quantize_embeddings(graph: GraphProto, bits: Mapping[str, int], scales: Mapping[str, np.ndarray]) -> None:
    """Keep tables as 8-bit integers and multiply the rows that were looked up with their columns' scales, in place.

    Args:
        graph: of a float model.
        bits: node name -> 8 to 2; nodes are Gather with a constant table of shape (rows, width).
        scales: layer name -> scales of the table's columns, where they are given.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    written: set[str] = set()
    for position, node in reversed(list(enumerate(graph.node))):
        if node.name not in bits:
            continue
        layer = layer_of(node.name)
        names = [f"{layer}.weight_quantized", f"{layer}.weight_scale"]
        if layer not in written:
            written.add(layer)
            columns = np.ascontiguousarray(numpy_helper.to_array(constants[node.input[0]]).T)
            scale = scales.get(layer)
            scale = weight_scales(columns, bits[node.name]) if scale is None else scale
            integers = np.ascontiguousarray(to_integers(columns, scale, bits[node.name]).T)
            graph.initializer.append(numpy_helper.from_array(integers, names[0]))
            graph.initializer.append(numpy_helper.from_array(scale.astype(np.float32), names[1]))
        output = node.output[0]
        # Not `_quantized`: that is the name of the pair behind `output` where an integer layer reads it.
        row, cast = f"{output}_row", f"{output}_cast"
        node.input[0], node.output[0] = names[0], row
        # No DequantizeLinear: the runtime would look for integer kernels around it, with one scale per tensor.
        restore = onnx.helper.make_node("Mul", [cast, names[1]], [output], f"{node.name}/restore")
        graph.node.insert(position + 1, restore)
        convert = onnx.helper.make_node("Cast", [row], [cast], f"{node.name}/cast", to=TensorProto.FLOAT)
        graph.node.insert(position + 1, convert)


def recurrent_layers(graph: GraphProto) -> dict[str, tuple[NodeProto, int, int]]:
    """Name of every constant matrix of a recurrent node -> the node, the matrix's position, its direction."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    return {
        matrix_name(node.name, position, direction): (node, position, direction)
        for node in graph.node
        if node.op_type in ("LSTM", "GRU", "RNN") and "@" not in node.name
        for position in MATRICES
        if node.input[position] in constants
        for direction in range(constants[node.input[position]].dims[0])
    }


def in_onnx_order(rows: np.ndarray, operator: str) -> np.ndarray:
    """Rows of a recurrent matrix in ONNX's order of gates, from torch's.

    Torch has (input, forget, cell, output) in an LSTM and (reset, update, new) in a GRU; ONNX (input, output, forget,
    cell) and (update, reset, new).

    Args:
        rows: shape (gates · hidden units, ...).
        operator: ``"LSTM"``, ``"GRU"`` or ``"RNN"``.
    """
    order = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2)}.get(operator, (0,))
    gates = np.split(rows, len(order))
    return np.concatenate([gates[gate] for gate in order])


def split_directions(graph: GraphProto, layers: Sequence[str]) -> dict[str, str]:
    """Store the directions of the recurrent matrices in `layers` apart, joined by a Concat, in place.

    Returns:
        Layer name -> name of the constant that holds it, shape (1, gates, inputs).
    """
    known = recurrent_layers(graph)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    found: dict[str, str] = {}
    for stacked in dict.fromkeys(known[layer][0].input[known[layer][1]] for layer in layers):
        node, position, _ = next(entry for entry in known.values() if entry[0].input[entry[1]] == stacked)
        values = numpy_helper.to_array(constants[stacked])
        if len(values) == 1:
            found[matrix_name(node.name, position, 0)] = stacked
            continue
        names = [f"{matrix_name(node.name, position, direction)}_part" for direction in range(len(values))]
        for direction, name in enumerate(names):
            graph.initializer.append(numpy_helper.from_array(values[direction : direction + 1].copy(), name))
            found[matrix_name(node.name, position, direction)] = name
        joined = onnx.helper.make_node("Concat", names, [f"{stacked}_joined"], f"{stacked}/joined", axis=0)
        for reader in graph.node:
            for at, name in enumerate(reader.input):
                if name == stacked:
                    reader.input[at] = f"{stacked}_joined"
        graph.node.insert(0, joined)
    return found


def quantize_recurrent(
    graph: GraphProto, bits: Mapping[str, int], constants: Mapping[str, str], scales: Mapping[str, np.ndarray]
) -> None:
    """Keep matrices of recurrent layers as 8-bit integers, one scale per row, in place.

    Args:
        graph: of a float model.
        bits: layer name (``"rnn.weight_ih_l0"``) -> 8 to 2.
        constants: layer name -> name of the constant that holds it; see `split_directions`.
        scales: layer name -> scales of the matrix's rows, in the file's order, where they are given.
    """
    for layer in bits:
        constant = constants[layer]
        tensor = next(tensor for tensor in graph.initializer if tensor.name == constant)
        values = numpy_helper.to_array(tensor)
        scale = scales.get(layer)
        scale = weight_scales(values[0], bits[layer]) if scale is None else scale
        integers = to_integers(values[0], scale, bits[layer])[None]
        restored = store_integers(graph, layer, integers, scale.reshape(1, -1, 1))
        for reader in graph.node:
            for at, name in enumerate(reader.input):
                if name == constant:
                    reader.input[at] = restored


def store_integers(graph: GraphProto, stem: str, integers: np.ndarray, scale: np.ndarray) -> str:
    """Add 8-bit integers that become floats when the file is loaded, and the name of those floats.

    A Cast and a Mul of constants are computed once by the runtime; a DequantizeLinear is at every run, as it waits for
    an integer kernel to merge with.

    Args:
        graph: changed in place.
        stem: that the new names begin with.
        integers: int8.
        scale: broadcasts to `integers`.
    """
    names = [f"{stem}_quantized", f"{stem}_scale"]
    for name, values in zip(names, (integers, scale.astype(np.float32)), strict=True):
        graph.initializer.append(numpy_helper.from_array(values, name))
    cast, restored = f"{stem}_cast", f"{stem}_restored"
    nodes = [
        onnx.helper.make_node("Cast", [names[0]], [cast], f"{stem}/cast", to=TensorProto.FLOAT),
        onnx.helper.make_node("Mul", [cast, names[1]], [restored], f"{stem}/restore"),
    ]
    for position, node in enumerate(nodes):
        graph.node.insert(position, node)
    return restored
