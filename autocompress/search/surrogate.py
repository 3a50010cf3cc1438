"""A model of the objectives over plans, at the fidelity of the last rung, learnt from what all rungs told.

Objectives that the guide knows beforehand, such as a predicted latency, are its prediction times a factor learnt from
readings. The others are Gaussian processes, one for each rung: that of a higher rung takes the value of the one below
as an input, measured or predicted, so that what a cheap rung says is used as far as it is worth something.

References:
    Kennedy and O'Hagan, 2000, "Predicting the output from a complex computer code when fast approximations are
    available"; Perdikaris et al., 2017, "Nonlinear information fusion algorithms for data-efficient multi-fidelity
    modelling", for the lower value as an input instead of a factor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import moocore
import numpy as np

from autocompress.search.surrogate_data import LAST, Axis, Book, Row, summaries_first

if TYPE_CHECKING:
    from autocompress.search.surrogate_gp import Process

#: Observations of a level without which it is not modelled.
FEWEST = 3
#: Observations that a process is fitted to, at most.
_MOST = 300
#: Uncertainty of a cost that the guide predicts: least, and while fewer than five readings tell it, as shares.
_LEAST_SPREAD, _EARLY_SPREAD = 0.005, 0.05
#: Standard deviation, as a share of the box, of what no model tells.
_VAGUE = 0.3
#: Nodes and weights of Gauss-Hermite quadrature for a standard Gaussian.
_NODES = ((0.0, 2.0 / 3.0), (np.sqrt(3.0), 1.0 / 6.0), (-np.sqrt(3.0), 1.0 / 6.0))


@dataclass(frozen=True)
class Known:
    """An objective that the guide predicts: the prediction times the median ratio of reading to prediction.

    Attributes:
        factor: the median ratio.
        spread: standard deviation of the logarithm of the ratio, from its median absolute deviation.
        otherwise: mean and standard deviation where the guide predicts nothing, in the axis' unit.
    """

    factor: float
    spread: float
    otherwise: tuple[float, float]

    def predict(self, costs: np.ndarray, axis: Axis) -> tuple[np.ndarray, np.ndarray]:
        """Means and standard deviations in the axis' unit; shape (n,) each."""
        told = costs * self.factor
        means = axis.units(told)
        # Half of the distance between one standard deviation up and one down: in the unit, whatever it is.
        stds = 0.5 * np.abs(axis.units(told * np.exp(self.spread)) - axis.units(told * np.exp(-self.spread)))
        there = np.isfinite(means)
        return np.where(there, means, self.otherwise[0]), np.where(there, stds, self.otherwise[1])


@dataclass(frozen=True)
class Level:
    """One rung of an objective.

    Attributes:
        level: its epochs, or `LAST`.
        process: its model.
        chained: whether the value of the level below is its first input.
    """

    level: float
    process: Process
    chained: bool


@dataclass(frozen=True)
class Chain:
    """An objective that is learnt, rung by rung.

    Attributes:
        levels: rising; empty if there were too few observations.
        shift: mean and standard deviation of what the last rung adds to the highest that is modelled, while there are
            too few values of the last rung to model it.
        otherwise: mean and standard deviation without any model.
    """

    levels: tuple[Level, ...]
    shift: tuple[float, float]
    otherwise: tuple[float, float]

    def predict(
        self, inputs: np.ndarray, measured: Mapping[float, np.ndarray] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Means and standard deviations at the last rung, in the axis' unit.

        Args:
            inputs: features, shape (n, d).
            measured: level -> values that are known already, shape (n,), NaN elsewhere.
        """
        if not self.levels:
            return np.full(len(inputs), self.otherwise[0]), np.full(len(inputs), self.otherwise[1])
        *_, (mean, std) = self.each(inputs, measured or {})
        if self.levels[-1].level == LAST:
            return mean, std
        return mean + self.shift[0], np.hypot(std, self.shift[1])

    def each(self, inputs: np.ndarray, measured: Mapping[float, np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Mean and standard deviation at every level: the measured value where there is one, else the predicted."""
        found: list[tuple[np.ndarray, np.ndarray]] = []
        for level in self.levels:
            mean, std = _through(level, inputs, found[-1] if level.chained else None)
            known = measured.get(level.level)
            if known is not None and level.level != LAST:
                there = np.isfinite(known)
                mean, std = np.where(there, known, mean), np.where(there, 0.0, std)
            found.append((mean, std))
        return found


@dataclass(frozen=True)
class PlanModel:
    """Fitted to a ledger's rows.

    Attributes:
        axes: what is modelled.
        parts: one for each axis.
        results: complete trials that it rests on.
    """

    axes: tuple[Axis, ...]
    parts: tuple[Known | Chain, ...]
    results: int

    def predict(
        self, inputs: np.ndarray, costs: np.ndarray, measured: Mapping[float, np.ndarray] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """What plans are worth at the last rung.

        Args:
            inputs: features in the model's order, shape (n, d).
            costs: of the guide, shape (n, axes), NaN where it knows nothing.
            measured: level -> values in the axes' units, shape (n, axes), NaN where there is none.

        Returns:
            Means and standard deviations, each of shape (n, axes), in the axes' units.
        """
        means, stds = np.empty(costs.shape), np.empty(costs.shape)
        for j, (axis, part) in enumerate(zip(self.axes, self.parts, strict=True)):
            if isinstance(part, Known):
                means[:, j], stds[:, j] = part.predict(costs[:, j], axis)
            else:
                known = {level: values[:, j] for level, values in (measured or {}).items()}
                means[:, j], stds[:, j] = part.predict(inputs, known)
        return means, stds


@dataclass
class Fitter:
    """Fits models of one study; remembers hyperparameters, so that the next fit starts from them.

    Attributes:
        book: rows and axes.
    """

    book: Book
    _thetas: dict[tuple[str, float], np.ndarray] = field(default_factory=dict)

    def features(self, rows: Sequence[tuple[np.ndarray | None, Mapping[str, object]]]) -> np.ndarray:
        """Inputs of the model for pairs of the guide's features and parameters; shape (n, d)."""
        if self.book.problem.guide is None:
            return self.book.encoder.encode([params for _, params in rows])[0]  # type: ignore[misc]
        order, _ = summaries_first(self.book.problem.guide.names)
        return np.stack([known for known, _ in rows if known is not None])[:, order]

    def fit(self, rng: np.random.Generator, *, believe: bool = True) -> PlanModel:
        """A model of all that the book knows.

        Args:
            rng: chooses observations where there are too many.
            believe: take open trials as if their predicted means had been observed, so that parallel proposals differ.
        """
        guide = self.book.problem.guide
        rows = [r for r in self.book.rows.values() if r.levels and (guide is None or r.known is not None)]
        few = 0
        if guide is not None:
            few = summaries_first(guide.names)[1]
        elif rows:
            few = self.book.encoder.encode([])[1]
        axes = self.book.axes
        results = sum(LAST in row.levels for row in rows)
        if not rows:
            return PlanModel(axes, tuple(Chain((), (0.0, 0.0), (1.0, _VAGUE)) for _ in axes), 0)
        costs = np.stack([row.costs for row in rows])
        readings = np.stack([row.readings for row in rows])
        every = measured_of(rows, len(axes))
        chosen = {level: _chosen(values, rng) for level, values in every.items()}
        used = np.unique(np.concatenate(list(chosen.values())))
        inputs = self.features([(rows[i].known, rows[i].params) for i in used])
        places = {level: np.searchsorted(used, indices) for level, indices in chosen.items()}
        parts: list[Known | Chain] = []
        for j, axis in enumerate(axes):
            if np.isfinite(costs[:, j]).mean() > 0.5:
                parts.append(_fit_known(costs[:, j], readings[:, j], axis))
            else:
                own = {level: values[used, j] for level, values in every.items()}
                parts.append(self._fit_chain(inputs, own, places, few, axis.name, rng))
        model = PlanModel(axes, tuple(parts), results)
        return self._believing(model) if believe else model

    def _fit_chain(
        self,
        inputs: np.ndarray,
        values: Mapping[float, np.ndarray],
        chosen: Mapping[float, np.ndarray],
        few: int,
        name: str,
        rng: np.random.Generator,
    ) -> Chain:
        from autocompress.search.surrogate_gp import fit_process

        every = np.concatenate([column[np.isfinite(column)] for column in values.values()])
        otherwise = (float(np.median(every)), max(_VAGUE, float(every.std()))) if len(every) else (1.0, _VAGUE)
        chain = Chain((), (0.0, 0.0), otherwise)
        for level in sorted(values):
            column = values[level]
            there = chosen[level][np.isfinite(column[chosen[level]])]
            if len(there) < FEWEST:
                continue
            x, columns = inputs[there], few
            if chain.levels:
                below = chain.each(inputs[there], {lv: v[there] for lv, v in values.items()})[-1][0]
                x, columns = np.column_stack([below, x]), few + 1
            theta = self._thetas.get((name, level))
            process = fit_process(x, column[there], columns, rng, theta)
            self._thetas[name, level] = process.theta
            chain = Chain((*chain.levels, Level(level, process, bool(chain.levels))), (0.0, 0.0), otherwise)
        if not chain.levels or chain.levels[-1].level == LAST:
            return chain
        last = values.get(LAST, np.full(len(inputs), np.nan))
        there = np.flatnonzero(np.isfinite(last))
        shift = 0.0
        if len(there):
            below = chain.each(inputs[there], {lv: v[there] for lv, v in values.items()})[-1][0]
            shift = float(np.median(last[there] - below))
        return Chain(chain.levels, (shift, _VAGUE / 2.0), otherwise)

    def _believing(self, model: PlanModel) -> PlanModel:
        """The model as if open trials had what it predicts of them."""
        from autocompress.search.surrogate_gp import believing

        guide = self.book.problem.guide
        rows = [r for r in self.book.rows.values() if r.open and (guide is None or r.known is not None)]
        if not rows:
            return model
        inputs = self.features([(row.known, row.params) for row in rows])
        measured = measured_of(rows, len(model.axes))
        parts: list[Known | Chain] = []
        for j, part in enumerate(model.parts):
            if isinstance(part, Known) or not part.levels:
                parts.append(part)
                continue
            known = {level: values[:, j] for level, values in measured.items()}
            each = part.each(inputs, known)
            levels = []
            for i, level in enumerate(part.levels):
                new = ~np.isfinite(known.get(level.level, np.full(len(rows), np.nan)))
                if not new.any():
                    levels.append(level)
                    continue
                x = np.column_stack([each[i - 1][0], inputs])[new] if level.chained else inputs[new]
                levels.append(Level(level.level, believing(level.process, x, each[i][0][new]), level.chained))
            parts.append(Chain(tuple(levels), part.shift, part.otherwise))
        return PlanModel(model.axes, tuple(parts), model.results)


def _through(
    level: Level, inputs: np.ndarray, below: tuple[np.ndarray, np.ndarray] | None
) -> tuple[np.ndarray, np.ndarray]:
    """A level's prediction, with what is uncertain of the level below passed on by quadrature."""
    if below is None:
        return level.process.predict(inputs)
    mean, std = below
    if not std.any():
        return level.process.predict(np.column_stack([mean, inputs]))
    first, second = np.zeros(len(inputs)), np.zeros(len(inputs))
    for node, weight in _NODES:
        at, spread = level.process.predict(np.column_stack([mean + node * std, inputs]))
        first += weight * at
        second += weight * (at**2 + spread**2)
    return first, np.sqrt(np.maximum(second - first**2, 1e-12))


def measured_of(rows: Sequence[Row], width: int) -> dict[float, np.ndarray]:
    """Level -> values in the axes' units, shape (rows, width), NaN where a row has none; `width` axes."""
    missing = np.full(width, np.nan)
    levels = sorted({level for row in rows for level in row.levels})
    return {level: np.stack([row.levels.get(level, missing) for row in rows]) for level in levels}


def _fit_known(told: np.ndarray, read: np.ndarray, axis: Axis) -> Known:
    # A cost does not depend on training, so that a reading of any rung tells of all.
    there = np.isfinite(told) & np.isfinite(read) & (told > 0) & (read > 0)
    logs = np.log(read[there] / told[there])
    units = axis.units(read[np.isfinite(read)])
    otherwise = (float(np.median(units)), max(_VAGUE, float(units.std()))) if len(units) else (1.0, _VAGUE)
    if not len(logs):
        return Known(1.0, _EARLY_SPREAD, otherwise)
    factor = float(np.median(logs))
    spread = max(_LEAST_SPREAD, 1.4826 * float(np.median(np.abs(logs - factor))))
    return Known(float(np.exp(factor)), max(spread, _EARLY_SPREAD) if len(logs) < 5 else spread, otherwise)


def _chosen(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Indices of the observations of one level that a model is fitted to, ascending.

    If there are more than 300: half of them nearest to the level's own front, a quarter the latest, the others drawn.

    Args:
        values: shape (rows, axes), NaN where there is none; rows by number of their trial.
        rng: of the draw.
    """
    there = np.flatnonzero(np.isfinite(values).any(axis=1))
    if len(there) <= _MOST:
        return there
    points = np.nan_to_num(values[there], nan=1.0)
    front = points[moocore.is_nondominated(points)]
    # How much worse than some member of the front a point is, in the objective where it is worst.
    behind = np.min([np.max(points - member, axis=1) for member in front], axis=0)
    latest = there[-_MOST // 4 :]
    nearest = there[np.argsort(behind, kind="stable")]
    nearest = nearest[~np.isin(nearest, latest)][: _MOST // 2]
    kept = np.concatenate([latest, nearest])
    left = there[~np.isin(there, kept)]
    return np.sort(np.concatenate([kept, rng.choice(left, _MOST - len(kept), replace=False)]))
