"""How the stages tell what they are doing, whoever listens."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Protocol

from autocompress.records import Record


class SearchState(Record):
    """Where a search stands.

    Attributes:
        done, total, failed: trials; done are those that were judged at a rung at least.
        complete: trials that were trained in full.
        open: trials that run, or that may still go on.
        front_size: members of the feasible front so far.
        hypervolume: normalised, in [0, 1].
        elapsed_s, left_s: seconds; `left_s` is None before the first trial ends.
    """

    done: int
    total: int
    failed: int
    complete: int = 0
    open: int = 0
    front_size: int
    hypervolume: float
    elapsed_s: float
    left_s: float | None


class Reporter(Protocol):
    """Listens to a running study."""

    def stage(self, name: str, detail: str) -> None:
        """A stage began, or has something to say."""

    def searched(self, state: SearchState) -> None:
        """A trial ended."""


class Silent:
    """Nobody listens."""

    def stage(self, name: str, detail: str) -> None:
        """Nothing."""

    def searched(self, state: SearchState) -> None:
        """Nothing."""


class Together:
    """Several listeners as one."""

    def __init__(self, *reporters: Reporter) -> None:
        self._reporters = reporters

    def stage(self, name: str, detail: str) -> None:
        """Pass on to each."""
        for reporter in self._reporters:
            reporter.stage(name, detail)

    def searched(self, state: SearchState) -> None:
        """Pass on to each."""
        for reporter in self._reporters:
            reporter.searched(state)


_current: ContextVar[Reporter] = ContextVar("autocompress_reporter", default=Silent())  # noqa: B039 - stateless


def reporter() -> Reporter:
    """The listener of this context."""
    return _current.get()


@contextlib.contextmanager
def reporting_to(listener: Reporter) -> Iterator[None]:
    """Let `listener` hear the stages that run inside."""
    token = _current.set(listener)
    try:
        yield
    finally:
        _current.reset(token)
