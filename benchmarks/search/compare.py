"""Searchers in numbers: hypervolume over time, time to a target with what never got there, attainment, distances.

Everything is in the box of `autocompress.records.box`: error and latency as shares, minimized; (1, 1) is the corner
that nothing counts beyond. A time that is `inf` was not reached within the run: it is censored, not large.

References:
    Zitzler et al., 2003, "Performance assessment of multiobjective optimizers: an analysis and review" (epsilon);
    Ishibuchi et al., 2015, "Modified distance calculation in generational distance and inverted generational distance"
    (IGD+); Grunert da Fonseca et al., 2001, "Inferential performance assessment of stochastic optimisers and the
    attainment function". All computed by moocore.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import moocore
import numpy as np

#: Resamples of every bootstrap.
RESAMPLES = 2000


class Span(NamedTuple):
    """A median and its 95% interval; any of them may be `inf`."""

    value: float
    low: float
    high: float


class Ratio(NamedTuple):
    """How much sooner, as a median over paired seeds with its interval.

    Attributes:
        bound: ``">"`` if the slower one was never there for some seed, so that the ratio is at least this; ``"<"`` if
            that was the one that should be sooner; ``"?"`` if neither was; else empty.
    """

    span: Span
    bound: Literal["", ">", "<", "?"]


def volume(points: np.ndarray) -> float:
    """Share of the box that a set dominates.

    Args:
        points: shape (n, 2), in the box's own units; n may be 0.

    Examples:
        >>> volume(np.array([[0.5, 0.5]]))
        0.25
    """
    if len(points) == 0:
        return 0.0
    return float(np.clip(moocore.hypervolume(points, ref=np.ones(points.shape[1])), 0.0, 1.0))


def reference(sets: Sequence[np.ndarray]) -> np.ndarray:
    """The points of all sets that are in the box and that no other one dominates, each once, by the first column.

    Args:
        sets: each of shape (n, 2).

    Returns:
        Shape (m, 2).
    """
    together = np.concatenate([np.empty((0, 2)), *sets])
    inside = together[(together <= 1.0).all(axis=1)]
    if len(inside) == 0:
        return inside
    return np.unique(inside[moocore.is_nondominated(inside)], axis=0)


def time_to(curve: Mapping[float, float | None], target: float) -> float | None:
    """The first moment at which a curve is at a target; `inf` if it never is; None if a moment before is not known.

    Args:
        curve: moment -> hypervolume; None where it is not known.
        target: hypervolume.
    """
    for moment in sorted(curve):
        value = curve[moment]
        if value is None:
            return None
        if value >= target - 1e-12:
            return moment
    return math.inf


def median(values: Sequence[float], seed: int = 0) -> Span:
    """Median over seeds, and its 95% interval by bootstrap. Of few seeds that is little more than their range.

    Args:
        values: one for each seed; `inf` for what was not reached.
        seed: of the bootstrap.

    Raises:
        ValueError: there is no value, or one is NaN.
    """
    found = np.asarray(values, dtype=float)
    if len(found) == 0 or np.isnan(found).any():
        raise ValueError(f"values: expected at least one, and no NaN, got {list(values)}")
    drawn = np.random.default_rng(seed).integers(0, len(found), (RESAMPLES, len(found)))
    # No interpolation between a number and infinity.
    medians = np.sort(_middle(np.sort(found[drawn], axis=1)))
    low, high = medians[int(0.025 * RESAMPLES)], medians[int(0.975 * RESAMPLES) - 1]
    return Span(float(_middle(np.sort(found)[None])[0]), float(low), float(high))


def _middle(rows: np.ndarray) -> np.ndarray:
    """Median of each sorted row; of an even number the mean of the two in the middle."""
    count = rows.shape[1]
    found: np.ndarray = (rows[:, (count - 1) // 2] + rows[:, count // 2]) / 2.0
    return found


def sooner(ours: Sequence[float], theirs: Sequence[float], horizons: tuple[float, float]) -> Ratio:
    """How many times sooner the first is at a target than the second, over paired seeds.

    Where one was never there, the time that it was given stands in for it, and the ratio becomes a bound.

    Args:
        ours: times of the first, by seed.
        theirs: times of the second, by the same seeds.
        horizons: how long runs of the first and of the second were.

    Raises:
        ValueError: unlike numbers of seeds, or none.
    """
    if len(ours) != len(theirs) or not ours:
        raise ValueError(f"expected as many times of both, at least one, got {len(ours)} and {len(theirs)}")
    a, b = np.array(ours, dtype=float), np.array(theirs, dtype=float)
    span = median(list(np.minimum(b, horizons[1]) / np.minimum(a, horizons[0])))
    never_a, never_b = bool(np.isinf(a).any()), bool(np.isinf(b).any())
    bound: Literal["", ">", "<", "?"] = "?" if never_a and never_b else "<" if never_a else ">" if never_b else ""
    return Ratio(span, bound)


def attainment(sets: Sequence[np.ndarray], percent: float) -> np.ndarray:
    """What the share `percent` of the runs dominated: shape (n, 2), in rising order of the first column.

    Args:
        sets: the front of each run, shape (n, 2); a run without one counts as having attained nothing.
        percent: 50 for the median surface.
    """
    if not sets or all(len(points) == 0 for points in sets):
        return np.empty((0, 2))
    # An empty run attains the corner that everything dominates: it must be counted, and be seen to attain nothing.
    filled = [points if len(points) else np.full((1, 2), 1e9) for points in sets]
    labels = np.concatenate([np.full(len(points), i) for i, points in enumerate(filled)])
    surface = moocore.eaf(np.concatenate(filled), labels, percentiles=[percent])[:, :2]
    surface = surface[(surface < 1e8).all(axis=1)]
    return surface[np.argsort(surface[:, 0])]


def distances(points: np.ndarray, best: np.ndarray) -> tuple[float, float]:
    """IGD+ and additive epsilon of a set to a reference set, both 0 if it is as good; `inf` of an empty set.

    Args:
        points: shape (n, 2).
        best: shape (m, 2), m >= 1.
    """
    if len(points) == 0:
        return math.inf, math.inf
    return float(moocore.igd_plus(points, ref=best)), float(moocore.epsilon_additive(points, ref=best))


def latency_at(points: np.ndarray, error: float) -> float:
    """Smallest second column among points whose first is at most `error`; `inf` if there is none."""
    good = points[points[:, 0] <= error + 1e-12] if len(points) else points
    return float(good[:, 1].min()) if len(good) else math.inf
