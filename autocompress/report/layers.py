"""What became of every layer, as one strip of bars for each model of the front."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

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
        bars = tag("div", *(_bar(layer, found.get(layer.name)) for layer in structure.layers), class_="bars")
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
            *(tag("td", _numbers(layer, layers.get(layer.name)), class_="num") for layers in found),
        )
        for layer in structure.layers
    )
    return tag("div", tag("table", tag("thead", head), tag("tbody", *body)), class_="scroll")


def _edge(at: int, counts: Sequence[int]) -> str | None:
    """The outermost names may run over their neighbour, if that is wide enough for both."""
    if at == 0 and len(counts) > 1 and counts[1] > 3:
        return "first"
    return "last" if at == len(counts) - 1 and len(counts) > 2 and counts[-2] > 3 else None


def _kept(layer: Layer, real: LayerReport) -> float:
    return real.shape[0] / layer.shape[0]


def _zeros(real: LayerReport) -> float:
    return real.zeros / real.weights if real.weights else 0.0


def _numbers(layer: Layer, real: LayerReport | None) -> Html:
    if real is None:
        return join("not found")
    zeros = f"{percent(_zeros(real), 0)} zeros, " if _zeros(real) >= 0.005 else ""
    return join(f"{real.shape[0]} channels", tag("span", f"{zeros}{real.bits} bits", class_="sub"))


def _bar(layer: Layer, real: LayerReport | None) -> Html:
    if real is None:
        return tag("i", title=f"{layer.name}: not found in the artifact")
    zeros = tag("u", style=f"height: {percent(_zeros(real), 1)}") if _zeros(real) >= 0.005 else None
    told = (
        f"{layer.name}: {real.shape[0]} of {layer.shape[0]} channels, {real.bits} bits, "
        f"{percent(_zeros(real), 1)} of {real.weights:,} weights are zero"
    )
    height = f"height: {percent(_kept(layer, real), 1)}"
    return tag("i", tag("b", zeros, style=height, class_="q" if real.bits < 32 else None), title=told)
