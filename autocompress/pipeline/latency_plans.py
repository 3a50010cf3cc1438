"""Which networks of a space teach a latency model: plans of every size and mixture, and the ones that show most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from autocompress.errors import InfeasibleError
from autocompress.records import Plan
from autocompress.records.outline import Operation, Site, sites
from autocompress.rng import derive_seed
from autocompress.space.draws import Tilted
from autocompress.space.space import Space

#: How often a site has to be seen before another sight of it is worth nothing.
_SIGHTS = 3


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
