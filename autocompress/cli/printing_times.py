"""What `autocompress profile` prints: where the time went."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from autocompress.cli.printing import console
from autocompress.report.times import Change, Unit, unit_of
from autocompress.report.words import milliseconds, times

if TYPE_CHECKING:
    from autocompress.pipeline.times import Profiled

#: Layers printed; of a deeper network, those whose time changes most.
SHOWN = 20


def print_profiled(found: Profiled) -> None:
    """Latencies, then layers and kinds of operation of each file beside the first, then where the picture is."""
    out = console()
    first = found.times.models[0]
    out.print(f"[bold]{escape(found.title)}[/bold]: {escape(found.times.runtime)}, batch {first.latency.batch_size}")
    table = _table("", "latency", "to the first", "nodes", "profiler, a node")
    for model in found.times.models:
        reading = model.latency
        table.add_row(
            Text(model.name),
            milliseconds(reading.latency_ms.value) + (", noisy" if reading.noisy else ""),
            times(reading.ratio.value),
            str(len(model.nodes)),
            f"{1000 * model.cost_ms:.1f} µs",
        )
    out.print(table)
    unit = unit_of(found.times)
    for comparison in found.comparisons:
        shown = _most(comparison.layers)
        title = f"{first.name} → {comparison.name}, {unit.name}"
        more = f", the {SHOWN} that change most" if len(shown) < len(comparison.layers) else ""
        for name, changes in ((f"layers{more}", shown), ("kinds of operation", comparison.kinds)):
            out.print()
            out.print(_changes(f"{title}: {name}", changes, unit))
    out.print("\nWhat the profiler costs at every node is taken off: the nodes of a file add up to its latency.")
    out.print(f"picture   {escape(found.page)}", soft_wrap=True)


def _most(changes: Sequence[Change]) -> list[Change]:
    """In the order of computation."""
    kept = sorted(changes, key=lambda c: -abs(c.difference))[:SHOWN]
    return [c for c in changes if c in kept]


def _changes(title: str, changes: Sequence[Change], unit: Unit) -> Table:
    table = _table("", "before", "after", "difference", "share", title=title)
    for change in changes:
        table.add_row(
            Text(change.part),
            unit.told(change.before),
            unit.told(change.after),
            unit.told(change.difference, signed=True),
            "" if change.share is None else f"{100 * change.share:.0f}%",
        )
    return table


def _table(*columns: str, title: str | None = None) -> Table:
    table = Table(
        title=escape(title) if title else None,
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        header_style="dim",
        padding=(0, 2, 0, 0),
    )
    for name in columns:
        table.add_column(name, justify="right" if name else "left", no_wrap=bool(name))
    return table
