"""Pictures of the comparison: hypervolume over time, and the last fronts with what half of the runs attained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from arms.table import ARMS
from compare import Span, attainment, median
from outcome import DENSE, EIGHT, Outcome

from autocompress.records.box import ERROR_MARGIN

matplotlib.use("Agg")
from matplotlib import pyplot

#: Colour and dashes of each arm: ours in one colour, the others by what judges their trials.
LOOKS: dict[str, tuple[str, str]] = {
    "ours": ("#0b5fa5", "-"),
    "ours-no-seeds": ("#5aa0d8", "--"),
    "ours-no-rungs": ("#5aa0d8", ":"),
    "ours-no-surrogate": ("#5aa0d8", "-."),
    "ours-no-reconstruction": ("#5aa0d8", "-"),
    "optuna-tpe": ("#d1590c", "-"),
    "optuna-nsga2": ("#d1590c", "--"),
    "random": ("#8c8c8c", "-"),
    "tpe-our-evaluator": ("#3c8d40", "-"),
    "nsga2-our-evaluator": ("#3c8d40", "--"),
    "moasha": ("#8e4fa8", "-"),
    "torch-pruning": ("#222222", ":"),
}
#: Of a moment that is not judged for all seeds.
UNKNOWN = Span(math.nan, math.nan, math.nan)


def draw_time(
    outcome: Outcome, curves: Mapping[tuple[str, int], dict[float, float | None]], full: float, path: Path, title: str
) -> None:
    """Share of the reference hypervolume over minutes: medians over seeds, with their intervals."""
    figure, axes = pyplot.subplots(figsize=(8.4, 5.0), layout="constrained")
    lowest = 1.0
    for arm in (arm for arm in ARMS if arm in outcome.arms):
        runs = outcome.of(arm)
        moments, spans = [], []
        for moment in sorted({m for run in runs for m in curves[arm, run.seed]}):
            found = [value / full for run in runs if (value := curves[arm, run.seed].get(moment)) is not None]
            # Of fewer seeds it would be another curve: there the line has a gap.
            moments.append(moment)
            spans.append(median(found) if len(found) == len(runs) else UNKNOWN)
        if all(span is UNKNOWN for span in spans):
            continue
        color, dashes = LOOKS[arm]
        width = 2.4 if arm == "ours" else 1.5
        values, low, high = zip(*spans, strict=True)
        # What is returned stays so until the next moment that was asked at.
        look = {"color": color, "linewidth": width, "label": ARMS[arm].title, "drawstyle": "steps-post"}
        axes.plot(moments, values, dashes, marker=".", markersize=4, **look)
        axes.fill_between(moments, low, high, step="post", color=color, alpha=0.10, linewidth=0)
        if not arm.startswith("ours-"):  # what lacks a part may begin far below all others, which are to be told apart
            lowest = min([lowest, *(value for value in values if value > 0.0)])
    for share in (0.90, 0.95):
        axes.axhline(share, color="black", linewidth=0.6, linestyle=(0, (1, 3)))
    axes.set_xscale("log")
    plain_ticks(axes.xaxis)
    axes.set_ylim(max(0.0, lowest - 0.05), 1.01)
    axes.set_xlabel("minutes on one core")
    axes.set_ylabel("hypervolume, share of the reference set's")
    axes.set_title(f"{title}: what each would have returned, recovered alike", loc="left", fontsize=11)
    axes.grid(alpha=0.25)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, frameon=False)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def draw_ends(outcome: Outcome, path: Path, title: str) -> None:
    """What 25, 50 and 75% of an arm's runs attained in the end, and its points; on test where that was opened."""
    opened = any("test" in found for key, found in outcome.finals.items() if key not in (DENSE, EIGHT))
    split = "test" if opened else "selection"
    if not outcome.known(DENSE, split):
        return
    scale = 100.0 * (1.0 - outcome.finals[DENSE][split] + ERROR_MARGIN)
    arms = [arm for arm in ARMS if arm in outcome.arms and not arm.startswith("ours-")]
    columns = min(4, max(1, len(arms)))
    rows = math.ceil(len(arms) / columns)
    figure, grid = pyplot.subplots(
        rows,
        columns,
        figsize=(3.0 * columns, 2.7 * rows),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axes in grid.flat[len(arms) :]:
        axes.set_visible(False)
    ours = [points for run in outcome.of("ours") if (points := outcome.end(run, split)) is not None]
    for axes, arm in zip(grid.flat, arms, strict=False):
        sets = [points for run in outcome.of(arm) if (points := outcome.end(run, split)) is not None]
        color, _ = LOOKS[arm]
        for points in sets:
            axes.plot(points[:, 1], scale * points[:, 0], ".", color=color, markersize=5, alpha=0.7)
        for percent, width in ((25, 0.7), (50, 1.8), (75, 0.7)):
            _stairs(axes, attainment(sets, percent), scale, color, width)
        if arm != "ours":
            _stairs(axes, attainment(ours, 50), scale, LOOKS["ours"][0], 1.0, dashes="--")
        if outcome.known(EIGHT, split):
            eight = outcome.finals[EIGHT]
            axes.plot(eight["ratio"], 100.0 * (1.0 - eight[split]), "x", color="black", markersize=6)
        axes.axhline(100.0 * (1.0 - outcome.finals[DENSE][split]), color="black", linewidth=0.6, linestyle=":")
        axes.set_title(f"{ARMS[arm].title}, {len(sets)} seeds", loc="left", fontsize=9)
        axes.grid(alpha=0.25)
    grid[0, 0].set_xlim(0.0, 0.5)
    grid[0, 0].set_ylim(75.0 * (1.0 - outcome.finals[DENSE][split]), 1.02 * scale)
    figure.supxlabel("latency relative to dense", fontsize=9)
    figure.supylabel(f"error on the {split} split, %", fontsize=9)
    figure.suptitle(
        f"{title}: last fronts, attained by 25, 50 and 75% of runs{';' if columns > 2 else chr(10)}"
        " dashed: half of ours; ×: 8 bits alone",
        fontsize=10,
        x=0.01,
        ha="left",
    )
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _stairs(axes: Any, surface: np.ndarray, scale: float, color: str, width: float, dashes: str = "-") -> None:
    """The border of what is dominated: error that is attained at each latency."""
    if len(surface) == 0:
        return
    order = np.argsort(surface[:, 1])
    latency, error = surface[order, 1], scale * surface[order, 0]
    top = max(2.0 * scale, float(error[0]))
    axes.plot(
        [latency[0], *latency, 2.0],
        [top, *error, error[-1]],
        dashes,
        drawstyle="steps-post",
        color=color,
        linewidth=width,
    )


def plain_ticks(axis: Any) -> None:
    """Plain numbers at 1, 2 and 5 of every decade of a logarithmic axis."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(StrMethodFormatter("{x:,.6g}"))
    axis.set_minor_locator(NullLocator())
