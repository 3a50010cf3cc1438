"""A running study as one calm line."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from autocompress.report.words import duration, plural

#: Least seconds between two plain lines of the same stage.
EVERY_S = 5.0


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
        complete: int | None = None,
        left_open: int = 0,
    ) -> None:
        """A trial of the search was judged, or ended.

        Args:
            done: trials that ended, failed ones as well, or were judged at a rung at least.
            total: trials asked for.
            failed: those that failed.
            front_size: members of the feasible front so far.
            hypervolume: normalised, in [0, 1].
            elapsed: seconds since the search began.
            left: seconds that it will still take, as far as one can tell; None if one cannot.
            complete: those that were trained in full; None, or as many as did not fail, to say nothing of it.
            left_open: those that run, or may still go on: with any, the search is not over.
        """
        began = self._begin("search")
        over = done >= total and not left_open
        passed = [f"{complete} complete"] if complete not in (None, done - failed) else []
        state = [*passed, *([f"{failed} failed"] if failed else [])]
        state += [f"front of {front_size}", f"hypervolume {hypervolume:.3f}"]
        remains = [f"{duration(left)} left"] if left and not over else []
        line = _line("search", ", ".join([f"{done}/{plural(total, 'trial')}", *state, duration(elapsed), *remains]))
        if self._live is None:
            self._tell(line, at_once=began or over)
        elif not over:
            self._live.update(self._bar(done, total, self._fitted([f"{done}/{total}", *state, *remains])), refresh=True)
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

    def _fitted(self, words: list[str]) -> str:
        """Joined, as far as they fit the terminal: the front's size goes first, then how many are complete."""
        for dropped in ("front of", "complete"):
            if len("search ") + len(", ".join(words)) > self._console.width:
                words = [word for word in words if dropped not in word]
        return ", ".join(words)

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
