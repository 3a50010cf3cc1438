"""A search space as a knapsack: items that each take one level, and which levels exclude each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property

from autocompress.compress.knapsack import AtMost, Pair
from autocompress.pipeline.guide import PlanGuide
from autocompress.records import Criterion, Plan
from autocompress.space.choices import GroupChoice
from autocompress.space.grid import keep_of
from autocompress.space.space import Params, Space

#: Item name -> number of its level.
State = Mapping[str, int]
Costs = dict[str, dict[int, float]]


@dataclass(frozen=True)
class Item:
    """One choice of a space.

    Attributes:
        name: such as ``"group/conv1"``.
        levels: changes to the dense parameters; the first is the least compressed, to which an item goes back whose
            block is left out.
        blocks: of the items of blocks, those that it lies in with all that it speaks of.
        drops: it is the item of a block that may be left out, which is its second level.
    """

    name: str
    levels: tuple[Params, ...]
    blocks: tuple[str, ...] = ()
    drops: bool = False


@dataclass(frozen=True)
class Items:
    """The choices of a space of which both latency and loss are known; every other one stays as the dense network's.

    Attributes:
        guide: tells latencies and losses; knows the space.
        items: at least two levels each, in the order of the space.
    """

    guide: PlanGuide
    items: tuple[Item, ...]
    _shares: dict[tuple[int, ...], float] = field(default_factory=dict)

    @property
    def space(self) -> Space:
        """The study's space."""
        return self.guide.space

    @property
    def dense(self) -> dict[str, int]:
        """Every item at its first level."""
        return {item.name: 0 for item in self.items}

    def plan(self, state: State) -> Plan:
        """The plan of these levels; one that leaves out more blocks than may go is none of the space."""
        params = dict(self._base)
        for item in self.items:
            params |= item.levels[state[item.name]]
        return self._unlimited.plan(params)

    @cached_property
    def _unlimited(self) -> Space:
        """The space without its limit to blocks: what another block costs is asked where the limit is reached, too."""
        return replace(self.space, depth=replace(self.space.depth, limit=None))

    @cached_property
    def _base(self) -> Params:
        return self._unlimited.dense()

    def share(self, state: State) -> float:
        """Latency of these levels, as a share of the dense network's."""
        key = tuple(state[item.name] for item in self.items)
        if key not in self._shares:
            self._shares[key] = self.guide.latency_share(self.plan(state))
        return self._shares[key]

    @cached_property
    def losses(self) -> dict[str, dict[int, float]]:
        """Item -> level -> what it loses alone, beyond the first level; at least 0."""
        found: dict[str, dict[int, float]] = {}
        for item in self.items:
            own = [self._loss(item, level) for level in range(len(item.levels))]
            found[item.name] = {level: max(0.0, value - own[0]) for level, value in enumerate(own)}
        return found

    def _loss(self, item: Item, level: int) -> float:
        if item.drops:
            return self.guide.losses.drop(item.name.partition("/")[2]) * level
        return self.guide.losses.of(self.plan(self.dense | {item.name: level})).total

    def loss(self, state: State) -> float:
        """Sum over items, and what pairs of them lose beyond it."""
        more = sum(value for pair, value in self.pairs.items() if all(state[name] == level for name, level in pair))
        return sum(self.losses[name][level] for name, level in state.items()) + more

    @cached_property
    def pairs(self) -> dict[Pair, float]:
        """Two choices -> what both together lose beyond the sum, where that was measured."""
        known = {item.name for item in self.items if item.drops}
        found = {}
        for pair, more in self.guide.losses.pairs.items():
            first, second = sorted(f"block/{name}" for name in pair)
            if {first, second} <= known:
                found[(first, 1), (second, 1)] = more
        return found

    @cached_property
    def limits(self) -> tuple[AtMost, ...]:
        """What lies in a block that is left out goes back to its first level; and so many blocks may go at most."""
        found = []
        for item in self.items:
            compressed = tuple((item.name, level) for level in range(1, len(item.levels)))
            found += [AtMost(((block, 1), *compressed)) for block in item.blocks]
        drops = tuple((item.name, 1) for item in self.items if item.drops)
        limit = self.space.depth.limit
        if limit is not None and drops:
            found.append(AtMost(drops, max(0, limit - len(self.space.depth.forced))))
        return tuple(found)

    def linear(self, state: State) -> Costs:
        """Item -> level -> by how much it changes the latency's share beside `state`, one item changed at a time.

        Of an item whose block is left out, beside the same state with the block. A block's own cost makes up for what
        lies in it: the sum is exact where it is left out and what lies in it goes back.
        """
        here = self.share(state)
        costs: Costs = {}
        for item in self.items:
            if item.drops:
                continue
            base = dict(state) | {block: 0 for block in item.blocks if state[block] == 1}
            before = self.share(base)
            costs[item.name] = {
                level: self.share(base | {item.name: level}) - before for level in range(len(item.levels))
            }
        for item in (item for item in self.items if item.drops):
            inside = [other.name for other in self.items if item.name in other.blocks]
            if state[item.name] == 1:
                costs[item.name] = {0: self.share(dict(state) | {item.name: 0}) - here, 1: 0.0}
                continue
            gone = dict(state) | {item.name: 1} | dict.fromkeys(inside, 0)
            back = sum(costs[name][0] for name in inside if name in costs)
            costs[item.name] = {0: 0.0, 1: self.share(gone) - here - back}
        return costs


def items_of(guide: PlanGuide, criterion: Criterion = "magnitude") -> Items:
    """The items of a guide's space.

    Args:
        guide: knows the space.
        criterion: of cuts, where the space offers it; else the first that it offers.
    """
    space = guide.space
    found = [*_blocks(space), *_widths(space, criterion), *_bits(space)]
    return Items(guide, _without_effect(guide, tuple(item for item in found if len(item.levels) > 1)))


def _blocks(space: Space) -> Iterator[Item]:
    free = _free(space)
    for name in free:
        around = tuple(f"block/{other}" for other in free if name.startswith(f"{other}."))
        key = f"block/{name}"
        yield Item(key, ({key: "keep"}, {key: "drop"}), around, drops=True)


def _free(space: Space) -> list[str]:
    """Blocks that may be left out or not."""
    depth = space.depth
    if depth.limit is not None and depth.limit <= len(depth.forced):
        return []
    return [name for name, offered in depth.choices if len(offered) > 1]


def _widths(space: Space, criterion: Criterion) -> Iterator[Item]:
    """One item for the rows of an allocation; or one for each group that may be cut; or one for the global width."""
    allocation = space.allocation
    if allocation.rows:
        rows = sorted(allocation.rows, key=lambda row: row.sparsity)
        yield Item("allocation", tuple({"allocation": r.kind, "allocation/sparsity": r.sparsity} for r in rows))
        return
    cut = [choice for choice in space.groups if "structured" in choice.strategy]
    for choice in cut:
        yield Item(f"group/{choice.name}", _cuts(space, choice, criterion), _around(space, choice.group.layers))
    if not cut and space.pruning.widths:
        yield Item("width", tuple({"width": float(width)} for width in reversed(space.pruning.widths)))


def _cuts(space: Space, choice: GroupChoice, criterion: Criterion) -> tuple[Params, ...]:
    """What each width that the group can have asks for, the widest first."""
    name, group = choice.name, choice.group
    width = max(space.pruning.widths, default=Fraction(1))
    found: dict[int, Params] = {}
    if "none" in choice.strategy:
        found[keep_of(group.width, width, group.multiple(space.round_to))] = {f"strategy/{name}": "none"}
    score = criterion if criterion in choice.criterion else choice.criterion[0]
    for sparsity in choice.grid:
        keep = keep_of(group.width, width * (1 - sparsity), group.multiple(space.round_to))
        params: Params = {
            f"strategy/{name}": "structured",
            f"criterion/{name}": score,
            f"sparsity/{name}": float(sparsity),
        }
        if len(choice.reductions(score)) > 1:
            params[f"reduction/{name}"] = choice.reductions(score)[0]
        found.setdefault(keep, params)
    return tuple(found[keep] for keep in sorted(found, reverse=True))


def _bits(space: Space) -> Iterator[Item]:
    for unit in space.units:
        levels = []
        for bits, weights in unit.settings:
            params: Params = {unit.key: bits}
            if len(unit.weights) > 1:
                params[unit.weights_key] = weights
            levels.append(params)
        yield Item(unit.key, tuple(levels), _around(space, unit.layers))


def _around(space: Space, layers: tuple[str, ...]) -> tuple[str, ...]:
    """Items of the blocks that hold all of these layers."""
    return tuple(
        f"block/{name}"
        for name in _free(space)
        if layers and all(x in space.structure.block(name).layers or x.startswith(f"{name}.") for x in layers)
    )


def _without_effect(guide: PlanGuide, items: tuple[Item, ...]) -> tuple[Item, ...]:
    """The items, without roundings that lose more than another of the same layers and are no faster."""
    probe = Items(guide, items)
    found = []
    for item in items:
        if not item.name.startswith("bits"):
            found.append(item)
            continue
        told = [
            (round(probe.share(probe.dense | {item.name: level}), 9), probe.losses[item.name][level], level)
            for level in range(len(item.levels))
        ]
        kept, least = [], float("inf")
        for _, loss, level in sorted(told):
            if loss < least or level == 0:
                kept.append(level)
            least = min(least, loss)
        if len(kept) > 1:
            found.append(Item(item.name, tuple(item.levels[level] for level in sorted(kept)), item.blocks))
    return tuple(found)
