"""From a plan back to parameters that mean it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from math import prod

from autocompress.errors import InfeasibleError
from autocompress.records import ChannelCut, ParamValue, Plan, Strategy, Structure, WeightMask
from autocompress.space.choices import BitsUnit, GroupChoice
from autocompress.space.grid import (
    allowed_widths,
    choose,
    keep_interval,
    keep_of,
    zeros_interval,
    zeros_of,
)


def weights_after(structure: Structure, cuts: Iterable[ChannelCut]) -> dict[str, int]:
    """Number of weights of each layer once the cuts are made.

    Output channels shrink with the layer's own group, input channels (or features, behind a flatten) with the group
    that it consumes. A depthwise layer has one input channel per filter, which nothing can cut.

    Args:
        structure: the dense network.
        cuts: at most one for each group.
    """
    shapes = {layer.name: list(layer.shape) for layer in structure.layers}
    groups = {group.name: group for group in structure.groups}
    for cut in cuts:
        group = groups[cut.group]
        for axis, names in ((0, group.layers), (1, group.consumers)):
            for name in names:
                shape = shapes.get(name)
                if shape is not None and len(shape) > axis and shape[axis] % group.width == 0:
                    shape[axis] = shape[axis] // group.width * cut.keep
    return {name: prod(shape) for name, shape in shapes.items()}


@dataclass(frozen=True)
class _Request:
    """What a plan asks of one group, and the strategy that can say it."""

    choice: GroupChoice
    keep: int
    cut: ChannelCut | None
    masks: tuple[WeightMask, ...]
    strategy: Strategy


@dataclass(frozen=True)
class Inverse:
    """The way back; attributes as of `autocompress.space.space.Space`.

    A cut of a group that is also masked, or that may not be pruned structurally, can only come from the global width.
    So first a width is found that explains all of these, then each other group's sparsity for that width.
    """

    structure: Structure
    round_to: int
    widths: tuple[Fraction, ...]
    groups: tuple[GroupChoice, ...]
    units: tuple[BitsUnit, ...]

    def params(self, plan: Plan) -> dict[str, ParamValue]:
        """Parameters that mean `plan`.

        Raises:
            InfeasibleError: the plan names what is not searched, or no parameters mean it.
        """
        self._check_names(plan)
        requests = [self._request(choice, plan) for choice in self.groups]
        width = self._width(requests)
        params: dict[str, ParamValue] = {"width": float(width)} if self.widths else {}
        weights = weights_after(self.structure, plan.cuts)
        for request in requests:
            params |= self._group(request, width, weights)
        at_8 = {entry.layer for entry in plan.bits}
        for unit in self.units:
            mixed = at_8 & set(unit.layers)
            if mixed and mixed != set(unit.layers):
                raise InfeasibleError(
                    f"{unit.key}: expected one bit width for {list(unit.layers)}, got 8 for some only"
                )
            bits = 8 if mixed else 32
            if bits not in unit.choices:
                raise InfeasibleError(f"{unit.key}: expected bits out of {list(unit.choices)}, got {bits}")
            params[unit.key] = bits
        return params

    def _check_names(self, plan: Plan) -> None:
        cut = {choice.name for choice in self.groups}
        masked = {layer.name for choice in self.groups for layer in choice.layers}
        quantized = {name for unit in self.units for name in unit.layers}
        named = [("cuts", c.group, cut) for c in plan.cuts] + [("masks", m.layer, masked) for m in plan.masks]
        named += [("bits", b.layer, quantized) for b in plan.bits]
        for field, name, known in named:
            if name not in known:
                raise InfeasibleError(f"plan.{field}: expected a name that this space searches, got {name!r}")

    def _request(self, choice: GroupChoice, plan: Plan) -> _Request:
        cut = next((c for c in plan.cuts if c.group == choice.name), None)
        keep = cut.keep if cut is not None else choice.group.width
        if keep not in allowed_widths(choice.group.width, self.round_to):
            raise InfeasibleError(
                f"plan.cuts: {choice.name}: expected a multiple of {self.round_to} below {choice.group.width}, "
                f"got {keep}"
            )
        names = {layer.name for layer in choice.layers}
        masks = tuple(mask for mask in plan.masks if mask.layer in names)
        strategy = self._strategy(choice, cut, masks)
        if strategy is None:
            wanted = "a mask" if masks else "a cut" if cut else "no change"
            raise InfeasibleError(
                f"plan: {choice.name}: expected a strategy out of {list(choice.strategy)}, got {wanted}"
            )
        return _Request(choice, keep, cut, masks, strategy)

    @staticmethod
    def _strategy(choice: GroupChoice, cut: ChannelCut | None, masks: tuple[WeightMask, ...]) -> Strategy | None:
        by_width = cut is None or cut.criterion == "magnitude"
        order: tuple[tuple[Strategy, bool], ...] = (
            ("none", cut is None and not masks),
            ("structured", not masks and (cut is None or cut.criterion in choice.criterion)),
            ("none", by_width and not masks),
            ("unstructured", by_width and len({mask.criterion for mask in masks}) < 2),
        )
        return next((strategy for strategy, fits in order if fits and strategy in choice.strategy), None)

    def _width(self, requests: list[_Request]) -> Fraction:
        """A global width under which every group can have what is asked of it; 1 if possible."""
        if not self.widths:
            return Fraction(1)

        def fits(width: Fraction) -> bool:
            reached = [(r, keep_of(r.choice.group.width, width, self.round_to)) for r in requests]
            return all(keep >= r.keep if r.strategy == "structured" else keep == r.keep for r, keep in reached)

        if fits(Fraction(1)):
            return Fraction(1)
        intervals = [(r, keep_interval(r.choice.group.width, r.keep, self.round_to)) for r in requests]
        low = max(interval[0] for _, interval in intervals)
        high = min((interval[1] for r, interval in intervals if r.strategy != "structured"), default=Fraction(1))
        width = choose(low, high, self.widths, lambda value: value > 0 and fits(value)) if low <= high else None
        if width is None:
            raise InfeasibleError("width: expected a plan that one global width explains, got one that needs several")
        return width

    def _group(self, request: _Request, width: Fraction, weights: dict[str, int]) -> dict[str, ParamValue]:
        choice, name = request.choice, request.choice.name
        params: dict[str, ParamValue] = {f"strategy/{name}": request.strategy}
        if request.strategy == "none":
            return params
        if request.strategy == "structured":
            criterion = request.cut.criterion if request.cut is not None else choice.criterion[0]
            sparsity = self._cut_sparsity(request, width)
        else:
            criterion = request.masks[0].criterion if request.masks else choice.criterion[0]
            sparsity = self._mask_sparsity(request, weights)
        if sparsity is None:
            raise InfeasibleError(
                f"sparsity/{name}: expected one sparsity for the whole group, got a plan with several"
            )
        return params | {f"criterion/{name}": criterion, f"sparsity/{name}": float(sparsity)}

    def _cut_sparsity(self, request: _Request, width: Fraction) -> Fraction | None:
        dense = request.choice.group.width
        low, high = keep_interval(dense, request.keep, self.round_to)
        return choose(
            max(Fraction(0), 1 - high / width),
            min(Fraction(1), 1 - low / width),
            request.choice.grid,
            lambda s: 0 <= s < 1 and keep_of(dense, width * (1 - s), self.round_to) == request.keep,
        )

    @staticmethod
    def _mask_sparsity(request: _Request, weights: dict[str, int]) -> Fraction | None:
        shares = {mask.layer: mask.sparsity for mask in request.masks}
        zeros = {
            layer.name: round(shares.get(layer.name, 0.0) * weights[layer.name]) for layer in request.choice.layers
        }
        intervals = [zeros_interval(weights[name], count) for name, count in zeros.items()]
        low = max((interval[0] for interval in intervals), default=Fraction(0))
        high = min((interval[1] for interval in intervals), default=Fraction(1))
        if low > high:
            return None
        return choose(
            low,
            high,
            request.choice.grid,
            lambda s: 0 <= s < 1 and all(zeros_of(weights[name], s) == count for name, count in zeros.items()),
        )
