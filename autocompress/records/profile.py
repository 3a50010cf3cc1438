"""Where the time of an inference went, node by node."""

from __future__ import annotations

import posixpath
from typing import Annotated

from pydantic import Field

from autocompress.records.base import Record
from autocompress.records.results import LatencyReading


class NodeLatency(Record):
    """Time of one node of the runtime's optimized graph.

    Attributes:
        node: the runtime's name for it.
        layers: the layers whose weights it multiplies with, or unpacks: several for the matrices of a recurrent layer
            or of joined projections; empty for a node that is no layer's.
        operation: such as ``"Conv"``, fused nodes under the name of the fusion.
        milliseconds: mean of the middle half of the profiled inferences. The profiler costs time itself.
    """

    node: str
    layers: tuple[str, ...] = ()
    operation: str
    milliseconds: float

    @property
    def layer(self) -> str | None:
        """The layer; of several what their names have in common; None for a node that is no layer's.

        Examples:
            >>> names = ("rnn.weight_ih_l0", "rnn.weight_hh_l0")
            >>> NodeLatency(node="rnn.l0", layers=names, operation="LSTM", milliseconds=1.0).layer
            'rnn'
        """
        if len(self.layers) < 2:
            return self.layers[0] if self.layers else None
        common = posixpath.commonprefix(list(self.layers))
        return common.rpartition(".")[0] or common.rstrip("._") or " + ".join(self.layers)


class ProfiledModel(Record):
    """One file's nodes with their time, and what the whole takes without a profiler.

    Attributes:
        name: as a reader knows it: ``"dense"``, ``"trial 12"``, a version or a file.
        sha256: of the file.
        latency: measured without the profiler, beside the first of the profiled files.
        nodes: in the order of execution.
    """

    name: str
    sha256: str
    latency: LatencyReading
    nodes: Annotated[tuple[NodeLatency, ...], Field(min_length=1)]

    @property
    def profiled_ms(self) -> float:
        """Sum over nodes, in milliseconds: more than the latency by what the profiler costs."""
        return sum(node.milliseconds for node in self.nodes)

    @property
    def cost_ms(self) -> float:
        """What the profiler costs at each node, c, such that sum(max(0, t - c)) is the latency; 0 at least.

        On one machine the sum exceeds the latency by much the same for every node, whatever the node does: with 7 to
        86 nodes of 2 to 10 microseconds, by 1.4 to 1.8 microseconds a node.
        """
        latency, total = self.latency.latency_ms.value, 0.0
        ordered = sorted((node.milliseconds for node in self.nodes), reverse=True)
        for count, (value, below) in enumerate(zip(ordered, [*ordered[1:], 0.0], strict=True), start=1):
            total += value
            if (total - latency) / count >= below:
                return max(0.0, (total - latency) / count)
        return 0.0

    @property
    def own_ms(self) -> tuple[float, ...]:
        """Time of each node without the profiler's cost, in milliseconds; they add up to the latency."""
        left = [max(0.0, node.milliseconds - self.cost_ms) for node in self.nodes]
        total = sum(left)
        factor = self.latency.latency_ms.value / total if total > 0 else 0.0
        return tuple(factor * value for value in left)


class TimeProfile(Record):
    """Several files in one session: the first is what the others are held against.

    Attributes:
        runtime: its name and version.
        host: key of the machine's fingerprint.
        inferences: that were profiled of each file, in turns.
        layers: in the order of computation, of all files.
        models: the reference first.
    """

    runtime: str
    host: str
    inferences: int
    layers: tuple[str, ...]
    models: Annotated[tuple[ProfiledModel, ...], Field(min_length=1)]
