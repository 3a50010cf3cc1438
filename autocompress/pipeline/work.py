"""The multiply-adds that are left of a plan, from the network's structure alone."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import NamedTuple

from autocompress.records import Plan, Structure
from autocompress.space.ranks import factor_weights

#: Time of a multiply-add in 8-bit integers beside one in floats, where the target has kernels for both: int8 of a
#: residual network ran at 0.35 of its float latency in ONNX Runtime.
INTEGER = 0.35


class LayerWork(NamedTuple):
    """What is left of one layer.

    Attributes:
        macs: multiply-adds for one example.
        weights: numbers in its weight.
        bits: of its weight.
    """

    macs: float
    weights: float
    bits: int


class Work:
    """Work of plans of one network, layer by layer.

    The multiply-adds of a layer go with the size of its weight: positions do not change with the width of a layer.
    """

    def __init__(self, structure: Structure) -> None:
        """Take a network."""
        self._structure = structure
        by_parameter = {layer.parameter: layer.name for layer in structure.layers}
        #: Layer -> axis of its weight -> pairs of a group and indices of the axis that one unit owns.
        self._uses: dict[str, dict[int, list[tuple[str, int]]]] = {layer.name: {} for layer in structure.layers}
        for group in structure.groups:
            for use in group.uses:
                if use.parameter in by_parameter:
                    axes = self._uses[by_parameter[use.parameter]]
                    axes.setdefault(use.axis, []).append((group.name, use.per_unit))
        self._widths = {group.name: group.width for group in structure.groups}
        self._inside = {block.name: frozenset(block.layers) for block in structure.blocks}
        self.dense_macs = sum(layer.macs for layer in structure.layers)

    def layers(self, plan: Plan) -> dict[str, LayerWork]:
        """Layer -> what is left, without layers that are gone.

        Args:
            plan: of this network, not one that is built. Of factors the work of both or all three is counted, as if
                they ran at the layer's own positions.
        """
        lost = {cut.group: self._widths[cut.group] - cut.keep for cut in plan.cuts}
        gone = frozenset[str]().union(*(self._inside[drop.block] for drop in plan.drops))
        ranks = {entry.layer: entry.ranks for entry in plan.ranks}
        bits = {entry.layer: entry.bits for entry in plan.bits}
        found = {}
        for layer in self._structure.layers:
            if layer.name in gone:
                continue
            shape = layer.shape
            if lost and self._uses[layer.name]:
                shape = self._shape(layer.name, shape, lost)
            weights = prod(shape) if layer.name not in ranks else factor_weights(shape, ranks[layer.name])
            macs = layer.macs * weights / prod(layer.shape)
            found[layer.name] = LayerWork(macs, weights, bits.get(layer.name, 32))
        return found

    def _shape(self, name: str, shape: tuple[int, ...], lost: Mapping[str, int]) -> tuple[int, ...]:
        axes = self._uses[name]
        return tuple(
            size - sum(lost.get(group, 0) * per_unit for group, per_unit in axes.get(axis, ()))
            for axis, size in enumerate(shape)
        )

    def macs(self, plan: Plan) -> int | None:
        """Multiply-adds of the plan's layers; None where they are not known exactly: of factors, or built layers."""
        if plan.ranks or plan.architecture is not None:
            return None
        return round(sum(layer.macs for layer in self.layers(plan).values()))

    def share(self, plan: Plan, *, integer: float = INTEGER) -> float:
        """Work as a share of the dense network's, a stand-in for its latency; in (0, 1].

        A network that is built counts as the square of its width; its depth, which only its builder understands, does
        not count.

        Args:
            plan: any.
            integer: what a multiply-add in at most 8 bits counts, beside one in floats.
        """
        if plan.architecture is not None:
            factor = integer if plan.architecture.bits < 16 else 1.0
            return min(1.0, factor * (plan.architecture.width or 1.0) ** 2)
        left = sum(layer.macs * (integer if layer.bits < 16 else 1.0) for layer in self.layers(plan).values())
        return max(left / max(self.dense_macs, 1), 1e-4)
