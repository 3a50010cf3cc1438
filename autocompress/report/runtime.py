"""What the runtime made of the files: kernels, fused nodes, and bits that are only stored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from autocompress.records import Artifact, RuntimeGraph, RuntimeLayer
from autocompress.report.data import FrontRow
from autocompress.report.markup import Html, join, tag
from autocompress.report.words import plural


def runtime_section(rows: Sequence[FrontRow]) -> Html | None:
    """A line for each model, and for each a table of its layers; None if there are no models.

    Args:
        rows: the models of the front, and the dense one.
    """
    if not rows:
        return None
    title = tag("h2", "What the runtime made of it")
    shown = [(row, row.graph) for row in rows if row.graph is not None]
    if not shown:
        runtime = "The runtime that was measured with"
        return tag("section", title, tag("p", f"{runtime} does not show its graph, or ran on another machine."))
    note = (
        f"Read from the graph that {shown[0][1].runtime} executes, after all its optimizations, not from the file. "
        "Layers are counted by what their kernel multiplies. Where it reads more bits than the file stores, these save "
        "storage only. Other nodes are no layer's: borders between types, changes of layout, what could not be fused."
    )
    heads = ("model", "nodes", "in integers", "integer weights", "in floats", "storage only", "other nodes")
    head = tag("tr", *(tag("th", name, class_="num" if at else None, scope="col") for at, name in enumerate(heads)))
    body = [_summary(row, graph) for row, graph in shown]
    table = tag("table", tag("thead", head), tag("tbody", *body), class_="tight")
    return tag(
        "section",
        title,
        tag("p", note, class_="note"),
        tag("div", table, class_="scroll", tabindex="0", role="region", aria_label="the runtime's graphs"),
        *(_details(row.version or row.name, row.artifact, graph) for row, graph in shown),
    )


def _summary(row: FrontRow, graph: RuntimeGraph) -> Html:
    counts = Counter(layer.compute for layer in graph.layers)
    stored = sum(layer.storage_only for layer in graph.layers)
    cells = (len(graph.nodes), counts["integer"], counts["weights"], counts["float"], stored)
    return tag(
        "tr",
        tag("th", row.version or row.name, scope="row"),
        *(tag("td", str(count) if count else "–", class_="num") for count in cells),
        tag("td", str(sum(graph.others.values()) or "–"), class_="num"),
        class_="dense" if row.name == "dense" else None,
    )


def _details(name: str, artifact: Artifact, graph: RuntimeGraph) -> Html:
    heads = {"layer": None, "weights": "num", "stored": "num", "computed in": None, "kernel": None, "at once": None}
    head = tag("tr", *(tag("th", text, class_=kind, scope="col") for text, kind in heads.items()))
    body = [
        _layer(report.name, "×".join(map(str, report.shape)), report.stored_bits, graph.layer(report.name))
        for report in artifact.layers
    ]
    others = ", ".join(f"{count} {what}" for what, count in graph.others.items())
    rest = [f"No layer's: {others}."] if others else []
    if graph.folded:
        rest.append(f"{plural(len(graph.folded), 'node')} of the file computed once, at load.")
    if graph.removed:
        rest.append(f"{plural(len(graph.removed), 'node')} of the file left out.")
    table = tag("table", tag("thead", head), tag("tbody", *body), class_="tight")
    return tag(
        "details",
        tag("summary", f"{name}, layer by layer"),
        tag("div", table, class_="scroll", tabindex="0", role="region", aria_label=f"layers of {name}"),
        tag("p", " ".join(rest), class_="note") if rest else None,
    )


def _layer(name: str, shape: str, stored: int, layer: RuntimeLayer | None) -> Html:
    cells: tuple[Html | str, ...] = ("not shown by the runtime", "", "")
    if layer is not None:
        told = {"never": "", "at load": "storage only", "every run": "unpacked in every inference"}[layer.unpacked]
        mark = tag("span", f" · {told}", class_="bad") if told else None
        cells = (join(layer.computing, mark), tag("code", layer.operation), layer.joined)
    return tag(
        "tr",
        tag("th", tag("code", name), scope="row"),
        tag("td", shape, class_="num"),
        tag("td", f"{stored} bits", class_="num"),
        *(tag("td", cell) for cell in cells),
    )
