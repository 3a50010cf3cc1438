"""Proposals from a model: the candidate with the largest expected hypervolume improvement among many cheap ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import moocore
import numpy as np

from autocompress.records import ParamValue, Plan, TrialRecord
from autocompress.rng import derive_seed
from autocompress.search.ehvi import expected_improvement
from autocompress.search.problem import Problem
from autocompress.search.samplers import Surrogate
from autocompress.search.surrogate import Fitter, PlanModel, measured_of
from autocompress.search.surrogate_data import LAST, Book, Row, ask_guide, axes_of
from autocompress.search.variation import Drawn, draw_distinct, vary

if TYPE_CHECKING:
    from autocompress.search.ledger import SearchSpace

#: Share of a trial's time that proposing may take, and what it may take in any case, in seconds.
_SHARE, _LEAST_S = 0.03, 0.02
#: What a trial is taken to last before one has ended, in seconds.
_UNKNOWN_S = 5.0
#: Trials whose time counts, the latest.
_TIMED = 50
#: New candidates at once, at least: fewer are not worth a look.
_FEWEST_DRAWN = 64
#: Draws that an exploring proposal is the first promising one of.
_EXPLORED = 16
#: Seconds that a trial has to take for it to be worth a while to avoid it.
_WORTHWHILE_S = 0.2
#: Largest number of the best members of the pool that new candidates are made from, beside the front.
_PARENTS = 16
#: Open trials that are believed, the latest.
_MOST_OPEN = 200
#: Results without which nobody is called hopeless, and how far behind a member of the front, as a share of the box, a
#: candidate has to be even if it is better than predicted by so many standard deviations in every objective.
_CERTAIN_AFTER, _MARGIN, _OPTIMISM = 12, 0.02, 2.0


@dataclass
class _Pool:
    """Candidates that were drawn and not proposed, the best first; what is known of each is asked and computed once.

    Attributes:
        drawn: the candidates.
        known: the guide's features of each; None without a guide.
        costs: the guide's costs, shape (n, axes).
        means, stds: what `model` predicts of the first of them, shape (k, axes), k <= n.
        model: that predicted.
    """

    drawn: list[Drawn]
    known: list[np.ndarray | None]
    costs: np.ndarray
    means: np.ndarray
    stds: np.ndarray
    model: PlanModel | None = None

    @classmethod
    def empty(cls, axes: int) -> _Pool:
        """Without any."""
        return cls([], [], np.empty((0, axes)), np.empty((0, axes)), np.empty((0, axes)))

    def add(self, found: Sequence[tuple[Drawn, np.ndarray | None, np.ndarray]]) -> None:
        """More, with features and costs, at the end."""
        self.drawn += [drawn for drawn, _, _ in found]
        self.known += [known for _, known, _ in found]
        self.costs = np.vstack([self.costs, *(costs for _, _, costs in found)])

    def keep(self, indices: Sequence[int]) -> None:
        """Only these, in this order; all of them were predicted."""
        self.drawn = [self.drawn[i] for i in indices]
        self.known = [self.known[i] for i in indices]
        self.costs, self.means, self.stds = self.costs[indices], self.means[indices], self.stds[indices]

    def predict(self, fitter: Fitter, model: PlanModel) -> None:
        """Bring `means` and `stds` up to date."""
        done = len(self.means) if model is self.model else 0
        left = [(self.known[i], self.drawn[i].params) for i in range(done, len(self.drawn))]
        if left:
            means, stds = model.predict(fitter.features(left), self.costs[done:])
            self.means, self.stds = np.vstack([self.means[:done], means]), np.vstack([self.stds[:done], stds])
        self.model = model


class SurrogateProposer:
    """Proposes by a `PlanModel` of everything that the ledger knows.

    All that it learns from is the ledger's: a new one goes on with the same ledger. What it keeps between calls (rows,
    model, pool, times) saves work, and lets good candidates stay; so a resumed search proposes others that are as good.
    For each call a random stream is derived from the seed and the number of trials. How many candidates are drawn
    depends on how long that took, in steps of powers of two; with a clock that stands still, proposals depend on the
    seed and on the trials at each call alone.

    Args:
        config: settings.
        space: that candidates are drawn from.
        problem: what is optimized.
        seed: of all draws.
        clock: seconds, rising.
    """

    def __init__(
        self,
        config: Surrogate,
        space: SearchSpace,
        problem: Problem,
        seed: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._config, self._space, self._problem, self._seed, self._clock = config, space, problem, seed, clock
        self._axes = axes_of(problem)
        self._book = Book(problem, self._axes)
        self._fitter = Fitter(self._book)
        self._pool = _Pool.empty(len(self._axes))
        self._model: PlanModel | None = None
        self._stale = True
        self._draw_s = 0.0  # of one candidate, as last seen
        self._for_fits = self._for_draws = 0.0  # seconds that may still be spent on either; below 0 they are owed

    def propose(self, trials: Sequence[TrialRecord]) -> dict[str, ParamValue]:
        """Parameters of the next candidate: see `Proposer`."""
        rng = np.random.default_rng(derive_seed(self._seed, "propose", len(trials)))
        self._read(trials)
        judged = sum(bool(row.levels) for row in self._rows())
        if judged < max(1, self._config.startup_trials):
            return self._drawn(rng)
        began = self._clock()
        with _one_thread():
            self._refresh(rng)
            found = self._explored(rng) if rng.uniform() < self._config.exploration else None
            if found is None:
                found = self._best(rng)
        self._for_draws -= self._clock() - began
        return self._drawn(rng) if found is None else found

    def hopeless(self, plan: Plan, trials: Sequence[TrialRecord]) -> str | None:
        """Why a plan need not be built, or trained any further, in words; None to do so.

        Let each objective be two standard deviations better than predicted, from what its trial was judged at lower
        rungs, if it was. The plan is hopeless if it lies outside of the box even so, once six trials are complete; or
        if a member of the front is better by 0.02 of the box in every objective, once twelve are. Never for a plan that
        brings the model nothing to go by, and never where a trial takes less than 0.2 s, as nothing would be saved.
        """
        self._read(trials)
        rows = self._rows()
        complete = sum(LAST in row.levels for row in rows)
        if complete < _CERTAIN_AFTER // 2 or self._trial_s() < _WORTHWHILE_S:
            return None
        known, costs = ask_guide(self._problem.guide, plan, self._axes)
        params: dict[str, ParamValue] | None = None
        if self._problem.guide is None:
            params = next((t.params for t in reversed(trials) if t.plan == plan), None)
        if known is None and params is None:
            return None
        with _one_thread():
            if self._model is None or self._model.results < complete // 2:
                self._fit(np.random.default_rng(derive_seed(self._seed, "hopeless", len(trials))))
            model = self._model
            if model is None or model.results < _CERTAIN_AFTER // 4:
                return None
            own = [row for row in rows if row.key == plan.key and row.levels and row.open][:1]
            measured = measured_of(own, len(self._axes)) if own else None
            means, stds = model.predict(self._fitter.features([(known, params or {})]), costs[None], measured)
        names, hoped = self._problem.objectives, means - _OPTIMISM * stds
        told = f"predicted {_words(names, means[0])}, at best {_words(names, hoped[0])}"
        if self._outside(means, stds)[0]:
            return f"{told}, outside of the box (shares of it, less is better)"
        ahead = self._ahead(means, stds)[0] if complete >= _CERTAIN_AFTER else None
        if ahead is None:
            return None
        return (
            f"{told}, behind trial {ahead.number} with {_words(names, ahead.levels[LAST])} (shares of the box, less is "
            "better)"
        )

    def _ahead(self, means: np.ndarray, stds: np.ndarray) -> list[Row | None]:
        """For each candidate the member of the front that is better even if all is better than predicted, or None."""
        m = len(self._problem.objectives)
        hoped = means[:, :m] - _OPTIMISM * stds[:, :m]
        front = self._book.objectives(self._book.front)
        if not len(front):
            return [None] * len(hoped)
        better = np.all(front[None, :, :] + _MARGIN <= hoped[:, None, :], axis=2)
        first = np.argmin(np.where(better, front.sum(axis=1), np.inf), axis=1)
        behind = np.any(better, axis=1)
        return [self._book.front[i] if lost else None for i, lost in zip(first, behind, strict=True)]

    def _outside(self, means: np.ndarray, stds: np.ndarray) -> np.ndarray:
        """Which candidates lie outside of the box even if all is better than predicted; shape (n,)."""
        m = len(self._problem.objectives)
        found: np.ndarray = np.any(means[:, :m] - _OPTIMISM * stds[:, :m] >= 1.0, axis=1)
        return found

    def _lost(self, means: np.ndarray, stds: np.ndarray) -> np.ndarray:
        """Which candidates are outside of the box or far behind the front; shape (n,)."""
        behind = np.array([row is not None for row in self._ahead(means, stds)], dtype=bool)
        found: np.ndarray = np.logical_or(self._outside(means, stds), behind)
        return found

    # --- what is known --------------------------------------------------------------------------------------------

    def _read(self, trials: Sequence[TrialRecord]) -> None:
        version = self._book.encoder.version
        self._stale |= self._book.read(trials)
        if version != self._book.encoder.version:
            self._stale, self._model = True, None  # it was fitted to other columns

    def _rows(self) -> list[Row]:
        return list(self._book.rows.values())

    def _trial_s(self) -> float:
        latest = (row.seconds for row in reversed(self._book.rows.values()) if row.levels and row.seconds is not None)
        seconds = list(islice(latest, _TIMED))
        return float(np.mean(seconds)) if seconds else _UNKNOWN_S

    # --- model and pool -------------------------------------------------------------------------------------------

    def _refresh(self, rng: np.random.Generator) -> None:
        """Fit again and draw new candidates on credit: not before the time of earlier ones has been allowed."""
        allowed = 0.5 * max(_LEAST_S, _SHARE * self._trial_s())
        self._for_fits = min(self._for_fits + allowed, allowed)
        self._for_draws = min(self._for_draws + allowed, allowed)
        if self._model is None or (self._stale and self._for_fits >= 0.0):
            self._fit(rng)
        if not self._pool.drawn or self._for_draws >= 0.0:
            count = float(self._config.candidates)
            if self._draw_s > 0:
                # In powers of two, so that a little more or less time for a draw seldom makes another number of them.
                count = min(count, 2.0 ** np.floor(np.log2(max(1.0, self._for_draws / self._draw_s))))
            self._draw(rng, max(int(count), _FEWEST_DRAWN) if self._pool.model else _FEWEST_DRAWN)

    def _fit(self, rng: np.random.Generator) -> None:
        began = self._clock()
        self._model = self._fitter.fit(rng)
        took = self._clock() - began
        self._stale = False
        self._for_fits -= took
        self._for_draws += took  # which the proposal as a whole is taken off

    def _draw(self, rng: np.random.Generator, count: int) -> None:
        began = self._clock()
        known = {drawn.key for drawn in self._pool.drawn} | self._book.keys
        parents = [row.params for row in self._promising()]
        parents += [drawn.params for drawn in self._pool.drawn[:_PARENTS]]
        new = vary(self._space, parents, count, rng, known.__contains__)
        told = [(drawn, *ask_guide(self._problem.guide, drawn.plan, self._axes)) for drawn in new]
        self._pool.add([one for one in told if one[1] is not None or self._problem.guide is None])
        if new:
            self._draw_s = (self._clock() - began) / len(new)

    def _promising(self) -> list[Row]:
        """Trials that no other dominates: complete ones by their values, open ones as they are predicted."""
        front = self._book.objectives(self._book.front)
        rows = self._book.front + self._open()
        points = np.vstack([front, self._believed(self._model)]) if self._model is not None else front
        best = moocore.is_nondominated(points) if len(points) else []
        return [row for row, b in zip(rows, best, strict=False) if b]

    def _open(self) -> list[Row]:
        """Trials that may still get a value, and that the model can speak of; the latest, if there are many."""
        guided = self._problem.guide is not None
        return [r for r in self._rows() if r.open and (r.known is not None or not guided)][-_MOST_OPEN:]

    def _believed(self, model: PlanModel) -> np.ndarray:
        """Predicted objectives of open trials, shape (n, m)."""
        rows, m = self._open(), len(self._problem.objectives)
        if not rows:
            return np.empty((0, m))
        inputs = self._fitter.features([(row.known, row.params) for row in rows])
        measured = measured_of(rows, len(self._axes))
        return model.predict(inputs, np.stack([row.costs for row in rows]), measured)[0][:, :m]

    def _best(self, rng: np.random.Generator) -> dict[str, ParamValue] | None:
        """The best candidate of the pool, which it leaves; None if there is none.

        If even that is known to be far behind, new candidates are drawn whatever their time.
        """
        for again in (True, False):
            scores = self._score()
            if not len(scores):
                return None
            best = int(np.argmax(scores))
            lost = self._lost(self._pool.means[[best]], self._pool.stds[[best]])[0]
            if not (lost and again and self._trial_s() >= _WORTHWHILE_S):
                break
            self._draw(rng, _FEWEST_DRAWN)
        order = np.argsort(-scores, kind="stable")
        params = self._pool.drawn[int(order[0])].params
        self._pool.keep(order[1 : self._config.candidates + 1].tolist())
        return params

    def _explored(self, rng: np.random.Generator) -> dict[str, ParamValue] | None:
        """The first of some draws of every size that is not known to be far behind; None if all are."""
        if self._model is None:
            return None
        told = [(d, *ask_guide(self._problem.guide, d.plan, self._axes))
                for d in vary(self._space, [], _EXPLORED, rng, self._book.keys.__contains__)]  # fmt: skip
        told = [one for one in told if one[1] is not None or self._problem.guide is None]
        if not told:
            return None
        inputs = self._fitter.features([(known, drawn.params) for drawn, known, _ in told])
        lost = self._lost(*self._model.predict(inputs, np.stack([costs for *_, costs in told])))
        return next((drawn.params for (drawn, *_), no in zip(told, lost, strict=True) if not no), None)

    def _score(self) -> np.ndarray:
        """Expected improvement of every candidate of the pool over the front and over what is on its way to it."""
        pool, model = self._pool, self._model
        if model is None:
            return np.empty(0)
        pool.predict(self._fitter, model)
        fresh = [i for i, drawn in enumerate(pool.drawn) if drawn.key not in self._book.keys]
        if len(fresh) < len(pool.drawn):
            pool.keep(fresh)
        if not pool.drawn:
            return np.empty(0)
        m = len(self._problem.objectives)
        front = np.vstack([self._book.objectives(self._book.front), self._believed(model)])
        scores = expected_improvement(pool.means[:, :m], pool.stds[:, :m], front)
        for bound in self._problem.bounds:
            j = [axis.name for axis in self._axes].index(bound.objective)
            scores = scores * self._axes[j].feasible(bound, pool.means[:, j], pool.stds[:, j])
        return scores

    def _drawn(self, rng: np.random.Generator) -> dict[str, ParamValue]:
        """A draw that is not in the ledger; any if the space seems to have no other."""
        for drawn in vary(self._space, [], 1, rng, self._book.keys.__contains__):
            return drawn.params
        return draw_distinct(self._space, rng, lambda plan: plan.key in self._book.keys)


def _one_thread() -> AbstractContextManager[object]:
    from autocompress.search.surrogate_gp import one_thread

    return one_thread()


def _words(names: Sequence[str], values: np.ndarray) -> str:
    """Values of the objectives, which are the first of all axes', as shares of the box."""
    # Beyond the box the axes' unit is a logarithm.
    shares = np.where(values > 1.0, np.exp(np.minimum(values, 20.0) - 1.0), values)
    return ", ".join(f"{name} {share:.2f}" for name, share in zip(names, shares, strict=False))
