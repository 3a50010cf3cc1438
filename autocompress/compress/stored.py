"""Finding the stored weights behind the nodes of a model file, in every form in which they can be kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, numpy_helper

from autocompress.compress.onnx_names import MATRICES, RECURRENT, WEIGHT_INPUT, layer_of, matrix_name, readers

Compute = Literal["float", "weights", "integer"]
#: Layers for which the runtime has a kernel on 8-bit weights and activations.
_INTEGER_KERNELS = frozenset({"Conv", "Gemm", "MatMul"})
_EIGHT = frozenset({TensorProto.INT8, TensorProto.UINT8})
_STORED_BITS: dict[int, int] = {
    TensorProto.DOUBLE: 64,
    TensorProto.FLOAT: 32,
    TensorProto.FLOAT16: 16,
    TensorProto.BFLOAT16: 16,
    TensorProto.INT8: 8,
    TensorProto.UINT8: 8,
    TensorProto.INT4: 4,
    TensorProto.UINT4: 4,
}


@dataclass(frozen=True, eq=False)
class Weight:
    """The weights of one layer as a node reads them.

    Attributes:
        layer: its name.
        values: as they are stored: floats, or integers without their zero point; in the shape that torch keeps.
        stored_bits: that the file spends on each.
        compute: what a runtime computes with.
    """

    layer: str
    values: np.ndarray
    stored_bits: int
    compute: Compute

    @property
    def bits(self) -> int:
        """Width of the grid: of integers the smallest b with every magnitude up to 2^(b-1) - 1, at most as stored."""
        if self.values.dtype.kind == "f":
            return min(self.stored_bits, 32)
        top = int(np.abs(self.values.astype(np.int16)).max(initial=0))
        return next((b for b in range(2, self.stored_bits) if top <= 2 ** (b - 1) - 1), self.stored_bits)


class Reader:
    """Looks up constants in a graph."""

    def __init__(self, graph: GraphProto) -> None:
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.producer = {output: node for node in graph.node for output in node.output}
        self.read_by = readers(graph.node)

    def weights(self, node: NodeProto) -> Iterator[Weight]:
        """The layers whose weights a node reads: none, one, or the matrices of a recurrent layer."""
        if node.op_type in RECURRENT:
            for position in MATRICES:
                yield from self._matrices(node, position)
        elif node.op_type == "MatMulNBits":
            yield self._blocks(node)
        elif node.op_type in WEIGHT_INPUT:
            found = self.constant(node.input[WEIGHT_INPUT[node.op_type]])
            if found is not None and not (node.op_type == "Gather" and not _is_table(node, found[0])):
                yield self._plain(node, *found)

    def constant(self, name: str) -> tuple[TensorProto, NodeProto | None] | None:
        """The stored tensor behind an input, and the node that dequantizes or casts it if one does."""
        if name in self.constants:
            return self.constants[name], None
        node = self.producer.get(name)
        if node is not None and node.op_type == "Mul" and node.input[1] in self.constants:
            # Integers times their scale, restored when the file is loaded.
            node = self.producer.get(node.input[0])
        if node is not None and node.op_type in ("DequantizeLinear", "Cast") and node.input[0] in self.constants:
            return self.constants[node.input[0]], node
        return None

    def _plain(self, node: NodeProto, tensor: TensorProto, through: NodeProto | None) -> Weight:
        dequantize = through if through is not None and through.op_type == "DequantizeLinear" else None
        compute: Compute = "float"
        if node.op_type == "Gather" and tensor.data_type in _EIGHT:
            dequantize = next(
                (r for r in self.read_by.get(node.output[0], []) if r.op_type == "DequantizeLinear"), None
            )
            compute = "weights"
        elif dequantize is not None and tensor.data_type in _EIGHT and self._runs_in_integers(node):
            compute = "integer"
        values = self._centred(tensor, dequantize)
        if node.op_type == "MatMul" or (node.op_type == "Gemm" and not _integer(node, "transB", 0)):
            values = np.swapaxes(values, -1, -2)
        return Weight(layer_of(node.name), values, _STORED_BITS.get(tensor.data_type, 32), compute)

    def _runs_in_integers(self, node: NodeProto) -> bool:
        """Its input is quantized; for a convolution, so is all that it returns."""
        source = self.producer.get(node.input[0])
        if node.op_type not in _INTEGER_KERNELS or source is None or source.op_type != "DequantizeLinear":
            return False
        following = self.read_by.get(node.output[0], [])
        return node.op_type != "Conv" or (bool(following) and all(r.op_type == "QuantizeLinear" for r in following))

    def _centred(self, tensor: TensorProto, dequantize: NodeProto | None) -> np.ndarray:
        values = numpy_helper.to_array(tensor)
        if tensor.data_type in (TensorProto.INT4, TensorProto.UINT4):
            values = values.astype(np.int8)
        if dequantize is None or len(dequantize.input) < 3 or not dequantize.input[2]:
            return values
        zero = numpy_helper.to_array(self.constants[dequantize.input[2]]).astype(np.int16)
        if zero.ndim == 1 and zero.size > 1:
            axis = _integer(dequantize, "axis", 1)
            zero = np.expand_dims(zero, [i for i in range(values.ndim) if i != axis % values.ndim])
        return np.asarray(values.astype(np.int16) - zero)

    def _blocks(self, node: NodeProto) -> Weight:
        bits, inputs = _integer(node, "bits", 4), _integer(node, "K", 0)
        packed = numpy_helper.to_array(self.constants[node.input[1]])
        values = packed if bits == 8 else np.stack((packed & 15, packed >> 4), axis=-1)
        values = values.reshape(len(packed), -1)[:, :inputs].astype(np.int16) - 2 ** (bits - 1)
        return Weight(layer_of(node.name), values, bits, "weights")

    def _matrices(self, node: NodeProto, position: int) -> Iterator[Weight]:
        joined = self.producer.get(node.input[position])
        names = joined.input if joined is not None and joined.op_type == "Concat" else [node.input[position]]
        direction = 0
        for name in names:
            found = self.constant(name)
            if found is None:
                return
            tensor, through = found
            values = self._centred(tensor, through)
            for part in values:
                bits = _STORED_BITS.get(tensor.data_type, 32)
                yield Weight(matrix_name(node.name, position, direction), part, bits, "float")
                direction += 1


def parameters(graph: GraphProto, reader: Reader) -> int:
    """Number of weights, biases and other constants that enter the computation; see `artifact.describe`."""
    counted: dict[str, int] = {}
    for node in graph.node:
        restores = node.op_type == "Mul" and _is_restored(node, reader)
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") or restores:
            continue
        if node.op_type == "MatMulNBits":
            counted[node.input[1]] = _integer(node, "K", 0) * _integer(node, "N", 0)
            continue
        for position, name in enumerate(node.input):
            found = reader.constant(name)
            if found is None:
                continue
            tensor, through = found
            table = node.op_type == "Gather" and position == 0 and tensor.data_type in _EIGHT
            if tensor.dims and (through is not None or table or _is_float(tensor)):
                # The bias of a layer that runs twice is stored for each of its input's grids, but is one bias.
                bias = through is not None and position == 2
                counted[f"{layer_of(node.name)}/bias" if bias else tensor.name] = prod(tensor.dims)
    return sum(counted.values())


def _is_restored(node: NodeProto, reader: Reader) -> bool:
    """A Mul of looked-up or stored integers with their scale, which is no parameter."""
    source = reader.producer.get(node.input[0])
    if source is None or source.op_type != "Cast":
        return False
    tensor = source.input[0]
    gather = reader.producer.get(tensor)
    stored = gather.input[0] if gather is not None and gather.op_type == "Gather" else tensor
    return stored in reader.constants and reader.constants[stored].data_type in _EIGHT


def _is_float(tensor: TensorProto) -> bool:
    return tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)


def _is_table(node: NodeProto, tensor: TensorProto) -> bool:
    """A Gather that is a layer, not one that picks a position from a constant."""
    named = bool(node.name) and not node.name.startswith("Gather_")
    return named and len(tensor.dims) == 2 and (_is_float(tensor) or tensor.data_type in _EIGHT)


def _integer(node: NodeProto, name: str, default: int) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == name), default)


def shapes_of(constants: Mapping[str, TensorProto]) -> dict[str, tuple[int, ...]]:
    """Name -> shape."""
    return {name: tuple(tensor.dims) for name, tensor in constants.items()}
