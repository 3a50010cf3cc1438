"""From measured sensitivities and costs to the levels that lose least within a budget."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import isfinite
from typing import NamedTuple

import numpy as np
from scipy.optimize import LinearConstraint, milp

from autocompress.compress.sensitivity import BlockSensitivity, GroupSensitivity, LayerSensitivity
from autocompress.errors import CompressionError, InfeasibleError

#: Shares by which the budget given to the solver is lowered if its tolerance lets a solution go beyond.
_TIGHTER = (0.0, 1e-6, 1e-5, 1e-4)


#: Two pairs of a name and one of its levels.
Pair = tuple[tuple[str, int], tuple[str, int]]


class AtMost(NamedTuple):
    """Of some choices only so many may be made together: at most 1 they exclude each other.

    Attributes:
        choices: pairs of a name and one of its levels, distinct.
        most: how many may be made, >= 0.
    """

    choices: tuple[tuple[str, int], ...]
    most: int = 1


def allocate_from_sensitivity(
    sensitivity: Sequence[GroupSensitivity | LayerSensitivity | BlockSensitivity],
    costs: Mapping[str, Mapping[int, float]],
    budget: float,
) -> dict[str, int]:
    """One level for each group (or layer, or block), so that the summed increase of the loss is least in the budget.

    See `choose_levels`. Not to compress is a level as well, at which the loss does not change. Both losses and costs
    are taken to add up, which holds for small changes only; measure what comes out.

    Args:
        sensitivity: one entry per name and level.
        costs: name -> level -> what it costs at that level (weights, multiply-adds, milliseconds), the full level
            included.
        budget: in the costs' unit.

    Returns:
        Name -> level: units kept, bits, or 0 for a block that is left out; the full level where nothing is done.

    Raises:
        InfeasibleError: even the cheapest levels cost more; the message says how much.
        CompressionError: entries are of several kinds, an entry has no cost, a cost no entry, or a number is not
            finite.
    """
    kinds = {type(entry).__name__ for entry in sensitivity}
    if len(kinds) > 1:
        raise CompressionError(
            f"allocation: expected sensitivities of one kind, as names of groups and layers may be the same, got "
            f"{' and '.join(sorted(kinds))}"
        )
    losses: dict[str, dict[int, float]] = {}
    for entry in sensitivity:
        losses.setdefault(entry.name, {entry.full: 0.0})[entry.level] = entry.loss
    return choose_levels(losses, costs, budget)


def choose_levels(
    losses: Mapping[str, Mapping[int, float]],
    costs: Mapping[str, Mapping[int, float]],
    budget: float,
    limits: Iterable[AtMost] = (),
    *,
    pairs: Mapping[Pair, float] | None = None,
    gap: float = 0.0,
) -> dict[str, int]:
    r"""The multiple-choice knapsack with side constraints, solved by branch and bound (HiGHS) to a gap.

    .. math::
        \min \sum_{i,l} x_{il} L_{il} + \sum_{(il, jm)} x_{il} x_{jm} P_{il,jm} \quad \text{with} \quad
        \sum_l x_{il} = 1, \quad \sum_{i,l} x_{il} c_{il} \le b, \quad
        \sum_{(i,l) \in S_k} x_{il} \le n_k, \quad x_{il} \in \{0, 1\}

    Args:
        losses: name -> level -> L, any unit.
        costs: name -> level -> c, for the same names and levels.
        budget: b, in the costs' unit; may be infinite.
        limits: the sets S with their n.
        pairs: P, what two choices lose together beyond the sum; at least 0.
        gap: share of the least loss by which the answer's may exceed it.

    Returns:
        Name -> level. Of several best solutions any one, the same at every call.

    Raises:
        InfeasibleError: even the cheapest levels that the limits allow cost more than the budget, or they allow none.
        CompressionError: names or levels disagree, a number is not finite, a pair is negative, or a limit or pair names
            what there is not.
    """
    for name in sorted({*losses, *costs}):
        ours, theirs = set(losses.get(name, ())), set(costs.get(name, ()))
        if ours != theirs:
            raise CompressionError(
                f"allocation of {name!r}: expected a cost for each measured level {sorted(ours)}, got {sorted(theirs)}"
            )
    keys = [(name, level) for name in sorted(losses) for level in sorted(losses[name])]
    limits = _checked(limits, set(keys))
    extra = _extra(keys, pairs or {})
    if not keys:
        return {}
    loss = np.array([losses[name][level] for name, level in keys], dtype=float)
    cost = np.array([costs[name][level] for name, level in keys], dtype=float)
    for (name, level), value, price in zip(keys, loss, cost, strict=True):
        if not (isfinite(value) and isfinite(price)):
            raise CompressionError(
                f"allocation of {name!r} at level {level}: expected finite numbers, got loss {value} and cost {price}"
            )
    cheapest = _cheapest(keys, loss, cost, limits)
    least = sum(costs[name][level] for name, level in cheapest.items())
    # Sums in another order may differ in their last bits.
    allowed = budget + 1e-9 * abs(budget) if isfinite(budget) else budget
    if not least <= allowed:
        raise InfeasibleError(
            f"allocation: budget: expected at least {least:g}, the cheapest levels' cost, got {budget:g}"
        )
    # The solver's tolerances are absolute: both scales are brought to about 1.
    unit = max(float(np.abs(cost).max()), abs(budget) if isfinite(budget) else 0.0) or 1.0
    size = float(np.abs(loss).max()) or 1.0
    scaled, extra = loss / size, [(first, second, more / size) for first, second, more in extra]
    for tighter in _TIGHTER:
        within = LinearConstraint(cost[None] / unit, -np.inf, allowed / unit - tighter)
        chosen = _solved(keys, scaled, [*_one_each(keys, limits), within], gap, extra)
        if chosen is None:
            break
        if sum(costs[name][level] for name, level in chosen.items()) <= allowed:
            return chosen
    # Only the cheapest levels fit, to within the solver's tolerance.
    return cheapest


def _checked(limits: Iterable[AtMost], known: set[tuple[str, int]]) -> tuple[AtMost, ...]:
    found = tuple(limits)
    for limit in found:
        unknown = [choice for choice in limit.choices if choice not in known]
        if unknown or len(set(limit.choices)) != len(limit.choices) or limit.most < 0:
            problem = f"the unknown {unknown[0]}" if unknown else f"{list(limit.choices)} at most {limit.most} times"
            raise CompressionError(
                f"allocation: limits: expected distinct choices out of the levels and a number >= 0, got {problem}"
            )
    return found


def _extra(keys: list[tuple[str, int]], pairs: Mapping[Pair, float]) -> list[tuple[int, int, float]]:
    """Places of both choices, and what they lose together beyond the sum."""
    place = {key: at for at, key in enumerate(keys)}
    for pair, more in pairs.items():
        if not (isfinite(more) and more >= 0.0) or not all(choice in place for choice in pair):
            raise CompressionError(
                f"allocation: pairs: expected two of the levels and a finite number >= 0, got {pair} and {more}"
            )
    return [(place[first], place[second], more) for (first, second), more in pairs.items() if more > 0.0]


def _cheapest(
    keys: list[tuple[str, int]], loss: np.ndarray, cost: np.ndarray, limits: tuple[AtMost, ...]
) -> dict[str, int]:
    """The levels that together cost least; of equal ones those that lose less, as far as limits leave a choice."""
    if not limits:
        best: dict[str, tuple[float, float, int]] = {}
        for (name, level), price, value in zip(keys, cost.tolist(), loss.tolist(), strict=True):
            best[name] = min(best.get(name, (np.inf, np.inf, level)), (price, value, level))
        return {name: level for name, (_, _, level) in best.items()}
    found = _solved(keys, cost / (float(np.abs(cost).max()) or 1.0), _one_each(keys, limits), 0.0)
    if found is None:
        raise InfeasibleError("allocation: limits: expected some that leave a level for every name, got none that do")
    return found


def _one_each(keys: list[tuple[str, int]], limits: tuple[AtMost, ...]) -> list[LinearConstraint]:
    names = sorted({name for name, _ in keys})
    place = {name: at for at, name in enumerate(names)}
    each = np.zeros((len(names), len(keys)))
    for at, (name, _) in enumerate(keys):
        each[place[name], at] = 1.0
    found = [LinearConstraint(each, 1, 1)]
    if limits:
        sets = np.array([[float(key in limit.choices) for key in keys] for limit in limits])
        found.append(LinearConstraint(sets, -np.inf, np.array([float(limit.most) for limit in limits])))
    return found


def _solved(
    keys: list[tuple[str, int]],
    objective: np.ndarray,
    constraints: list[LinearConstraint],
    gap: float,
    extra: Sequence[tuple[int, int, float]] = (),
) -> dict[str, int] | None:
    """The best levels; None if there are none.

    A product of two choices becomes a number z >= x + y - 1 in [0, 1], which the objective holds down to it.
    """
    count, more = len(keys), len(extra)
    products = np.zeros((more, count + more))
    for at, (first, second, _) in enumerate(extra):
        products[at, first] += 1.0
        products[at, second] += 1.0  # twice the same: a choice that has a price of its own
        products[at, count + at] = -1.0
    wider = [LinearConstraint(np.pad(one.A, ((0, 0), (0, more))), one.lb, one.ub) for one in constraints]
    with _silent():
        found = milp(
            np.concatenate([objective, [value for *_, value in extra]]),
            integrality=np.concatenate([np.ones(count), np.zeros(more)]),
            bounds=(0, 1),
            constraints=[*wider, LinearConstraint(products, -np.inf, 1.0)] if more else wider,
            options={"mip_rel_gap": gap},
        )
    if found.x is None:
        return None
    return {name: level for (name, level), x in zip(keys, found.x[:count], strict=True) if x > 0.5}


@contextmanager
def _silent() -> Iterator[None]:
    """HiGHS prints a line on the process' standard output now and then, whatever its options say: nobody sees it."""
    try:
        kept = os.dup(1)
    except OSError:  # there is none
        yield
        return
    sys.stdout.flush()
    try:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.close(nothing)
        yield
    finally:
        ctypes.CDLL(None).fflush(None)  # C's own buffer, or the line would come out later
        os.dup2(kept, 1)
        os.close(kept)
