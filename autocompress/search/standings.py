"""Who was judged at each rung, kept up to date: a long search asks it after every result, and little has changed."""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from operator import attrgetter, is_
from typing import NamedTuple

import numpy as np

from autocompress.records import RungResult, TrialRecord, meets
from autocompress.search.problem import Problem

#: Of rows: of like latency the earlier trial first, whatever was told first.
_ORDER = attrgetter("latency", "number")


class Row(NamedTuple):
    """What is compared of a candidate at a rung."""

    number: int
    point: np.ndarray
    latency: float
    feasible: bool


class Standings:
    """Candidates by rung, fastest first, and which of them went on; those that have failed since are left out.

    A function of the trials alone: what it remembers of the last ones only saves it from looking at all of them again.

    Args:
        rungs: how many.
        problem: what is optimized.
    """

    def __init__(self, rungs: int, problem: Problem) -> None:
        self._problem = problem
        self._forget(rungs)

    def _forget(self, rungs: int) -> None:
        self._seen: list[TrialRecord] = []
        self._rows: list[list[Row]] = [[] for _ in range(rungs)]
        self._stayed: list[dict[int, TrialRecord]] = [{} for _ in range(rungs)]
        self._running: dict[int, TrialRecord] = {}

    def update(self, trials: Sequence[TrialRecord]) -> None:
        """Take in what changed since the last call.

        Args:
            trials: of the ledger, in its order.
        """
        if len(self._seen) > len(trials):
            self._forget(len(self._rows))
        changed = [i for i, same in enumerate(map(is_, self._seen, trials)) if not same]
        # All leave before any enters, should a trial have moved.
        for i in changed:
            self._leave(self._seen[i])
        for trial in (*(trials[i] for i in changed), *trials[len(self._seen) :]):
            self._enter(trial)
        self._seen = list(trials)

    def rows(self, rung: int) -> list[Row]:
        """All that were judged at a rung, fastest first."""
        return self._rows[rung]

    def stayed(self, rung: int) -> dict[int, TrialRecord]:
        """Those that did not go on from a rung, so far or for good."""
        return self._stayed[rung]

    @property
    def running(self) -> list[TrialRecord]:
        """Those that run."""
        return list(self._running.values())

    def _enter(self, trial: TrialRecord) -> None:
        if trial.state == "running":
            self._running[trial.number] = trial
        for rung, result in self._below(trial):
            insort(self._rows[rung], self._row(trial.number, result), key=_ORDER)
            if not went_on(trial, rung):
                self._stayed[rung][trial.number] = trial

    def _leave(self, trial: TrialRecord) -> None:
        self._running.pop(trial.number, None)
        for rung, _ in self._below(trial):
            self._rows[rung] = [row for row in self._rows[rung] if row.number != trial.number]
            self._stayed[rung].pop(trial.number, None)

    def _below(self, trial: TrialRecord) -> list[tuple[int, RungResult]]:
        """What the trial was worth at each rung, unless it has failed."""
        results = () if trial.state == "failed" else trial.rungs
        return [(r.fidelity.rung, r) for r in results if r.fidelity.rung < len(self._rows)]

    def _row(self, number: int, result: RungResult) -> Row:
        values = {name: estimate.value for name, estimate in result.values.items()}
        return Row(
            number=number,
            point=self._problem.points([values])[0],
            latency=values.get("latency_ms", 0.0),
            feasible=meets(result, self._problem.cost_bounds),
        )


def went_on(trial: TrialRecord, rung: int) -> bool:
    """Whether a trial that was judged at a rung was promoted from it."""
    return trial.state in ("running", "complete") or trial.rungs[-1].fidelity.rung > rung
