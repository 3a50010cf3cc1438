"""From the bytes of an artifact to its operations, and from the runtime's profile to the time of each.

An artifact that computes in 8 bits is full of pairs of QuantizeLinear and DequantizeLinear, which a runtime merges with
the operation between them. Here such a pair is no operation: it says that what reads it computes with integers. So a
network has the same operations, in the same order, whatever its layers compute with.
"""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, prod
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from autocompress.errors import MeasurementError
from autocompress.measure.onnxruntime_session import cpu_options
from autocompress.measure.ratios import middle_mean
from autocompress.records.outline import Operation
from autocompress.rng import derive_seed

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
        cold: more than that in the first inference of a block, which finds the caches of other networks.
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
    models: Sequence[bytes],
    dense: bytes,
    inputs: Arrays,
    *,
    threads: int,
    baseline_ms: float,
    block_s: float = 0.005,
    rounds: int = 30,
    seed: int = 0,
) -> list[tuple[Traced, list[OperationTime]]]:
    """Profile artifacts in ONNX Runtime, beside the dense one, and give every operation its time.

    The protocol is that of a latency reading: in every round each network runs one block of inferences, in an order
    shuffled afresh, and its times count in units of what the dense network took in the same round. The first inference
    of a block finds caches that the others filled, the later ones its own. A kernel of the runtime's optimized graph
    counts for the operation that it computes: the one with its name, or the nearest of its kind before the tensor that
    it writes.

    Args:
        models: the artifacts.
        dense: the dense one.
        inputs: the batch that is timed.
        threads: threads that share one inference.
        baseline_ms: latency of the dense network, in whose milliseconds the times are.
        block_s: shortest time of a block; no block has fewer than three inferences.
        rounds: blocks per network.
        seed: of the order of networks.

    Returns:
        For each artifact its operations, and a time for each.

    Raises:
        MeasurementError: the runtime cannot load, run or profile a model.
    """
    with tempfile.TemporaryDirectory() as folder:
        profiles = [_Profile(model, inputs, threads, Path(folder) / str(i)) for i, model in enumerate((dense, *models))]
        rng = np.random.default_rng(derive_seed(seed, "profile"))
        for profile in profiles:
            profile.warm_up(block_s)
        for _ in range(rounds):
            for i in rng.permutation(len(profiles)):
                profiles[i].block()
        base = np.array(profiles[0].blocks)
        found = []
        for model, profile in zip(models, profiles[1:], strict=True):
            traced = trace_artifact(model, inputs)
            found.append((traced, _by_operation(traced, *profile.times(baseline_ms / base))))
        profiles[0].close()
    return found


class _Profile:
    """A session that profiles itself, block after block."""

    def __init__(self, model: bytes, inputs: Arrays, threads: int, folder: Path) -> None:
        import onnxruntime

        folder.mkdir()
        options = cpu_options(onnxruntime, threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / "profile")
        self._optimized = str(folder / "optimized.onnx")
        options.optimized_model_filepath = self._optimized
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            self._feed = inputs if isinstance(inputs, dict) else {self._session.get_inputs()[0].name: inputs}
            self._run()
        except Exception as error:
            raise MeasurementError(f"expected a model that the runtime can profile: {error}") from error
        self._before = 1  # inferences that do not count
        self._size = 3
        self.blocks: list[float] = []  # milliseconds of an inference, the block's median

    def _run(self) -> float:
        start = time.perf_counter_ns()
        self._session.run(None, self._feed)
        return (time.perf_counter_ns() - start) * 1e-6

    def warm_up(self, block_s: float) -> None:
        """Find out how many inferences fill a block."""
        times = [self._run() for _ in range(_WARM_UP)]
        self._before += _WARM_UP
        self._size = max(3, ceil(1e3 * block_s / median(times)))

    def block(self) -> None:
        """One block of inferences."""
        self.blocks.append(median(self._run() for _ in range(self._size)))

    def close(self) -> str:
        """End the profile; the path of its file."""
        return str(self._session.end_profiling())

    def times(self, factors: np.ndarray) -> tuple[Sequence[NodeProto], dict[str, float], dict[str, float]]:
        """Nodes of the optimized graph, and what each takes in the first inference of a block, and in later ones.

        Args:
            factors: shape (rounds,), of the clock's milliseconds in every round.
        """
        import onnx

        events = json.loads(Path(self.close()).read_text())
        nodes = list(onnx.load(self._optimized).graph.node)
        durations: dict[str, list[float]] = defaultdict(list)
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                durations[event["name"].removesuffix("_kernel_time")].append(event["dur"] / 1000.0)
        runs = self._before + len(factors) * self._size
        # A profile has a largest size: of a network with very many nodes it holds the first inferences only.
        if any(len(values) != runs for values in durations.values()):
            raise MeasurementError(f"expected a profile of {runs} inferences, got one that ends before")
        warm, cold = {}, {}
        for name, values in durations.items():
            table = np.array(values[self._before :]).reshape(len(factors), self._size) * factors[:, None]
            # Times are whole microseconds: a mean resolves what a median cannot.
            warm[name] = middle_mean([middle_mean(row) for row in table[:, 1:]])
            cold[name] = middle_mean(table[:, 0])
        return nodes, cold, warm


def _by_operation(
    traced: Traced, nodes: Sequence[NodeProto], cold: Mapping[str, float], warm: Mapping[str, float]
) -> list[OperationTime]:
    times = [[0.0, 0.0, 0.0] for _ in traced.outline]
    known = {**traced.producers, **{name: place for place, name in enumerate(traced.names)}}
    for node in nodes:
        place, converts = _owner(node, traced, known)
        if times and node.name in warm:
            times[max(place, 0)][int(converts)] += max(0.0, warm[node.name] - PROFILER_MS)
            times[max(place, 0)][2] += cold[node.name] - warm[node.name]
    return [OperationTime(kernel, conversion, max(0.0, more)) for kernel, conversion, more in times]


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
