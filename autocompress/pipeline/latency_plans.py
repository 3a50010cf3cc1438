"""Which networks of a space teach a latency model: plans of every size and mixture, and the ones that show most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from autocompress.errors import InfeasibleError
from autocompress.records import Plan
from autocompress.records.outline import Operation, Site, sites
from autocompress.rng import derive_seed
from autocompress.space.space import Space

#: Half the width, as a share of a range, of what one network's parameters of a kind are drawn from.
_SPREAD = 0.35
#: Chance that a network prefers one choice for all its parameters of a kind.
_PREFERS = 0.6
#: How often a site has to be seen before another sight of it is worth nothing.
_SIGHTS = 3


class Tilted:
    """Draws parameters of one network around a level of its own for each kind; an Optuna trial in its place.

    Parameters drawn one by one and evenly would give networks that are all of a middling size.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._levels: dict[str, float] = {}
        self._preferred: dict[str, tuple[Any, float]] = {}

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None) -> float:
        """A value of the grid near this network's level."""
        count = round((high - low) / step) if step else 1000
        return low + (high - low) * self._share(name, count)

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:
        """Likewise."""
        count = (high - low) // step
        return low + step * round(count * self._share(name, count))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """This network's preferred choice with its own probability, else any."""
        kind = name.partition("/")[0]
        if kind not in self._preferred:
            strength = self._rng.uniform() if self._rng.uniform() < _PREFERS else 0.0
            self._preferred[kind] = (choices[int(self._rng.integers(len(choices)))], strength)
        preferred, strength = self._preferred[kind]
        if preferred in choices and self._rng.uniform() < strength:
            return preferred
        return choices[int(self._rng.integers(len(choices)))]

    def _share(self, name: str, count: int) -> float:
        kind = name.partition("/")[0]
        level = self._levels.setdefault(kind, float(self._rng.uniform()))
        share = float(np.clip(level + self._rng.uniform(-_SPREAD, _SPREAD), 0.0, 1.0))
        return round(share * count) / max(1, count)


def spread_plans(
    space: Space, outline_of: Callable[[Plan], Sequence[Operation]], count: int, *, seed: int
) -> list[tuple[Plan, tuple[Operation, ...]]]:
    """Distinct networks of a space, of every size, with their operations.

    Args:
        space: what may be searched.
        outline_of: a plan's operations; plans that it refuses are left out.
        count: at most as many.
        seed: of the choice.
    """
    rng = np.random.default_rng(derive_seed(seed, "latency", "plans"))
    found: dict[tuple[Operation, ...], Plan] = {}
    for _ in range(8 * count):
        plan = space.plan(space.suggest(Tilted(rng)))
        try:
            found.setdefault(tuple(outline_of(plan)), plan)
        except InfeasibleError:
            continue
        if len(found) == count:
            break
    return [(plan, outline) for outline, plan in found.items()]


def telling(outlines: Sequence[Sequence[Operation]], count: int) -> list[int]:
    """Indices of networks that together show the most operations at the most sizes, the most telling first.

    Greedy: each adds the most sites that were seen fewer than three times, those seen never counting most.
    """
    contents = [Counter(sites(outline)) for outline in outlines]
    seen: Counter[Site] = Counter()
    left = list(range(len(outlines)))
    chosen: list[int] = []
    while left and len(chosen) < count:
        gains = [sum(1.0 / 4 ** seen[site] for site in contents[i] if seen[site] < _SIGHTS) for i in left]
        best = left.pop(int(np.argmax(gains)))
        chosen.append(best)
        seen.update(contents[best].keys())
    return chosen
