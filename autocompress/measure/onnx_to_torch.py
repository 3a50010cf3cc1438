"""An ONNX file as a torch module: how the targets that run torch load the same bytes as every other target.

The operators in `OPERATORS` are plain functions; the file's nodes are traced through them once, which leaves a graph of
torch's own functions. Whatever depends on constants alone, such as restoring integer weights, is computed in doing so.
The library onnx2torch (1.5.15) reads 3 of the 40 networks in ``benchmarks/family_cases.py``: it stops at opset 17 and
knows neither quantized nor recurrent layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnx
import torch
from onnx import ModelProto, NodeProto, numpy_helper
from torch import Tensor, fx, nn
from torch.nn import functional

from autocompress.errors import MeasurementError
from autocompress.measure import torch_layers as layers
from autocompress.measure import torch_ops as ops
from autocompress.measure.torch_ops import Size, UnsupportedError


def _divide(a: Tensor, b: Tensor) -> Tensor:
    whole = any(type(x) is Tensor and not x.is_floating_point() for x in (a, b))
    return torch.div(a, b, rounding_mode="trunc") if whole else torch.div(a, b)


def _clip(x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    bounds = ops.number(low, "min"), ops.number(high, "max")
    return x if bounds == (None, None) else torch.clamp(x, *bounds)


def _folded(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """Of any number of inputs, from one of two."""

    def over(*parts: Tensor) -> Tensor:
        total = parts[0]
        for part in parts[1:]:
            total = function(total, part)
        return total

    return over


OPERATORS: Mapping[str, Callable[..., Any]] = {
    "Abs": torch.abs,
    "Add": torch.add,
    "And": torch.logical_and,
    "AveragePool": layers.average_pool,
    "BatchNormalization": layers.batch_normalization,
    "Cast": ops.cast,
    "Ceil": torch.ceil,
    "Clip": _clip,
    "Concat": ops.concat,
    "ConstantOfShape": ops.constant_of_shape,
    "Conv": layers.conv,
    "ConvTranspose": layers.conv_transpose,
    "Cos": torch.cos,
    "DequantizeLinear": layers.dequantize_linear,
    "Div": _divide,
    "Elu": lambda x, alpha=1.0: functional.elu(x, alpha),
    "Equal": torch.eq,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Expand": ops.expand,
    "Flatten": ops.flatten,
    "Floor": torch.floor,
    "GRU": layers.gru,
    "Gather": ops.gather,
    "GatherElements": ops.gather_elements,
    "Gelu": lambda x, approximate="none": functional.gelu(x, approximate=approximate),
    "Gemm": layers.gemm,
    "GlobalAveragePool": layers.global_average_pool,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "GroupNormalization": layers.group_normalization,
    "HardSigmoid": lambda x, alpha=0.2, beta=0.5: torch.clamp(x * alpha + beta, 0.0, 1.0),
    "HardSwish": functional.hardswish,
    "Identity": lambda x: x,
    "InstanceNormalization": layers.instance_normalization,
    "LSTM": layers.lstm,
    "LayerNormalization": layers.layer_normalization,
    "LeakyRelu": lambda x, alpha=0.01: functional.leaky_relu(x, alpha),
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Log": torch.log,
    "LogSoftmax": lambda x, axis=-1: functional.log_softmax(x, dim=axis),
    "MatMul": torch.matmul,
    "MatMulNBits": layers.matmul_nbits,
    "Max": _folded(torch.maximum),
    "MaxPool": layers.max_pool,
    "Min": _folded(torch.minimum),
    "Mul": torch.mul,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Or": torch.logical_or,
    "PRelu": lambda x, slope: torch.where(x < 0, x * slope, x),
    "Pad": ops.pad,
    "Pow": torch.pow,
    "QuantizeLinear": layers.quantize_linear,
    "Reciprocal": torch.reciprocal,
    "ReduceL2": ops.reduction("l2"),
    "ReduceMax": ops.reduction("max"),
    "ReduceMean": ops.reduction("mean"),
    "ReduceMin": ops.reduction("min"),
    "ReduceSum": ops.reduction("sum"),
    "Relu": functional.relu,
    "Reshape": ops.reshape,
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Slice": ops.slice_,
    "Softmax": lambda x, axis=-1: functional.softmax(x, dim=axis),
    "Softplus": functional.softplus,
    "Split": ops.split,
    "Sqrt": torch.sqrt,
    "Squeeze": ops.squeeze,
    "Sub": torch.sub,
    "Sum": _folded(torch.add),
    "Tanh": torch.tanh,
    "Transpose": lambda x, perm: x.permute(perm),
    "Unsqueeze": ops.unsqueeze,
    "Where": torch.where,
}
#: What takes sizes of axes that are known only in an inference; all others need tensors.
_OF_SIZES = frozenset(
    {"Cast", "Concat", "ConstantOfShape", "Expand", "Gather", "Reshape", "Slice", "Squeeze", "Unsqueeze"}
)
_OF_RANK = frozenset({"DequantizeLinear", "GlobalAveragePool", "QuantizeLinear"})
#: What gives several results; of any other operator, only the first is known here.
_SEVERAL = frozenset({"GRU", "LSTM", "Split"})
#: Of the standard operators that are known here; earlier ones give axes and the like in other ways.
_OPSETS = range(13, 24)


def to_torch(model: bytes) -> fx.GraphModule:
    """The network as a module in evaluation mode.

    Args:
        model: the ONNX file's bytes.

    Returns:
        A module that takes the file's inputs in the file's order and returns a tuple of all its outputs, likewise.

    Raises:
        MeasurementError: the bytes are no ONNX file, or an operator has no counterpart; node and operator are named.
    """
    try:
        proto = onnx.load_model_from_string(model)
        ranks = _ranks(onnx.shape_inference.infer_shapes(proto))
    except Exception as error:
        raise MeasurementError(f"expected an ONNX model, got {len(model)} bytes that are none: {error}") from error
    opset = next((entry.version for entry in proto.opset_import if entry.domain == ""), 0)
    if opset not in _OPSETS:
        raise MeasurementError(f"expected an ONNX model of opset {_OPSETS[0]} to {_OPSETS[-1]}, got {opset}")
    return _Builder(proto, ranks).build()


def _ranks(proto: ModelProto) -> dict[str, int]:
    values = (*proto.graph.input, *proto.graph.value_info, *proto.graph.output)
    return {v.name: len(v.type.tensor_type.shape.dim) for v in values if v.type.tensor_type.HasField("shape")}


class _Builder:
    """Traces the nodes of a file, one after the other."""

    def __init__(self, proto: ModelProto, ranks: Mapping[str, int]) -> None:
        self._graph, self._ranks = proto.graph, ranks
        self._tracer = fx.Tracer()
        self._tracer.root, self._tracer.graph = nn.Module(), fx.Graph()
        self._tracer.tensor_attrs = {}
        self._values: dict[str, Any] = {t.name: _tensor(t) for t in proto.graph.initializer}

    def build(self) -> fx.GraphModule:
        constants = set(self._values)
        for value in self._graph.input:
            if value.name not in constants:
                self._values[value.name] = self._tracer.create_proxy(
                    "placeholder", f"input_{len(self._values)}", (), {}
                )
        with torch.no_grad():
            for node in self._graph.node:
                self._add(node)
        outputs = tuple(self._tracer.create_arg(self._values[value.name]) for value in self._graph.output)
        self._tracer.create_node("output", "output", (outputs,), {})
        return fx.GraphModule(self._tracer.root, self._tracer.graph).eval().requires_grad_(False)

    def _add(self, node: NodeProto) -> None:
        name = node.name or (node.output[0] if node.output else "")
        try:
            results = self._results(node)
        except UnsupportedError as error:
            raise MeasurementError(
                f"node {name!r}: torch has no counterpart for {node.op_type} with {error}"
            ) from error
        except Exception as error:
            raise MeasurementError(
                f"node {name!r}: {node.op_type} could not be written in torch: {type(error).__name__}: {error}"
            ) from error
        self._values.update({output: value for output, value in zip(node.output, results, strict=False) if output})

    def _results(self, node: NodeProto) -> tuple[Any, ...]:
        inputs = [self._values[name] if name else None for name in node.input]
        attributes = {a.name: _attribute(a) for a in node.attribute}
        if node.op_type == "Constant":
            return (_constant(attributes),)
        if node.op_type == "Shape":
            return (self._shape(node.input[0], inputs[0], **attributes),)
        if node.op_type == "Dropout":
            return (inputs[0],)
        function = OPERATORS.get(node.op_type)
        if function is None or node.domain not in ("", "com.microsoft"):
            raise UnsupportedError(f"any attribute: it is not among {', '.join(OPERATORS)}")
        if node.op_type not in _OF_SIZES and any(isinstance(value, Size) for value in inputs):
            raise UnsupportedError("sizes of axes in place of tensors")
        if node.op_type in _OF_RANK:
            known = inputs[0].ndim if type(inputs[0]) is Tensor else self._ranks.get(node.input[0])
            attributes["rank"] = known
        if node.op_type not in _SEVERAL and any(node.output[1:]):
            raise UnsupportedError(f"the results {list(node.output)}; expected one")
        found = function(*inputs, **attributes)
        return tuple(found[i] for i in range(len(node.output))) if node.op_type in _SEVERAL else (found,)

    def _shape(self, name: str, value: Any, start: int = 0, end: int | None = None) -> Size:
        rank = value.ndim if type(value) is Tensor else self._ranks.get(name)
        if rank is None:
            raise UnsupportedError("a tensor of unknown rank")
        return Size(tuple(value.shape[axis] for axis in range(rank)[start:end]))


def _tensor(tensor: onnx.TensorProto) -> Tensor:
    array = numpy_helper.to_array(tensor)
    if tensor.data_type not in ops.DTYPES:
        kind = onnx.TensorProto.DataType.Name(tensor.data_type)
        raise MeasurementError(f"constant {tensor.name!r}: expected a type that torch computes with, got {kind}")
    return torch.from_numpy(array.copy())


def _attribute(attribute: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode()
    return _tensor(value) if isinstance(value, onnx.TensorProto) else value


def _constant(attributes: Mapping[str, Any]) -> Tensor:
    ((name, value),) = attributes.items()
    if isinstance(value, Tensor):
        return value
    if name not in ("value_int", "value_ints", "value_float", "value_floats"):
        raise UnsupportedError(f"{name}; expected numbers")
    return torch.tensor(value, dtype=torch.int64 if "int" in name else torch.float32)
