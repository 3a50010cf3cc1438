"""From measured sensitivities and costs to the levels that lose least within a budget."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from typing import NamedTuple

import numpy as np
from scipy.optimize import LinearConstraint, milp

from autocompress.compress.sensitivity import BlockSensitivity, GroupSensitivity, LayerSensitivity
from autocompress.errors import CompressionError, InfeasibleError

#: Shares by which the budget given to the solver is lowered if its tolerance lets a solution go beyond.
_TIGHTER = (0.0, 1e-6, 1e-5, 1e-4)


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
    gap: float = 0.0,
) -> dict[str, int]:
    r"""The multiple-choice knapsack with side constraints, solved by branch and bound (HiGHS) to a gap.

    .. math::
        \min \sum_{i,l} x_{il} L_{il} \quad \text{with} \quad \sum_l x_{il} = 1, \quad
        \sum_{i,l} x_{il} c_{il} \le b, \quad \sum_{(i,l) \in S_k} x_{il} \le n_k, \quad x_{il} \in \{0, 1\}

    Args:
        losses: name -> level -> L, any unit.
        costs: name -> level -> c, for the same names and levels.
        budget: b, in the costs' unit; may be infinite.
        limits: the sets S with their n.
        gap: share of the least loss by which the answer's may exceed it.

    Returns:
        Name -> level. Of several best solutions any one, the same at every call.

    Raises:
        InfeasibleError: even the cheapest levels that the limits allow cost more than the budget, or they allow none.
        CompressionError: names or levels disagree, a number is not finite, or a limit names what there is not.
    """
    for name in sorted({*losses, *costs}):
        ours, theirs = set(losses.get(name, ())), set(costs.get(name, ()))
        if ours != theirs:
            raise CompressionError(
                f"allocation of {name!r}: expected a cost for each measured level {sorted(ours)}, got {sorted(theirs)}"
            )
    keys = [(name, level) for name in sorted(losses) for level in sorted(losses[name])]
    limits = _checked(limits, set(keys))
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
    scaled = loss / (float(np.abs(loss).max()) or 1.0)
    for tighter in _TIGHTER:
        within = LinearConstraint(cost[None] / unit, -np.inf, allowed / unit - tighter)
        chosen = _solved(keys, scaled, [*_one_each(keys, limits), within], gap)
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
    keys: list[tuple[str, int]], objective: np.ndarray, constraints: list[LinearConstraint], gap: float
) -> dict[str, int] | None:
    """The best levels; None if there are none."""
    found = milp(
        objective,
        integrality=np.ones(len(keys)),
        bounds=(0, 1),
        constraints=constraints,
        options={"mip_rel_gap": gap},
    )
    if found.x is None:
        return None
    return {name: level for (name, level), x in zip(keys, found.x, strict=True) if x > 0.5}
