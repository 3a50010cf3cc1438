"""How much a plan loses, from what each single change loses alone: interpolated, and added up.

Additivity holds for small changes. Where it fails most, for neighbouring blocks that are left out together, the excess
of each pair is added. It is used to order plans, never as a promise.

References:
    Cai et al., 2020, "ZeroQ: A Novel Zero Shot Quantization Framework" (sums of single divergences);
    He et al., 2018, "AMC: AutoML for Model Compression and Acceleration on Mobile Devices".
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from math import exp, log
from typing import NamedTuple, TypeVar

from autocompress.compress.sensitivity import (
    BlockSensitivity,
    GroupSensitivity,
    LayerSensitivity,
    PairSensitivity,
    Sensitivity,
)
from autocompress.records import Plan, Structure

#: What counts as no loss at all, in nats or units of the task's loss.
FLOOR = 1e-6
#: How steep a loss may rise with the share that is removed, as a power, where it is extended beyond what was measured.
_POWERS = (1.0, 4.0)
#: Rise of a rounding's loss for each bit fewer: the noise's power, where nothing was measured.
_PER_BIT = 4.0
#: What a change loses of which nothing was measured: all of a group, or a block.
_UNKNOWN = 1.0
_Measured = GroupSensitivity | LayerSensitivity | BlockSensitivity | PairSensitivity
_Place = TypeVar("_Place", float, int)


class Curve:
    """Loss of one group by the share of its units that is removed: never falling, 0 where nothing is.

    Between measured shares log loss is linear in log share, beyond them it goes on with the same power.
    """

    def __init__(self, points: Iterable[tuple[float, float]]) -> None:
        """Take measured points.

        Args:
            points: pairs of a removed share in (0, 1) and a loss; one that is negative, or below that of a smaller
                share, counts as that.
        """
        best: dict[float, float] = {}
        highest = FLOOR
        for share, value in sorted(points):
            highest = best[share] = max(highest, value)
        self._x = [log(share) for share in best]
        self._y = [log(value) for value in best.values()]

    def at(self, removed: float) -> float:
        """Loss where the share `removed`, in [0, 1], is gone."""
        if removed <= 0.0:
            return 0.0
        x, y = self._x, self._y
        here = log(removed)
        if not x:
            return _UNKNOWN * removed**2
        if len(x) == 1:
            return exp(y[0] + 2.0 * (here - x[0]))
        place = min(max(bisect_left(x, here), 1), len(x) - 1)
        slope = (y[place] - y[place - 1]) / (x[place] - x[place - 1])
        if here < x[0]:
            return exp(y[0] + min(max(slope, _POWERS[0]), _POWERS[1]) * (here - x[0]))
        if here > x[-1]:
            return exp(y[-1] + min(max(slope, _POWERS[0]), _POWERS[1]) * (here - x[-1]))
        return exp(y[place - 1] + slope * (here - x[place - 1]))


class PlanLoss(NamedTuple):
    """What a plan loses, by what is done, in nats or units of the task's loss; each at least 0."""

    cuts: float
    bits: float
    drops: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.cuts + self.bits + self.drops


class Losses:
    """Losses of plans, from the profile's sensitivities. Masks, codebooks and ranks were not measured: they count 0."""

    def __init__(self, structure: Structure, sensitivity: Sensitivity, *, measure: str = "kl") -> None:
        """Take the measured entries.

        Args:
            structure: of the dense network.
            sensitivity: of the same network.
            measure: ``"kl"``, which falls back to ``"loss"``, the increase of the task's loss, for outputs that are no
                class scores.
        """
        entries: tuple[_Measured, ...] = (*sensitivity.groups, *sensitivity.layers, *sensitivity.blocks)
        self.measure = "loss" if measure == "loss" or any(entry.kl is None for entry in entries) else "kl"

        def value(entry: _Measured) -> float:
            return max(entry.loss if self.measure == "loss" or entry.kl is None else entry.kl, 0.0)

        points: dict[str, list[tuple[float, float]]] = {}
        for group in sensitivity.groups:
            points.setdefault(group.group, []).append((1.0 - group.keep / group.width, value(group)))
        self._curves = {name: Curve(own) for name, own in points.items()}
        self._widths = {group.name: group.width for group in structure.groups}
        everything = [point for own in points.values() for point in own]
        # Of a group that was not measured: what the others lose on average.
        self._any_group = Curve(_means(everything))
        self._bits: dict[str, dict[int, float]] = {}
        for layer in sensitivity.layers:
            self._bits.setdefault(layer.layer, {})[layer.bits] = value(layer)
        self._any_bits = _means((entry.bits, value(entry)) for entry in sensitivity.layers)
        self._drops = {block.block: value(block) for block in sensitivity.blocks}
        #: Two neighbours -> what leaving both out loses beyond the sum.
        self.pairs: dict[frozenset[str], float] = {
            frozenset(pair.blocks): max(0.0, value(pair) - sum(self._drops.get(name, 0.0) for name in pair.blocks))
            for pair in sensitivity.pairs
        }
        self._any_drop = max(self._drops.values(), default=_UNKNOWN)

    def cut(self, group: str, keep: int) -> float:
        """Of one group cut to `keep` units; KeyError for a group that the network lacks."""
        return self._curves.get(group, self._any_group).at(1.0 - keep / self._widths[group])

    def rounding(self, layer: str, bits: int) -> float:
        """Of one layer whose weights have so many bits."""
        if bits >= 32:
            return 0.0
        known: Mapping[int, float] = self._bits.get(layer) or dict(self._any_bits)
        if bits in known:
            return known[bits]
        if not known:
            return FLOOR * _PER_BIT ** max(0, 8 - bits)
        nearest = min(known, key=lambda other: (abs(other - bits), other))
        return float(max(known[nearest], FLOOR) * _PER_BIT ** (nearest - bits))

    def drop(self, block: str) -> float:
        """Of one block that is left out."""
        return self._drops.get(block, self._any_drop)

    def of(self, plan: Plan) -> PlanLoss:
        """Of a whole plan; a network that is built instead of the dense one loses nothing that was measured."""
        dropped = frozenset(entry.block for entry in plan.drops)
        return PlanLoss(
            sum(self.cut(cut.group, cut.keep) for cut in plan.cuts),
            sum(self.rounding(entry.layer, entry.bits) for entry in plan.bits),
            sum(self.drop(entry.block) for entry in plan.drops)
            + sum(more for pair, more in self.pairs.items() if pair <= dropped),
        )


def _means(points: Iterable[tuple[_Place, float]]) -> Sequence[tuple[_Place, float]]:
    """Mean value for each place, in ascending order of places."""
    found: dict[_Place, list[float]] = {}
    for place, value in points:
        found.setdefault(place, []).append(value)
    return [(place, sum(values) / len(values)) for place, values in sorted(found.items())]
