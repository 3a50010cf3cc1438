"""Picking one candidate of a front, by constraint and policy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np
from pydantic import FiniteFloat

from autocompress.errors import ConfigError, NoCandidateError
from autocompress.front.dominance import checked, non_dominated
from autocompress.records import FIXED, Bound, Metric, Record, is_maximized
from autocompress.space.explain import nearest as suggestion

Preference = Literal["fastest", "knee", "smallest", "accurate"]
Alias = Literal["fastest", "knee", "most-accurate", "smallest", "champion"]

#: How much accuracy the champion may lose: one point, 1% of all examples.
CHAMPION_DROP = 0.01
_NAMED = 3


class Point(Record):
    """A candidate as selection sees it.

    Attributes:
        id: what the caller knows it by, such as a trial number or a version.
        values: measured values by objective name, in the objective's unit. Constraints may use any of them.
    """

    id: str
    values: dict[str, FiniteFloat]


def knee(points: np.ndarray) -> int:
    r"""The non-dominated point where giving up some of one objective stops to buy much of another.

    Objectives are scaled so that the front spans [0, 1] in each; an objective that is the same everywhere counts
    nothing. The knee is the point farthest below the plane through the front's extremes,
    :math:`\arg\min_i \sum_j x_{ij}`. Of equals, the one whose worst scaled objective is best, then the first.

    Args:
        points: shape (n, m), n >= 1, every objective minimized.

    Returns:
        Index into `points`.

    Raises:
        ValueError: no points, or a value that is not finite.

    References:
        Das, 1999, "On characterizing the knee of the Pareto curve based on normal-boundary intersection".
    """
    points = checked(points)
    if len(points) == 0:
        raise ValueError("points: expected at least one point, got none")
    front = np.flatnonzero(non_dominated(points))
    low, span = points[front].min(axis=0), np.ptp(points[front], axis=0)
    scaled = (points[front] - low) / np.where(span > 0, span, 1.0)
    # Rounded, so that floating-point dust does not decide between equals.
    order = np.lexsort((front, scaled.max(axis=1).round(9), scaled.sum(axis=1).round(9)))
    return int(front[order[0]])


def pick(
    points: Sequence[Point],
    *,
    minimum: Mapping[str, float] | None = None,
    maximum: Mapping[str, float] | None = None,
    prefer: Preference = "fastest",
    objectives: Sequence[str] = ("accuracy", "latency_ms"),
    metrics: Sequence[Metric] = (),
) -> Point:
    """The candidate that a policy prefers among those that meet every constraint.

    Policies: ``fastest`` (smallest ``latency_ms``), ``smallest`` (smallest ``size_bytes``), ``accurate`` (largest
    ``accuracy``), ``knee`` (see :func:`knee`, on `objectives`, among the feasible points). Ties go to the better
    accuracy, latency, size, then to the smaller id.

    Args:
        points: the candidates; dominated ones may be among them.
        minimum: objective name -> smallest acceptable value, in the objective's unit.
        maximum: objective name -> largest acceptable value.
        prefer: the policy.
        objectives: what the knee weighs.
        metrics: those of the study among `objectives`; they know their directions.

    Returns:
        One of `points`.

    Raises:
        NoCandidateError: none meets the constraints; the message names the nearest three and what each misses.
        ConfigError: a constraint or policy on a value that is unknown or that a candidate does not have.
    """
    if not points:
        raise NoCandidateError("expected at least one candidate to pick from, got none; register a front first")
    known = list(dict.fromkeys([*FIXED, *(name for point in points for name in point.values)]))
    bounds = tuple(_bound(name, "min", value, known) for name, value in (minimum or {}).items())
    bounds += tuple(_bound(name, "max", value, known) for name, value in (maximum or {}).items())
    feasible = [p for p in points if all(b.violation(_value(p, b.objective)) <= 0 for b in bounds)]
    if not feasible:
        raise NoCandidateError(
            f"no candidate meets {' and '.join(_words(b) for b in bounds)}.\n{nearest(points, bounds)}"
        )
    if prefer == "knee":
        return feasible[knee(_minimized(feasible, objectives, metrics))]
    if prefer not in get_args(Preference):
        raise ConfigError(f"prefer: expected one of {', '.join(get_args(Preference))}, got {prefer!r}")
    first = {"fastest": "latency_ms", "smallest": "size_bytes", "accurate": "accuracy"}[prefer]
    return _best(feasible, first)


def nearest(points: Sequence[Point], bounds: Sequence[Bound]) -> str:
    """The candidates that come nearest to meeting the constraints, and by how much each misses which, in words.

    Nearness is the sum over the violated constraints of the violation relative to the bound, so that constraints in
    unlike units weigh alike.

    Args:
        points: candidates; if there are none, the text says so.
        bounds: the constraints.

    Returns:
        A few lines: a heading, one line for each of the nearest three, and what can be done.

    Raises:
        ConfigError: a candidate lacks a value that is bounded.
    """
    if not points:
        return "There is no candidate at all."

    def miss(point: Point, bound: Bound) -> float:
        return max(0.0, bound.violation(_value(point, bound.objective)))

    def distance(point: Point) -> float:
        return sum(miss(point, b) / (abs(_limit(b)) or 1.0) for b in bounds)

    ranked = sorted(points, key=lambda p: (distance(p), _natural(p.id)))[:_NAMED]
    lines = ["The nearest:" if len(points) <= _NAMED else f"The nearest {_NAMED} of {len(points)}:"]
    for point in ranked:
        parts = []
        for bound in bounds:
            text = f"{bound.objective} {_number(_value(point, bound.objective))}"
            missed = miss(point, bound)
            parts.append(f"{text} misses {_words(bound)} by {_number(missed)}" if missed > 0 else f"{text} is fine")
        lines.append(f"  {point.id}: {'; '.join(parts)}")
    lines.append("Relax the constraints by that much, or search longer.")
    return "\n".join(lines)


def aliases(
    points: Sequence[Point],
    *,
    dense_accuracy: float | None = None,
    objectives: Sequence[str] = ("accuracy", "latency_ms"),
    metrics: Sequence[Metric] = (),
) -> dict[Alias, str]:
    """Who on a front is to be known by which name.

    ``fastest``, ``smallest``, ``most-accurate`` and ``knee`` are the policies of :func:`pick` without constraints.
    ``champion``, the one to deploy unless there is a reason for another, is the fastest that loses at most one point
    (0.01) of accuracy against the dense model; if none does, the knee.

    Args:
        points: the front.
        dense_accuracy: the dense model's accuracy on the same split; without it, the most accurate point's is used.
        objectives: what the knee weighs.
        metrics: those of the study among `objectives`; they know their directions.

    Returns:
        Alias -> id. One point may have several aliases.

    Raises:
        NoCandidateError: no points.
        ConfigError: a point lacks accuracy, latency or size.
    """
    names = {
        "fastest": pick(points, prefer="fastest"),
        "knee": pick(points, prefer="knee", objectives=objectives, metrics=metrics),
        "most-accurate": pick(points, prefer="accurate"),
        "smallest": pick(points, prefer="smallest"),
    }
    reference = _value(names["most-accurate"], "accuracy") if dense_accuracy is None else dense_accuracy
    # The tolerance keeps a candidate at exactly one point, which floats may put just beyond it.
    near = [p for p in points if _value(p, "accuracy") >= reference - CHAMPION_DROP - 1e-9]
    champion = _best(near, "latency_ms") if near else names["knee"]
    return {
        "fastest": names["fastest"].id,
        "knee": names["knee"].id,
        "most-accurate": names["most-accurate"].id,
        "smallest": names["smallest"].id,
        "champion": champion.id,
    }


def _best(points: Sequence[Point], first: str) -> Point:
    order = dict.fromkeys((first, "accuracy", "latency_ms", "size_bytes"))

    def rank(point: Point) -> tuple[tuple[float, ...], list[tuple[int, int, str]]]:
        # Only the value that the policy is about must be there; the tie-breakers may be missing.
        values = (_signed(point, n) if n == first or n in point.values else math.inf for n in order)
        return tuple(values), _natural(point.id)

    return min(points, key=rank)


def _minimized(points: Sequence[Point], objectives: Sequence[str], metrics: Sequence[Metric]) -> np.ndarray:
    return np.array([[_signed(p, name, metrics) for name in objectives] for p in points], dtype=float)


def _signed(point: Point, name: str, metrics: Sequence[Metric] = ()) -> float:
    return -_value(point, name) if is_maximized(name, metrics) else _value(point, name)


def _value(point: Point, name: str) -> float:
    if name not in point.values:
        raise ConfigError(f"candidate {point.id}: expected a value of {name!r}, got {sorted(point.values)}")
    return point.values[name]


def _bound(name: str, side: Literal["min", "max"], value: float, known: Sequence[str]) -> Bound:
    if name not in known:
        raise ConfigError(f"constraint: expected one of {', '.join(known)}{suggestion(name, known)}, got {name!r}")
    return Bound.model_validate({"objective": name, side: value})


def _limit(bound: Bound) -> float:
    return float(bound.min if bound.min is not None else bound.max or 0.0)


def _words(bound: Bound) -> str:
    return f"{bound.objective} {'>=' if bound.min is not None else '<='} {_number(_limit(bound))}"


def _number(value: float) -> str:
    """Four significant digits, without exponent; whole numbers in full."""
    if float(value).is_integer() or abs(value) >= 1000:
        return f"{value:.0f}"
    return np.format_float_positional(value, precision=4, unique=False, fractional=False, trim="-")


def _natural(text: str) -> list[tuple[int, int, str]]:
    """Sort key that puts "9" before "10"."""
    digits, key = "", []
    for char in text:
        if char.isdecimal():
            digits += char
            continue
        if digits:
            key.append((0, int(digits), ""))
            digits = ""
        key.append((1, 0, char))
    return [*key, (0, int(digits), "")] if digits else key
