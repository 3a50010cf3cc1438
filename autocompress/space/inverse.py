"""From a plan back to the parameters of its groups."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from autocompress.errors import InfeasibleError
from autocompress.records import ChannelCut, Layer, Plan, Strategy, WeightMask
from autocompress.space.choices import GroupChoice
from autocompress.space.draft import Draft
from autocompress.space.grid import (
    allowed_widths,
    choose,
    keep_interval,
    keep_of,
    zeros_interval,
    zeros_of,
)
from autocompress.space.params import Params
from autocompress.space.patterns import fits, fixed_sparsity, pieces


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
    """The way back.

    A cut of a group that is also masked, or that may not be pruned structurally, can only come from the global width.
    So first a width is found that explains all of these, then each other group's sparsity for that width.

    Attributes:
        draft: what other knobs made of the plan before the groups' turn.
        widths: global width multipliers, ascending; empty if width is not searched.
        choices: of the groups that are left.
    """

    draft: Draft
    widths: tuple[Fraction, ...]
    choices: tuple[GroupChoice, ...]

    def params(self, plan: Plan) -> Params:
        """Parameters that mean the plan's cuts and masks.

        Raises:
            InfeasibleError: the plan names what is not searched, or no parameters mean it.
        """
        self._check_names(plan)
        requests = [self._request(choice, plan) for choice in self.choices]
        width = self._width(requests)
        params: Params = {"width": float(width)} if self.widths else {}
        shapes = self.draft.structure.shapes((cut.group, cut.keep) for cut in (*self.draft.cuts, *plan.cuts))
        # A factorized layer has no mask, whatever its group asks for.
        free = self.draft.gone.union(entry.layer for entry in plan.ranks)
        for request in requests:
            masked = {layer: shapes[layer.name] for layer in request.choice.layers if layer.name not in free}
            params |= self._group(request, width, masked)
        return params

    def _check_names(self, plan: Plan) -> None:
        cut = {choice.name for choice in self.choices}
        masked = {layer.name for choice in self.choices for layer in choice.layers}
        named = [("cuts", c.group, cut) for c in plan.cuts] + [("masks", m.layer, masked) for m in plan.masks]
        for field, name, known in named:
            if name not in known:
                raise InfeasibleError(f"plan.{field}: expected a name that this space searches, got {name!r}")

    def _multiple(self, choice: GroupChoice) -> int:
        return choice.group.multiple(self.draft.round_to)

    def _request(self, choice: GroupChoice, plan: Plan) -> _Request:
        cut = next((c for c in plan.cuts if c.group == choice.name), None)
        keep = cut.keep if cut is not None else choice.group.width
        if keep not in allowed_widths(choice.group.width, self._multiple(choice)):
            raise InfeasibleError(
                f"plan.cuts: {choice.name}: expected a multiple of {self._multiple(choice)} below "
                f"{choice.group.width}, got {keep}"
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
        by_width = cut is None or (cut.criterion == "magnitude" and cut.reduction == "mean")
        by_group = cut is None or (
            cut.criterion in choice.criterion and choice.reduction_for(cut.criterion, cut.reduction) is not None
        )
        order: tuple[tuple[Strategy, bool], ...] = (
            ("none", cut is None and not masks),
            ("structured", not masks and by_group),
            ("none", by_width and not masks),
            ("unstructured", by_width and len({(mask.criterion, mask.pattern) for mask in masks}) < 2),
        )
        return next((strategy for strategy, fits in order if fits and strategy in choice.strategy), None)

    def _width(self, requests: list[_Request]) -> Fraction:
        """A global width under which every group can have what is asked of it; 1 if possible."""
        if not self.widths:
            return Fraction(1)

        def fits(width: Fraction) -> bool:
            reached = [(r, keep_of(r.choice.group.width, width, self._multiple(r.choice))) for r in requests]
            return all(keep >= r.keep if r.strategy == "structured" else keep == r.keep for r, keep in reached)

        if fits(Fraction(1)):
            return Fraction(1)
        intervals = [(r, keep_interval(r.choice.group.width, r.keep, self._multiple(r.choice))) for r in requests]
        low = max(interval[0] for _, interval in intervals)
        high = min((interval[1] for r, interval in intervals if r.strategy != "structured"), default=Fraction(1))
        width = choose(low, high, self.widths, lambda value: value > 0 and fits(value)) if low <= high else None
        if width is None:
            raise InfeasibleError("width: expected a plan that one global width explains, got one that needs several")
        return width

    def _group(self, request: _Request, width: Fraction, masked: dict[Layer, tuple[int, ...]]) -> Params:
        choice, name = request.choice, request.choice.name
        params: Params = {f"strategy/{name}": request.strategy}
        if request.strategy == "none":
            return params
        sparsity: Fraction | None
        if request.strategy == "structured":
            criterion = request.cut.criterion if request.cut is not None else choice.criterion[0]
            if len(choice.reductions(criterion)) > 1:
                found = choice.reduction_for(criterion, request.cut.reduction) if request.cut is not None else None
                params[f"reduction/{name}"] = found or choice.reductions(criterion)[0]
            sparsity = self._cut_sparsity(request, width)
        else:
            criterion = request.masks[0].criterion if request.masks else choice.criterion[0]
            patterns = tuple({mask.pattern for mask in request.masks}) or choice.pattern
            pattern, sparsity = self._mask(request, patterns, masked)
            if len(choice.pattern) > 1:
                params[f"pattern/{name}"] = pattern
            if fixed_sparsity(pattern) is not None and sparsity is not None:
                return params | {f"criterion/{name}": criterion}
        if sparsity is None:
            raise InfeasibleError(
                f"sparsity/{name}: expected one sparsity for the whole group, got a plan with several"
            )
        return params | {f"criterion/{name}": criterion, f"sparsity/{name}": float(sparsity)}

    def _cut_sparsity(self, request: _Request, width: Fraction) -> Fraction | None:
        dense, multiple = request.choice.group.width, self._multiple(request.choice)
        low, high = keep_interval(dense, request.keep, multiple)
        return choose(
            max(Fraction(0), 1 - high / width),
            min(Fraction(1), 1 - low / width),
            request.choice.grid,
            lambda s: 0 <= s < 1 and keep_of(dense, width * (1 - s), multiple) == request.keep,
        )

    @staticmethod
    def _mask(
        request: _Request, patterns: tuple[str, ...], masked: dict[Layer, tuple[int, ...]]
    ) -> tuple[str, Fraction | None]:
        """The first pattern that explains the masks, and a share for it; no share if none does."""
        for pattern in patterns:
            shapes = {x.name: shape for x, shape in masked.items() if fits(pattern, shape, x.kind)}
            fixed = fixed_sparsity(pattern)
            if fixed is None:
                sparsity = _sparsity(request, pattern, shapes)
            else:
                sparsity = fixed if shapes.keys() == {mask.layer for mask in request.masks} else None
            if sparsity is not None:
                return pattern, sparsity
        return patterns[0], None


def _sparsity(request: _Request, pattern: str, shapes: dict[str, tuple[int, ...]]) -> Fraction | None:
    """One share that gives each of the layers the zeros that its mask has."""
    shares = {mask.layer: mask.sparsity for mask in request.masks}
    counts = {name: pieces(pattern, shape) for name, shape in shapes.items()}
    zeros = {name: round(shares.get(name, 0.0) * count) for name, count in counts.items()}
    intervals = [zeros_interval(counts[name], count) for name, count in zeros.items()]
    low = max((interval[0] for interval in intervals), default=Fraction(0))
    high = min((interval[1] for interval in intervals), default=Fraction(1))
    if low > high:
        return None
    return choose(
        low,
        high,
        request.choice.grid,
        lambda s: 0 <= s < 1 and all(zeros_of(counts[name], s) == count for name, count in zeros.items()),
    )
