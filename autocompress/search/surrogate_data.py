"""What the ledger's trials tell a model: features of plans, and values of objectives at each fidelity."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import moocore
import numpy as np

from autocompress.errors import AutocompressError
from autocompress.records import Bound, Estimate, ParamValue, Plan, TrialRecord, is_maximized
from autocompress.records.box import in_box
from autocompress.search.problem import Guide, Problem

#: The level of a complete trial; those of rungs are their epochs.
LAST = float("inf")
#: Columns that a guide may say of the whole plan; further ones count as details.
_MOST_SUMMARIES = 12


class Encoder:
    """Parameters as numbers: the way to features without a guide.

    The first columns say something of each kind of parameter, the part of a name before ``"/"``: the mean of its
    numbers, those that a condition leaves out as 0, and each choice's share. The others are one for each name: its
    number, or one for each choice; and one that says whether it is there, where it may be missing. Names and choices
    are learnt from what is shown; those never shown are passed over.
    """

    def __init__(self) -> None:
        self.version = 0
        self._numbers: set[str] = set()
        self._choices: dict[str, set[str]] = {}
        self._conditional: set[str] = set()
        self._shown = 0

    def show(self, params: Mapping[str, ParamValue]) -> None:
        """Learn names and choices; `version` changes with what the columns are."""
        before = (len(self._numbers), sum(map(len, self._choices.values())), len(self._conditional))
        known = self._numbers | self._choices.keys()
        for name, value in params.items():
            if name not in known and self._shown:
                self._conditional.add(name)
            if isinstance(value, str):
                self._choices.setdefault(name, set()).add(value)
            else:
                self._numbers.add(name)
        self._conditional |= known.difference(params)
        self._shown += 1
        if before != (len(self._numbers), sum(map(len, self._choices.values())), len(self._conditional)):
            self.version += 1

    def encode(self, rows: Sequence[Mapping[str, ParamValue]]) -> tuple[np.ndarray, int]:
        """Features, shape (n, d), and how many of the first columns sum a plan up."""
        numbers = {name: np.array([_number(row.get(name)) for row in rows]) for name in sorted(self._numbers)}
        details = list(numbers.values())
        kinds: dict[str, list[np.ndarray]] = {}
        for name, column in numbers.items():
            kinds.setdefault(_kind(name), []).append(column)
        summaries = [np.mean(columns, axis=0) for _, columns in sorted(kinds.items())]
        shares: dict[tuple[str, str], list[np.ndarray]] = {}
        for name in sorted(self._choices):
            for choice in sorted(self._choices[name]):
                column = np.array([float(row.get(name) == choice) for row in rows])
                details.append(column)
                shares.setdefault((_kind(name), choice), []).append(column)
        summaries += [np.mean(columns, axis=0) for _, columns in sorted(shares.items())]
        details += [np.array([float(name in row) for row in rows]) for name in sorted(self._conditional)]
        few = min(len(summaries), _MOST_SUMMARIES)
        columns = [*summaries, *details]
        return (np.stack(columns, axis=1) if columns else np.zeros((len(rows), 1))), few


def summaries_first(names: Sequence[str]) -> tuple[np.ndarray, int]:
    """The order in which a guide's features have those of the whole plan first: names without a ``"/"``.

    Args:
        names: of the features, such as ``"latency_ms"`` or ``"keep/layer1.0.conv1"``.

    Returns:
        Shape (d,), indices; and how many of the first are of the whole plan, at most 12.
    """
    whole = [i for i, name in enumerate(names) if "/" not in name]
    order = [*whole, *(i for i, name in enumerate(names) if "/" in name)]
    return np.array(order, dtype=int), min(len(whole), _MOST_SUMMARIES)


@dataclass(frozen=True)
class Axis:
    """One value that is modelled: an objective, or what only a bound speaks of.

    Its unit is a share of the box where the dense model's value is known, minimized; beyond 1 it grows as a logarithm,
    u = 1 + log(share), so that what is far out of the box does not rule the model. Otherwise it is its own unit.

    Attributes:
        name: of the objective.
        problem: knows the dense model.
        boxed: whether the unit is a share of the box.
    """

    name: str
    problem: Problem
    boxed: bool

    def units(self, values: np.ndarray) -> np.ndarray:
        """Values of the objective in the axis' unit; shape (n,), NaN stays NaN."""
        if not self.boxed:
            return np.asarray(values, dtype=float)
        found = np.full(len(values), np.nan)
        there = np.isfinite(values)
        rows = [{self.name: float(value)} for value in values[there]]
        shares = in_box(rows, self.problem.dense, (self.name,), self.problem.metrics)[:, 0]
        found[there] = np.where(shares > 1.0, 1.0 + np.log(np.maximum(shares, 1.0)), shares)
        return found

    def feasible(self, bound: Bound, means: np.ndarray, stds: np.ndarray) -> np.ndarray:
        """Probability that a Gaussian in the axis' unit meets a bound of this objective; shape (n,)."""
        from scipy.special import ndtr

        limit = bound.max if bound.min is None else bound.min
        at = float(self.units(np.array([limit], dtype=float))[0])
        falls = self.boxed and is_maximized(self.name, self.problem.metrics)
        below = (bound.min is None) != falls
        z = (at - means) / np.maximum(stds, 1e-12)
        return np.asarray(ndtr(z if below else -z))


def axes_of(problem: Problem) -> tuple[Axis, ...]:
    """The objectives, in their order, then what only bounds speak of."""
    beside = dict.fromkeys(bound.objective for bound in problem.bounds if bound.objective not in problem.objectives)
    return (*(Axis(name, problem, True) for name in problem.objectives), *(_beside(name, problem) for name in beside))


def _beside(name: str, problem: Problem) -> Axis:
    try:
        in_box([], problem.dense, (name,), problem.metrics)
    except ValueError:
        return Axis(name, problem, False)
    return Axis(name, problem, True)


@dataclass(frozen=True)
class Row:
    """What is known of one trial.

    Attributes:
        number: of the trial.
        key: of its plan.
        known: the guide's features; None without a guide.
        params: of the trial.
        costs: what the guide says of each axis, NaN where it does not; own units of the objectives.
        levels: level -> value of each axis in its unit, NaN where it was not read.
        readings: of each axis at the highest level that has one, NaN without; own units of the objectives.
        open: it may still get a value at the last level.
        counts: its values at the last level may enter the front.
        seconds: that it has taken so far; None if nobody knows.
    """

    number: int
    key: str
    known: np.ndarray | None
    params: Mapping[str, ParamValue]
    costs: np.ndarray
    levels: Mapping[float, np.ndarray]
    readings: np.ndarray
    open: bool
    counts: bool
    seconds: float | None


@dataclass
class Book:
    """Rows of a ledger, each read once and again only when its trial has changed.

    Attributes:
        problem: what is optimized.
        axes: what is modelled, the objectives first.
        rows: trial number -> row, of trials with a plan.
        keys: of their plans.
        front: rows that count and whose objectives no other's dominate.
        encoder: of parameters, where there is no guide.
    """

    problem: Problem
    axes: tuple[Axis, ...]
    rows: dict[int, Row] = field(default_factory=dict)
    keys: set[str] = field(default_factory=set)
    front: list[Row] = field(default_factory=list)
    encoder: Encoder = field(default_factory=Encoder)
    _read: dict[int, TrialRecord] = field(default_factory=dict)

    def read(self, trials: Iterable[TrialRecord]) -> bool:
        """Take up what has changed; whether any value did."""
        changed = False
        counting: list[Row] = []
        for trial in trials:
            earlier = self._read.get(trial.number)
            if earlier is trial:
                continue
            self._read[trial.number] = trial
            alike = earlier is not None and (earlier.state, earlier.plan) == (trial.state, trial.plan)
            if trial.plan is None or (alike and earlier is not None and len(earlier.rungs) == len(trial.rungs)):
                continue
            before = self.rows.get(trial.number)
            row = self._row(trial, before)
            self.rows[trial.number] = row
            self.keys.add(row.key)
            changed |= bool(row.levels) and (before is None or before.levels.keys() != row.levels.keys())
            if row.counts:
                counting.append(row)
        if counting:
            rows = self.front + counting
            best = moocore.is_nondominated(self.objectives(rows))
            self.front = [row for row, b in zip(rows, best, strict=True) if b]
        return changed

    def objectives(self, rows: Sequence[Row]) -> np.ndarray:
        """Values at the last level of rows that count, in the axes' units, shape (n, m)."""
        m = len(self.problem.objectives)
        return np.stack([row.levels[LAST][:m] for row in rows]) if rows else np.empty((0, m))

    def _row(self, trial: TrialRecord, before: Row | None) -> Row:
        assert trial.plan is not None  # noqa: S101 - the caller's condition, for the type checker
        guide = self.problem.guide
        if before is None and guide is None:
            self.encoder.show(trial.params)
        known, costs = (before.known, before.costs) if before is not None else ask_guide(guide, trial.plan, self.axes)
        own = {
            rung.fidelity.epochs: self._values(rung.values, ("latency_ms",) if rung.noisy else rung.predicted)
            for rung in trial.rungs
        }
        counts = False
        if trial.state == "complete" and trial.measurement is not None:
            measurement = trial.measurement
            noisy = measurement.latency.noisy and any(axis.name == "latency_ms" for axis in self.axes)
            own[LAST] = self._values(measurement.values, ("latency_ms",) if noisy else ())
            there = np.isfinite(own[LAST][: len(self.problem.objectives)]).all()
            counts = trial.feasible and not noisy and bool(there)
        readings = np.full(len(self.axes), np.nan)
        for _, values in sorted(own.items()):
            readings = np.where(np.isfinite(values), values, readings)
        return Row(
            number=trial.number,
            key=before.key if before is not None else trial.plan.key,
            known=known,
            params=trial.params,
            costs=costs,
            levels={level: self._units(values) for level, values in own.items()},
            readings=readings,
            open=trial.state in ("waiting", "running", "paused"),
            counts=counts,
            seconds=busy_s(trial),
        )

    def _units(self, values: np.ndarray) -> np.ndarray:
        return np.array([axis.units(values[j : j + 1])[0] for j, axis in enumerate(self.axes)])

    def _values(self, values: Mapping[str, Estimate], without: Sequence[str]) -> np.ndarray:
        there = [values.get(axis.name) if axis.name not in without else None for axis in self.axes]
        found = np.array([estimate.value if estimate is not None else np.nan for estimate in there])
        return np.where(np.isfinite(found), found, np.nan)


def ask_guide(guide: Guide | None, plan: Plan, axes: Sequence[Axis]) -> tuple[np.ndarray | None, np.ndarray]:
    """A plan's features and costs; None without a guide or if it refuses the plan, NaN for what it does not know."""
    unknown = np.full(len(axes), np.nan)
    if guide is None:
        return None, unknown
    try:
        costs, known = guide.costs(plan), np.asarray(guide.features(plan), dtype=float)
    except AutocompressError:
        return None, unknown
    return np.nan_to_num(known, posinf=0.0, neginf=0.0), np.array([costs.get(axis.name, np.nan) for axis in axes])


def busy_s(trial: TrialRecord) -> float | None:
    """Seconds that a trial which does not run took: the parts it was judged in, or else from its begin to its end.

    None while it waits or runs. Waiting between two rungs counts as little as what an earlier trial answered.
    """
    if trial.state in ("waiting", "running"):
        return None
    judged = [rung for rung in (*trial.rungs, trial.measurement) if rung is not None and not rung.cached]
    parts = [sum(took for part, took in result.seconds.items() if part != "propose") for result in judged]
    if any(parts):
        return float(sum(parts))
    if trial.started is None or trial.finished is None:
        return None
    return max(0.0, (trial.finished - trial.started).total_seconds())


def _kind(name: str) -> str:
    return name.partition("/")[0]


def _number(value: ParamValue | None) -> float:
    return 0.0 if value is None or isinstance(value, str) else float(value)
