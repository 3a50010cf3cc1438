"""One self-contained HTML page about a study: no network, light and dark, wide and narrow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from autocompress.files import write_bytes
from autocompress.front.summary import SearchSummary
from autocompress.records import FIXED, MAXIMIZED
from autocompress.report.classes import class_section
from autocompress.report.controls import control_section
from autocompress.report.data import FrontRow, ReportData, champion, dense_row, finalist_rows
from autocompress.report.figures import Figure, front_figure, hidden_trials
from autocompress.report.layers import layer_strips, layer_table
from autocompress.report.markup import Html, join, tag
from autocompress.report.metrics import agreement_section, metric_section
from autocompress.report.runtime import runtime_section
from autocompress.report.search_section import search_figures, search_section
from autocompress.report.shell import page
from autocompress.report.tables import facts, front_table, host_facts, lineage_facts, spans
from autocompress.report.time_section import time_figures, time_section
from autocompress.report.words import LABELS, duration, many, milliseconds, percent, plural, size, times


def write_page(path: Path, data: ReportData) -> Path:
    """Write the page, replacing an earlier one in a single step.

    Args:
        path: of the HTML file; its folder must exist.
        data: the study.

    Returns:
        `path`.

    Raises:
        ValueError: trials are not comparable; see :func:`autocompress.front.indicators.trace`.
        OSError: the file cannot be written.
    """
    write_bytes(path, render(data).encode())
    return path


def render(data: ReportData) -> str:
    """The page's text; the same for the same data."""
    rows = finalist_rows(
        data.finalists,
        data.baseline,
        versions=data.versions,
        structure=data.structure,
        objectives=data.objectives,
        metrics=data.metrics,
    )
    front = [row for row in rows if row.on_front]
    # Drops of a class are no cost that a dense model pays as well; they have a section of their own.
    costs = [name for name in data.objectives if name in FIXED and name not in MAXIMIZED and name != "worst_class_drop"]
    figures = {f"front-{name}": front_figure(data, rows, name) for name in dict.fromkeys(["latency_ms", *costs])}
    summary = data.summary()
    figures |= search_figures(summary)
    # Pictures of the fastest; tables for every model.
    timed = (1,) if data.times is not None and len(data.times.models) > 1 else ()
    if data.times is not None:
        figures |= time_figures(data.times, timed)
    body = tag(
        "main",
        _header(data, rows, summary),
        *(_front_section(data, figures[key], key) for key in figures if key.startswith("front-")),
        _table_section(data, rows, front),
        _layers_section(data, front),
        runtime_section([*front, dense_row(data.baseline)] if front else []),
        time_section(data.times, timed, figures) if data.times is not None and timed else None,
        metric_section([*front, dense_row(data.baseline)], data.metrics),
        class_section(front),
        agreement_section(front),
        control_section(front),
        search_section(summary, data.trials),
        _how_section(data, front),
        _left_section(data),
        _footer(data),
    )
    return page(f"{data.study} · autocompress", body, figures)


def _header(data: ReportData, rows: Sequence[FrontRow], summary: SearchSummary) -> Html:
    best, dense = champion(rows), dense_row(data.baseline)
    title = (tag("p", "autocompress study", class_="kicker"), tag("h1", data.study))
    if best is None:
        return tag("header", *title, tag("p", "No model reached the final front.", class_="lead"))
    opened = best.test is not None and dense.test is not None
    reached = best.test if opened and best.test else best.accuracy
    reference = dense.test if opened and dense.test else dense.accuracy
    where = "test" if opened else "selection"
    lost = 100 * (reference.value - reached.value)
    change = f"{abs(lost):.2f} points {'less' if lost > 0 else 'more'} than dense"
    if abs(lost) < 0.005:
        change = "the accuracy of dense"
    role = "champion" if "champion" in best.aliases else "fastest of the front"
    faster = f"{1 / best.ratio.value:.1f} times as fast as" if best.ratio.value < 1 else "no faster than"
    lead = (
        f"The {role}, {best.version or best.name}, is {faster} the dense model and "
        f"{percent(best.size_ratio, 0)} of its size, with {change} on the {where} split."
        + (" Its latency reading is noisy." if best.noisy else "")
    )
    failed = summary.counts.get("failed", 0)
    on_front = sum(r.on_front for r in rows)
    took = f", {duration(sum(data.seconds.values()))}" if data.seconds else ""
    tiles = (
        (
            "Latency",
            times(best.ratio.value),
            f"{milliseconds(best.latency_ms.value)}, dense {milliseconds(dense.latency_ms.value)}",
        ),
        (f"Accuracy, {where} split", percent(reached.value), f"dense {percent(reference.value)}"),
        (
            "File size",
            times(best.size_ratio),
            f"{size(best.artifact.size_bytes)}, dense {size(dense.artifact.size_bytes)}",
        ),
        (
            "Models on the front",
            str(on_front),
            f"of {plural(summary.begun, 'candidate')}, {failed} failed{took}",
        ),
    )
    return tag(
        "header",
        *title,
        tag("p", lead, class_="lead"),
        tag(
            "div",
            *(
                tag(
                    "div",
                    tag("div", label, class_="label"),
                    tag("div", value, class_="value"),
                    tag("div", small, class_="small"),
                    class_="tile",
                )
                for label, value, small in tiles
            ),
            class_="tiles",
        ),
    )


def _front_section(data: ReportData, figure: Figure, key: str) -> Html:
    objective = key.removeprefix("front-")
    name = LABELS[objective].split(" (")[0]
    hidden = hidden_trials(data, figure, objective)
    epochs = {t.measurement.fidelity.epochs for t in data.trials if t.measurement is not None}
    word = "epoch" if epochs == {1.0} else "epochs"
    short = f" after {'/'.join(f'{e:g}' for e in sorted(epochs))} {word} of recovery" if epochs else ""
    note = (
        "Filled points are the final front: recovered in full, measured afresh, judged on the selection split; bars "
        "are 95% intervals. Faint points are the search's trials, judged on the validation split"
        f"{short}: they show where the search looked, and are not to be compared with the finalists."
    )
    if hidden:
        note += f" {plural(hidden, 'trial')} outside this view; double-click to see everything."
    return tag(
        "section",
        tag("h2", f"Accuracy against {name}"),
        tag("p", note, class_="note"),
        tag("div", id=key, class_="plot", role="img", aria_label=f"Accuracy against {name}; the table has the values"),
    )


def _table_section(data: ReportData, rows: Sequence[FrontRow], front: Sequence[FrontRow]) -> Html:
    off = [row for row in rows if not row.on_front]
    named = "" if data.versions else " Nothing is registered; the names are those that would be given."
    note = (
        "Fastest first. Accuracy is the runtime's, on the very bytes with this sha256. The front was chosen by "
        "accuracy on the selection split, which therefore flatters it a little; the test split was opened once, "
        "after that. A model is off it only if another one is better beyond noise; of models that noise does not let "
        "tell apart one stands for the others, which it names as tied." + named
    )
    rest = []
    if off:
        summary = tag(
            "summary",
            f"{plural(len(off), 'finalist')} off the front: dominated, tied with a member, or breaking a constraint",
        )
        rest.append(tag("details", summary, front_table(off)))
    if data.failed_finalists:
        failures = facts((f"trial {n}", reason) for n, reason in sorted(data.failed_finalists.items()))
        summary = tag("summary", f"{plural(len(data.failed_finalists), 'finalist')} failed", class_="bad")
        rest.append(tag("details", summary, failures))
    full = facts((r.version or r.name, tag("code", r.artifact.sha256)) for r in [*rows, dense_row(data.baseline)])
    rest.append(tag("details", tag("summary", "Every sha256 in full"), full))
    return tag(
        "section",
        tag("h2", "The front"),
        tag("p", note, class_="note"),
        front_table([*front, dense_row(data.baseline)]),
        *rest,
    )


def _layers_section(data: ReportData, front: Sequence[FrontRow]) -> Html | None:
    if not front or not data.structure.layers:
        return None
    key = tag(
        "div",
        tag("span", "8 bits or fewer", style="--swatch: var(--eight)"),
        tag("span", "16 or 32 bits", style="--swatch: var(--float)"),
        tag("span", "weights that are zero", class_="zeros"),
        tag("span", "channels cut away", style="--swatch: var(--track); --edge: var(--rule)"),
        class_="key",
    )
    note = (
        "One bar per layer, from input to output; its height is the share of output channels kept, nothing where the "
        "layer is left out. Read from the artifacts themselves."
    )
    return tag(
        "section",
        tag("h2", "What became of every layer"),
        tag("p", note, class_="note"),
        key,
        layer_strips(front, data.structure),
        tag("details", tag("summary", "Layer by layer in numbers"), layer_table(front, data.structure)),
    )


def _how_section(data: ReportData, front: Sequence[FrontRow]) -> Html:
    readings = [f.final.latency for f in data.finalists]
    protocol = None
    if readings:
        one = readings[0]
        noisy = sum(r.noisy for r in readings)
        protocol = tag(
            "p",
            f"Latency: {one.rounds} rounds, interleaved with the dense model, batch size {one.batch_size}, "
            f"{plural(one.threads, 'thread')}; median of per-round ratios times the dense median, bootstrap interval "
            f"over rounds; load average of the host before it {max(r.load for r in readings):.2f} at most. "
            + (f"{plural(noisy, 'reading')} stayed noisy after repeats." if noisy else "No reading was noisy."),
        )
    left = tag(
        "div",
        tag("h3", "Method"),
        *(tag("p", text) for text in data.how),
        protocol,
        tag("h3", "Host"),
        host_facts(data.baseline.host),
    )
    right = tag(
        "div",
        tag("h3", "Dense model"),
        facts(
            (
                *((f"accuracy, {role}", percent(e.value)) for role, e in data.baseline.accuracy.items()),
                ("multiply-adds", many(data.baseline.artifact.macs)),
                ("parameters", many(data.baseline.artifact.parameters)),
                ("torch and runtime agree to", f"{data.baseline.agreement:.1e}"),
            )
        ),
        join(tag("h3", "Lineage"), lineage_facts(data.lineage)) if data.lineage else None,
    )
    warned = sorted({(r.version or r.name, text) for r in front for text in r.warnings})
    return tag(
        "section",
        tag("h2", "How it was measured"),
        tag("div", left, right, class_="pair"),
        join(tag("h3", "Where the time went"), spans(data.seconds)) if data.seconds else None,
        join(tag("h3", "Warnings"), facts(warned)) if warned else None,
    )


def _left_section(data: ReportData) -> Html:
    left = data.structure.left_dense
    layers = plural(len(data.structure.layers), "layer")
    groups = plural(len(data.structure.groups), "group")
    found = f"{groups} of coupled channels and {layers} with weights could be compressed."
    told = facts((tag("code", item.name), item.reason) for item in left) if left else tag("p", "Nothing was left out.")
    return tag("section", tag("h2", "What was left dense, and why"), tag("p", found, class_="note"), told)


def _footer(data: ReportData) -> Html:
    when = f" on {data.created:%Y-%m-%d at %H:%M %Z}".rstrip() if data.created else ""
    return tag("footer", f"Made by autocompress{when}. This page loads nothing from the network.")
