"""From the bytes of an artifact to its operations, and from the runtime's profile to the time of each.

An artifact that computes in 8 bits is full of pairs of QuantizeLinear and DequantizeLinear, which a runtime merges with
the operation between them. Here such a pair is no operation: it says that what reads it computes with integers. So a
network has the same operations, in the same order, whatever its layers compute with.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from autocompress.errors import MeasurementError
from autocompress.records.outline import Operation

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto

    # Lazy: it brings torch.
    from autocompress.inputs import Arrays

#: What else the runtime calls a tensor, or a copy of it in another type or layout.
_SUFFIXES = ("_quantized", "_dequantized", "_unquantized", "_float", "_row", "_cast", "_nchwc")
#: Operators of the runtime that only convert between types or layouts.
_CONVERSIONS = frozenset({"QuantizeLinear", "DequantizeLinear", "ReorderInput", "ReorderOutput"})
#: Positions, among the inputs of an operator, of what is not an activation even where it is computed.
_FIRST_ONLY = frozenset(
    {"Reshape", "Expand", "Slice", "Unsqueeze", "Squeeze", "Clip", "Pad", "ReduceMean", "ReduceSum"}
)
#: Operators that layers with weights become.
PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
#: Operators without weights that the runtime computes on 8-bit values.
_INTEGER = frozenset(
    {"MaxPool", "Flatten", "Reshape", "Transpose", "Slice", "Pad", "Relu", "Clip", "AveragePool", "GlobalAveragePool"}
    | {"Add", "Concat", "Mul"}
)
#: Milliseconds that the profiler itself adds to every kernel: what one takes that does nothing, such as a Reshape.
PROFILER_MS = 0.0015
#: Inferences before the first that counts.
_WARM_UP = 5
#: Inferences with cold caches.
_COLD = 9
#: Attributes that have no bearing on time.
_SILENT = frozenset({"epsilon", "allowzero", "auto_pad", "ceil_mode"})


@dataclass(frozen=True)
class Traced:
    """An artifact's operations, and where its tensors come from.

    Attributes:
        outline: the operations.
        producers: tensor -> place of the operation that computes it, under every name that the file has for it; -1
            for inputs.
        names: name of each operation's node.
    """

    outline: tuple[Operation, ...]
    producers: Mapping[str, int]
    names: tuple[str, ...]


@dataclass(frozen=True)
class OperationTime:
    """Milliseconds that an operation takes.

    Attributes:
        kernel: in the kernel that computes it.
        conversion: in conversions of its result to another type or layout.
        cold: more than that, if what it reads has first to come from memory.
    """

    kernel: float = 0.0
    conversion: float = 0.0
    cold: float = 0.0


def trace_artifact(model: bytes, inputs: Arrays) -> Traced:
    """The operations of an ONNX file, with the shapes that they have for a batch.

    Args:
        model: as a build writes it.
        inputs: the batch: one array, or several by the names of the model's inputs.

    Raises:
        MeasurementError: the bytes are no ONNX model, or the runtime cannot run it on the inputs.
    """
    import onnx

    try:
        proto = onnx.load_model_from_string(model)
    except Exception as error:
        raise MeasurementError(f"expected the bytes of an ONNX model, got {len(model)} bytes: {error}") from error
    return _trace(proto.graph, _shapes(proto, inputs))


def _shapes(proto: Any, inputs: Arrays) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors. The runtime tells: no shape inference knows its own operators."""
    import onnx
    import onnxruntime

    feed = inputs if isinstance(inputs, dict) else {proto.graph.input[0].name: inputs}
    shapes = {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}
    shapes |= {name: tuple(array.shape) for name, array in feed.items()}
    names = list(dict.fromkeys(name for node in proto.graph.node for name in node.output if name))
    known = {value.name for value in proto.graph.output}
    tapped = onnx.ModelProto()
    tapped.CopyFrom(proto)
    tapped.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(tapped.SerializeToString(), options, providers=["CPUExecutionProvider"])
        results = session.run(names, feed)
    except Exception as error:
        raise MeasurementError(f"expected a model that the runtime can run on the inputs: {error}") from error
    return shapes | {name: tuple(result.shape) for name, result in zip(names, results, strict=True)}


def _trace(graph: GraphProto, shapes: Mapping[str, tuple[int, ...]]) -> Traced:
    constants: dict[str, bool] = {tensor.name: False for tensor in graph.initializer}  # name -> is it quantized
    producers: dict[str, int] = {value.name: -1 for value in graph.input}
    integers: set[str] = set()  # what pairs give
    rounded = {node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"}
    outline: list[Operation] = []
    names: list[str] = []
    for node in graph.node:
        read = [name for name in node.input if name]
        if all(name in constants for name in read):
            for name in node.output:
                constants[name] = node.op_type == "DequantizeLinear" or any(constants[x] for x in read)
            continue
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") or _is_alias(node):
            producers[node.output[0]] = producers[node.input[0]]
            if node.op_type == "DequantizeLinear":
                integers.add(node.output[0])
            continue
        activations = [name for name in read if name not in constants and not _is_size(node, name)]
        held = [name for name in read if name in constants]
        weight = max(held, key=lambda name: prod(shapes[name]), default="")
        # A single number is no weight, whether it is kept with an axis or without.
        weights = shapes[weight] if weight and prod(shapes[weight]) > 1 else ()
        mode, op = "float", node.op_type
        if op == "MatMulNBits":
            values = {a.name: a.i for a in node.attribute}
            op, mode, weights = "MatMul", f"weights{values['bits']}", (values["K"], values["N"])
        elif op == "Gather" and f"{node.name}/restore" in {x.name for x in graph.node}:
            mode = "table"
        elif activations and all(name in integers for name in activations):
            eight = constants[weight] if weight and op in PRODUCTS else op in _INTEGER and node.output[0] in rounded
            mode = "integer" if eight else "float"
        if op == "LeakyRelu" and all(a.f == 0.0 for a in node.attribute if a.name == "alpha"):
            op = "Relu"  # a Relu that keeps its layer in floats
        for name in node.output:
            producers[name] = len(outline)
        outline.append(
            Operation(
                op,
                attributes_of(node, weights) if op == node.op_type else "",
                mode,
                tuple(producers[name] for name in activations),
                weights,
                tuple(shapes[name] for name in activations),
                shapes[node.output[0]],
            )
        )
        names.append(node.name)
    return Traced(tuple(outline), producers, tuple(names))


def _is_alias(node: NodeProto) -> bool:
    """A node that a quantizer adds beside a layer: what it costs is the layer's."""
    if node.name.endswith(("/cast", "/restore", "/bias")):
        return True
    return node.op_type == "LeakyRelu" and node.name.endswith("/float")


def _is_size(node: NodeProto, name: str) -> bool:
    return node.op_type in _FIRST_ONLY and name != node.input[0]


def attributes_of(node: NodeProto, weights: tuple[int, ...]) -> str:
    """Attributes that decide how long a node takes, as text."""
    found = []
    depthwise = len(weights) > 1 and weights[1] == 1
    for attribute in sorted(node.attribute, key=lambda a: a.name):
        if attribute.name in _SILENT:
            continue
        if attribute.type == 2:  # an integer
            found.append(f"{attribute.name}={attribute.i}")
            if attribute.name == "group" and attribute.i > 1 and depthwise:
                found[-1] = "group=channels"
        elif attribute.type == 7:  # integers
            found.append(f"{attribute.name}={','.join(map(str, attribute.ints))}")
        elif attribute.type == 3:  # a text
            found.append(f"{attribute.name}={attribute.s.decode()}")
    return " ".join(found)


def operation_times(
    model: bytes, inputs: Arrays, *, threads: int, inferences: int = 40, parts: int = 3
) -> tuple[Traced, list[OperationTime]]:
    """Profile an artifact in ONNX Runtime and give every operation its time.

    A kernel of the runtime's optimized graph counts for the operation that it computes: the one with its name, or the
    nearest of its kind before the tensor that it writes. Times are middle halves of many inferences in a row, of the
    quietest of `parts` stretches: what another process takes is no time of the network. Some inferences more, each
    after all caches were filled with something else, tell what an operation takes when it is not alone.

    Args:
        model: the artifact.
        inputs: the batch that is timed.
        threads: threads that share one inference.
        inferences: of each stretch.
        parts: stretches.

    Returns:
        The operations, and a time for each.

    Raises:
        MeasurementError: the runtime cannot load or run the model.
    """
    traced = trace_artifact(model, inputs)
    kernels, warm, cold = _profiled(model, inputs, threads, inferences, parts)
    times = [[0.0, 0.0, 0.0] for _ in traced.outline]
    known = {**traced.producers, **{name: place for place, name in enumerate(traced.names)}}
    for node in kernels:
        place, converts = _owner(node, traced, known)
        if times and node.name in warm:
            times[max(place, 0)][int(converts)] += max(0.0, warm[node.name] - PROFILER_MS)
            times[max(place, 0)][2] += cold[node.name] - warm[node.name]
    return traced, [OperationTime(kernel, conversion, max(0.0, more)) for kernel, conversion, more in times]


def _profiled(
    model: bytes, inputs: Arrays, threads: int, inferences: int, parts: int
) -> tuple[Sequence[NodeProto], dict[str, float], dict[str, float]]:
    """Nodes of the optimized graph, and the milliseconds of each: in a row, and after the caches were emptied."""
    import numpy as np
    import onnx
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        options.log_severity_level = 3
        optimized = str(Path(folder) / "optimized.onnx")
        options.optimized_model_filepath = optimized
        other = np.zeros(cache_bytes() // 4, dtype=np.float32)
        try:
            session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            feed = inputs if isinstance(inputs, dict) else {session.get_inputs()[0].name: inputs}
            for _ in range(inferences * parts + _WARM_UP):
                session.run(None, feed)
            for _ in range(_COLD):
                np.add(other, 1.0, out=other)
                session.run(None, feed)
        except Exception as error:
            raise MeasurementError(f"expected a model that the runtime can profile: {error}") from error
        events = json.loads(Path(session.end_profiling()).read_text())
        nodes = list(onnx.load(optimized).graph.node)
    durations: dict[str, list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            durations[event["name"].removesuffix("_kernel_time")].append(event["dur"] / 1000.0)
    runs = _WARM_UP + inferences * parts
    # A profile has a largest size: of a network with very many nodes it holds no more than the first inferences.
    if any(len(values) != runs + _COLD for values in durations.values()):
        raise MeasurementError(f"expected a profile of {runs + _COLD} inferences, got one that ends before")
    # The quietest stretch is that of the whole network: the least of every kernel would be of no inference.
    totals = [sum(values[at] for values in durations.values()) for at in range(runs)]
    stretches = [range(_WARM_UP + part * inferences, _WARM_UP + (part + 1) * inferences) for part in range(parts)]
    best = min(stretches, key=lambda stretch: median(totals[at] for at in stretch))
    # Times are whole microseconds: the mean of the middle half resolves what a median cannot.
    warm = {name: _middle([values[at] for at in best]) for name, values in durations.items()}
    return nodes, warm, {name: _middle(values[runs:]) for name, values in durations.items()}


def cache_bytes() -> int:
    """Twice the processor's largest cache, at least 64 MiB: what has to be written until nothing else is in it."""
    found = 0
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        factor = {"K": 2**10, "M": 2**20}.get(text[-1:], 0)
        found = max(found, factor * int(text[:-1])) if factor and text[:-1].isdigit() else found
    return max(2 * found, 2**26)


def _middle(values: Sequence[float]) -> float:
    """Mean of the middle half."""
    ordered = sorted(values)
    quarter = len(ordered) // 4
    kept = ordered[quarter : len(ordered) - quarter]
    return sum(kept) / len(kept)


def _owner(node: NodeProto, traced: Traced, known: dict[str, int]) -> tuple[int, bool]:
    """Place of the operation that a kernel belongs to, and whether it only converts.

    Args:
        node: of the optimized graph.
        traced: the artifact.
        known: name of a node, or of a tensor -> place of its operation; gets what this node writes.
    """
    names = (node.name, *node.output, *node.input)
    place = next((found for found in (_place(name, known) for name in names) if found is not None), -1)
    known.update(dict.fromkeys(node.output, place))
    if node.op_type in _CONVERSIONS:
        return place, True
    start = place
    for _ in range(4):
        if place < 0 or traced.outline[place].op in node.op_type:
            return place, place < 0
        place = traced.outline[place].reads[0] if traced.outline[place].reads else -1
    # A kernel of no kind that is near, such as the transposition around an integer convolution.
    return start, True


def _place(name: str, known: Mapping[str, int]) -> int | None:
    """Place of the operation that has a name, or writes a tensor of that name, whatever the runtime appends to it."""
    while True:
        if name in known:
            return known[name]
        shorter = name.partition("/")[0]
        for suffix in _SUFFIXES:
            shorter = shorter.removesuffix(suffix)
        shorter = re.sub(r"_token_\d+$", "", shorter)
        if shorter == name:
            return None
        name = shorter
