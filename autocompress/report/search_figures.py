"""Pictures of a search: its front's hypervolume over time, and below it where the time went."""

from __future__ import annotations

from collections.abc import Sequence

from autocompress.front.effort import PARTS
from autocompress.front.indicators import TracePoint
from autocompress.report.figures import Figure, axis_title, base_layout
from autocompress.report.search_words import DOING, share_percent

#: Most points of a picture; of a longer trace every so manieth is drawn, and the last.
DRAWN = 600


def hypervolume_figure(points: Sequence[TracePoint]) -> Figure:
    """Normalised hypervolume of the search's front over the time in which trials ran."""
    scale, unit = _scale(points)
    drawn = _thinned(points)
    x = [0.0, *(p.seconds / scale for p in drawn)]
    y = [0.0, *(p.hypervolume for p in drawn)]
    layout = base_layout()
    layout["xaxis"] |= {"title": axis_title(f"time searching ({unit})"), "range": [0.0, _end(x)]}
    layout["yaxis"] |= {"title": axis_title("hypervolume (share)"), "range": [0.0, min(1.0, 1.15 * max(y[-1], 0.05))]}
    layout["showlegend"] = False
    line = {
        "type": "scatter",
        "mode": "lines",
        "x": x,
        "y": y,
        "line": {"shape": "hv", "color": "@accent", "width": 2},
        "fill": "tozeroy",
        "fillcolor": "@wash",
        "customdata": [0, *(p.trials for p in drawn)],
        "hovertemplate": "%{y:.4f} after %{customdata} candidates, %{x:.2f} " + unit + "<extra></extra>",
    }
    return {"data": [line], "layout": layout}


def parts_figure(points: Sequence[TracePoint]) -> Figure:
    """Worker-seconds so far by part, stacked, over the time in which trials ran; the legend has the final shares."""
    scale, unit = _scale(points)
    drawn = _thinned(points)
    x = [0.0, *(p.seconds / scale for p in drawn)]
    shares = points[-1].parts.shares if points else {}
    layout = base_layout()
    layout["xaxis"] |= {"title": axis_title(f"time searching ({unit})"), "range": [0.0, _end(x)]}
    layout["yaxis"] |= {"title": axis_title(f"time of the workers ({unit})"), "rangemode": "tozero"}
    layout["hovermode"] = "x unified"
    layout["legend"] |= {"y": 1.02, "yanchor": "bottom", "traceorder": "normal"}
    layout["margin"] |= {"t": 34}
    areas = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": f"{DOING[part]} {share_percent(shares[part])}",
            "x": x,
            "y": [0.0, *(getattr(p.parts, part) / scale for p in drawn)],
            "stackgroup": "parts",
            "line": {"color": f"@part-{part}", "width": 0},
            "fillcolor": f"@part-{part}",
            "hovertemplate": "%{y:.2f} " + unit,
        }
        for part in PARTS
        if shares.get(part, 0.0) > 0.0
    ]
    return {"data": areas, "layout": layout}


def _scale(points: Sequence[TracePoint]) -> tuple[float, str]:
    span = points[-1].seconds if points else 0.0
    return (1.0, "s") if span < 180 else (60.0, "min") if span < 3 * 3600 else (3600.0, "h")


def _end(x: Sequence[float]) -> float:
    return 1.02 * max(x[-1], 1e-9)


def _thinned(points: Sequence[TracePoint]) -> list[TracePoint]:
    """At most about `DRAWN` of them, with each that raised the hypervolume."""
    step = max(1, len(points) // DRAWN)
    kept, before = [], 0.0
    for index, point in enumerate(points):
        if index % step == 0 or point.hypervolume > before or index == len(points) - 1:
            kept.append(point)
        before = point.hypervolume
    return kept
