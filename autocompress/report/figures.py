"""Figures of the page, as plotly's JSON: ``{"data": [...], "layout": {...}}``.

Colours are names such as ``"@ink"`` that the page's script replaces by the theme's. Texts from users are escaped, since
plotly reads a little HTML in them.
"""

from __future__ import annotations

import html
import textwrap
from collections.abc import Sequence
from typing import Any

from autocompress.front.dominance import non_dominated
from autocompress.records import Estimate, TrialRecord, minimized
from autocompress.report.data import FrontRow, ReportData, champion_first, dense_row
from autocompress.report.words import LABELS, cost, percent, percent_interval, times
from autocompress.space.words import plan_words

Figure = dict[str, Any]


def front_figure(data: ReportData, rows: Sequence[FrontRow], objective: str) -> Figure:
    """Accuracy against one cost: every trial of the search faintly, finalists with intervals, the dense model.

    Args:
        data: the study.
        rows: finalists.
        objective: the cost on the x axis.
    """
    dense = dense_row(data.baseline)
    unit = _unit(objective, dense)
    complete = [t for t in data.trials if t.state == "complete" and t.measurement is not None]
    data_list = [
        *_search_traces(data, complete, objective, unit),
        *_finalist_traces(rows, objective, unit),
        _dense_trace(dense, objective, unit),
        # Plotly draws an axis only if something is on it.
        {"type": "scatter", "x": [None], "y": [None], "xaxis": "x2", "showlegend": False, "hoverinfo": "skip"},
    ]
    finals = [*rows, dense]
    right = 1.12 * max(_cost(r, objective).high / unit.scale for r in finals)
    low, high = min(r.accuracy.low for r in finals), max(r.accuracy.high for r in finals)
    pad = max(0.08 * (high - low), 0.002)
    lines = max((len(r.aliases) for r in rows if r.on_front), default=0)
    x_range = [0.0, right]
    layout = base_layout()
    layout["xaxis"] |= {"title": axis_title(unit.label), "range": x_range}
    # Above the points is room for names. No accuracy is over 100%, so that no number stands there.
    beyond = (number for step in (20, 10, 5, 2, 1, 0.5, 0.2, 0.1) for number in _above(100, step, 20))
    layout["yaxis"] |= {
        "title": axis_title("accuracy (%)"),
        "range": [100 * (low - pad), 100 * (high + pad * (1 + lines))],
        "labelalias": dict.fromkeys((text for n in beyond for text in (f"{n:g}", f"{n:.1f}")), " "),
    }
    layout["xaxis2"] = layout["xaxis"] | {
        "title": axis_title("latency relative to dense (×)" if objective == "latency_ms" else "relative to dense (×)"),
        "overlaying": "x",
        "side": "top",
        "range": [0.0, right * unit.scale / _cost(dense, objective).value],
        "showgrid": False,
        "zeroline": False,
        "fixedrange": True,
        "tickmode": "auto",
    }
    layout["shapes"], notes = _bounds(data, objective, unit)
    layout["annotations"] = notes + _names(rows, objective, unit)
    layout["meta"] = {"dense": _cost(dense, objective).value / unit.scale}
    return {"data": data_list, "layout": layout}


def hidden_trials(data: ReportData, figure: Figure, objective: str) -> int:
    """How many complete trials lie outside the figure's first view."""
    unit = _unit(objective, dense_row(data.baseline))
    (left, right), (bottom, top) = figure["layout"]["xaxis"]["range"], figure["layout"]["yaxis"]["range"]
    count = 0
    for trial in data.trials:
        if trial.state == "complete" and trial.measurement is not None:
            x = trial.measurement.values[objective].value / unit.scale
            y = 100 * trial.measurement.values["accuracy"].value
            count += not (left <= x <= right and bottom <= y <= top)
    return count


class _Unit:
    """Scale and label of a cost axis."""

    def __init__(self, scale: float, label: str) -> None:
        self.scale = scale
        self.label = label


def _unit(objective: str, dense: FrontRow) -> _Unit:
    largest = _cost(dense, objective).value
    if objective in ("latency_ms", "energy_mj"):
        return _Unit(1.0, LABELS[objective])
    names = ("kB", "MB") if objective.endswith("_bytes") else ("thousands", "millions")
    scale, unit = (1e6, names[1]) if largest >= 1e6 else (1e3, names[0])
    return _Unit(scale, f"{LABELS[objective].split(' (')[0]} ({unit})")


def _cost(row: FrontRow, objective: str) -> Estimate:
    if objective == "latency_ms":
        return row.latency_ms
    if objective in row.costs:
        return row.costs[objective]
    return Estimate.exact(float(getattr(row.artifact, objective)))


def axis_title(text: str) -> Figure:
    """Title of an axis."""
    return {"text": text, "standoff": 10, "font": {"color": "@muted", "size": 12.5}}


def _above(start: float, step: float, most: int) -> list[float]:
    return [round(start + step * k, 6) for k in range(1, most + 1)]


def base_layout() -> Figure:
    """What every figure's layout starts from."""
    axis = {
        "gridcolor": "@rule",
        "linecolor": "@rule",
        "zerolinecolor": "@rule",
        "automargin": True,
        "ticks": "outside",
        "tickcolor": "@rule",
        "tickfont": {"size": 12},
        "ticklen": 4,
    }
    return {
        "font": {"color": "@ink", "size": 13, "family": "@font"},
        "paper_bgcolor": "@surface",
        "plot_bgcolor": "@surface",
        "margin": {"l": 56, "r": 20, "t": 20, "b": 48},
        "xaxis": dict(axis),
        "yaxis": dict(axis),
        "legend": {"orientation": "h", "x": 0, "y": -0.2, "yanchor": "top", "font": {"color": "@muted", "size": 12}},
        "hoverlabel": {
            "bgcolor": "@surface",
            "bordercolor": "@rule",
            "font": {"color": "@ink", "size": 12, "family": "@font"},
            "align": "left",
        },
        "hovermode": "closest",
        "dragmode": "zoom",
    }


def _search_traces(data: ReportData, trials: Sequence[TrialRecord], objective: str, unit: _Unit) -> list[Figure]:
    kinds = (
        ("search trial", [t for t in trials if t.feasible], {"symbol": "circle", "size": 6, "opacity": 0.55}),
        ("breaks a constraint", [t for t in trials if not t.feasible], {"symbol": "x-thin", "size": 6, "opacity": 0.8}),
    )
    traces = []
    for name, chosen, marker in kinds:
        if chosen:
            measured = [t.measurement for t in chosen if t.measurement is not None]
            traces.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": name,
                    "x": [m.values[objective].value / unit.scale for m in measured],
                    "y": [100 * m.values["accuracy"].value for m in measured],
                    "marker": marker | {"color": "@faint", "line": {"color": "@faint", "width": 1}},
                    "text": [_trial_text(t, data, objective) for t in chosen],
                    "hovertemplate": "%{text}<extra></extra>",
                }
            )
    return traces


def _finalist_traces(rows: Sequence[FrontRow], objective: str, unit: _Unit) -> list[Figure]:
    front = [r for r in rows if r.on_front]
    traces: list[Figure] = []
    if len(front) > 1:
        values = [{"accuracy": r.accuracy, objective: _cost(r, objective)} for r in front]
        mask = non_dominated(minimized(values, ("accuracy", objective)))
        steps = sorted(((_cost(r, objective).value, r.accuracy.value) for r, m in zip(front, mask, strict=True) if m))
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": [x / unit.scale for x, _ in steps],
                "y": [100 * y for _, y in steps],
                "line": {"shape": "hv", "color": "@accent", "width": 1.5, "dash": "dot"},
                "hoverinfo": "skip",
                "showlegend": False,
            }
        )
    for name, chosen, fill in (
        ("finalist off the front", [r for r in rows if not r.on_front], "@surface"),
        ("front", front, "@accent"),
    ):
        if chosen:
            traces.append(_points(name, chosen, objective, unit, "@accent", fill, "circle", 10))
    return traces


def _dense_trace(dense: FrontRow, objective: str, unit: _Unit) -> Figure:
    return _points("dense", [dense], objective, unit, "@dense", "@dense", "diamond", 12)


def _points(
    name: str,
    rows: Sequence[FrontRow],
    objective: str,
    unit: _Unit,
    color: str,
    fill: str,
    symbol: str,
    diameter: int,
) -> Figure:
    costs = [_cost(r, objective) for r in rows]
    trace: Figure = {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [c.value / unit.scale for c in costs],
        "y": [100 * r.accuracy.value for r in rows],
        "error_y": _errors([r.accuracy for r in rows], 100.0, color),
        "marker": {"color": fill, "size": diameter, "symbol": symbol, "line": {"color": color, "width": 2}},
        "text": [_row_text(r, objective) for r in rows],
        "hovertemplate": "%{text}<extra></extra>",
    }
    if any(c.low != c.high for c in costs):
        trace["error_x"] = _errors(costs, 1.0 / unit.scale, color)
    return trace


def _errors(estimates: Sequence[Estimate], scale: float, color: str) -> Figure:
    return {
        "type": "data",
        "symmetric": False,
        "array": [max(0.0, scale * (e.high - e.value)) for e in estimates],
        "arrayminus": [max(0.0, scale * (e.value - e.low)) for e in estimates],
        "color": color,
        "thickness": 1,
        "width": 3,
    }


def _bounds(data: ReportData, objective: str, unit: _Unit) -> tuple[list[Figure], list[Figure]]:
    shapes, notes = [], []
    for bound in data.bounds:
        limit = bound.min if bound.min is not None else bound.max or 0.0
        line = {"type": "line", "line": {"color": "@dense", "width": 1, "dash": "dash"}}
        note = {"showarrow": False, "font": {"color": "@dense", "size": 11}}
        side = "at least" if bound.min is not None else "at most"
        if bound.objective == "accuracy":
            shapes.append(line | {"xref": "paper", "x0": 0, "x1": 1, "y0": 100 * limit, "y1": 100 * limit})
            text = f"{side} {percent(limit, 1)}"
            notes.append(
                note | {"xref": "paper", "x": 1, "xanchor": "right", "y": 100 * limit, "yanchor": "top", "text": text}
            )
        elif bound.objective == objective:
            at = limit / unit.scale
            shapes.append(line | {"yref": "paper", "y0": 0, "y1": 1, "x0": at, "x1": at})
            text = f"{side} {cost(objective, limit)}"
            notes.append(
                note | {"yref": "paper", "y": 0, "yanchor": "bottom", "x": at, "xanchor": "right", "text": text}
            )
    return shapes, notes


def _names(rows: Sequence[FrontRow], objective: str, unit: _Unit) -> list[Figure]:
    """Aliases above the interval of their model, where there is room; names that would collide are stacked."""
    named = sorted((r for r in rows if r.aliases and r.on_front), key=lambda r: _cost(r, objective).value)
    widest = max((_cost(r, objective).high for r in rows), default=1.0)
    notes: list[Figure] = []
    last, raised, lines = -1.0, 0, 0
    for row in named:
        at = _cost(row, objective).value
        raised = raised + lines if notes and at - last < 0.2 * widest else 0
        last, lines = at, len(row.aliases)
        notes.append(
            {
                "x": at / unit.scale,
                "y": 100 * row.accuracy.high,
                "text": "<br>".join(html.escape(a) for a in champion_first(row.aliases)),
                "showarrow": False,
                "yanchor": "bottom",
                "yshift": 3 + 15 * raised,
                "font": {"size": 11.5, "color": "@accent"},
            }
        )
    return notes


def _trial_text(trial: TrialRecord, data: ReportData, objective: str) -> str:
    if trial.measurement is None:
        return f"trial {trial.number}"
    measurement = trial.measurement
    fidelity = f"{measurement.role} split, {measurement.fidelity.epochs:g} epochs of recovery"
    lines = [
        f"<b>trial {trial.number}</b> · {html.escape(trial.origin)}",
        _values_text(measurement.values["accuracy"], measurement.values[objective], objective, None),
        fidelity,
    ]
    if objective == "latency_ms" and measurement.latency.noisy:
        lines.append("latency is noisy")
    lines += _wrapped(plan_words(trial.plan, data.structure) if trial.plan else "")
    lines += [f"breaks {html.escape(name)}" for name, amount in trial.violations.items() if amount > 0]
    return "<br>".join(lines)


def _row_text(row: FrontRow, objective: str) -> str:
    title = " · ".join([f"<b>{html.escape(row.name)}</b>", *(html.escape(x) for x in (row.version, *row.aliases) if x)])
    ratio = row.ratio.value if objective == "latency_ms" else None
    lines = [title, _values_text(row.accuracy, _cost(row, objective), objective, ratio)]
    if row.test is not None:
        lines.append(f"test accuracy {percent(row.test.value)}")
    return "<br>".join([*lines, *_wrapped(row.plan)])


def _values_text(accuracy: Estimate, paid: Estimate, objective: str, ratio: float | None) -> str:
    told = f"{percent(accuracy.value)} {percent_interval(accuracy)} at {cost(objective, paid.value)}"
    return told if ratio is None else f"{told} ({times(ratio)})"


def _wrapped(text: str) -> list[str]:
    return [html.escape(line) for line in textwrap.wrap(text, 48)]
