"""The page of results: what came out, what is missing, and which goals are met."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from arms.table import ARMS
from compare import Ratio, Span, distances, latency_at, median, sooner, time_to, volume
from outcome import DENSE, EIGHT, Outcome, after_longer
from pictures import draw_ends, draw_time
from works import WORKS, Work

TARGETS = (0.90, 0.95, 0.99)
#: How much accuracy a shipped network may lose.
LOSS = 0.01
OURS, TP = "ours", "torch-pruning"
#: In a cell that rests on a candidate which is not judged yet.
OPEN = "not judged"
#: In a cell of a moment that the arm's runs did not come to.
BEYOND = "–"


def page(outcomes: Mapping[str, Outcome], folder: Path) -> str:
    """The results of all works as Markdown; draws the pictures beside it."""
    lines = ["# Searchers beside each other", ""]
    lines += ["Written by `python benchmarks/search/run.py --report`; how it is done: [README](../README.md).", ""]
    for name, outcome in outcomes.items():
        lines += section(WORKS[name], outcome, folder)
    return "\n".join(lines if outcomes else [*lines, "Nothing has been run yet.", ""])


def section(work: Work, outcome: Outcome, folder: Path) -> list[str]:
    """One work."""
    lines = [f"## {work.title}", "", *ground(work, outcome)]
    best = outcome.best()
    if len(best) == 0:
        return [*lines, "No front is judged yet.", ""]
    curves = {(run.arm, run.seed): outcome.curve(run) for run in outcome.runs}
    full = volume(best)
    lines += [f"Reference set: {len(best)} points over all fronts that are judged, hypervolume {full:.4f}.", ""]
    lines += [*over_time(outcome, curves, full), "", *against(outcome, curves, full), ""]
    draw_time(outcome, curves, full, folder / f"{work.name}-time.png", work.title)
    lines += [f"![Hypervolume over time]({work.name}-time.png)", ""]
    lines += [*ends(outcome, best), ""]
    if any("test" in found for key, found in outcome.finals.items() if key not in (DENSE, EIGHT)):
        lines += [*shipped(outcome), "", *against_torch_pruning(outcome), ""]
        longer = after_longer(outcome)
        if longer is not None:
            lines += [
                f"Both tables again, with {work.longer_epochs:g} in place of {work.final_epochs:g} of an epoch of "
                "recovery for members of last fronts that had lost 0.5 to 3.5 points:",
                "",
            ]
            lines += [*shipped(longer), "", *against_torch_pruning(longer), ""]
    draw_ends(outcome, folder / f"{work.name}-fronts.png", work.title)
    return [*lines, f"![Last fronts]({work.name}-fronts.png)", ""]


def ground(work: Work, outcome: Outcome) -> list[str]:
    """What all runs share, and what is missing."""
    runs, finals = outcome.runs, outcome.finals
    commits = sorted({run.commit for run in runs})
    loads = [load for run in runs for load in run.load]
    given = " or ".join(f"{minutes:g}" for minutes in sorted({run.minutes for run in runs}))
    lines = [
        f"{len(runs)} runs of {given} minutes on one core each, dense weights {runs[0].dense_sha256[:12]}, commits "
        f"{', '.join(commits)}; load per core when they began and ended {min(loads):.1f} to {max(loads):.1f}. Final "
        f"recovery of every member: {work.final_epochs:g} of an epoch with distillation.",
    ]
    if outcome.known(DENSE) and outcome.known(EIGHT):
        dense, eight = finals[DENSE], finals[EIGHT]
        lines += [
            f"Selection split: dense {100 * dense['selection']:.2f}%; 8 bits alone {100 * eight['selection']:.2f}% at "
            f"{eight['ratio']:.3f} of the latency."
        ]
    keys = {key for run in runs for front in run.fronts.values() for key in front}
    missing, failed = sum(not outcome.known(key) for key in keys), sum("failed" in finals.get(key, {}) for key in keys)
    noisy = sum(bool(finals.get(key, {}).get("noisy")) for key in keys)
    lines += [
        f"{len(keys)} candidates were on a returned front: {missing} are not judged yet, {failed} failed in the final "
        f"recovery, {noisy} readings stayed noisy. What rests on one of these is left open."
    ]
    single = sum("ratio" in (found := finals.get(key, {})) and "sittings" not in found for key in keys)
    if single:
        lines += [f"Latencies of {single} of them are of one sitting, with 40 rounds."]
    notes = sum(len(run.notes) for run in runs if run.arm != "moasha")
    if notes:
        lines += [f"Notes of runs, such as candidates that could not be built: {notes}; see their records."]
    return [" ".join(lines), ""]


def over_time(outcome: Outcome, curves: Mapping[tuple[str, int], dict], full: float) -> list[str]:
    """Time to targets, and hypervolume at moments, for each arm."""
    longest = outcome.minutes
    moments = list(dict.fromkeys(m for m in (1.0, 2.0, 5.0, 10.0, longest) if m <= longest))
    header = ["arm", "seeds", "judgements", *(f"{100 * t:.0f}%" for t in TARGETS), *(f"{m:g} min" for m in moments)]
    rows = []
    for arm in ordered(outcome):
        runs = outcome.of(arm)
        times = [[time_to(curves[arm, run.seed], share * full) for run in runs] for share in TARGETS]
        horizon = outcome.horizon(arm)
        shares = [[curves[arm, run.seed].get(m) for run in runs] for m in moments if m <= horizon]
        rows.append(
            [title(outcome, arm), len(runs), f"{median([len(run.steps) for run in runs]).value:g}"]
            + [told_times(known, horizon) if (known := complete(some)) else OPEN for some in times]
            + [told(median([x / full for x in known]), 3) if (known := complete(some)) else OPEN for some in shares]
            + [BEYOND] * (len(moments) - len(shares))
        )
    words = [
        "Minutes to so much of the reference hypervolume, and share of it at moments: median over seeds, and its 95% "
        "bootstrap interval in brackets, which of so few seeds is about their range. *n of m* seeds never got there: "
        "they are censored, and a median among them is told as more than the run. Candidates may be judged more than "
        "once, at rising training.",
        "",
    ]
    return words + table(header, rows)


def against(outcome: Outcome, curves: Mapping[tuple[str, int], dict], full: float) -> list[str]:
    """How much sooner, and how much better at equal time, ours is than each other arm, over paired seeds."""
    rows = []
    moments = list(dict.fromkeys((min(5.0, outcome.minutes), outcome.minutes)))
    for arm in ordered(outcome):
        seeds = outcome.complete_seeds(OURS, arm)
        if arm == OURS or not seeds:
            continue
        cells: list[str] = []
        horizons = (outcome.horizon(OURS), outcome.horizon(arm))
        for share in TARGETS:
            a, b = (complete([time_to(curves[name, s], share * full) for s in seeds]) for name in (OURS, arm))
            cells.append(told_ratio(sooner(a, b, horizons), a, b) if a and b else OPEN)
        for moment in (m for m in moments if m <= min(horizons)):
            a, b = (complete([curves[name, s].get(moment) for s in seeds]) for name in (OURS, arm))
            found = [x / y if y else math.inf for x, y in zip(a, b, strict=True)] if a and b else []
            cells.append(told(median(found), 2) if found else OPEN)
        rows.append([title(outcome, arm), len(seeds), *cells, *[BEYOND] * (len(TARGETS) + len(moments) - len(cells))])
    if not rows:
        return []
    heads = [f"hypervolume at {m:g} min" for m in moments]
    words = [
        "Ours against each other arm, paired by seed: times sooner at a target, and ratio of hypervolumes. ≥ and ≤ are "
        "bounds, where the other or ours never got there. Wanted at 90 and 95%: 10 times sooner than Optuna with "
        "fine-tuning, 2 times sooner than Optuna with our evaluator; 1.10 times the hypervolume.",
        "",
    ]
    return words + table(["arm", "seeds", *(f"sooner at {100 * t:.0f}%" for t in TARGETS), *heads], rows)


def ends(outcome: Outcome, best: Sequence) -> list[str]:
    """How far the last fronts are from the reference set."""
    rows = []
    for arm in ordered(outcome):
        found = [points for run in outcome.of(arm) if (points := outcome.end(run)) is not None]
        if found:
            pairs = [distances(points, best) for points in found]
            igd, epsilon = (told(median([pair[i] for pair in pairs]), 4) for i in (0, 1))
            rows.append([title(outcome, arm), len(found), igd, epsilon])
    words = [
        "Distance of the fronts at the end of the runs from the reference set, in units of the box.",
        "",
    ]
    return words + table(["arm", "seeds", "IGD+", "additive ε"], rows)


def shipped(outcome: Outcome) -> list[str]:
    """Latency at a loss of at most one point, chosen on the selection split, with its loss on the test split."""
    dense, eight = outcome.finals[DENSE], outcome.finals[EIGHT]
    rows = []
    for arm in ordered(outcome):
        if any(outcome.end(run) is None for run in outcome.of(arm)):
            rows.append([title(outcome, arm), OPEN, "", "", ""])
            continue
        keys = [outcome.shipped(run, LOSS) for run in outcome.of(arm)]
        good = [outcome.finals[key] for key in keys if key is not None]
        if not all("test" in found for found in good):
            rows.append([title(outcome, arm), OPEN, "", "", ""])
            continue
        if not good:
            rows.append([title(outcome, arm), f"0 of {len(keys)}", "", "", ""])
            continue
        ratios = [found["ratio"] for found in good]
        losses = [100 * (dense["test"] - found["test"]) for found in good]
        of_eight = [ratio / eight["ratio"] for ratio in ratios]
        cells = [told(median(ratios), 3), told(median(of_eight), 2), told(median(losses), 2)]
        rows.append([title(outcome, arm), f"{len(good)} of {len(keys)}", *cells])
    words = [
        f"The fastest member of the last front that loses at most {100 * LOSS:g} point on the selection split; the "
        f"test split (dense {100 * dense['test']:.2f}%, 8 bits {100 * eight['test']:.2f}%) was opened afterwards. "
        "Wanted: at most 0.65 of 8 bits alone.",
        "",
    ]
    return words + table(["arm", "seeds with one", "latency / dense", "of 8 bits alone", "test loss, points"], rows)


def against_torch_pruning(outcome: Outcome) -> list[str]:
    """Our latency over Torch-Pruning's at no more loss than each of its networks has, on the test split."""
    rows, shares = [], []
    for seed in outcome.complete_seeds(OURS, TP):
        ours, theirs = (next(run for run in outcome.of(arm) if run.seed == seed) for arm in (OURS, TP))
        mine = outcome.end(ours, "test")
        for key in theirs.front(theirs.minutes):
            point = outcome.points([key], "test")
            if mine is None or point is None or len(point) == 0 or point[0, 0] > 1.0:
                continue
            loss = 100 * (outcome.finals[DENSE]["test"] - outcome.finals[key]["test"])
            found = latency_at(mine, point[0, 0])
            shares.append(found / point[0, 1])
            share = f"{shares[-1]:.2f}" if math.isfinite(found) else "none as accurate"
            rows.append([seed, f"{loss:.2f}", f"{point[0, 1]:.3f}", f"{found:.3f}", share])
    if not rows:
        return []
    words = [
        "Our fastest network that is no less accurate than each of Torch-Pruning's on the test split, those with "
        f"8 bits alone among them; the middle ratio is {median(shares).value:.2f}. Wanted: at most 0.80.",
        "",
    ]
    header = ["seed", "its test loss, points", "its latency / dense", "ours", "ours / its"]
    return words + table(header, sorted(rows, key=lambda row: (row[0], float(row[1]))))


def complete(values: Sequence[float | None]) -> list[float]:
    """The values of all seeds; none at all if one is not known, as those of fewer seeds would compare with nothing."""
    known = [value for value in values if value is not None]
    return known if len(known) == len(values) else []


def title(outcome: Outcome, arm: str) -> str:
    """Of an arm, with its minutes where others had more."""
    minutes = outcome.horizon(arm)
    return ARMS[arm].title if minutes == outcome.minutes else f"{ARMS[arm].title} ({minutes:g} min)"


def ordered(outcome: Outcome) -> list[str]:
    """Arms that ran: ours and its parts, then the others."""
    mine = [arm for arm in ARMS if arm.startswith(OURS)]
    return [arm for arm in (*mine, *(a for a in ARMS if a not in mine)) if arm in outcome.arms]


def told(span: Span, digits: int) -> str:
    """A median with its interval; `inf` as it is."""
    return f"{span.value:.{digits}f} [{span.low:.{digits}f}, {span.high:.{digits}f}]"


def told_times(times: Sequence[float], minutes: float) -> str:
    """Median minutes with their interval, and how many seeds never got there."""
    never = sum(math.isinf(time) for time in times)
    span = median(times)
    shown = [f"{value:g}" if math.isfinite(value) else f"> {minutes:g}" for value in span]
    text = f"{shown[0]} [{shown[1]}, {shown[2]}]"
    return f"{text}, {never} of {len(times)} never" if never else text


def told_ratio(ratio: Ratio, ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Times sooner, as a bound where someone never got there."""
    if ratio.bound == "?":
        first, second = (sum(math.isfinite(time) for time in times) for times in (ours, theirs))
        return f"ours there in {first} of {len(ours)}, the other in {second}"
    sign = {">": "≥ ", "<": "≤ ", "": ""}[ratio.bound]
    return f"{sign}{told(ratio.span, 1)}"


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
