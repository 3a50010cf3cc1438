"""Where the time of an inference went: the section of the page, and a page of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from autocompress.files import write_bytes
from autocompress.records import TimeProfile
from autocompress.report.figures import Figure
from autocompress.report.markup import Html, tag
from autocompress.report.shell import page
from autocompress.report.time_figures import layers_figure, waterfall_figure
from autocompress.report.times import BETWEEN, Change, Unit, by_kind, by_layer, unit_of
from autocompress.report.words import milliseconds, percent, times


def time_figures(profile: TimeProfile, shown: Sequence[int]) -> dict[str, Figure]:
    """Figures by the ids that `time_section` places them under.

    Args:
        profile: of several files.
        shown: indices of the files that are held against the first.
    """
    found: dict[str, Figure] = {}
    for index in shown:
        found[f"kinds-{index}"] = waterfall_figure(profile, index)
        found[f"layers-{index}"] = layers_figure(profile, index)
    return found


def time_section(profile: TimeProfile, shown: Sequence[int], figures: dict[str, Figure]) -> Html:
    """A picture for some files, and a table of kinds of operation for all.

    Args:
        profile: of several files.
        shown: indices of the files with pictures.
        figures: of `time_figures`.
    """
    first = profile.models[0]
    costs = [1000.0 * model.cost_ms for model in profile.models]
    note = (
        f"Single nodes as {profile.runtime}'s profiler times them, {profile.inferences} inferences of each file in "
        f"turns. The profiler costs time itself at every node, {_range(costs)} µs here: that is taken off, so that the "
        "nodes of a file add up to its measured latency, and nodes that do next to nothing take none of it."
    )
    pictures: list[Html] = []
    for index in shown:
        name = profile.models[index].name
        for key, told in (("kinds", "by kind of operation"), ("layers", "layer by layer, from input to output")):
            style = f"height:{figures[f'{key}-{index}']['layout']['height']}px"
            label = f"{first.name} against {name}, {told}"
            pictures += [
                tag("h3", f"{first.name} → {name}, {told}"),
                tag("div", id=f"{key}-{index}", class_="plot", role="img", aria_label=label, style=style),
            ]
    return tag(
        "section",
        tag("h2", "Where the time of an inference goes"),
        tag("p", note, class_="note"),
        *pictures,
        tag("h3", f"By kind of operation, in {unit_of(profile).name}"),
        _kinds(profile),
        *(_layers(profile, index) for index in range(1, len(profile.models))),
    )


def _range(factors: Sequence[float]) -> str:
    low, high = f"{min(factors):.1f}", f"{max(factors):.1f}"
    return low if low == high else f"{low} to {high}"


def _kinds(profile: TimeProfile) -> Html:
    """Kinds down, files across."""
    unit = unit_of(profile)
    tables = {i: {c.part: c for c in by_kind(profile, i)} for i in range(len(profile.models))}
    kinds = list(dict.fromkeys(kind for found in tables.values() for kind in found))
    order = [c.part for c in by_kind(profile, 0)]
    kinds.sort(key=lambda kind: order.index(kind) if kind in order else len(order))
    head = tag("tr", tag("th", ""), *(tag("th", m.name, class_="num", scope="col") for m in profile.models))
    body = [
        tag(
            "tr",
            tag("th", kind, scope="row"),
            *(
                tag("td", unit.told(tables[i][kind].after if kind in tables[i] else 0.0) or "–", class_="num")
                for i in range(len(profile.models))
            ),
        )
        for kind in kinds
    ]
    totals = (
        tag(
            "td",
            unit.told(m.latency.latency_ms.value),
            tag("span", times(m.latency.ratio.value) + (", noisy" if m.latency.noisy else ""), class_="sub"),
            class_="num",
        )
        for m in profile.models
    )
    body.append(tag("tr", tag("th", "latency", scope="row"), *totals))
    table = tag("table", tag("thead", head), tag("tbody", *body), class_="tight")
    return tag("div", table, class_="scroll", tabindex="0", role="region", aria_label="time by kind of operation")


def _layers(profile: TimeProfile, index: int) -> Html:
    names = (profile.models[0].name, profile.models[index].name)
    unit = unit_of(profile)
    heads = ("", *(f"{name}, {unit.name}" for name in names), f"difference, {unit.name}", "share of the difference")
    head = tag("tr", *(tag("th", text, class_="num" if at else None, scope="col") for at, text in enumerate(heads)))
    body = [_row(change, unit) for change in by_layer(profile, index)]
    table = tag("table", tag("thead", head), tag("tbody", *body), class_="tight")
    return tag(
        "details",
        tag("summary", f"{names[0]} → {names[1]}, layer by layer in numbers"),
        tag("div", table, class_="scroll", tabindex="0", role="region", aria_label=f"time of {names[1]} by layer"),
    )


def _row(change: Change, unit: Unit) -> Html:
    name = change.part if change.part == BETWEEN else tag("code", change.part)
    return tag(
        "tr",
        tag("th", name, scope="row"),
        tag("td", unit.told(change.before) or "–", class_="num"),
        tag("td", unit.told(change.after) or "–", class_="num"),
        tag("td", unit.told(change.difference, signed=True), class_="num"),
        tag("td", "" if change.share is None else percent(change.share, 0), class_="num"),
    )


def write_time_page(path: Path, title: str, profile: TimeProfile) -> Path:
    """A page of its own, with pictures for every file; replaces an earlier one in a single step.

    Args:
        path: of the HTML file; its folder must exist.
        title: what was profiled.
        profile: of at least two files.

    Returns:
        `path`.
    """
    shown = range(1, len(profile.models))
    figures = time_figures(profile, shown)
    lead = ", ".join(
        f"{m.name}: {milliseconds(m.latency.latency_ms.value)} ({times(m.latency.ratio.value)})" for m in profile.models
    )
    body = tag(
        "main",
        tag(
            "header", tag("p", "autocompress profile", class_="kicker"), tag("h1", title), tag("p", lead, class_="lead")
        ),
        time_section(profile, shown, figures),
        tag("footer", "Made by autocompress. This page loads nothing from the network."),
    )
    write_bytes(path, page(f"{title} · autocompress profile", body, figures).encode())
    return path
