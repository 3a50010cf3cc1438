"""Rungs of rising cost: who goes on, told from the ledger's trials alone, so that a resumed search decides alike.

Asynchronous successive halving (Li et al., 2020), with one difference that two objectives ask for: candidates are
compared within bands of latency, by non-dominated rank. A fast candidate of middling accuracy has to beat its like, not
the dense model.

References:
    Li et al., 2020, "A System for Massively Parallel Hyperparameter Tuning" (ASHA); Schmucker et al., 2021,
    "Multi-objective Asynchronous Successive Halving".
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import moocore
import numpy as np

from autocompress.records import Fidelity, Plan, RungResult, TrialRecord, starts_untrained
from autocompress.search.problem import Problem
from autocompress.search.standings import Row, Standings, went_on

#: Two candidates whose latencies are within this factor of each other are compared by the check of a rung.
_ALIKE = 1.3
#: Pairs that the check of a rung needs.
_PAIRS = 8
#: Kendall's τ below which a rung does not tell which candidates will be good.
LEAST_TAU = 0.3
#: Candidates at the first rung before some are trained in full to check it, and how many of like latency are: all of
#: their pairs make ten.
_CHECK_AFTER, _CHECKED = 10, 5


@dataclass(frozen=True)
class Ladder:
    """The rungs of a search.

    Attributes:
        rungs: fidelities with rising epochs; a candidate that has passed the last is complete.
        reduction: of so many candidates judged at a rung, one goes on.
        bands: of latency, at most.
        problem: what is optimized.
    """

    rungs: tuple[Fidelity, ...]
    reduction: int
    bands: int
    problem: Problem
    _standings: Standings = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Nothing is known of any trial yet."""
        object.__setattr__(self, "_standings", Standings(self.last, self.problem))

    @property
    def last(self) -> int:
        """Index of the last rung."""
        return len(self.rungs) - 1

    def first(self, plan: Plan, begin: int) -> int:
        """Rung at which a new candidate is judged first.

        Of one that is not trained at all every rung says the same; of fresh weights one without training says nothing.

        Args:
            plan: of the candidate.
            begin: the first rung in use.
        """
        if not plan.trains:
            return self.last
        if not starts_untrained(plan):
            return begin
        return next((i for i in range(begin, self.last) if self.rungs[i].epochs > 0.0), self.last)

    def promotable(
        self,
        trials: Sequence[TrialRecord],
        *,
        begin: int = 0,
        final: bool = False,
        probes: Collection[int] = (),
    ) -> list[int]:
        """Numbers of paused trials that may go on, the most useful first.

        In each band of a rung one of every `reduction` candidates goes on, those that went on already counted, if it is
        among so many best. The highest rungs come first; within a rung, the band of which fewest went on.

        Args:
            trials: of the ledger.
            begin: the first rung in use; what waits at one below it goes on in any case.
            final: nothing new will come: in every band of a rung that no running trial comes to any more, at least one
                goes on.
            probes: of `probes`: what goes on for their sake takes nobody's place.
        """
        standings = self._standings
        standings.update(trials)
        # What a running trial is judged at next; it may come to every rung above as well.
        lowest = min((_next_rung(t, begin) for t in standings.running), default=self.last)
        found: list[int] = []
        for rung in reversed(range(self.last)):
            stayed = standings.stayed(rung)
            waiting = {number for number, trial in stayed.items() if trial.state == "paused"}
            if not waiting:
                continue
            if rung < begin:
                found += sorted(waiting)
                continue
            ends = final and lowest > rung
            offers: list[tuple[int, int, int]] = []
            for band in self._bands(standings.rows(rung)):
                quota = math.ceil(len(band) / self.reduction) if ends else len(band) // self.reduction
                gone = sum(row.number not in stayed and row.number not in probes for row in band)
                # Who is best changes with every newcomer: by that alone nearly all would go on in turn.
                if gone < quota:
                    left = [number for number in _best(band, quota) if number in waiting][: quota - gone]
                    offers += [(gone + place, place, number) for place, number in enumerate(left)]
            found += [number for *_, number in sorted(offers)]
        return found

    def _bands(self, rows: Sequence[Row]) -> list[Sequence[Row]]:
        """The candidates of each band of latency, bands of like numbers, fastest first."""
        count = max(1, min(self.bands, len(rows) // (2 * self.reduction)))
        ends = [round(i * len(rows) / count) for i in range(count + 1)]
        return [rows[a:b] for a, b in pairwise(ends)]

    # --- does the first rung rank? ------------------------------------------------------------------------------

    def probes(self, trials: Sequence[TrialRecord], *, begin: int) -> list[int]:
        """Trials that are trained in full for the sake of the check, promoted or not; they are chosen once.

        Five whose latencies are within a factor of 1.3 of each other, from where most were judged; first those that
        went on, as they are trained anyway, then others at even distances in their order at the rung.

        Args:
            trials: of the ledger.
            begin: the first rung in use, which is checked.

        Returns:
            Numbers; none while there are too few.
        """
        judged = [t for t in trials if _passed(t, begin) and t.state != "stopped"]
        if begin == self.last or not self.problem.learnt or len(judged) < _CHECK_AFTER:
            return []
        latency = {t.number: _values(t, begin).get("latency_ms", 1.0) for t in judged}
        judged.sort(key=lambda t: latency[t.number])
        ordered = [latency[t.number] for t in judged]
        alike = max(
            (judged[i : bisect_right(ordered, _ALIKE * fastest)] for i, fastest in enumerate(ordered)),
            key=lambda some: (len(some), sum(went_on(t, begin) for t in some)),
        )
        if len(alike) < _CHECKED:
            return []
        points = self.problem.points([_values(t, begin) for t in alike])
        order = np.argsort(points[:, self.problem.learnt[0]], kind="stable")
        gone = [alike[i].number for i in order if went_on(alike[i], begin)][: _CHECKED - 2]
        rest = [alike[i].number for i in order if alike[i].number not in gone]
        places = np.linspace(0, len(rest) - 1, _CHECKED - len(gone)).round().astype(int)
        return [*gone, *(rest[i] for i in places)]

    def checked(self, trials: Sequence[TrialRecord], begin: int) -> tuple[int, str]:
        """The first rung that ranks well enough, and what there is to say; unchanged while too little is known.

        Where training changes no objective there is nothing to check.

        Args:
            trials: of the ledger.
            begin: the first rung in use.

        Returns:
            Index of a rung, and a sentence, empty if the check has not been made.
        """
        tau, pairs = rank_agreement(trials, begin, self.problem)
        if begin >= self.last or pairs < _PAIRS:
            return begin, ""
        words = f"{self.rungs[begin].epochs:g} epochs rank candidates as full training does with Kendall tau {tau:.2f}"
        words += f" ({pairs} pairs of like latency)"
        if tau >= LEAST_TAU:
            return begin, f"{words}: the first rung stays"
        following = begin + 1
        while following < self.last and rank_agreement(trials, following, self.problem)[0] < LEAST_TAU:
            following += 1
        return following, (
            f"{words}, under {LEAST_TAU:g}: the first rung is lengthened to {self.rungs[following].epochs:g} epochs"
        )

    def unchecked(self, trials: Sequence[TrialRecord], begin: int) -> str:
        """What there is to say where the search ends before `checked` knows enough; empty where it never would."""
        if begin >= self.last or not self.problem.learnt:
            return ""
        pairs = rank_agreement(trials, begin, self.problem)[1]
        return (
            f"whether {self.rungs[begin].epochs:g} epochs rank candidates as full training does was not found out: it "
            f"takes {_PAIRS} pairs of like latency that are trained in full, and there are {pairs}"
        )


def rank_agreement(trials: Sequence[TrialRecord], rung: int, problem: Problem) -> tuple[float, int]:
    """How well a rung ranks candidates of like latency as full training does.

    Args:
        trials: of the ledger.
        rung: its index.
        problem: what is optimized.

    Returns:
        Kendall's τ over pairs of complete trials that differ in the end and whose latencies are within a factor of
        1.3, ties at the rung counting as 0, in the first objective that training changes; and the number of pairs. τ is
        0 without a pair.
    """
    done = [t for t in trials if t.state == "complete" and t.measurement is not None and _passed(t, rung)]
    if not done or not problem.learnt:
        return 0.0, 0
    column = problem.learnt[0]
    early = problem.points([_values(t, rung) for t in done])[:, column]
    late = problem.points([_complete(t) for t in done])[:, column]
    latency = np.array([_complete(t).get("latency_ms", 1.0) for t in done])
    signs = [
        float(np.sign(early[i] - early[j]) * np.sign(late[i] - late[j]))
        for i in range(len(done))
        for j in range(i)
        if max(latency[i], latency[j]) <= _ALIKE * min(latency[i], latency[j]) and late[i] != late[j]
    ]
    return (float(np.mean(signs)) if signs else 0.0), len(signs)


def _best(band: Sequence[Row], count: int) -> list[int]:
    """Numbers of the best candidates of a band, best first; what breaks a bound of cost comes after all others."""
    found: list[int] = []
    for feasible in (True, False):
        rows = [row for row in band if row.feasible == feasible]
        if rows and len(found) < count:
            found += [rows[i].number for i in best_first(np.stack([row.point for row in rows]), count - len(found))]
    return found


def best_first(points: np.ndarray, count: int | None = None) -> list[int]:
    """Indices by non-dominated rank; within a rank by how much hypervolume each adds to it, largest first.

    Args:
        points: shape (n, m), minimized, finite.
        count: how many are wanted; all of them by default.

    References:
        Deb et al., 2002 (rank); Emmerich, Beume and Naujoks, 2005 (contribution).
    """
    count = len(points) if count is None else count
    if len(points) == 0 or count <= 0:
        return []
    rank = np.asarray(moocore.pareto_rank(points))
    low, high = points.min(axis=0), points.max(axis=0)
    unit = (points - low) / np.where(high > low, high - low, 1.0)
    found: list[int] = []
    for value in np.unique(rank):
        inside = np.flatnonzero(rank == value)
        # Beyond the worst, so that the ends of a front count as well.
        gain = np.asarray(moocore.hv_contributions(unit[inside], ref=np.full(points.shape[1], 1.1)))
        found += [int(inside[i]) for i in np.argsort(-gain, kind="stable")]
        if len(found) >= count:
            break
    return found[:count]


def _passed(trial: TrialRecord, rung: int) -> bool:
    """Whether the trial was judged at a rung, and has not failed since."""
    return trial.state != "failed" and any(r.fidelity.rung == rung for r in trial.rungs)


def _next_rung(trial: TrialRecord, begin: int) -> int:
    """At which a running trial is judged next, at the earliest."""
    return max(begin, trial.rungs[-1].fidelity.rung + 1) if trial.rungs else begin


def _result(trial: TrialRecord, rung: int) -> RungResult:
    return next(r for r in trial.rungs if r.fidelity.rung == rung)


def _values(trial: TrialRecord, rung: int) -> dict[str, float]:
    return {name: estimate.value for name, estimate in _result(trial, rung).values.items()}


def _complete(trial: TrialRecord) -> dict[str, float]:
    return {k: e.value for k, e in trial.measurement.values.items()} if trial.measurement is not None else {}


def fidelities(epochs: Iterable[float]) -> tuple[Fidelity, ...]:
    """Rungs numbered from 0."""
    return tuple(Fidelity(epochs=e, rung=i) for i, e in enumerate(epochs))
