"""What became of every layer, as one strip of bars for each model of the front."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from math import prod

from autocompress.records import Layer, LayerReport, Structure
from autocompress.report.data import FrontRow
from autocompress.report.markup import Html, join, tag
from autocompress.report.words import percent, times


def layer_strips(rows: Sequence[FrontRow], structure: Structure) -> Html:
    """One strip per model, one bar per layer: height is width kept, colour is bits, hatching is zeros.

    Everything is read from what the artifact is, not from what its plan asked for.

    Args:
        rows: the models.
        structure: the dense network's layers, in order.
    """
    children = []
    for row in rows:
        found = {layer.name: layer for layer in row.artifact.layers}
        who = tag(
            "div",
            tag("strong", row.version or row.name),
            tag("span", f"{times(row.ratio.value)} latency", class_="sub"),
            class_="who",
        )
        bars = tag("div", *(_bar(layer, _real(layer, found)) for layer in structure.layers), class_="bars")
        children += [who, bars]
    stages = groupby(structure.layers, key=lambda layer: layer.name.split(".")[0])
    marks = [(name, len(list(layers))) for name, layers in stages]
    brackets = (
        tag("span", name, style=f"--n: {count}", title=name, class_=_edge(at, [n for _, n in marks]))
        for at, (name, count) in enumerate(marks)
    )
    children += [tag("div", class_="who"), tag("div", *brackets, class_="stages")]
    least = max(180, 9 * len(structure.layers))
    return tag("div", tag("div", *children, class_="strips", style=f"--least: {least}px"), class_="scroll")


def layer_table(rows: Sequence[FrontRow], structure: Structure) -> Html:
    """The same in numbers: layers down, models across."""
    found = [{layer.name: layer for layer in row.artifact.layers} for row in rows]
    head = tag("tr", tag("th", "layer"), tag("th", "dense shape"), *(tag("th", r.version or r.name) for r in rows))
    body = (
        tag(
            "tr",
            tag("th", tag("code", layer.name), scope="row"),
            tag("td", "×".join(map(str, layer.shape)), class_="num"),
            *(tag("td", _numbers(layer, _real(layer, layers)), class_="num") for layers in found),
        )
        for layer in structure.layers
    )
    return tag("div", tag("table", tag("thead", head), tag("tbody", *body)), class_="scroll")


def _edge(at: int, counts: Sequence[int]) -> str | None:
    """The outermost names may run over their neighbour, if that is wide enough for both."""
    if at == 0 and len(counts) > 1 and counts[1] > 3:
        return "first"
    return "last" if at == len(counts) - 1 and len(counts) > 2 and counts[-2] > 3 else None


def _real(layer: Layer, found: Mapping[str, LayerReport]) -> LayerReport | None:
    """What the layer is in the artifact; the parts of a factorized layer as one; None if it was left out."""
    parts = [real for name, real in found.items() if re.fullmatch(re.escape(layer.name) + r"\.[0-9]+", name)]
    if layer.name in found or not parts:
        return found.get(layer.name)
    # The part with the widest grid speaks for all: a factorized layer is no 8-bit layer if one of its parts is not.
    widest = max(parts, key=lambda real: real.bits)
    return widest.model_copy(
        update={
            "name": layer.name,
            "shape": (parts[-1].shape[0], *parts[0].shape[1:]),
            "zeros": sum(real.zeros for real in parts),
            "weights": sum(real.weights for real in parts),
        }
    )


def _grid(real: LayerReport) -> str:
    return f"{real.bits} bits" + (", storage only" if real.storage_only else "")


def _kept(layer: Layer, real: LayerReport) -> float:
    return real.shape[0] / layer.shape[0]


def _zeros(real: LayerReport) -> float:
    return real.zeros / real.weights if real.weights else 0.0


def _numbers(layer: Layer, real: LayerReport | None) -> Html:
    if real is None:
        return join("left out")
    zeros = f"{percent(_zeros(real), 0)} zeros, " if _zeros(real) >= 0.005 else ""
    rank = f", {real.weights:,} weights in a chain" if real.weights != prod(real.shape) else ""
    return join(f"{real.shape[0]} channels{rank}", tag("span", f"{zeros}{_grid(real)}", class_="sub"))


def _bar(layer: Layer, real: LayerReport | None) -> Html:
    if real is None:
        return tag("i", title=f"{layer.name}: left out")
    zeros = tag("u", style=f"height: {percent(_zeros(real), 1)}") if _zeros(real) >= 0.005 else None
    told = (
        f"{layer.name}: {real.shape[0]} of {layer.shape[0]} channels, {_grid(real)}, "
        f"{percent(_zeros(real), 1)} of {real.weights:,} weights are zero"
    )
    height = f"height: {percent(_kept(layer, real), 1)}"
    return tag("i", tag("b", zeros, style=height, class_="q" if real.bits <= 8 else None), title=told)
