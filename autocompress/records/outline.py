"""The operations of a network with their shapes, as a model of its latency sees them: no weights, no names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

#: Operators that layers with weights become.
LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Gather", "LSTM", "GRU", "RNN"})
#: What an operation computes with: floats, 8-bit integers, floats with integer weights of a kernel of its own
#: ("weights8", "weights4"), or rows of a table of integers.
Mode = str


class Operation(NamedTuple):
    """One operation of a network, in a form that does not depend on how a plan came to be a file.

    Attributes:
        op: ONNX' name for it.
        attributes: what else decides its kernel, as text: strides, groups, axes.
        mode: what it computes with.
        reads: places, in the network's order, of the operations that its activations come from; -1 for an input of the
            network.
        weights: shape of its largest constant; empty without any.
        inputs: shapes of its activations.
        output: shape of its first result.
    """

    op: str
    attributes: str
    mode: Mode
    reads: tuple[int, ...]
    weights: tuple[int, ...]
    inputs: tuple[tuple[int, ...], ...]
    output: tuple[int, ...]

    @property
    def is_layer(self) -> bool:
        """Whether it multiplies by weights: what decides in which type and layout its results lie."""
        return self.op in LAYERS and len(self.weights) > 1


class Site(NamedTuple):
    """An operation where it stands: what decides its time.

    Attributes:
        operation: op, attributes and mode.
        context: op and mode of the operations before and behind it, on which conversions and fusions rest.
        sizes: shapes of weights, inputs and output.
    """

    operation: str
    context: str
    sizes: tuple[tuple[int, ...], ...]


Outline = Sequence[Operation]


def sites(outline: Outline) -> list[Site]:
    """One for each operation, in their order.

    The context of an operation has the kind of each operation that it reads, with the modes of the layers with weights
    that stand behind an operation without, and the kinds of those that read it: whether the runtime merges two
    operations, and in which layout a tensor lies between them, rests on these.
    """
    labels = [f"{o.op}:{o.mode}" for o in outline]
    behind: dict[int, set[str]] = defaultdict(set)
    origins: list[frozenset[str]] = []
    for place, operation in enumerate(outline):
        for source in operation.reads:
            behind[source].add(labels[place])
        above = [origins[source] for source in operation.reads if source >= 0]
        origins.append(frozenset({labels[place]}) if operation.is_layer else frozenset().union(*above))
    origin_labels = [
        labels[place] if o.is_layer else f"{labels[place]}({'|'.join(sorted(origins[place]))})"
        for place, o in enumerate(outline)
    ]
    found = []
    for place, o in enumerate(outline):
        before = ",".join(origin_labels[source] if source >= 0 else "input" for source in o.reads)
        after = ",".join(sorted(behind[place]))
        found.append(Site(f"{o.op} {o.attributes} {o.mode}", f"{before}>{after}", (o.weights, *o.inputs, o.output)))
    return found
