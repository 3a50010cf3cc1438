"""What is asked of a network: one plan for everything that compression can do to it."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from autocompress.records.base import Record, digest
from autocompress.records.training import (
    Distillation,
    FromScratch,
    LotteryTicket,
    OneShot,
    Quantizer,
    Response,
    Schedule,
    SparseTraining,
)

#: How channels, or single weights, are scored. `WEIGHT_CRITERIA` score single weights as well as channels or alone.
Criterion = Literal[
    "magnitude",
    "l1",
    "lamp",
    "bn_scale",
    "fpgm",
    "taylor",
    "taylor_activation",
    "hessian",
    "f_statistic",
    "obs",
    "random",
]
CHANNEL_CRITERIA: frozenset[str] = frozenset(
    {"magnitude", "l1", "bn_scale", "fpgm", "taylor", "taylor_activation", "hessian", "f_statistic", "obs", "random"}
)
WEIGHT_CRITERIA: frozenset[str] = frozenset({"magnitude", "lamp", "taylor", "hessian", "random"})
Reduction = Literal["mean", "sum", "max", "prod"]
Reconstruction = Literal["least-squares", "none"]
Strategy = Literal["structured", "unstructured", "none"]
Bits = Literal[32, 16, 8, 7, 6, 5, 4, 3, 2]
LowBits = Literal[16, 8, 7, 6, 5, 4, 3, 2]
_PATTERN = re.compile(r"element|([1-9][0-9]*):([1-9][0-9]*)|block:([1-9][0-9]*)x([1-9][0-9]*)")


class BlockDrop(Record):
    """Leave a block of the network out: its input becomes its output."""

    block: str


class ChannelCut(Record):
    """Keep `keep` units of a group, those with the highest score under `criterion`.

    Attributes:
        group: its name.
        keep: units that stay.
        criterion: how units are scored in each of the coupled layers.
        reduction: how the coupled layers' scores, each divided by its mean, become one.
    """

    group: str
    keep: Annotated[int, Field(ge=1)]
    criterion: Criterion
    reduction: Reduction = "mean"

    @field_validator("criterion")
    @classmethod
    def _scores_channels(cls, value: Criterion) -> Criterion:
        if value not in CHANNEL_CRITERIA:
            raise ValueError(f"expected a criterion for channels ({', '.join(sorted(CHANNEL_CRITERIA))}), got {value}")
        return value


class WeightMask(Record):
    """Set the share `sparsity` of a layer's weights, those with the lowest score, to zero for good.

    Attributes:
        layer: name of the layer.
        sparsity: share of zeros; for a pattern ``"n:m"`` it is 1 - n/m.
        criterion: how single weights are scored; blocks by the mean score of their weights.
        pattern: ``"element"``: any weight; ``"n:m"``: n non-zeros in every m consecutive input weights of an output
            channel, such as ``"2:4"``; ``"block:RxC"``: whole blocks of R output channels × C input weights.
    """

    layer: str
    sparsity: Annotated[float, Field(gt=0.0, lt=1.0)]
    criterion: Criterion
    pattern: str = "element"

    @model_validator(mode="after")
    def _fits(self) -> WeightMask:
        if self.criterion not in WEIGHT_CRITERIA:
            raise ValueError(
                f"criterion: expected one for weights ({', '.join(sorted(WEIGHT_CRITERIA))}), got {self.criterion}"
            )
        check_pattern(self.pattern)
        if (nm := self.n_m) is not None and abs(self.sparsity - (1 - nm[0] / nm[1])) > 1e-9:
            raise ValueError(
                f"sparsity: expected {1 - nm[0] / nm[1]:g} for pattern {self.pattern}, got {self.sparsity}"
            )
        return self

    @property
    def n_m(self) -> tuple[int, int] | None:
        """(n, m) of the pattern ``"n:m"``; None for another."""
        match = _PATTERN.fullmatch(self.pattern)
        return (int(match[1]), int(match[2])) if match and match[1] else None

    @property
    def block(self) -> tuple[int, int] | None:
        """(rows, columns) of the pattern ``"block:RxC"``; None for another."""
        match = _PATTERN.fullmatch(self.pattern)
        return (int(match[3]), int(match[4])) if match and match[3] else None


def check_pattern(pattern: str) -> str:
    """The pattern itself.

    Raises:
        ValueError: it is none of ``"element"``, ``"n:m"`` with n < m, ``"block:RxC"``.
    """
    match = _PATTERN.fullmatch(pattern)
    if match is None or (match[1] and int(match[1]) >= int(match[2])):
        raise ValueError(f"expected a pattern 'element', 'n:m' with n < m or 'block:RxC', got {pattern!r}")
    return pattern


class LowRank(Record):
    """Replace a layer by a chain of thinner ones.

    Attributes:
        layer: name of the layer.
        ranks: one number r for a linear layer or a 1×1 convolution (W ≈ U V with inner width r); two numbers
            (output rank, input rank) of a Tucker-2 decomposition for any other convolution.
    """

    layer: str
    ranks: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1, max_length=2)]


class Codebook(Record):
    """Let the weights of a layer share `clusters` values (k-means centroids). Masked weights stay zero beside them."""

    layer: str
    clusters: Annotated[int, Field(ge=2, le=65536)]


class LayerBits(Record):
    """Quantize a layer to `bits`. Layers without an entry stay 32-bit floats.

    Attributes:
        layer: name of the layer.
        bits: 8 and below are integers on a grid of 2^bits values; 16 is half precision.
        weights_only: only the weights are quantized (4 or 8 bits, linear layers); otherwise the layer's input
            activations are as well.
    """

    layer: str
    bits: LowBits
    weights_only: bool = False

    @model_validator(mode="after")
    def _possible(self) -> LayerBits:
        if self.weights_only and self.bits not in (8, 4):
            raise ValueError(f"bits: expected 8 or 4 where only weights are quantized, got {self.bits}")
        return self


class Architecture(Record):
    """A network by the task's own builder with fresh weights, in place of the dense one.

    Attributes:
        width: what the builder gets as ``width``, a multiplier of the channels: 1 is the dense network's. None: it is
            not asked for.
        depth: what the builder gets as ``depth``, a number that it understands. None: it is not asked for.
        bits: of every layer; 32 leaves floats.
        weights_only: in linear layers only the weights are quantized (4 or 8 bits); see `LayerBits`.
    """

    width: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] | None = None
    depth: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] | None = None
    bits: Bits = 32
    weights_only: bool = False

    @model_validator(mode="after")
    def _possible(self) -> Architecture:
        if self.width is None and self.depth is None:
            raise ValueError("expected a width, a depth or both, got neither")
        if self.weights_only and self.bits not in (8, 4):
            raise ValueError(f"bits: expected 8 or 4 where only weights are quantized, got {self.bits}")
        return self

    @property
    def sizes(self) -> dict[str, float]:
        """The builder's arguments that are asked for, by name; whole numbers as integers."""
        given = {"width": self.width, "depth": self.depth}
        return {name: int(n) if n == int(n) else n for name, n in given.items() if n is not None}


class Plan(Record):
    """The physical request: what the artifact will be, with everything that has no effect left out.

    Two candidates that mean the same network, made the same way, have equal plans. Entries are sorted, so that
    equality is by content.

    Attributes:
        architecture: a network that is built instead of the dense one. Nothing else is asked of it: its layers have
            names and sizes of their own.
        drops: blocks that are left out.
        cuts: groups of which some units are removed.
        ranks: layers that are factorized.
        masks: weights that are held at zero.
        codebooks: weights that share values.
        bits: layers that are quantized.
        order: whether channels are cut first and masks chosen in what is left, or masks first.
        reconstruction: of the layers behind a cut: ``"least-squares"`` refits their weights to the inputs that stay.
        schedule: how removal and training alternate.
        distillation: what the dense model teaches.
        quantizer: how grids are found.
    """

    drops: tuple[BlockDrop, ...] = ()
    cuts: tuple[ChannelCut, ...] = ()
    ranks: tuple[LowRank, ...] = ()
    masks: tuple[WeightMask, ...] = ()
    codebooks: tuple[Codebook, ...] = ()
    bits: tuple[LayerBits, ...] = ()
    order: Literal["cut-mask", "mask-cut"] = "cut-mask"
    reconstruction: Reconstruction = "least-squares"
    schedule: Schedule = OneShot()
    distillation: Distillation = Response()
    quantizer: Quantizer = Quantizer()
    architecture: Architecture | None = None

    @model_validator(mode="after")
    def _built_alone(self) -> Plan:
        if self.architecture is not None:
            for field in ("drops", "cuts", "ranks", "masks", "codebooks", "bits"):
                if getattr(self, field):
                    instead = "; its bits are architecture.bits" if field == "bits" else ""
                    raise ValueError(
                        f"plan.architecture: expected a network that is built, without {field}, which speak of the "
                        f"dense network, got both{instead}"
                    )
        return self

    @model_validator(mode="after")
    def _sorted_and_unique(self) -> Plan:
        for field, names in (
            ("drops", [d.block for d in self.drops]),
            ("cuts", [c.group for c in self.cuts]),
            ("ranks", [r.layer for r in self.ranks]),
            ("masks", [m.layer for m in self.masks]),
            ("codebooks", [c.layer for c in self.codebooks]),
            ("bits", [b.layer for b in self.bits]),
        ):
            if names != sorted(set(names)):
                raise ValueError(f"plan.{field}: expected sorted, distinct names, got {names}")
        factorized = {r.layer for r in self.ranks}
        for field, names in (
            ("masks", [m.layer for m in self.masks]),
            ("codebooks", [c.layer for c in self.codebooks]),
        ):
            both = sorted(factorized.intersection(names))
            if both:
                raise ValueError(f"plan.{field}: expected layers that are not factorized (plan.ranks), got {both[0]!r}")
        shared = sorted({c.layer for c in self.codebooks}.intersection(b.layer for b in self.bits))
        if shared:
            raise ValueError(f"plan.bits: expected layers without a codebook (plan.codebooks), got {shared[0]!r}")
        return self

    @property
    def key(self) -> str:
        """Content hash, 16 hex digits: the identity of the physical candidate. Defaults do not enter it."""
        content = self.model_dump(mode="json")
        own = {
            name: content[name]
            for name, field in type(self).model_fields.items()
            if getattr(self, name) != field.default
        }
        return digest(own)[:16]

    @property
    def is_dense(self) -> bool:
        """True if nothing is asked for."""
        return not (self.changes_weights or self.bits)

    @property
    def changes_weights(self) -> bool:
        """True if weights are removed, replaced, shared or drawn anew, so that the network has to be trained."""
        removed = bool(self.drops or self.cuts or self.ranks or self.masks or self.codebooks)
        return removed or self.architecture is not None

    @property
    def quantizes(self) -> bool:
        """True if a layer is stored in fewer than 32 bits."""
        return bool(self.bits) or (self.architecture is not None and self.architecture.bits < 32)

    @property
    def trains(self) -> bool:
        """True if the network is trained after it was compressed."""
        return self.changes_weights or (self.quantizes and self.quantizer.training == "aware")


def starts_untrained(plan: Plan) -> bool:
    """Whether a network begins with freshly drawn weights, so that without training it knows nothing.

    That is so of a network that is built, and of cuts and masks from scratch, of sparse training and lottery tickets.
    A rung without training cannot judge such a candidate.
    """
    return plan.architecture is not None or (
        plan.changes_weights and isinstance(plan.schedule, FromScratch | LotteryTicket | SparseTraining)
    )
