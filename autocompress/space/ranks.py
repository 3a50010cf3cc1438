"""Ranks of factorized layers."""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import prod

from autocompress.errors import ConfigError, InfeasibleError
from autocompress.records import Layer, LowRank, ParamValue, Plan, Structure
from autocompress.space.config import SpaceConfig
from autocompress.space.draft import Draft
from autocompress.space.grid import allowed_widths, choose, grid_of, keep_interval, keep_of, nearest_value
from autocompress.space.knob import Uniform, plural
from autocompress.space.names import Unit, units
from autocompress.space.options import ShareRange
from autocompress.space.params import Params, Suggester, read_number


def factorizable(layer: Layer) -> bool:
    """Whether a layer may have factors, and its shape leaves a rank to lose."""
    if not layer.factorizable:
        return False
    # One input channel for each filter: depthwise, or a first layer of one channel, which has no rank to lose there.
    return layer.kind == "linear" or (layer.kind in ("conv1d", "conv2d") and layer.shape[1] > 1)


def max_ranks(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Largest ranks of a layer.

    Args:
        shape: of the weight as torch keeps it: (out, in) or (out, in, kernel...).

    Returns:
        (min(out, in),) for a matrix or a kernel of one position; (out, in) for any other.
    """
    return (min(shape[:2]),) if prod(shape[2:]) == 1 else (shape[0], shape[1])


def factor_weights(shape: tuple[int, ...], ranks: tuple[int, ...]) -> int:
    """Weights of the factors that take a layer's place.

    r (out + in) for a matrix; in · r_in + r_in · r_out · k² + r_out · out for a kernel.

    Args:
        shape: of the weight, (out, in) or (out, in, kernel...).
        ranks: one number, or (output rank, input rank).
    """
    out, inputs, positions = shape[0], shape[1], prod(shape[2:])
    if len(ranks) == 1:
        return ranks[0] * (out + inputs)
    r_out, r_in = ranks
    return inputs * r_in + r_in * r_out * positions + r_out * out


def saves(shape: tuple[int, ...], ranks: tuple[int, ...]) -> bool:
    """Whether the factors have fewer weights than the layer: for a matrix, r < mn / (m + n); see `factor_weights`."""
    # One rank stands for a matrix: a 1×1 kernel, whose further sizes are 1.
    return factor_weights(shape, ranks) < prod(shape)


def round_ranks(shape: tuple[int, ...], ranks: Sequence[int], round_to: int) -> tuple[int, ...]:
    """Ranks in multiples of `round_to`, the nearest ones upwards, at most `max_ranks`.

    Raises:
        ValueError: `round_to` is below 1.
    """
    if round_to < 1:
        raise ValueError(f"round_to: expected at least 1, got {round_to}")
    return tuple(
        min(limit, math.ceil(rank / round_to) * round_to) for rank, limit in zip(ranks, max_ranks(shape), strict=True)
    )


def ranks_of(shape: tuple[int, ...], share: Fraction, round_to: int) -> tuple[int, ...] | None:
    """The ranks nearest to a share of the largest ones, in multiples of the target's; None if they save nothing.

    Args:
        shape: of the weight.
        share: in (0, 1].
        round_to: the target's multiple; the largest rank is allowed as well.

    Examples:
        >>> ranks_of((64, 32), Fraction(1, 4), 8), ranks_of((64, 32), Fraction(1), 8)
        ((8,), None)
    """
    ranks = tuple(keep_of(limit, share, round_to) for limit in max_ranks(shape))
    return ranks if saves(shape, ranks) else None


def share_interval(
    shape: tuple[int, ...], ranks: tuple[int, ...] | None, round_to: int
) -> tuple[Fraction, Fraction] | None:
    """Shares, from and to, for which `ranks_of` gives `ranks`; the ends may or may not belong. None if there are none.

    Raising the share never lowers a rank, so that the shares that save nothing are those from some value on.
    """
    limits = max_ranks(shape)
    if ranks is None:
        starts = {keep_interval(n, keep, round_to)[0] for n in limits for keep in allowed_widths(n, round_to)}
        ordered = sorted(starts)
        first = bisect.bisect_left(ordered, 1, key=lambda share: int(ranks_of(shape, share, round_to) is None))
        return (ordered[first], Fraction(1)) if first < len(ordered) else None
    if len(ranks) != len(limits) or any(
        rank not in allowed_widths(n, round_to) for rank, n in zip(ranks, limits, strict=True)
    ):
        return None
    found = [keep_interval(n, rank, round_to) for rank, n in zip(ranks, limits, strict=True)]
    low, high = max(low for low, _ in found), min(high for _, high in found)
    return (low, high) if low <= high else None


@dataclass(frozen=True)
class RankKnob:
    """``rank/<layer>`` (or of a group, or ``rank``): share of the largest rank that the layer may have.

    The largest rank is that of the layer's shape after the cuts.

    Attributes:
        units: layers with one choice; never only 1.
    """

    units: tuple[Unit[ShareRange], ...]

    def keys(self) -> frozenset[str]:
        """Names of all parameters."""
        return frozenset(unit.key for unit in self.units)

    def suggest(self, trial: Suggester, draft: Draft) -> Params:
        """A unit is asked for only if a layer of it is left."""
        params: Params = {}
        for unit in self.units:
            if len(_grid(unit)) > 1 and _left(unit, draft):
                offer = unit.offer
                params[unit.key] = float(trial.suggest_float(unit.key, offer.low, offer.high, step=offer.step))
        return params

    def apply(self, params: Mapping[str, ParamValue], draft: Draft) -> Draft:
        """Adds ranks, where they save weights."""
        found = []
        for unit in self.units:
            left = _left(unit, draft)
            if not left:
                continue
            share = read_number(params, unit.key, _grid(unit), zero=False)
            for name in left:
                ranks = ranks_of(draft.shapes[name], share, draft.round_to)
                if ranks is not None:
                    found.append(LowRank(layer=name, ranks=ranks))
        return replace(draft, ranks=draft.ranks + tuple(found))

    def invert(self, plan: Plan, draft: Draft) -> Params:
        """One share for each unit that gives all its layers the ranks that the plan has."""
        known = {name for unit in self.units for name in unit.names}
        for entry in plan.ranks:
            if entry.layer not in known:
                raise InfeasibleError(f"plan.ranks: expected a layer that this space searches, got {entry.layer!r}")
        ranks = {entry.layer: entry.ranks for entry in plan.ranks}
        params: Params = {}
        for unit in self.units:
            left = _left(unit, draft)
            if left:
                wanted = {name: ranks.get(name) for name in left}
                params[unit.key] = float(_share(unit, wanted, draft))
        return params

    def uniform(self, request: Uniform) -> Params:
        """The largest share."""
        return {unit.key: float(_grid(unit)[-1]) for unit in self.units}

    def mild(self) -> list[tuple[str, Params]]:
        """Half of the largest rank in every layer."""
        params: Params = {unit.key: float(nearest_value(0.5, _grid(unit))) for unit in self.units}
        return [("rank-half", params)] if params else []

    def log10_size(self) -> float:
        """log10 of the number of settings."""
        return sum(math.log10(len(_grid(unit))) for unit in self.units)

    def describe(self) -> list[str]:
        """Units with the same choices together."""
        kinds: dict[str, int] = {}
        for unit in self.units:
            words = f"rank {unit.offer.low:g} to {unit.offer.high:g} of the largest"
            kinds[words] = kinds.get(words, 0) + len(unit.layers)
        return [f"{plural(count, 'layer')}: {words}" for words, count in kinds.items()]


def rank_knob(config: SpaceConfig, structure: Structure) -> RankKnob:
    """The knob for a network.

    Raises:
        ConfigError: ranks are searched in a network without a layer that has factors.
    """
    part = config.layers.rank
    whole = ShareRange(low=1.0, high=1.0, step=0.5)
    # Of the base class, so that offers of the file and of overrides compare.
    default = ShareRange(low=part.low, high=part.high, step=part.step) if part else whole
    found = units(
        config,
        [layer for layer in structure.layers if factorizable(layer)],
        "rank",
        part.per if part else "layer",
        default,
        lambda override, offer: override.rank or offer,
    )
    searched = tuple(unit for unit in found if unit.offer.low < 1.0)
    if part is not None and not searched:
        raise ConfigError(
            "space: layers.rank: expected a network with linear layers or ungrouped convolutions that are searched, "
            "got one without; remove the key"
        )
    return RankKnob(searched)


def _grid(unit: Unit[ShareRange]) -> tuple[Fraction, ...]:
    return grid_of(unit.offer.low, unit.offer.high, unit.offer.step)


def _left(unit: Unit[ShareRange], draft: Draft) -> list[str]:
    return [name for name in unit.names if name not in draft.gone]


def _share(unit: Unit[ShareRange], wanted: Mapping[str, tuple[int, ...] | None], draft: Draft) -> Fraction:
    def explains(share: Fraction) -> bool:
        found = ((ranks_of(draft.shapes[name], share, draft.round_to), ranks) for name, ranks in wanted.items())
        return share > 0 and all(reached == ranks for reached, ranks in found)

    grid = _grid(unit)
    if explains(grid[-1]):
        return grid[-1]
    intervals = [share_interval(draft.shapes[name], ranks, draft.round_to) for name, ranks in wanted.items()]
    if None not in intervals:
        known = [interval for interval in intervals if interval is not None]
        low, high = max(low for low, _ in known), min(high for _, high in known)
        share = choose(low, high, grid, explains) if low <= high else None
        if share is not None:
            return share
    raise InfeasibleError(
        f"{unit.key}: expected ranks that one share of the largest ones explains for {list(wanted)}, "
        f"got {[list(ranks) if ranks else None for ranks in wanted.values()]}"
    )
