r"""Pareto dominance between candidates that are measured with noise.

Let :math:`[l_{ik}, h_{ik}]` be the 95% interval of candidate i in objective k, minimized, and :math:`x_{ik}` its value.
i is *clearly better* than j in k if noise does not explain the difference:

.. math:: i \prec_k j \iff h_{ik} < l_{jk}

or, where both were judged on the same examples, if the paired interval of the difference :math:`x_{ik} - x_{jk}` lies
below 0. Intervals of what comes out otherwise each time it is taken are first widened by `RESOLUTION`: they are made of
the rounds of one reading, and do not know how far another one, by another process with other addresses, is off. Errors
on the same examples are mostly shared, so that the paired interval is far narrower than what the two
single ones suggest: with these alone, hardly any accuracy on a few hundred examples would differ from another.

i is *no worse* than j in k if

- k comes out otherwise each time it is taken (latency, energy, memory): not :math:`j \prec_k i`. Its intervals are
  narrow; what they cannot tell apart, another reading may as well order the other way round.
- k repeats exactly on the same bytes and examples (quality, sizes): :math:`x_{ik} \le x_{jk}`. Its interval says how
  much other examples would move it. A candidate that is better on all the evidence there is must not be dropped for
  one that may or may not be as good.

i *dominates* j if it is no worse in every objective and clearly better in one. So two candidates whose intervals
overlap in an objective do not dominate each other by that objective alone. Without noise this is Pareto dominance.

Intervals make a partial order of each objective, but of several together none: with three noisy objectives a may
dominate b, b dominate c, and c dominate a. A candidate is *off* the front if another one dominates it, in one step or
several, that it does not dominate likewise: of a cycle all or none are off, and the front is never empty.

Two candidates are *tied* if neither is clearly better in any objective. Being tied is not transitive. Of tied
candidates one stands for the others, so that a front is not flooded by what cannot be told apart: in an order of
preference that must not rest on noise, each candidate of the front becomes a *member* unless it is tied with a member
already. Every other candidate of the front is then tied with a member, and no two members are tied.

References:
    Fishburn, 1970, "Intransitive indifference with unequal indifference intervals" (interval orders);
    Teich, 2001, "Pareto-front exploration with uncertain objectives" (dominance between intervals);
    Fieldsend and Everson, 2005, "Multi-objective optimisation in the presence of uncertainty".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autocompress.front.dominance import checked
from autocompress.records import REMEASURED, Estimate, Metric, is_maximized, minimized

#: Share of a value by which either end of its interval is moved out, where another reading gives another value. Ratios
#: of the same networks move by 1.7% between quiet sessions (median spread of `benchmarks/repeatability`): ±1%.
RESOLUTION = 0.01

#: Objective -> (i, j), i < j -> value of candidate i - value of candidate j, on the same examples.
Paired = Mapping[str, Mapping[tuple[int, int], Estimate]]


@dataclass(frozen=True)
class NoisyFront:
    """The front of n candidates.

    Attributes:
        dominates: shape (n, n); row i dominates column j, in one step.
        off: shape (n,); dominated by a candidate outside its own cycle, in one step or several.
        tied: shape (n, n), symmetric; False on the diagonal.
        members: shape (n,); on the front and standing for those that are tied with them.
    """

    dominates: np.ndarray
    off: np.ndarray
    tied: np.ndarray
    members: np.ndarray


def noisy_front(
    values: Sequence[Mapping[str, Estimate]],
    objectives: Sequence[str],
    metrics: Sequence[Metric] = (),
    *,
    paired: Paired | None = None,
) -> NoisyFront:
    """The front under noise; see the module for what each word means.

    Of tied candidates the one stands for the others that is best in the objectives that repeat exactly, in the order of
    `objectives`; then in accuracy, file size and other values that repeat; then the first. So another reading of
    latencies does not change which.

    Args:
        values: of n candidates, by objective.
        objectives: m names.
        metrics: those of the study among `objectives`.
        paired: differences on the same examples, for objectives that have them.

    Raises:
        ValueError: a value is missing or not finite, or an objective is unknown.
    """
    rows = [dict(row) for row in values]
    for i, row in enumerate(rows):
        missing = [name for name in objectives if name not in row]
        if missing:
            raise ValueError(f"values[{i}]: expected a value of {missing[0]!r}, got {sorted(row)}")
    points = checked(minimized(rows, objectives, metrics))
    clearly = _clearly(rows, objectives, metrics, paired or {})
    noisy = np.array([name in REMEASURED for name in objectives])
    no_worse = np.where(noisy, ~clearly.swapaxes(0, 1), points[:, None] <= points[None, :])
    dominates = np.asarray(no_worse.all(axis=2) & clearly.any(axis=2))
    off = dominated(dominates)
    tied = ~(clearly | clearly.swapaxes(0, 1)).any(axis=2)
    np.fill_diagonal(tied, False)
    members = ~off
    for i in sorted(map(int, np.flatnonzero(~off)), key=lambda i: _preference(rows[i], objectives, metrics, i)):
        if members[i]:
            members &= ~tied[i]
    return NoisyFront(dominates=dominates, off=off, tied=tied, members=members)


def dominated(dominates: np.ndarray) -> np.ndarray:
    """Which candidates are dominated by one outside their own cycle.

    Args:
        dominates: shape (n, n), any relation; row i dominates column j.

    Returns:
        Shape (n,). False for at least one candidate if there is any.
    """
    reaches = np.array(dominates, dtype=bool)
    for k in range(len(reaches)):  # Warshall, 1962, "A theorem on Boolean matrices"
        reaches |= reaches[:, [k]] & reaches[[k]]
    found: np.ndarray = (reaches & ~reaches.T).any(axis=0)
    return found


def _clearly(
    rows: Sequence[Mapping[str, Estimate]], objectives: Sequence[str], metrics: Sequence[Metric], paired: Paired
) -> np.ndarray:
    """Shape (n, n, m): whether candidate i is clearly better than candidate j in objective k."""
    count = len(rows)
    found = np.zeros((count, count, len(objectives)), dtype=bool)
    for k, name in enumerate(objectives):
        sign = -1.0 if is_maximized(name, metrics) else 1.0
        if name in paired:
            for (i, j), gap in paired[name].items():
                below, above = (gap.high < 0, gap.low > 0)
                found[i, j, k], found[j, i, k] = (below, above) if sign > 0 else (above, below)
            continue
        low, high = (np.array([getattr(row[name], end) for row in rows], dtype=float) for end in ("low", "high"))
        if name in REMEASURED:
            low, high = low - RESOLUTION * np.abs(low), high + RESOLUTION * np.abs(high)
        found[..., k] = high[:, None] < low[None, :] if sign > 0 else low[:, None] > high[None, :]
    return found


def _preference(
    row: Mapping[str, Estimate], objectives: Sequence[str], metrics: Sequence[Metric], index: int
) -> tuple[float, ...]:
    repeated = [name for name in (*objectives, "accuracy", "size_bytes") if name in row and name not in REMEASURED]
    signed = [-row[name].value if is_maximized(name, metrics) else row[name].value for name in repeated]
    return (*signed, float(index))
