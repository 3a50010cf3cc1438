"""The global width, and how each group is pruned."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction

from autocompress.records import ChannelCut, Criterion, LayerKind, ParamValue, Plan, Reduction, Strategy, WeightMask
from autocompress.space.choices import GroupChoice
from autocompress.space.criteria import effective_reduction
from autocompress.space.draft import Draft
from autocompress.space.grid import keep_of, nearest_value, zeros_of
from autocompress.space.inverse import Inverse
from autocompress.space.knob import Uniform, plural
from autocompress.space.options import ShareRange
from autocompress.space.params import Params, Suggester, read_choice, read_number
from autocompress.space.patterns import fits, fixed_sparsity, pieces

_PARTS = ("strategy", "criterion", "reduction", "pattern", "sparsity")


@dataclass(frozen=True)
class _Setting:
    """What was chosen for one group."""

    strategy: Strategy
    criterion: Criterion = "magnitude"
    reduction: Reduction = "mean"
    pattern: str = "element"
    sparsity: Fraction = Fraction(0)


@dataclass(frozen=True)
class GroupKnob:
    """``width``, and ``strategy``, ``criterion``, ``reduction``, ``pattern`` and ``sparsity`` of each group.

    A group keeps the allowed number of units nearest to ``dense width * width * (1 - sparsity)``, where sparsity counts
    only if the strategy is ``structured``. Allowed are those with channels in multiples of the target's, and the dense
    width; of two equally near, the larger. A group that only the global width cuts is cut by magnitude.
    ``unstructured`` zeroes the share ``round(sparsity * n) / n`` of the n weights (or blocks) that each layer of the
    group has left after the cuts; a layer that the pattern does not divide then is left without a mask.

    Attributes:
        width: the range behind `widths`.
        widths: global width multipliers, ascending; empty if width is not searched.
        choices: what is open for each group.
    """

    width: ShareRange | None
    widths: tuple[Fraction, ...]
    choices: tuple[GroupChoice, ...]

    def keys(self) -> frozenset[str]:
        """Names of all parameters."""
        names = {f"{part}/{choice.name}" for choice in self.choices for part in _PARTS}
        return frozenset(names | ({"width"} if self.widths else set()))

    def suggest(self, trial: Suggester, draft: Draft) -> Params:
        """A group is asked for only if a layer of it is left, its settings only if its strategy uses them."""
        params: Params = {}
        if self.width is not None and len(self.widths) > 1:
            width = self.width
            params["width"] = float(trial.suggest_float("width", width.low, width.high, step=width.step))
        for choice in self.choices:
            if draft.lives(choice.group):
                params |= self._suggest(trial, choice)
        return params

    @staticmethod
    def _suggest(trial: Suggester, choice: GroupChoice) -> Params:
        params: Params = {}

        def pick(part: str, offered: tuple[str, ...]) -> str:
            if len(offered) == 1:
                return offered[0]
            key = f"{part}/{choice.name}"
            value = str(trial.suggest_categorical(key, list(offered)))
            params[key] = value
            return value

        strategy = pick("strategy", choice.strategy)
        if strategy == "none":
            return params
        criterion: Criterion = pick("criterion", choice.criterion)  # type: ignore[assignment]
        pattern = "element"
        if strategy == "structured":
            if len(choice.reductions(criterion)) > 1:
                pick("reduction", choice.reductions(criterion))
        else:
            pattern = pick("pattern", choice.pattern)
        if choice.sparsity is not None and len(choice.grid) > 1 and fixed_sparsity(pattern) is None:
            key, bounds = f"sparsity/{choice.name}", choice.sparsity
            params[key] = float(trial.suggest_float(key, bounds.low, bounds.high, step=bounds.step))
        return params

    def apply(self, params: Mapping[str, ParamValue], draft: Draft) -> Draft:
        """Adds cuts, and masks in the layers as they are after the cuts."""
        width = read_number(params, "width", self.widths, zero=False) if self.widths else Fraction(1)
        cuts: list[ChannelCut] = []
        masked: list[tuple[GroupChoice, _Setting]] = []
        for choice in self.choices:
            if not draft.lives(choice.group):
                continue
            setting, group = self._read(params, choice), choice.group
            structured = setting.strategy == "structured"
            share = width * (1 - setting.sparsity) if structured else width
            keep = keep_of(group.width, share, group.multiple(draft.round_to))
            if keep < group.width:
                cuts.append(
                    ChannelCut(group=group.name, keep=keep, criterion=setting.criterion, reduction=setting.reduction)
                    if structured
                    else ChannelCut(group=group.name, keep=keep, criterion="magnitude")
                )
            if setting.strategy == "unstructured":
                masked.append((choice, setting))
        cut = replace(draft, cuts=draft.cuts + tuple(cuts))
        masks = [
            WeightMask(layer=layer.name, sparsity=zeros, criterion=setting.criterion, pattern=setting.pattern)
            for choice, setting in masked
            for layer in choice.layers
            if (zeros := share_of_zeros(setting.pattern, setting.sparsity, cut.shapes[layer.name], layer.kind)) > 0
        ]
        return replace(cut, masks=draft.masks + tuple(masks))

    @staticmethod
    def _read(params: Mapping[str, ParamValue], choice: GroupChoice) -> _Setting:
        strategy: Strategy = read_choice(params, f"strategy/{choice.name}", choice.strategy)
        if strategy == "none":
            return _Setting(strategy)
        criterion: Criterion = read_choice(params, f"criterion/{choice.name}", choice.criterion)
        reduction: Reduction = "mean"
        pattern = "element"
        if strategy == "unstructured":
            pattern = read_choice(params, f"pattern/{choice.name}", choice.pattern)
        else:
            asked = choice.reductions(criterion)[0]
            if len(choice.reductions(criterion)) > 1:
                asked = read_choice(params, f"reduction/{choice.name}", choice.reduction)
            reduction = effective_reduction(choice.group, criterion, asked)
        fixed = fixed_sparsity(pattern) if strategy == "unstructured" else None
        sparsity = read_number(params, f"sparsity/{choice.name}", choice.grid, zero=True) if fixed is None else fixed
        return _Setting(strategy, criterion, reduction, pattern, sparsity)

    def invert(self, plan: Plan, draft: Draft) -> Params:
        """See `Inverse`. Cuts that the draft has already come from an allocation."""
        plan = plan.model_copy(update={"cuts": tuple(cut for cut in plan.cuts if cut not in draft.cuts)})
        choices = tuple(choice for choice in self.choices if draft.lives(choice.group))
        return Inverse(draft, self.widths, choices).params(plan)

    def uniform(self, request: Uniform) -> Params:
        """In a space that searches the global width alone, `sparsity` is taken off the width."""
        params: Params = {}
        prunes = any(choice.pruning for choice in self.choices)
        if self.widths:
            params["width"] = float(nearest_value(1.0 if prunes else 1.0 - request.sparsity, self.widths))
        for choice in self.choices:
            params |= self._uniform(choice, request)
        return params

    @staticmethod
    def _uniform(choice: GroupChoice, request: Uniform) -> Params:
        strategy = request.strategy if request.strategy in choice.pruning else (*choice.pruning, "none")[0]
        pattern = "element" if "element" in choice.pattern else choice.pattern[0]
        fixed = fixed_sparsity(pattern) if strategy == "unstructured" else None
        grid = choice.grid if fixed is None else (fixed,)
        shares = {*grid, Fraction(0)} if "none" in choice.strategy else set(grid)
        share = nearest_value(request.sparsity, shares) if shares else Fraction(0)
        if strategy == "none" or ("none" in choice.strategy and (share == 0 or request.strategy == "none")):
            return {f"strategy/{choice.name}": "none"}
        criterion = request.criterion if request.criterion in choice.criterion else choice.criterion[0]
        params: Params = {f"strategy/{choice.name}": strategy, f"criterion/{choice.name}": criterion}
        if strategy == "structured" and len(choice.reductions(criterion)) > 1:
            params[f"reduction/{choice.name}"] = choice.reductions(criterion)[0]
        if strategy == "unstructured" and len(choice.pattern) > 1:
            params[f"pattern/{choice.name}"] = pattern
        return params if fixed is not None else params | {f"sparsity/{choice.name}": float(share)}

    def mild(self) -> list[tuple[str, Params]]:
        """Each pattern but ``element``, in all groups that may have it, at half of the weights where that is open."""
        patterns = dict.fromkeys(p for choice in self.choices for p in choice.pattern if p != "element")
        found: list[tuple[str, Params]] = []
        for pattern in patterns:
            params: Params = {}
            for choice in self.choices:
                if pattern in choice.pattern and "unstructured" in choice.strategy:
                    name = choice.name
                    criterion = "magnitude" if "magnitude" in choice.criterion else choice.criterion[0]
                    params |= {f"strategy/{name}": "unstructured", f"criterion/{name}": criterion}
                    params[f"pattern/{name}"] = pattern
                    if choice.grid:
                        params[f"sparsity/{name}"] = float(nearest_value(0.5, choice.grid))
            found.append((f"pattern-{pattern}", params))
        return found

    def typical(self, sparsity: float) -> float:
        """What most groups make of a uniform sparsity."""
        grids = [choice.grid for choice in self.choices if choice.pruning]
        if grids:
            return float(nearest_value(sparsity, {*max(grids, key=grids.count), Fraction(0)}))
        return float(1 - nearest_value(1.0 - sparsity, self.widths)) if self.widths else 0.0

    def log10_size(self) -> float:
        """log10 of the number of settings."""
        counts = [max(1, len(self.widths)), *(choice.count for choice in self.choices)]
        return sum(math.log10(count) for count in counts)

    def describe(self) -> list[str]:
        """The width, then the groups with the same choices together."""
        lines = []
        if self.widths:
            lines.append(f"width: {float(self.widths[0]):g} to {float(self.widths[-1]):g}, {len(self.widths)} values")
        kinds: dict[str, int] = {}
        for choice in self.choices:
            words = "/".join(choice.strategy)
            if choice.pruning:
                words += f" by {'/'.join(choice.criterion)}"
            if choice.reduction != ("mean",):
                words += f" ({'/'.join(choice.reduction)} of coupled layers)"
            if choice.pattern != ("element",):
                words += f" in {'/'.join(choice.pattern)}"
            if choice.sparsity is not None:
                words += f", sparsity {choice.sparsity.low:g} to {choice.sparsity.high:g}"
            kinds[words] = kinds.get(words, 0) + 1
        return lines + [f"{plural(count, 'group')}: {words}" for words, count in kinds.items()]


def share_of_zeros(pattern: str, sparsity: Fraction, shape: tuple[int, ...], kind: LayerKind) -> float:
    """The share nearest to `sparsity` that a weight can have; 0 if the pattern does not divide it.

    Args:
        pattern: which weights become zero together.
        sparsity: wanted share in [0, 1); not used for ``"n:m"``.
        shape: of the weight.
        kind: of the layer.
    """
    if not fits(pattern, shape, kind):
        return 0.0
    fixed = fixed_sparsity(pattern)
    if fixed is not None:
        return float(fixed)
    count = pieces(pattern, shape)
    return zeros_of(count, sparsity) / count
