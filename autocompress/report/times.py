"""Where the time went: nodes of several files by layer and by kind of operation."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from autocompress.records import NodeLatency, ProfiledModel, Record, TimeProfile

#: Kinds of operation, in the order in which they are shown; the last takes what no other does.
KINDS = (
    "convolution",
    "matrix product",
    "recurrent",
    "lookup",
    "activation, arithmetic",
    "normalization, softmax",
    "pooling, reduction",
    "change of type",
    "change of layout",
    "other",
)
_PATTERNS = (
    ("change of type", r"^(Dynamic)?Quantize(Linear)?$|^DequantizeLinear$|^Cast$"),
    ("recurrent", r"LSTM|GRU|RNN"),
    ("pooling, reduction", r"Pool|^(Fused)?Reduce|^ArgM|^TopK"),
    ("convolution", r"Conv"),
    ("matrix product", r"MatMul|Gemm|Attention|Einsum"),
    ("normalization, softmax", r"Norm|[Ss]oftmax"),
    ("change of layout", r"Reorder|Transpose|Reshape|queeze|Flatten|Split|Concat|Slice|Pad|Expand|Shape|Identity|Tile"),
    ("lookup", r"Gather|Embed"),
    (
        "activation, arithmetic",
        r"Relu|Elu|[Ss]igmoid|Tanh|Gelu|Swish|Clip|Mish|Erf|^Pow|^Sqrt|^Exp|^Where|Add|Sub|Mul|Div|^M(ax|in)$|Neg|Abs",
    ),
)
#: Smallest difference of two latencies, as a share of the first, of which shares are told.
LEAST = 0.05
#: What nodes are called that are no layer's.
BETWEEN = "between layers"


class Change(Record):
    """One part of the network, in the first file and in another.

    Attributes:
        part: a layer, a kind of operation, or a node.
        before, after: milliseconds in the first and in the other file; nodes that are nowhere take 0.
        share: of the difference of both files that this part makes up, (before - after) over that of the latencies;
            None if these differ by less than `LEAST`.
    """

    part: str
    before: float
    after: float
    share: float | None

    @property
    def difference(self) -> float:
        """After - before; below 0 is faster."""
        return self.after - self.before


class Unit(Record):
    """A unit of time that suits a latency.

    Attributes:
        name: such as ``"µs"``.
        per_ms: how many of it one millisecond has.
        digits: behind the point.
    """

    name: str
    per_ms: float
    digits: int

    def told(self, milliseconds: float, *, signed: bool = False) -> str:
        """A time without its unit; empty for 0."""
        if milliseconds == 0.0:
            return ""
        return f"{self.per_ms * milliseconds:{'+' if signed else ''},.{self.digits}f}"


def unit_of(profile: TimeProfile) -> Unit:
    """Microseconds if the first file takes less than a millisecond, else milliseconds."""
    if profile.models[0].latency.latency_ms.value < 1.0:
        return Unit(name="µs", per_ms=1000.0, digits=1)
    return Unit(name="ms", per_ms=1.0, digits=3)


def kind_of(operation: str) -> str:
    """The kind that an operation belongs to.

    Examples:
        >>> kind_of("QLinearConv"), kind_of("ReorderOutput"), kind_of("QLinearAdd")
        ('convolution', 'change of layout', 'activation, arithmetic')
    """
    return next((kind for kind, pattern in _PATTERNS if re.search(pattern, operation)), "other")


def by_layer(profile: TimeProfile, index: int) -> list[Change]:
    """Every layer in the order of computation, the parts of a factorized one as one; what is no layer's comes last.

    Args:
        profile: of several files.
        index: of the file that is held against the first.
    """
    known = set(profile.layers)

    def part(node: NodeLatency) -> str:
        if node.layer is None:
            return BETWEEN
        whole = re.sub(r"\.[0-9]+$", "", node.layer)
        return whole if node.layer not in known and whole in known else node.layer

    found = _changes(profile, index, part)
    return [*(c for c in found if c.part != BETWEEN), *(c for c in found if c.part == BETWEEN)]


def by_kind(profile: TimeProfile, index: int) -> list[Change]:
    """Every kind of operation that there is, in the order of `KINDS`."""
    found = {c.part: c for c in _changes(profile, index, lambda node: kind_of(node.operation))}
    return [found[kind] for kind in KINDS if kind in found]


def _changes(profile: TimeProfile, index: int, part: Callable[[NodeLatency], str]) -> list[Change]:
    first, other = profile.models[0], profile.models[index]
    before, after = _sums(first, part), _sums(other, part)
    saved = first.latency.latency_ms.value - other.latency.latency_ms.value
    told = abs(saved) >= LEAST * first.latency.latency_ms.value
    return [
        Change(
            part=name,
            before=before.get(name, 0.0),
            after=after.get(name, 0.0),
            share=(before.get(name, 0.0) - after.get(name, 0.0)) / saved if told else None,
        )
        for name in _merged(list(before), list(after))
    ]


def _sums(model: ProfiledModel, part: Callable[[NodeLatency], str]) -> dict[str, float]:
    """Milliseconds by part, which add up to the latency, in the order of first execution."""
    sums: dict[str, float] = {}
    for node, own in zip(model.nodes, model.own_ms, strict=True):
        name = part(node)
        sums[name] = sums.get(name, 0.0) + own
    return sums


def _merged(first: Sequence[str], second: Sequence[str]) -> list[str]:
    """Both orders in one: what is only in the second comes behind what precedes it there.

    Examples:
        >>> _merged(["a", "b", "d"], ["a", "c", "d"])
        ['a', 'c', 'b', 'd']
    """
    merged = list(first)
    for at, name in enumerate(second):
        if name not in merged:
            merged.insert(merged.index(second[at - 1]) + 1 if at else 0, name)
    return merged
