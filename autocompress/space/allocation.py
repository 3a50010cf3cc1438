"""One share for all groups, divided among them by a ranking of their units."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from autocompress.errors import ConfigError, InfeasibleError
from autocompress.records import Allocation, ChannelCut, Criterion, CutScope, Group, ParamValue, Plan, Structure
from autocompress.space.config import SpaceConfig
from autocompress.space.criteria import check_criteria, effective_reduction
from autocompress.space.draft import Draft
from autocompress.space.grid import exact, grid_of, nearest_value
from autocompress.space.knob import Uniform, plural
from autocompress.space.names import selected
from autocompress.space.options import AllocationChoices
from autocompress.space.params import Params, Suggester, read_choice, read_number

#: What rounding may keep of the share that was asked for, before it is worth a word.
_TOLERATED = 0.02
_KIND, _SHARE = "allocation", "allocation/sparsity"


@dataclass(frozen=True)
class AllocationKnob:
    """``allocation``: scope and criterion, such as ``"global/taylor"``; ``allocation/sparsity``: the share that goes.

    Widths are looked up in tables that were made of the dense network. A share that no table has stands for the nearest
    one of the same kind, of two the smaller. Groups in a block that is left out go with it; the others keep the widths
    of the whole network's ranking.

    Attributes:
        asked: the file's choices; None if there are none.
        groups: those that take part.
        rows: what can be had: by kind in the file's order, then by share, ascending.
    """

    asked: AllocationChoices | None
    groups: tuple[Group, ...]
    rows: tuple[Allocation, ...]

    @property
    def kinds(self) -> tuple[str, ...]:
        """Scope and criterion of all rows."""
        return tuple(dict.fromkeys(row.kind for row in self.rows))

    def shares(self, kind: str | None = None) -> tuple[Fraction, ...]:
        """Shares that a kind, or any, has a row for; ascending."""
        return tuple(sorted({exact(row.sparsity) for row in self.rows if kind in (None, row.kind)}))

    def keys(self) -> frozenset[str]:
        """Names of both parameters."""
        return frozenset({_KIND, _SHARE}) if self.rows else frozenset()

    def suggest(self, trial: Suggester, draft: Draft) -> Params:
        """Asked for only if a group is left."""
        params: Params = {}
        if self.asked is None or not self._lives(draft):
            return params
        if len(self.kinds) > 1:
            params[_KIND] = str(trial.suggest_categorical(_KIND, list(self.kinds)))
        shares = self.shares()
        if len(shares) > 1:
            step = self.asked.sparsity.step
            params[_SHARE] = float(trial.suggest_float(_SHARE, float(shares[0]), float(shares[-1]), step=step))
        return params

    def apply(self, params: Mapping[str, ParamValue], draft: Draft) -> Draft:
        """Adds the cuts of the row that is meant."""
        if not self._lives(draft):
            return draft
        kind = read_choice(params, _KIND, self.kinds)
        share = nearest_value(float(read_number(params, _SHARE, self.shares(), zero=True)), self.shares(kind))
        row = next(row for row in self.rows if row.kind == kind and exact(row.sparsity) == share)
        return replace(draft, cuts=draft.cuts + self._cuts(row, draft))

    def invert(self, plan: Plan, draft: Draft) -> Params:
        """The first row that has the plan's cuts, and no others."""
        if not self._lives(draft):
            return {}
        wanted = frozenset(plan.cuts)
        for row in self.rows:
            if frozenset(self._cuts(row, draft)) == wanted:
                return {_KIND: row.kind, _SHARE: row.sparsity}
        raise InfeasibleError(
            f"plan.cuts: expected the widths of one share by {', '.join(self.kinds)}, got "
            f"{({cut.group: cut.keep for cut in plan.cuts}) or 'none'}"
        )

    def uniform(self, request: Uniform) -> Params:
        """The nearest share, by the first kind with the criterion that is preferred."""
        if not self.rows:
            return {}
        kind = next((row.kind for row in self.rows if row.criterion == request.criterion), self.kinds[0])
        wanted = 0.0 if request.strategy == "none" else request.sparsity
        return {_KIND: kind, _SHARE: float(nearest_value(wanted, self.shares(kind)))}

    def mild(self) -> list[tuple[str, Params]]:
        """Half of the units by each kind but that of uniform requests."""
        usual = self.uniform(Uniform(0.0, 32)).get(_KIND)
        return [
            (f"allocation-{kind}", {_KIND: kind, _SHARE: float(nearest_value(0.5, self.shares(kind)))})
            for kind in self.kinds
            if kind != usual
        ]

    def typical(self, sparsity: float) -> float:
        """The share that is nearest to a uniform sparsity."""
        return float(nearest_value(sparsity, self.shares()))

    def log10_size(self) -> float:
        """log10 of the number of rows."""
        return math.log10(len(self.rows)) if self.rows else 0.0

    def describe(self) -> list[str]:
        """What is open; then the shares that cannot be had, and those of which less is reached than was asked for."""
        if self.asked is None:
            return []
        low, high = float(self.shares()[0]), float(self.shares()[-1])
        lines = [f"{plural(len(self.groups), 'group')} by one share, {low:g} to {high:g}, by {' or '.join(self.kinds)}"]
        had = {(row.kind, exact(row.sparsity)) for row in self.rows}
        missing: dict[str, list[str]] = {}
        for scope, criterion, sparsity in requests(self.asked):
            kind = f"{scope}/{criterion}"
            if (kind, exact(sparsity)) not in had:
                missing.setdefault(kind, []).append(f"{sparsity:g}")
        less: dict[str, list[str]] = {}
        for row in self.rows:
            reached = self._reached(row)
            if row.sparsity - reached > _TOLERATED:
                less.setdefault(row.kind, []).append(f"{reached:.3f} for {row.sparsity:g}")
        lines += [f"{kind} left out at {', '.join(x)}: the groups cannot give so much" for kind, x in missing.items()]
        return lines + [f"{kind} reaches less than is asked for: {', '.join(x)}" for kind, x in less.items()]

    def _reached(self, row: Allocation) -> float:
        """Share of the units that goes, after rounding and whatever a group could not give."""
        widths = {group.name: group.width for group in self.groups}
        return 1.0 - sum(keep for _, keep in row.keeps) / sum(widths[name] for name, _ in row.keeps)

    def _lives(self, draft: Draft) -> bool:
        return any(draft.lives(group) for group in self.groups)

    def _cuts(self, row: Allocation, draft: Draft) -> tuple[ChannelCut, ...]:
        keeps = dict(row.keeps)
        return tuple(
            ChannelCut(
                group=group.name,
                keep=keeps[group.name],
                criterion=row.criterion,
                reduction=effective_reduction(group, row.criterion, row.reduction),
            )
            for group in self.groups
            if keeps[group.name] < group.width and draft.lives(group)
        )


def requests(asked: AllocationChoices) -> Iterator[tuple[CutScope, Criterion, float]]:
    """Every scope, criterion and share that a file asks for, shares fastest."""
    shares = grid_of(asked.sparsity.low, asked.sparsity.high, asked.sparsity.step)
    for scope in asked.scope:
        for criterion in asked.criterion:
            yield from ((scope, criterion, float(share)) for share in shares)


def allocated_groups(config: SpaceConfig, structure: Structure) -> tuple[Group, ...]:
    """The groups among which shares are divided: those that are searched; none without `allocation`.

    Raises:
        ConfigError: there is none, or a criterion cannot score one of them.
    """
    if config.allocation is None:
        return ()
    groups = tuple(group for group in structure.groups if selected(config, group.name))
    if not groups:
        raise ConfigError(
            "space: allocation: expected a network with groups of channels that are searched, got one without; remove "
            "the key"
        )
    for group in groups:
        try:
            check_criteria(["structured"], config.allocation.criterion, group)
        except ValueError as error:
            raise ConfigError(f"space: allocation: group {group.name!r}: {error}") from error
    return groups


def allocation_knob(config: SpaceConfig, structure: Structure, tables: Sequence[Allocation]) -> AllocationKnob:
    """The knob for a network.

    Args:
        config: the space.
        structure: the network.
        tables: widths for the shares that the space asks for, as far as they can be had.

    Raises:
        ConfigError: see `allocated_groups`; a table is of other groups; or no share can be had.
    """
    groups = allocated_groups(config, structure)
    asked = config.allocation
    if asked is None:
        return AllocationKnob(None, (), ())
    names = {group.name for group in groups}
    for table in tables:
        if {name for name, _ in table.keeps} != names:
            raise ConfigError(
                f"space: allocation: expected widths of the groups {sorted(names)}, got {table.kind} at "
                f"{table.sparsity:g} for {sorted(name for name, _ in table.keeps)}; prepare the study anew"
            )
    found = {(t.scope, t.criterion, t.sparsity): t for t in tables if t.reduction == asked.reduction}
    rows = tuple(found[request] for request in requests(asked) if request in found)
    if not rows:
        bounds = asked.sparsity
        raise ConfigError(
            f"space: allocation.sparsity: expected a share that the {plural(len(groups), 'group')} can give, got none "
            f"from {bounds.low:g} to {bounds.high:g}; lower the shares, or use the scope uniform or isomorphic"
        )
    return AllocationKnob(asked, groups, rows)
