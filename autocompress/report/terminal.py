"""The front as a table, and a running study as one calm line."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from autocompress.records import Baseline, Estimate, Finalist, Structure, Version
from autocompress.report.data import FrontRow, champion_first, dense_row, finalist_rows
from autocompress.report.words import duration, milliseconds, percent, plural, size, times

#: Least seconds between two plain lines of the same stage.
EVERY_S = 5.0


def front_table(
    finalists: Sequence[Finalist],
    baseline: Baseline,
    *,
    versions: Sequence[Version] = (),
    structure: Structure | None = None,
    objectives: Sequence[str] = ("accuracy", "latency_ms"),
) -> Table:
    """The final front, fastest first, with the dense model below it. Fits 80 columns.

    Behind ± is the wider side of the 95% interval, in points.

    Args:
        finalists: those with `on_front` are shown.
        baseline: the dense model.
        versions: registered versions; without any, the aliases are those that would be given.
        structure: makes the plans' words longer, telling of how many; for terminals of over 110 columns.
        objectives: what the knee weighs.
    """
    rows = finalist_rows(finalists, baseline, versions=versions, structure=structure, objectives=objectives)
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("model", no_wrap=True)
    for name in ("accuracy", "test", "latency", "to dense", "size"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("version, plan", ratio=1)
    for row in rows:
        if row.on_front:
            table.add_row(*_cells(row), style="bold" if "champion" in row.aliases else "")
    table.add_row(*_cells(dense_row(baseline)), style="yellow")
    return table


class Progress:
    """Tells on stderr how a study goes: one line that is redrawn on a terminal, plain lines elsewhere.

    Elsewhere a new stage is told at once, and the same stage again after five seconds at the earliest; the last state
    of a search is always told.

    Args:
        stream: where to write; stderr by default.
        clock: seconds that never go back.

    Examples:
        >>> with Progress() as progress:  # doctest: +SKIP
        ...     progress.update(3, 24, 0, front_size=2, hypervolume=0.31, elapsed=40.0, left=280.0)
    """

    def __init__(self, stream: TextIO | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = Console(file=stream or sys.stderr, highlight=False)
        self._clock = clock
        self._live: Live | None = None
        self._stage = ""
        self._told: float | None = None

    def __enter__(self) -> Self:
        """Start to draw."""
        if self._console.is_terminal:
            self._live = Live(console=self._console, transient=True, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the terminal as it was."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def stage(self, name: str, detail: str) -> None:
        """A stage began, or has something to say.

        Args:
            name: such as ``"finalists"``.
            detail: one sentence.
        """
        began = self._begin(name)
        line = _line(name, detail)
        if self._live is None:
            self._tell(line, at_once=began)
        elif began:
            self._keep(self._live, line)
        else:
            self._live.update(line, refresh=True)

    def update(
        self,
        done: int,
        total: int,
        failed: int,
        front_size: int,
        hypervolume: float,
        elapsed: float,
        left: float | None,
    ) -> None:
        """A trial of the search ended.

        Args:
            done: trials that ended, failed ones as well.
            total: trials asked for.
            failed: those that failed.
            front_size: members of the feasible front so far.
            hypervolume: normalised, in [0, 1].
            elapsed: seconds since the search began.
            left: seconds that it will still take, as far as one can tell; None if one cannot.
        """
        began = self._begin("search")
        state = [f"{failed} failed"] if failed else []
        state += [f"front of {front_size}", f"hypervolume {hypervolume:.3f}"]
        remains = [f"{duration(left)} left"] if left is not None and done < total else []
        line = _line("search", ", ".join([f"{done}/{plural(total, 'trial')}", *state, duration(elapsed), *remains]))
        if self._live is None:
            self._tell(line, at_once=began or done >= total)
        elif done < total:
            self._live.update(self._bar(done, total, ", ".join([f"{done}/{total}", *state, *remains])), refresh=True)
        else:
            self._keep(self._live, line)

    def _bar(self, done: int, total: int, text: str) -> Table:
        # The text comes first: on a narrow terminal the bar gives way.
        room = self._console.width - len("search ") - len(text) - 2
        row = Table.grid(padding=(0, 1, 0, 0))
        bar = ProgressBar(
            total=max(1, total), completed=done, width=min(28, room), style="bright_black", complete_style="cyan"
        )
        row.add_row(
            Text("search", style="bold"), *([bar] if room >= 4 else []), Text(text, overflow="ellipsis", no_wrap=True)
        )
        return row

    def _keep(self, live: Live, line: Text) -> None:
        """Print a line above the live one, which starts anew."""
        live.update(Text(""), refresh=True)
        self._console.print(line)

    def _begin(self, stage: str) -> bool:
        began, self._stage = stage != self._stage, stage
        return began

    def _tell(self, line: Text, *, at_once: bool) -> None:
        now = self._clock()
        if at_once or self._told is None or now - self._told >= EVERY_S:
            self._told = now
            # A log has no width: one state is one line.
            self._console.print(line, soft_wrap=True)


def _line(stage: str, detail: str) -> Text:
    return Text.assemble((f"{stage:<10}", "bold"), " ", detail)


def _cells(row: FrontRow) -> list[Text]:
    test = f"{percent(row.test.value)} {_half_width(row.test)}" if row.test else "not opened"
    # Text, not str: rich reads markup in a str, and names come from users.
    known = Text(" ".join([x for x in (row.version, *champion_first(row.aliases)) if x]))
    if row.noisy:
        known.append(" noisy latency", style="red")
    known.append(f"\n{row.plan}" if known else row.plan, style="dim not bold")
    cells = (
        row.name,
        f"{percent(row.accuracy.value)} {_half_width(row.accuracy)}".rstrip(),
        test.rstrip(),
        milliseconds(row.latency_ms.value),
        times(row.ratio.value),
        size(row.artifact.size_bytes),
    )
    return [*(Text(cell) for cell in cells), known]


def _half_width(estimate: Estimate) -> str:
    """The wider side of the interval, in points."""
    side = max(estimate.high - estimate.value, estimate.value - estimate.low)
    return f"±{100 * side:.1f}" if side > 0 else ""
