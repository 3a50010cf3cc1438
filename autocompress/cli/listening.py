"""The terminal as a listener of a running study."""

from __future__ import annotations

from autocompress.pipeline.progress import SearchState
from autocompress.report.terminal import Progress


class TerminalReporter(Progress):
    """One calm line on standard error."""

    def searched(self, state: SearchState) -> None:
        """Show where the search stands."""
        self.update(
            state.done,
            state.total,
            state.failed,
            complete=state.complete,
            left_open=state.open,
            front_size=state.front_size,
            hypervolume=state.hypervolume,
            elapsed=state.elapsed_s,
            left=state.left_s,
        )
