"""ONNX Runtime's own profiler, read node by node."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnx import load_model

from autocompress.measure.onnxruntime_graph import named

if TYPE_CHECKING:
    # Lazy: it brings torch.
    from autocompress.inputs import Arrays

_KERNEL = "_kernel_time"


class OnnxRuntimeProfiler:
    """Times the nodes of one artifact; satisfies `autocompress.measure.layers.NodeProfiler`.

    Args:
        load: makes a session with these options.
        options: the target's own, to which profiling is added.
    """

    def __init__(self, load: Callable[[Any], Any], options: Any) -> None:
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / "profile")
        options.optimized_model_filepath = str(folder / "optimized.onnx")
        self._session = load(options)
        self._first = self._session.get_inputs()[0].name
        graph = load_model(folder / "optimized.onnx").graph
        self._names = named(graph)
        self._known = {node.name for node in graph.node if node.name}
        self._nameless: dict[str, list[str]] = defaultdict(list)
        for node, name in zip(graph.node, self._names, strict=True):
            if not node.name:
                self._nameless[node.op_type].append(name)

    def run(self, inputs: Arrays) -> None:
        """One inference that is timed."""
        self._session.run(None, inputs if isinstance(inputs, dict) else {self._first: inputs})

    def times(self) -> dict[str, list[float]]:
        """Node -> milliseconds of every inference, in the order of execution; ends the profiler."""
        events = json.loads(Path(self._session.end_profiling()).read_text())
        self._folder.cleanup()
        found: dict[str, list[float]] = {}
        # A node without a name is called by its operator and its place in a list that the runtime does not show; of
        # these, the first to run is the first in the graph.
        nameless: dict[str, str] = {}
        for event in events:
            if event.get("cat") != "Node" or not event["name"].endswith(_KERNEL):
                continue
            name = event["name"].removesuffix(_KERNEL)
            if name not in self._known:
                waiting = self._nameless.get(event["args"].get("op_name", ""), [])
                name = nameless.setdefault(name, waiting.pop(0) if name not in nameless and waiting else name)
            found.setdefault(name, []).append(event["dur"] / 1000.0)
        return found
