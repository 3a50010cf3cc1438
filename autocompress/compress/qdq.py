"""Writing 8-bit layers as pairs of QuantizeLinear and DequantizeLinear, on grids that are given or calibrated.

A runtime merges such pairs with the layer between them into one integer kernel. onnxruntime's own writer takes no grids
per layer, rescales weights for their biases' sake, and quantizes outputs that nothing reads as integers; this one
places every pair itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, numpy_helper

from autocompress.compress.between import DIRECT, RETURNS_FLOATS, activation_inputs, between, hold_floats
from autocompress.compress.grids import (
    LEVELS,
    Grid,
    activation_grid,
    bias_scale,
    from_integers,
    smallest_scales,
    to_integers,
    weight_scales,
)
from autocompress.compress.onnx_names import layer_of, readers
from autocompress.compress.weights_only import store_integers
from autocompress.errors import CompressionError

#: Scale and zero point of an 8-bit tensor.
Pair = tuple[float, int]
Ranges = Callable[[Sequence[str]], Mapping[str, tuple[float, float]]]


def quantize_layers(graph: GraphProto, bits: Mapping[str, int], grids: Mapping[str, Grid], ranges: Ranges) -> None:
    """Quantize nodes with weights, and the operators between them, in place.

    Args:
        graph: of a float model.
        bits: node name -> 8 to 2, of Conv, ConvTranspose, Gemm and MatMul nodes with constant weights.
        grids: layer name -> its grids; the others' are made from their weights and from `ranges`.
        ranges: names of tensors -> what they hold on the calibration set.

    Raises:
        CompressionError: a grid does not fit its layer, or weights that should lie on one do not.
    """
    _Writer(graph, bits, grids, ranges).write()


class _Writer:
    def __init__(self, graph: GraphProto, bits: Mapping[str, int], grids: Mapping[str, Grid], ranges: Ranges) -> None:
        self.graph, self.bits, self.grids = graph, bits, grids
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.nodes = [node for node in graph.node if node.name in set(bits) | between(graph, set(bits))]
        self.names = {node.name for node in self.nodes}
        self.outputs = {value.name for value in graph.output}
        self.producer = {output: node for node in graph.node for output in node.output}
        self.tensor_grids = self._grids_of_tensors(ranges)
        self.made: dict[tuple[str, Pair], str] = {}
        self.raw: dict[str, str] = {}
        self.input_scales: dict[str, float] = {}
        self.written: list[tuple[str, int, np.ndarray, np.ndarray, str]] = []

    def write(self) -> None:
        self._remove_clamps()
        before = list(self.graph.node)
        read_by = readers(before)
        results = {node.output[0] for node in self.nodes if self._returns_integers(node, read_by)}
        for tensor in sorted(results & self.outputs):
            # The graph's output is what the pair gives; the layer itself writes under another name.
            self.raw[tensor] = f"{tensor}_unquantized"
        for tensor in sorted(results):
            self._pair(tensor, self.tensor_grids[tensor])
        for node in before:
            for at, name in enumerate(node.input):
                if node.name in self.names and at in activation_inputs(node, self.constants):
                    wanted = self._wanted(node, name)
                    node.input[at] = self._pair(name, wanted)
                    self.input_scales[node.name] = wanted[0]
                elif name in results:
                    # What an int8 layer computed has to pass through its pair: the runtime merges it into the layer.
                    node.input[at] = self._pair(name, self.tensor_grids[name])
        for layer in dict.fromkeys(layer_of(node.name) for node in self.nodes if node.name in self.bits):
            self._quantize_weights(
                [node for node in self.nodes if node.name in self.bits and layer_of(node.name) == layer]
            )
        for node in before:
            for at, name in enumerate(node.output):
                node.output[at] = self.raw.get(name, name)
        hold_floats(self.graph, self.names)

    # --- grids ----------------------------------------------------------------------------------------------------

    def _grids_of_tensors(self, ranges: Ranges) -> dict[str, Pair]:
        """One grid per tensor that is quantized: a layer's own, or that of what it is passed on to, or calibrated."""
        found: dict[str, Pair] = {}
        needed: dict[str, None] = {}
        for node in self.nodes:
            for at in activation_inputs(node, self.constants):
                needed[node.input[at]] = None
            needed[node.output[0]] = None
            grid = self.grids.get(layer_of(node.name)) if node.name in self.bits else None
            if grid is not None and grid.input_scale is not None:
                found.setdefault(node.input[0], (float(grid.input_scale), grid.input_zero_point))
        direct = [node for node in self.nodes if node.op_type in DIRECT]
        for node in reversed(direct):
            if node.output[0] in found:
                found.setdefault(node.input[0], found[node.output[0]])
        passed = {node.output[0] for node in direct}
        missing = [tensor for tensor in needed if tensor not in found and tensor not in passed]
        for tensor, (low, high) in ranges(missing).items():
            scale, zero = activation_grid(low, high)
            found[tensor] = (float(scale), zero)
        for node in direct:
            found.setdefault(node.output[0], found[node.input[0]])
        return found

    def _wanted(self, node: NodeProto, tensor: str) -> Pair:
        grid = self.grids.get(layer_of(node.name)) if node.name in self.bits else None
        if grid is not None and grid.input_scale is not None:
            return float(grid.input_scale), grid.input_zero_point
        return self.tensor_grids[tensor]

    # --- activations ----------------------------------------------------------------------------------------------

    def _remove_clamps(self) -> None:
        """Leave out a Relu or Clip behind an integer layer where its output's grid clamps in its place."""
        read_by = readers(self.graph.node)
        for node in list(self.nodes):
            source = self.producer.get(node.input[0]) if node.op_type in ("Relu", "Clip") else None
            if source is None or source.name not in self.names or node.input[0] in self.outputs:
                continue
            if len(read_by[node.input[0]]) > 1 or not self._clamps(node):
                continue
            source.output[0] = node.output[0]
            self.producer[node.output[0]] = source
            self.graph.node.remove(node)
            self.nodes.remove(node)

    def _clamps(self, node: NodeProto) -> bool:
        scale, zero = self.tensor_grids[node.output[0]]
        low, high = 0.0, np.inf
        if node.op_type == "Clip":
            bounds = [self._scalar(name) for name in node.input[1:3]]
            low = bounds[0] if bounds else -np.inf
            high = bounds[1] if len(bounds) > 1 else np.inf
        end = (LEVELS - zero) * scale
        return zero == 0 and low == 0.0 and (high >= end or bool(np.isclose(high, end, rtol=1e-4)))

    def _scalar(self, name: str) -> float:
        return float(numpy_helper.to_array(self.constants[name])) if name in self.constants else float("nan")

    def _returns_integers(self, node: NodeProto, read_by: Mapping[str, list[NodeProto]]) -> bool:
        if node.op_type == "ConvTranspose":
            return False  # the runtime has no integer kernel that a pair behind it would serve
        following = read_by.get(node.output[0], [])
        read_as_integers = any(
            reader.name in self.names
            and any(reader.input[at] == node.output[0] for at in activation_inputs(reader, self.constants))
            for reader in following
        )
        return node.op_type not in RETURNS_FLOATS or read_as_integers

    def _pair(self, tensor: str, grid: Pair) -> str:
        """Name of the tensor rounded to a grid; the pair is made when it is first asked for."""
        if (tensor, grid) in self.made:
            return self.made[tensor, grid]
        count = sum(1 for name, _ in self.made if name == tensor)
        stem = tensor if count == 0 else f"{tensor}/{count + 1}"
        scale, zero = f"{stem}_scale", f"{stem}_zero_point"
        self._add(scale, np.array(grid[0], dtype=np.float32))
        self._add(zero, np.array(grid[1], dtype=np.uint8))
        source = self.raw.get(tensor, tensor)
        output = tensor if tensor in self.raw and count == 0 else f"{stem}_dequantized"
        self.graph.node.extend(
            [
                onnx.helper.make_node(
                    "QuantizeLinear", [source, scale, zero], [f"{stem}_quantized"], f"{stem}/quantize"
                ),
                onnx.helper.make_node(
                    "DequantizeLinear", [f"{stem}_quantized", scale, zero], [output], f"{stem}/dequantize"
                ),
            ]
        )
        self.made[tensor, grid] = output
        return output

    # --- weights --------------------------------------------------------------------------------------------------

    def _quantize_weights(self, nodes: Sequence[NodeProto]) -> None:
        """Weights and biases of one layer, which may run in several nodes."""
        layer, axis, bits = layer_of(nodes[0].name), channel_axis(nodes[0]), self.bits[nodes[0].name]
        weight = np.moveaxis(numpy_helper.to_array(self.constants[nodes[0].input[1]]), axis, 0)
        scale = self._weight_scale(layer, weight, bits, nodes)
        integers = to_integers(weight, scale, bits)
        if layer in self.grids:
            _check_on_grid(layer, weight, integers, scale)
        stem, source = f"{layer}.weight", nodes[0].input[1]
        biases = [self._bias(node) for node in nodes]
        restored = next(
            (
                output
                for constant, at, values, scales, output in self.written
                if (constant, at) == (source, axis)
                and np.array_equal(values, integers)
                and np.array_equal(scales, scale)
            ),
            None,
        )
        if restored is None:
            restored = self._store(nodes[0], stem, integers, scale)
            self.written.append((source, axis, integers, scale, restored))
        for node, bias in zip(nodes, biases, strict=True):
            node.input[1] = restored
            if bias is not None:
                self._quantize_bias(node, bias, scale)

    def _store(self, node: NodeProto, stem: str, integers: np.ndarray, scale: np.ndarray) -> str:
        """Add the integers and what makes floats of them; the name of these floats."""
        axis = channel_axis(node)
        stored = np.ascontiguousarray(np.moveaxis(integers, 0, axis))
        if node.op_type == "ConvTranspose":
            shape = [-1 if at == axis else 1 for at in range(integers.ndim)]
            return store_integers(self.graph, stem, stored, scale.reshape(shape))
        names = [f"{stem}_quantized", f"{stem}_scale", f"{stem}_zero_point"]
        for name, values in zip(names, (stored, scale, np.zeros(scale.shape, dtype=np.int8)), strict=True):
            self._add(name, values)
        self._dequantize(names, f"{stem}_dequantized", stem, axis)
        return f"{stem}_dequantized"

    def _weight_scale(self, layer: str, weight: np.ndarray, bits: int, nodes: Sequence[NodeProto]) -> np.ndarray:
        """Scale per output channel: the layer's grid, or one made now, wide enough for the bias in every node."""
        grid = self.grids.get(layer)
        scale = weight_scales(weight, bits) if grid is None else np.asarray(grid.weight_scale, dtype=np.float32)
        if scale.shape != (len(weight),):
            raise CompressionError(
                f"quantize: layer {layer!r}: expected a grid of {len(weight)} output channels, got {scale.shape}"
            )
        for node in nodes:
            bias = self._bias(node)
            least = scale if bias is None else smallest_scales(bias, self.input_scales[node.name])
            if bias is None or np.all(least <= scale):
                continue
            if grid is not None:
                raise CompressionError(
                    f"quantize: layer {layer!r}: expected a grid that holds the biases in 32 bits, got scale "
                    f"{float(scale[least > scale][0]):.3g} where {float(least[least > scale][0]):.3g} is needed"
                )
            scale = np.maximum(scale, least)
        return scale

    def _bias(self, node: NodeProto) -> np.ndarray | None:
        """The bias that an integer kernel adds to its sums; None if there is none, or it is added in floats."""
        name = node.input[2] if len(node.input) > 2 else ""
        if node.op_type not in ("Conv", "Gemm") or name not in self.constants:
            return None
        return numpy_helper.to_array(self.constants[name]).reshape(-1)

    def _quantize_bias(self, node: NodeProto, bias: np.ndarray, weight_scale: np.ndarray) -> None:
        scale = bias_scale(weight_scale, self.input_scales[node.name])
        integers = np.rint(bias.astype(np.float64) / scale).astype(np.int32)
        stem = f"{node.name}/bias"
        names = [f"{stem}_quantized", f"{stem}_scale", f"{stem}_zero_point"]
        for name, values in zip(names, (integers, scale, np.zeros(scale.shape, dtype=np.int32)), strict=True):
            self._add(name, values)
        self._dequantize(names, f"{stem}_dequantized", stem, 0)
        node.input[2] = f"{stem}_dequantized"

    def _dequantize(self, inputs: Sequence[str], output: str, stem: str, axis: int) -> None:
        node = onnx.helper.make_node("DequantizeLinear", inputs, [output], f"{stem}/dequantize", axis=axis)
        self.graph.node.append(node)

    def _add(self, name: str, values: np.ndarray) -> None:
        self.graph.initializer.append(numpy_helper.from_array(values, name))


def channel_axis(node: NodeProto) -> int:
    """Axis of the stored weight whose indices are output channels (of one group, for a grouped ConvTranspose)."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        return 0 if any(a.name == "transB" and a.i for a in node.attribute) else 1
    return 1


def _check_on_grid(layer: str, weight: np.ndarray, integers: np.ndarray, scale: np.ndarray) -> None:
    error = np.abs(from_integers(integers, scale) - weight).max(initial=0.0)
    if error > 1e-3 * float(scale.max()):
        raise CompressionError(
            f"quantize: layer {layer!r}: expected weights on the trained grid, got one that is {error:.3g} beside it; "
            "the network was changed after its training, or is not the one that was trained"
        )
