"""Latency per layer, as the runtime's own profiler sees it."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Collection, Iterable
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from autocompress.records import Record

if TYPE_CHECKING:
    # Lazy: it brings torch.
    from autocompress.inputs import Arrays


class NodeLatency(Record):
    """Time of one node of the runtime's optimized graph.

    Attributes:
        node: the runtime's name for it.
        layer: the layer whose weights it uses; None for nodes without weights.
        operation: such as ``"Conv"``, fused nodes under the name of the fusion.
        milliseconds: median over the profiled inferences.
    """

    node: str
    layer: str | None
    operation: str
    milliseconds: float


def node_latencies(
    model: bytes, example: Arrays, layers: Collection[str], *, threads: int, inferences: int = 50
) -> list[NodeLatency]:
    """Profile single inferences of an artifact in ONNX Runtime.

    The profiler costs time itself: the sum exceeds the artifact's latency, the shares are what counts.

    Args:
        model: the artifact.
        example: one array of shape (1, ...), or several by the names of the artifact's inputs.
        layers: names of the layers, whose weights carry them in the artifact.
        threads: threads that share one inference.
        inferences: how many are profiled, after ten that are not counted.

    Returns:
        Nodes in the order of execution.
    """
    # Lazy: only this function needs the runtime.
    import onnx
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        options.log_severity_level = 3
        optimized = str(Path(folder) / "optimized.onnx")
        options.optimized_model_filepath = optimized
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        feed = example if isinstance(example, dict) else {session.get_inputs()[0].name: example}
        for _ in range(inferences + 10):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text())
        owners = {node.name: _owner(node.input, layers) for node in onnx.load(optimized).graph.node}
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            key = (event["name"].removesuffix("_kernel_time"), event["args"].get("op_name", ""))
            times[key].append(event["dur"] / 1000.0)
    return [
        NodeLatency(node=node, layer=owners.get(node), operation=operation, milliseconds=median(values[10:] or values))
        for (node, operation), values in times.items()
    ]


def _owner(inputs: Iterable[str], layers: Collection[str]) -> str | None:
    # Fusion renames nodes and repacked weights, but a layer keeps its weight's or its bias's name, with a suffix.
    for name in inputs:
        for part in (".weight", ".bias"):
            layer, found, _ = name.partition(part)
            if found and layer in layers:
                return layer
    return None
