"""What a plan's file may hold: one class for each section."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from autocompress.records import Criterion, Reconstruction, Reduction
from autocompress.records.plan import Bits
from autocompress.space.bits import WEIGHTS_ONLY
from autocompress.space.criteria import check_criteria
from autocompress.space.draft import DENSE
from autocompress.space.options import (
    Clusters,
    Count,
    DistillationSetting,
    NamePattern,
    Number,
    Part,
    QuantizerSetting,
    ScheduleSetting,
    ZeroPattern,
)
from autocompress.space.patterns import fixed_sparsity

Removed = Annotated[Number, Field(ge=0.0, lt=1.0)]


class Entry(Part):
    """Something asked of every name that matches."""

    match: NamePattern


class DropEntry(Entry):
    """Leave blocks out."""


class CutEntry(Entry):
    """Cut groups: by the share `sparsity`, to the nearest width that the target likes, or to exactly `keep` units."""

    sparsity: Removed | None = None
    keep: Count | None = None
    criterion: Criterion = "magnitude"
    reduction: Reduction = "mean"

    @model_validator(mode="after")
    def _one_of_both(self) -> CutEntry:
        one_of(self, "sparsity", "keep")
        check_criteria(["structured"], [self.criterion])
        return self


class RankEntry(Entry):
    """Factorize layers: to the share `share` of the largest rank, 1 for none; to exactly `ranks`; or to `energy`.

    That is the share of the dense weight's squared singular values that the smallest ranks hold, which are rounded up
    to the target's multiple, and at most the largest rank of the layer after the cuts.
    """

    share: Annotated[Number, Field(gt=0.0, le=1.0)] | None = None
    ranks: Annotated[tuple[Count, ...], Field(min_length=1, max_length=2)] | None = None
    energy: Annotated[Number, Field(gt=0.0, le=1.0)] | None = None

    @model_validator(mode="after")
    def _one_of_three(self) -> RankEntry:
        one_of(self, "share", "ranks", "energy")
        return self


class MaskEntry(Entry):
    """Set weights to zero: the share `sparsity`, which a pattern ``"n:m"`` fixes."""

    sparsity: Removed | None = None
    criterion: Criterion = "magnitude"
    pattern: ZeroPattern = "element"

    @model_validator(mode="after")
    def _complete(self) -> MaskEntry:
        check_criteria(["unstructured"], [self.criterion])
        fixed = fixed_sparsity(self.pattern)
        if fixed is None and self.sparsity is None:
            raise ValueError(f"expected the key sparsity for pattern {self.pattern}, got none")
        if fixed is not None and self.sparsity is not None and abs(self.sparsity - float(fixed)) > 1e-9:
            raise ValueError(f"expected sparsity {float(fixed):g} or none for {self.pattern}, got {self.sparsity}")
        return self


class CodebookEntry(Entry):
    """Let weights share `clusters` values; ``none`` for no codebook."""

    clusters: Clusters


class BitsEntry(Entry):
    """Quantize layers to `bits`, 32 for none; with `weights_only` the linear ones among them, weights alone."""

    bits: Bits
    weights_only: Annotated[bool, Field(strict=True)] = False

    @model_validator(mode="after")
    def _possible(self) -> BitsEntry:
        if self.weights_only and self.bits not in WEIGHTS_ONLY:
            raise ValueError(f"expected 8 or 4 bits where only weights are quantized, got {self.bits}")
        return self


class ArchitectureEntry(Part):
    """Build another network with the task's own builder, of all of whose layers `bits` are the same."""

    width: Annotated[Number, Field(gt=0.0)] | None = None
    depth: Annotated[Number, Field(gt=0.0)] | None = None
    bits: Bits = 32
    weights_only: Annotated[bool, Field(strict=True)] = False

    @model_validator(mode="after")
    def _possible(self) -> ArchitectureEntry:
        if self.width is None and self.depth is None:
            raise ValueError("expected the key width, depth or both, got neither")
        if self.weights_only and self.bits not in WEIGHTS_ONLY:
            raise ValueError(f"expected 8 or 4 bits where only weights are quantized, got {self.bits}")
        return self


class PlanFile(Part):
    """A plan before it meets a network; attributes as of `Plan`, each entry for all names that match."""

    architecture: ArchitectureEntry | None = None
    drops: tuple[DropEntry, ...] = ()
    cuts: tuple[CutEntry, ...] = ()
    ranks: tuple[RankEntry, ...] = ()
    masks: tuple[MaskEntry, ...] = ()
    codebooks: tuple[CodebookEntry, ...] = ()
    bits: tuple[BitsEntry, ...] = ()
    order: Literal["cut-mask", "mask-cut"] = "cut-mask"
    reconstruction: Reconstruction = DENSE.reconstruction
    schedule: ScheduleSetting = DENSE.schedule
    distillation: DistillationSetting = DENSE.distillation
    quantizer: QuantizerSetting = DENSE.quantizer

    @model_validator(mode="after")
    def _built_alone(self) -> PlanFile:
        both = [name for name in ("drops", "cuts", "ranks", "masks", "codebooks", "bits") if getattr(self, name)]
        if self.architecture is not None and both:
            instead = "; give architecture.bits" if both[0] == "bits" else ""
            raise ValueError(
                f"expected either architecture, which builds another network, or {both[0]}, which speaks of the dense "
                f"one, got both{instead}"
            )
        return self


def one_of(entry: Entry, *keys: str) -> None:
    """Check that exactly one of the keys is given.

    Raises:
        ValueError: none is, or several are.
    """
    given = [key for key in keys if getattr(entry, key) is not None]
    if len(given) != 1:
        offered = f"{', '.join(keys[:-1])} or {keys[-1]}"
        raise ValueError(f"expected either {offered} for {entry.match!r}, got {' and '.join(given) or 'none'}")
