"""The parts of a search space's YAML form: one class for each kind of choice."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, model_validator

from autocompress.records import (
    Bits,
    Criterion,
    CutScope,
    Distillation,
    Quantizer,
    Reconstruction,
    Reduction,
    Schedule,
    Strategy,
    check_pattern,
)
from autocompress.space.criteria import check_criteria
from autocompress.space.grid import grid_of
from autocompress.space.patterns import fixed_sparsity

ItemT = TypeVar("ItemT")
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Count = Annotated[int, Field(strict=True, ge=1)]
#: A pattern as of a shell, for names.
NamePattern = Annotated[str, Field(min_length=1)]
Per = Literal["layer", "group", "model"]
BlockChoice = Literal["keep", "drop"]
WeightsChoice = Literal["both", "only"]


class Part(BaseModel):
    """A frozen part of a file, in which unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _distinct(values: tuple[ItemT, ...]) -> tuple[ItemT, ...]:
    if len(set(values)) != len(values):
        raise ValueError(f"expected distinct choices, got {list(values)}")
    return values


def _clusters(value: Any) -> int | str:
    if value == "none" or (isinstance(value, int) and not isinstance(value, bool) and 2 <= value <= 65536):
        return value  # type: ignore[no-any-return]
    raise ValueError(f"expected 'none' or an integer from 2 to 65536, got {value!r}")


def _setting(value: Any) -> Any:
    """A bare kind as a mapping, and no number that is text or a truth value."""
    if isinstance(value, str):
        return {"kind": value}
    return numbers_only(value)


def _quantizer(value: Any) -> Any:
    return {"training": value} if isinstance(value, str) else value


def numbers_only(value: Any) -> Any:
    """The value itself.

    Raises:
        ValueError: a setting that takes a number or a truth value was given another kind of value.
    """
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key not in ("kind", "method") and (
                isinstance(item, str) or isinstance(item, bool) != (key in _SWITCHES)
            ):
                wanted = "true or false" if key in _SWITCHES else "a number"
                raise ValueError(f"expected {wanted} for {key}, got {item!r}")
    return value


#: Settings of a schedule that are switched on or off.
_SWITCHES = frozenset({"reinitialize"})

ScheduleSetting = Annotated[Schedule, BeforeValidator(_setting)]
DistillationSetting = Annotated[Distillation, BeforeValidator(_setting)]
QuantizerSetting = Annotated[Quantizer, BeforeValidator(_quantizer)]
Clusters = Annotated[int | str, PlainValidator(_clusters)]
ZeroPattern = Annotated[str, AfterValidator(check_pattern)]

StrategyChoices = Annotated[tuple[Strategy, ...], Field(min_length=1), AfterValidator(_distinct)]
CriterionChoices = Annotated[tuple[Criterion, ...], Field(min_length=1), AfterValidator(_distinct)]
ReductionChoices = Annotated[tuple[Reduction, ...], Field(min_length=1), AfterValidator(_distinct)]
PatternChoices = Annotated[tuple[ZeroPattern, ...], Field(min_length=1), AfterValidator(_distinct)]
ScopeChoices = Annotated[tuple[CutScope, ...], Field(min_length=1), AfterValidator(_distinct)]
BitWidths = Annotated[tuple[Bits, ...], Field(min_length=1), AfterValidator(_distinct)]
WeightsChoices = Annotated[tuple[WeightsChoice, ...], Field(min_length=1), AfterValidator(_distinct)]
ClusterChoices = Annotated[tuple[Clusters, ...], Field(min_length=1), AfterValidator(_distinct)]
KeepOrDrop = Annotated[tuple[BlockChoice, ...], Field(min_length=1), AfterValidator(_distinct)]
Orders = Annotated[tuple[Literal["cut-mask", "mask-cut"], ...], Field(min_length=1), AfterValidator(_distinct)]
Reconstructions = Annotated[tuple[Reconstruction, ...], Field(min_length=1), AfterValidator(_distinct)]
Schedules = Annotated[tuple[ScheduleSetting, ...], Field(min_length=1), AfterValidator(_distinct)]
Distillations = Annotated[tuple[DistillationSetting, ...], Field(min_length=1), AfterValidator(_distinct)]
Quantizers = Annotated[tuple[QuantizerSetting, ...], Field(min_length=1), AfterValidator(_distinct)]


class SparsityRange(Part):
    """Shares that may be removed: ``low, low + step, ..., high``.

    Attributes:
        low, high: shares in [0, 1); `high` is on the grid.
        step: distance of two neighbours.
    """

    low: Annotated[Number, Field(ge=0.0, lt=1.0)]
    high: Annotated[Number, Field(ge=0.0, lt=1.0)]
    step: Annotated[Number, Field(gt=0.0, lt=1.0)]

    @model_validator(mode="after")
    def _on_grid(self) -> SparsityRange:
        grid_of(self.low, self.high, self.step)
        return self


class ShareRange(Part):
    """Shares that stay: ``low, low + step, ..., high``; of a global width, or of the full rank.

    Attributes:
        low, high: shares in (0, 1]; `high` is on the grid.
        step: distance of two neighbours.
    """

    low: Annotated[Number, Field(gt=0.0, le=1.0)]
    high: Annotated[Number, Field(gt=0.0, le=1.0)]
    step: Annotated[Number, Field(gt=0.0, lt=1.0)]

    @model_validator(mode="after")
    def _on_grid(self) -> ShareRange:
        grid_of(self.low, self.high, self.step)
        return self


class GroupChoices(Part):
    """What is open for every group of coupled channels.

    Attributes:
        strategy: how a group may be pruned.
        criterion: how its channels or weights may be scored; each has to suit every strategy that prunes.
        reduction: how the scores of coupled layers may become one; of structured pruning.
        pattern: which weights may become zero together; of unstructured pruning.
        sparsity: which shares may go; needed as soon as a strategy other than ``none`` is open, unless every pattern
            is of the form ``"n:m"``, which fixes the share.
    """

    strategy: StrategyChoices = ("none",)
    criterion: CriterionChoices = ("magnitude",)
    reduction: ReductionChoices = ("mean",)
    pattern: PatternChoices = ("element",)
    sparsity: SparsityRange | None = None

    @model_validator(mode="after")
    def _fits(self) -> GroupChoices:
        check_criteria(self.strategy, self.criterion)
        if self.sparsity is None and needs_sparsity(self.strategy, self.pattern):
            raise ValueError(
                f"expected the key sparsity with low, high and step, because strategy offers {list(self.strategy)}, "
                "got none"
            )
        return self


def needs_sparsity(strategies: tuple[Strategy, ...], patterns: tuple[str, ...]) -> bool:
    """Whether a share has to be chosen: for channels always, for weights unless the pattern fixes it."""
    free = any(fixed_sparsity(pattern) is None for pattern in patterns)
    return "structured" in strategies or ("unstructured" in strategies and free)


class AllocationChoices(Part):
    """Which share of all groups' units may go, and by what ranking it is divided among the groups.

    Attributes:
        scope: ``uniform``: the same share of every group; ``global``: the lowest of one ranking of all units;
            ``isomorphic``: of one ranking for each set of groups of equal topology.
        criterion: how units may be scored, for the ranking and within each group.
        reduction: how the scores of coupled layers become one.
        sparsity: which shares may go.
    """

    scope: ScopeChoices
    criterion: CriterionChoices = ("magnitude",)
    reduction: Reduction = "mean"
    sparsity: SparsityRange

    @model_validator(mode="after")
    def _scores_channels(self) -> AllocationChoices:
        check_criteria(["structured"], self.criterion)
        return self


class BitsChoices(Part):
    """Bit widths that are open.

    Attributes:
        choices: 32 is a float, 16 half precision, 8 and below integers.
        weights: what is quantized at 8 and 4 bits in a linear layer: ``both`` weights and activations, or ``only``
            weights. Other layers and widths always have both.
        per: what shares one choice: each layer, the layers of each group, or the whole model.
    """

    choices: BitWidths
    weights: WeightsChoices = ("both",)
    per: Per = "layer"


class RankChoices(ShareRange):
    """Shares of the largest rank that factorized layers may have; 1 leaves a layer whole.

    Attributes:
        low, high, step: see `ShareRange`.
        per: what shares one choice: each layer, the layers of each group, or the whole model.
    """

    per: Per = "layer"


class CodebookChoices(Part):
    """Numbers of values that the weights of a layer may share.

    Attributes:
        clusters: number of values; ``none`` leaves the weights free.
        per: what shares one choice: each layer, the layers of each group, or the whole model.
    """

    clusters: ClusterChoices
    per: Per = "layer"


class LayerChoices(Part):
    """What is open for every layer with weights.

    Attributes:
        bits: widths of its numbers.
        rank: how thin it may become by factorization; of linear layers and ungrouped convolutions.
        codebook: how many values its weights may share.
    """

    bits: BitsChoices | None = None
    rank: RankChoices | None = None
    codebook: CodebookChoices | None = None


class BlockChoices(Part):
    """Which blocks of the network may be left out.

    Attributes:
        choices: ``keep`` or ``drop``, for each block.
        max: how many at most; all of them if absent.
    """

    choices: KeepOrDrop = ("keep", "drop")
    max: Count | None = None


def _sizes(value: Any) -> Any:
    """``{low, high, step}`` as the sizes that it stands for."""
    if not isinstance(value, Mapping):
        return value
    if unknown := sorted(set(map(str, value)) - {"low", "high", "step"}):
        raise ValueError(f"expected low, high and step, or a list of sizes, got {unknown[0]!r}")
    numbers = [value.get(key) for key in ("low", "high", "step")]
    for key, number in zip(("low", "high", "step"), numbers, strict=True):
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0.0 < number < math.inf:
            got = "nothing" if number is None else repr(number)
            raise ValueError(f"expected a number > 0 for {key}, got {got}")
    return tuple(float(size) for size in grid_of(*map(float, numbers)))  # type: ignore[arg-type]


#: Sizes of a network that is built: a list, or ``low, low + step, ..., high``.
Sizes = Annotated[
    tuple[Annotated[Number, Field(gt=0.0)], ...],
    Field(min_length=1),
    BeforeValidator(_sizes),
    AfterValidator(_distinct),
]


class ArchitectureChoices(Part):
    """Sizes of a network that the task's builder makes with fresh weights, in place of the dense one.

    It is trained on the training split, taught by the dense network. The bits of its layers are those of
    `LayerChoices`, with one choice for the whole network.

    Attributes:
        width: what the builder may get as ``width``, a multiplier of the channels; not asked for if absent.
        depth: what it may get as ``depth``, a number that it understands; likewise.
    """

    width: Sizes | None = None
    depth: Sizes | None = None

    @model_validator(mode="after")
    def _asks_for_something(self) -> ArchitectureChoices:
        if self.width is None and self.depth is None:
            raise ValueError("expected the key width, depth or both, got neither")
        return self


class Override(Part):
    """Other choices for the names that match; a later override wins. What is not given stays as it was.

    Attributes:
        match: pattern, as of a shell, for names of groups (strategy, criterion, reduction, pattern, sparsity), of
            layers (bits, weights, rank, clusters; of groups where those are chosen per group) and of blocks (block).
    """

    match: NamePattern
    strategy: StrategyChoices | None = None
    criterion: CriterionChoices | None = None
    reduction: ReductionChoices | None = None
    pattern: PatternChoices | None = None
    sparsity: SparsityRange | None = None
    bits: BitWidths | None = None
    weights: WeightsChoices | None = None
    rank: ShareRange | None = None
    clusters: ClusterChoices | None = None
    block: KeepOrDrop | None = None

    @property
    def changes_groups(self) -> bool:
        """Something that is chosen for each group is given."""
        return any((self.strategy, self.criterion, self.reduction, self.pattern, self.sparsity))

    @model_validator(mode="after")
    def _changes_something(self) -> Override:
        keys = [name for name in type(self).model_fields if name != "match"]
        if all(getattr(self, key) is None for key in keys):
            raise ValueError(f"expected {', '.join(keys[:-1])} or {keys[-1]} for {self.match!r}, got none of them")
        return self
