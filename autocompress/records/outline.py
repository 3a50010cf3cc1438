"""The operations of a network with their shapes, as a model of its latency sees them: no weights, no names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
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
    known = _contexts(tuple((o.op, o.attributes, o.mode, o.reads, o.is_layer) for o in outline))
    return [Site(*words, (o.weights, *o.inputs, o.output)) for words, o in zip(known, outline, strict=True)]


@lru_cache(maxsize=256)
def _contexts(outline: tuple[tuple[str, str, str, tuple[int, ...], bool], ...]) -> tuple[tuple[str, str], ...]:
    """What a site says but for its sizes, of operations without theirs: plans that differ in cuts share it."""
    labels = [f"{op}:{mode}" for op, _, mode, _, _ in outline]
    behind: dict[int, set[str]] = defaultdict(set)
    origins: list[frozenset[str]] = []
    for place, (_, _, _, reads, is_layer) in enumerate(outline):
        for source in reads:
            behind[source].add(labels[place])
        above = [origins[source] for source in reads if source >= 0]
        origins.append(frozenset({labels[place]}) if is_layer else frozenset().union(*above))
    origin_labels = [
        labels[place] if is_layer else f"{labels[place]}({'|'.join(sorted(origins[place]))})"
        for place, (_, _, _, _, is_layer) in enumerate(outline)
    ]
    found = []
    for place, (op, attributes, mode, reads, _) in enumerate(outline):
        before = ",".join(origin_labels[source] if source >= 0 else "input" for source in reads)
        after = ",".join(sorted(behind[place]))
        found.append((f"{op} {attributes} {mode}", f"{before}>{after}"))
    return tuple(found)
