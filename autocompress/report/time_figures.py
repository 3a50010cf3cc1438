"""Pictures of where the time went: layer beside layer, and from the first file's latency to another's."""

from __future__ import annotations

import html
from collections.abc import Sequence

from autocompress.records import TimeProfile
from autocompress.report.figures import Figure, axis_title, base_layout
from autocompress.report.times import BETWEEN, Change, Unit, by_kind, by_layer, unit_of

#: Layers shown one by one; of a deeper network, those that take longest in any file.
SHOWN = 60


def layers_figure(profile: TimeProfile, index: int) -> Figure:
    """Two bars for each layer in the order of computation, from the top, and for what is no layer's.

    Args:
        profile: of several files.
        index: of the file that is held against the first.
    """
    changes, unit = _longest(by_layer(profile, index)), unit_of(profile)
    names = [html.escape(c.part) for c in changes]
    layout = base_layout()
    layout["xaxis"] |= {"title": axis_title(f"{unit.name} of one inference"), "rangemode": "tozero"}
    layout["yaxis"] |= {"autorange": "reversed", "ticks": "", "showgrid": False, "zeroline": False, "tickmode": "array"}
    layout["yaxis"] |= {"tickvals": list(range(len(names))), "ticktext": names, "tickfont": {"size": 11.5}}
    layout["barmode"], layout["bargap"], layout["bargroupgap"] = "group", 0.28, 0.0
    layout["margin"] |= {"t": 34}
    layout["legend"] = {"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom", "font": {"color": "@muted"}}
    layout["legend"]["traceorder"] = "normal"
    layout["height"] = 110 + 24 * max(3, len(names))
    bars = (
        (profile.models[0].name, [unit.per_ms * c.before for c in changes], "@dense"),
        (profile.models[index].name, [unit.per_ms * c.after for c in changes], "@accent"),
    )
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "name": html.escape(name),
            "x": values,
            "y": list(range(len(names))),
            "marker": {"color": color},
            "customdata": names,
            "hovertemplate": "%{customdata}: %{x:.4g} " + unit.name + "<extra>" + html.escape(name) + "</extra>",
        }
        for name, values, color in bars
    ]
    return {"data": data, "layout": layout}


def waterfall_figure(profile: TimeProfile, index: int) -> Figure:
    """From the first file's latency to another's, a step for every kind of operation.

    Args:
        profile: of several files.
        index: of the file that is held against the first.
    """
    first, other = profile.models[0], profile.models[index]
    changes, unit = by_kind(profile, index), unit_of(profile)
    total, end = first.latency.latency_ms.value, other.latency.latency_ms.value
    names = [first.name, *(c.part for c in changes), other.name]
    steps = [unit.per_ms * value for value in (total, *(c.difference for c in changes), 0.0)]
    told = [_told(total, unit), *(unit.told(c.difference, signed=True) for c in changes), _told(end, unit)]
    layout = base_layout()
    layout["xaxis"] |= {"title": axis_title(f"{unit.name} of one inference"), "rangemode": "tozero"}
    layout["yaxis"] |= {"autorange": "reversed", "ticks": "", "showgrid": False, "zeroline": False}
    layout["showlegend"] = False
    layout["margin"] |= {"t": 8, "r": 70}
    layout["height"] = 70 + 30 * len(names)
    trace = {
        "type": "waterfall",
        "orientation": "h",
        "measure": ["absolute", *("relative" for _ in changes), "total"],
        "x": steps,
        "y": [html.escape(name) for name in names],
        "text": told,
        "textposition": "outside",
        "cliponaxis": False,
        "textfont": {"size": 11.5, "color": "@muted"},
        "connector": {"line": {"color": "@rule", "width": 1}},
        "increasing": {"marker": {"color": "@bad"}},
        "decreasing": {"marker": {"color": "@accent"}},
        "totals": {"marker": {"color": "@faint"}},
        "hovertemplate": "%{y}: %{text}<extra></extra>",
    }
    return {"data": [trace], "layout": layout}


def _told(milliseconds: float, unit: Unit) -> str:
    return f"{unit.told(milliseconds)} {unit.name}"


def _longest(changes: Sequence[Change]) -> list[Change]:
    """All of them, or those that take longest and the rest as one, in the same order."""
    layers = [c for c in changes if c.part != BETWEEN]
    if len(layers) <= SHOWN:
        return list(changes)
    kept = sorted(layers, key=lambda c: -max(c.before, c.after))[: SHOWN - 1]
    rest = [c for c in layers if c not in kept]
    others = Change(
        part=f"{len(rest)} other layers",
        before=sum(c.before for c in rest),
        after=sum(c.after for c in rest),
        share=sum(c.share or 0.0 for c in rest) if rest[0].share is not None else None,
    )
    return [*(c for c in layers if c in kept), others, *(c for c in changes if c.part == BETWEEN)]
