"""New candidates out of known ones: neighbours, crossings and fresh draws, all through the space's own conditions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from autocompress.errors import AutocompressError
from autocompress.records import ParamValue, Plan
from autocompress.space.draws import Even, Tilted
from autocompress.space.params import Params

if TYPE_CHECKING:
    from autocompress.search.ledger import SearchSpace

#: Shares of how candidates are made while there are parents: a parent's neighbour, two parents' crossing, a draw
#: around one level; what is left is drawn evenly.
_NEIGHBOURS, _CROSSINGS, _TILTED = 0.60, 0.20, 0.15
#: How many parameters a neighbour changes, on average: drawn evenly from these.
_CHANGES = (1.0, 2.0, 4.0, 8.0)
#: Chance that all numbers of one kind drift one way, so that a neighbour may be smaller or larger as a whole.
_DRIFTS = 0.25
#: How many draws may be refused, known or alike for each candidate that is wanted.
_PATIENCE = 4
#: Draws in a row after which a space is taken to have nothing else.
_EXHAUSTED = 1000


@dataclass(frozen=True)
class Drawn:
    """A candidate that nobody has evaluated.

    Attributes:
        params: as the space suggested them.
        plan: what they mean.
        key: of the plan.
    """

    params: Params
    plan: Plan
    key: str


class Near:
    """Keeps a parent's values with high probability, and else moves to a neighbour; an Optuna trial in its place.

    A number moves along its grid by a geometric number of steps, a choice to any other one. What the parent has no
    value for, as its conditions left it out, is drawn evenly.

    Args:
        parent: parameters that something known was made from.
        rate: chance that a parameter changes, in [0, 1].
        rng: of the draws.
    """

    def __init__(self, parent: Mapping[str, ParamValue], rate: float, rng: np.random.Generator) -> None:
        self._parent = parent
        self._rate = rate
        self._rng = rng
        self._fresh = Even(rng)
        kinds = sorted({name.partition("/")[0] for name, value in parent.items() if not isinstance(value, str)})
        drifts = bool(kinds) and rng.uniform() < _DRIFTS
        self._drifting = kinds[int(rng.integers(len(kinds)))] if drifts else None
        self._direction = 1 if rng.uniform() < 0.5 else -1

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None) -> float:
        """The parent's value, or one some steps beside it."""
        value = self._parent.get(name)
        if isinstance(value, str) or value is None:
            return self._fresh.suggest_float(name, low, high, step=step)
        count = max(1, round((high - low) / step)) if step else 1000
        index = self._moved(name, round((float(value) - low) / (high - low) * count) if high > low else 0, count)
        return low + (high - low) * index / count

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:
        """Likewise."""
        value = self._parent.get(name)
        if isinstance(value, str) or value is None:
            return self._fresh.suggest_int(name, low, high, step=step)
        return low + step * self._moved(name, round((float(value) - low) / step), (high - low) // step)

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """The parent's choice, or any other."""
        value = self._parent.get(name)
        if value not in choices:
            return self._fresh.suggest_categorical(name, choices)
        others = [choice for choice in choices if choice != value]
        if others and self._rng.uniform() < self._rate:
            return others[int(self._rng.integers(len(others)))]
        return value

    def _moved(self, name: str, index: int, count: int) -> int:
        if name.partition("/")[0] == self._drifting and self._rng.uniform() < 0.5:
            index += self._direction
        if self._rng.uniform() < self._rate:
            index += (1 if self._rng.uniform() < 0.5 else -1) * int(self._rng.geometric(0.6))
        return min(max(index, 0), count)


def crossed(first: Mapping[str, ParamValue], second: Mapping[str, ParamValue], rng: np.random.Generator) -> Params:
    """Parameters of two parents, each place's from one of them: ``strategy/g`` and ``sparsity/g`` stay together.

    Args:
        first: parameters of a parent.
        second: of another.
        rng: of the choice.

    Returns:
        What `Near` may take for a parent; by itself it may break the space's conditions.
    """
    places = sorted({_place(name) for name in (*first, *second)})
    takes = dict(zip(places, rng.uniform(size=len(places)) < 0.5, strict=True))
    return {name: value for name, value in first.items() if takes[_place(name)]} | {
        name: value for name, value in second.items() if not takes[_place(name)]
    }


def vary(
    space: SearchSpace,
    parents: Sequence[Mapping[str, ParamValue]],
    count: int,
    rng: np.random.Generator,
    known: Callable[[str], bool] = lambda key: False,
) -> list[Drawn]:
    """New candidates, no two the same and none of them known.

    Args:
        space: that all draws go through, so that conditional parameters hold.
        parents: parameters of the best that is known, may be empty.
        count: how many are wanted; fewer come where the space refuses or repeats most draws.
        rng: of the draws.
        known: whether a plan's key is to be left out.
    """
    found: dict[str, Drawn] = {}
    attempts = _PATIENCE * count + 16
    for attempt in range(attempts):
        if len(found) >= count:
            break
        if attempt == attempts // 2:
            parents = ()  # their neighbourhood is known by now
        try:
            params = space.suggest(_suggester(parents, rng))
            plan = space.plan(params)
        except AutocompressError:
            continue  # the space refuses this combination
        key = plan.key
        if key not in found and not known(key):
            found[key] = Drawn(params, plan, key)
    return list(found.values())


def _suggester(parents: Sequence[Mapping[str, ParamValue]], rng: np.random.Generator) -> Near | Tilted | Even:
    kind = rng.uniform()
    if not parents or kind >= _NEIGHBOURS + _CROSSINGS:
        # Without parents a draw around one level is the rule: even draws are all of a middling size.
        left = (kind - _NEIGHBOURS - _CROSSINGS) / _TILTED if parents else kind
        return Tilted(rng) if left < 1.0 else Even(rng)
    parent = parents[int(rng.integers(len(parents)))]
    if kind < _CROSSINGS and len(parents) > 1:
        parent = crossed(parent, parents[int(rng.integers(len(parents)))], rng)
    changes = _CHANGES[int(rng.integers(len(_CHANGES)))]
    return Near(parent, min(0.5, changes / max(1, len(parent))), rng)


def _place(name: str) -> str:
    kind, _, place = name.partition("/")
    return place or kind


def draw_distinct(space: SearchSpace, rng: np.random.Generator, known: Callable[[Plan], bool]) -> Params:
    """Parameters of an even draw whose plan is not known; of any draw if a thousand in a row are known or refused.

    Args:
        space: that it is drawn from.
        rng: of the draws.
        known: whether a plan is to be left out.
    """
    for _ in range(_EXHAUSTED):
        params = space.suggest(Even(rng))
        try:
            if not known(space.plan(params)):
                return params
        except AutocompressError:
            continue
    return space.suggest(Even(rng))
