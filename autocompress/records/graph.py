"""What a runtime really made of a model file: its own graph, node by node and layer by layer."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Literal

from pydantic import Field

from autocompress.records.base import Record

#: Operators that change the type of numbers and nothing else.
BORDERS = frozenset({"Cast", "DequantizeLinear", "QuantizeLinear"})

Compute = Literal["float", "weights", "integer"]


class RuntimeNode(Record):
    """One node of the graph that the runtime executes.

    Attributes:
        name: the runtime's name for it.
        operation: the runtime's, such as ``"QLinearConv"``; a layout of its own is told, ``"Conv (nchwc)"``.
        originals: names of the file's nodes that it stands for, in their order; empty for one that the runtime added.
        operations: what those do, such as ``("Conv", "Add", "Relu")``.
        weights: element type of the weights as the kernel reads them, such as ``"int8"``; None if it reads none.
        compute: what such a kernel multiplies, see `RuntimeLayer`; None if it reads no weights.
        unpacks_for: name of the node for which this one turns stored weights into others, in every inference; None
            if it does no such thing.
    """

    name: str
    operation: str
    originals: tuple[str, ...] = ()
    operations: tuple[str, ...] = ()
    weights: str | None = None
    compute: Compute | None = None
    unpacks_for: str | None = None


class RuntimeLayer(Record):
    """How the runtime computes one layer.

    Attributes:
        name: of the layer.
        nodes: names of the runtime's nodes that compute it, those that unpack its weights included.
        operation: of the node that multiplies with the weights.
        fused: what the file does in nodes of its own and the runtime in that one, in order, such as
            ``("Conv", "Add", "Relu")``; one entry if nothing was fused.
        stored_bits: that the file spends on each weight.
        compute: ``"integer"``: weights and activations are integers; ``"weights"``: integer weights meet float
            activations; ``"float"``: floats.
        weights: element type of the weights as the kernel reads them, such as ``"float32"``.
        bits: of that type.
        unpacked: when stored weights are turned into what the kernel reads: ``"never"``, once ``"at load"``, or in
            ``"every run"``, which costs time.
    """

    name: str
    nodes: tuple[str, ...]
    operation: str
    fused: tuple[str, ...] = ()
    stored_bits: Annotated[int, Field(ge=1)]
    compute: Compute
    weights: str
    bits: Annotated[int, Field(ge=1)]
    unpacked: Literal["never", "at load", "every run"] = "never"

    @property
    def storage_only(self) -> bool:
        """True if the kernel reads more bits than the file stores: the runtime folds the difference away."""
        return self.stored_bits < self.bits

    @property
    def computing(self) -> str:
        """What the kernel multiplies, in words, such as ``"8-bit integers"``."""
        return {
            "float": f"{self.bits}-bit floats",
            "weights": f"{self.bits}-bit weights, floats",
            "integer": f"{self.bits}-bit integers",
        }[self.compute]

    @property
    def joined(self) -> str:
        """What the kernel does at once, such as ``"Conv + Add + Relu"``; changes of type are not told."""
        return " + ".join(name for name in self.fused if name not in BORDERS)


class RuntimeGraph(Record):
    """The graph that a runtime executes for one file.

    Attributes:
        runtime: its name and version.
        nodes: in the order of execution.
        layers: every layer of the file once, in the file's order; one that the runtime shows nowhere is missing.
        folded: the file's nodes whose results were computed once, when the file was loaded.
        removed: the file's nodes that the runtime leaves out, as nothing depends on them.
    """

    runtime: str
    nodes: tuple[RuntimeNode, ...]
    layers: tuple[RuntimeLayer, ...]
    folded: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()

    def layer(self, name: str) -> RuntimeLayer | None:
        """The layer called `name`; None if the runtime shows none."""
        return next((layer for layer in self.layers if layer.name == name), None)

    @property
    def summary(self) -> str:
        """How many nodes are executed, and what the layers are computed with, in one line."""
        counts = Counter(layer.computing for layer in self.layers)
        parts = [f"{count} in {words}" for words, count in counts.most_common()]
        for when, text in (("at load", "unpacked at load: storage only"), ("every run", "unpacked in every inference")):
            number = sum(layer.unpacked == when for layer in self.layers)
            parts += [f"{number} {text}"] if number else []
        return f"{len(self.nodes)} nodes; of {len(self.layers)} layers {', '.join(parts)}"

    @property
    def others(self) -> dict[str, int]:
        """Operation -> number of nodes that are no layer's: borders between types, changes of layout, additions."""
        taken = {node for layer in self.layers for node in layer.nodes}
        return dict(sorted(Counter(node.operation for node in self.nodes if node.name not in taken).items()))
