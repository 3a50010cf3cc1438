"""From measured sensitivities and costs to the levels that lose least within a budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite

import numpy as np
from scipy.optimize import LinearConstraint, milp

from autocompress.compress.sensitivity import BlockSensitivity, GroupSensitivity, LayerSensitivity
from autocompress.errors import CompressionError, InfeasibleError

#: Shares by which the budget given to the solver is lowered if its tolerance lets a solution go beyond.
_TIGHTER = (0.0, 1e-6, 1e-5, 1e-4)


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
    losses: Mapping[str, Mapping[int, float]], costs: Mapping[str, Mapping[int, float]], budget: float
) -> dict[str, int]:
    r"""The multiple-choice knapsack, solved by branch and bound (HiGHS) to a gap of 0.

    .. math::
        \min \sum_{i,l} x_{il} L_{il} \quad \text{with} \quad \sum_l x_{il} = 1, \quad
        \sum_{i,l} x_{il} c_{il} \le b, \quad x_{il} \in \{0, 1\}

    Args:
        losses: name -> level -> L, any unit.
        costs: name -> level -> c, for the same names and levels.
        budget: b, in the costs' unit.

    Returns:
        Name -> level. Of several best solutions any one, the same at every call.

    Raises:
        InfeasibleError: even the cheapest levels cost more than the budget.
        CompressionError: names or levels disagree, or a number is not finite.
    """
    for name in sorted({*losses, *costs}):
        ours, theirs = set(losses.get(name, ())), set(costs.get(name, ()))
        if ours != theirs:
            raise CompressionError(
                f"allocation of {name!r}: expected a cost for each measured level {sorted(ours)}, got {sorted(theirs)}"
            )
    keys = [(name, level) for name in sorted(losses) for level in sorted(losses[name])]
    if not keys:
        return {}
    loss = np.array([losses[name][level] for name, level in keys], dtype=float)
    cost = np.array([costs[name][level] for name, level in keys], dtype=float)
    for (name, level), value, price in zip(keys, loss, cost, strict=True):
        if not (isfinite(value) and isfinite(price)):
            raise CompressionError(
                f"allocation of {name!r} at level {level}: expected finite numbers, got loss {value} and cost {price}"
            )
    least = sum(min(costs[name].values()) for name in losses)
    # Sums in another order may differ in their last bits.
    allowed = budget + 1e-9 * abs(budget)
    if not least <= allowed:
        raise InfeasibleError(
            f"allocation: budget: expected at least {least:g}, the cheapest levels' cost, got {budget:g}"
        )
    one_each = np.array([[float(key[0] == name) for key in keys] for name in sorted(losses)])
    # The solver's tolerances are absolute: both scales are brought to about 1.
    unit = max(float(np.abs(cost).max()), abs(budget)) or 1.0
    scaled_loss = loss / (float(np.abs(loss).max()) or 1.0)
    for tighter in _TIGHTER:
        found = milp(
            scaled_loss,
            integrality=np.ones(len(keys)),
            bounds=(0, 1),
            constraints=[
                LinearConstraint(one_each, 1, 1),
                LinearConstraint(cost[None] / unit, -np.inf, allowed / unit - tighter),
            ],
            options={"mip_rel_gap": 0.0},
        )
        if found.x is None:
            break
        chosen = {name: level for (name, level), x in zip(keys, found.x, strict=True) if x > 0.5}
        if sum(costs[name][level] for name, level in chosen.items()) <= allowed:
            return chosen
    # Only the cheapest levels fit, to within the solver's tolerance.
    return {
        name: min(costs[name], key=lambda level: (costs[name][level], losses[name][level])) for name in sorted(losses)
    }
