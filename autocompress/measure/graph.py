"""The graph that a runtime executes, beside what the file says: which bits are computed with, and which only stored."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Protocol, runtime_checkable

from pydantic import Field

from autocompress.measure.target import Target
from autocompress.records import Artifact, LayerReport, Record, RuntimeGraph, RuntimeLayer, RuntimeNode


class Shown(Record):
    """What a runtime tells of its graph.

    Attributes:
        nodes: in the order of execution.
        folded: the file's nodes whose results were computed once, when the file was loaded.
        removed: the file's nodes that are nowhere any more.
    """

    nodes: tuple[RuntimeNode, ...]
    folded: tuple[str, ...] = Field(default=())
    removed: tuple[str, ...] = Field(default=())


@runtime_checkable
class ShowsGraph(Protocol):
    """A target whose runtime tells what it made of a file: one method beyond `autocompress.measure.target.Target`."""

    def graph(self, model: bytes) -> Shown:
        """The nodes that the runtime executes for a file, after all the optimizations that the target asks for.

        Args:
            model: the file. Its nodes have names, each once.

        Raises:
            MeasurementError: the runtime cannot load it.
        """


def runtime_graph(
    target: Target, model: bytes, artifact: Artifact, owners: Mapping[str, Collection[str]]
) -> RuntimeGraph | None:
    """Every layer of a file as the runtime computes it.

    Args:
        target: whose runtime is asked.
        model: the file.
        artifact: its layers, as `autocompress.compress.artifact.describe` reads them.
        owners: layer -> names of the file's nodes that read its weights.

    Returns:
        None if the target's runtime does not show its graph.

    Raises:
        MeasurementError: the runtime cannot load the file.
    """
    if not isinstance(target, ShowsGraph):
        return None
    shown = target.graph(model)
    layers = (_layer(report, shown.nodes, frozenset(owners.get(report.name, ()))) for report in artifact.layers)
    return RuntimeGraph(
        runtime=target.runtime,
        nodes=shown.nodes,
        layers=tuple(layer for layer in layers if layer is not None),
        folded=shown.folded,
        removed=shown.removed,
    )


def differences(graph: RuntimeGraph, artifact: Artifact) -> tuple[str, ...]:
    """Where the runtime does otherwise than the file says, in words; the runtime is right.

    Args:
        graph: the runtime's.
        artifact: what the file says.
    """
    told: dict[str, list[str]] = {}
    for report in artifact.layers:
        layer = graph.layer(report.name)
        if layer is None:
            told.setdefault("{} shows no node for {}", []).append(report.name)
            continue
        if layer.compute != report.compute:
            claim = f"by the file {{1}} would compute with {_WORDS[report.compute]}, {{0}} computes with "
            told.setdefault(claim + _WORDS[layer.compute], []).append(report.name)
        if layer.unpacked == "every run":
            told.setdefault("{} turns the stored weights of {} into floats in every inference", []).append(report.name)
    return tuple(text.format(graph.runtime, _listed(names)) for text, names in told.items())


def bits_of(kind: str) -> int:
    """Bits of an element type: the number at the end of its name.

    Examples:
        >>> bits_of("float32"), bits_of("int4")
        (32, 4)

    Raises:
        ValueError: the name ends with no number.
    """
    digits = re.search(r"\d+$", kind)
    if digits is None:
        raise ValueError(f"element type: expected a name that ends with its bits, such as 'int8', got {kind!r}")
    return int(digits.group())


_WORDS = {"float": "floats", "weights": "integer weights and float activations", "integer": "integers"}


def _layer(report: LayerReport, nodes: Collection[RuntimeNode], owners: frozenset[str]) -> RuntimeLayer | None:
    mine = [node for node in nodes if node.weights is not None and not owners.isdisjoint(node.originals)]
    if not mine:
        return None
    # A layer that runs twice, or in two ways: the widest speaks for all.
    main = max(mine, key=lambda node: bits_of(node.weights or "float32"))
    bits = bits_of(main.weights or "float32")
    named = {node.name for node in mine}
    unpackers = [node for node in nodes if node.unpacks_for in named]
    return RuntimeLayer(
        name=report.name,
        nodes=tuple(dict.fromkeys(node.name for node in (*unpackers, *mine))),
        operation=main.operation,
        fused=main.operations,
        stored_bits=report.stored_bits,
        compute=main.compute or "float",
        weights=main.weights or "float32",
        bits=bits,
        unpacked="every run" if unpackers else "at load" if report.stored_bits < bits else "never",
    )


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:6])
    return shown if len(names) <= 6 else f"{shown} and {len(names) - 6} more"
