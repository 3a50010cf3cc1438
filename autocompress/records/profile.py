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
        milliseconds: median over the profiled inferences. The profiler costs time itself.
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
    def scale(self) -> float:
        """Latency / `profiled_ms`: what a node's time is multiplied with, so that nodes add up to the latency."""
        return self.latency.latency_ms.value / self.profiled_ms if self.profiled_ms > 0 else 0.0


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
