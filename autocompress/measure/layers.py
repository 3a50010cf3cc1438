"""Latency per node and per layer, as the runtime's own profiler sees it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from autocompress.measure.graph import ShowsGraph
from autocompress.measure.ratios import middle_mean
from autocompress.measure.target import Target
from autocompress.records import NodeLatency

if TYPE_CHECKING:
    # Lazy: it brings torch.
    from autocompress.inputs import Arrays

#: Inferences before those that count, and in a row before the next file's turn.
_WARM_UP, _TURN = 10, 5


class NodeProfiler(Protocol):
    """A loaded artifact whose nodes are timed."""

    def run(self, inputs: Arrays) -> None:
        """One inference that is timed.

        Args:
            inputs: one array of shape (n, ...), or several by the names of the artifact's inputs.
        """

    def times(self) -> dict[str, list[float]]:
        """Node -> milliseconds of every inference, in the order of execution; called once, at the end.

        Nodes are called as the target's ``graph`` calls them.
        """


@runtime_checkable
class ProfilesNodes(ShowsGraph, Protocol):
    """A target whose runtime times single nodes: two methods more than `autocompress.measure.target.Target`."""

    def profiler(self, model: bytes) -> NodeProfiler:
        """Load an artifact with the target's own settings and its profiler on.

        Raises:
            MeasurementError: the runtime cannot load it.
        """


Owners = Mapping[str, Collection[str]]


def node_latencies(
    target: Target,
    models: Sequence[tuple[bytes, Owners]],
    inputs: Arrays,
    *,
    seed: int = 0,
    inferences: int = 50,
) -> list[list[NodeLatency]] | None:
    """Profile single inferences of artifacts, in turns of five inferences in an order that is shuffled afresh.

    The profiler costs time itself: the sum over nodes exceeds the latency, the shares are what counts.

    Args:
        target: where, with its settings.
        models: artifacts, each with its layers: layer -> names of the artifact's nodes that read its weights.
        inputs: one array of shape (n, ...), or several by the names of the artifacts' inputs.
        seed: of the order.
        inferences: how many of each artifact count, after ten that do not.

    Returns:
        For each artifact its nodes in the order of execution; None if the target's runtime times no nodes.

    Raises:
        MeasurementError: the runtime cannot load an artifact.
    """
    if not isinstance(target, ProfilesNodes):
        return None
    owners = [_nodes_of(target, model, layers) for model, layers in models]
    profilers = [target.profiler(model) for model, _ in models]
    for profiler in profilers:
        for _ in range(_WARM_UP):
            profiler.run(inputs)
    rng = np.random.default_rng(seed)
    for start in range(0, inferences, _TURN):
        for which in rng.permutation(len(profilers)):
            for _ in range(min(_TURN, inferences - start)):
                profilers[which].run(inputs)
    return [
        [
            NodeLatency(
                node=node,
                layers=found.get(node, ((), node))[0],
                operation=found.get(node, ((), node))[1],
                milliseconds=middle_mean(values[_WARM_UP:] or values),
            )
            for node, values in profiler.times().items()
        ]
        for profiler, found in zip(profilers, owners, strict=True)
    ]


def _nodes_of(target: ShowsGraph, model: bytes, owners: Owners) -> dict[str, tuple[tuple[str, ...], str]]:
    """Runtime's node -> the layers that it computes, in order, and its operation."""
    nodes = target.graph(model).nodes
    layers = {
        node.name: tuple(name for name, own in owners.items() if not set(own).isdisjoint(node.originals))
        if node.weights is not None
        else ()
        for node in nodes
    }
    return {
        node.name: (layers.get(node.unpacks_for, ()) if node.unpacks_for else layers[node.name], node.operation)
        for node in nodes
    }
