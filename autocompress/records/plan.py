"""What is asked of a network: one plan for everything that compression can do to it."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from autocompress.records.base import Record, digest

#: How channels, or single weights, are scored. `WEIGHT_CRITERIA` score single weights as well as channels or alone.
Criterion = Literal[
    "magnitude", "l1", "lamp", "bn_scale", "fpgm", "taylor", "taylor_activation", "hessian", "f_statistic", "random"
]
CHANNEL_CRITERIA: frozenset[str] = frozenset(
    {"magnitude", "l1", "bn_scale", "fpgm", "taylor", "taylor_activation", "hessian", "f_statistic", "random"}
)
WEIGHT_CRITERIA: frozenset[str] = frozenset({"magnitude", "lamp", "taylor", "hessian", "random"})
Reduction = Literal["mean", "sum", "max", "prod"]
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


# --- how it is trained ------------------------------------------------------------------------------------------


class OneShot(Record):
    """Remove everything at once, then recover."""

    kind: Literal["one-shot"] = "one-shot"


class Iterative(Record):
    """Remove in `rounds` equal steps of the share that is left, recovering after each (Han et al., 2015)."""

    kind: Literal["iterative"] = "iterative"
    rounds: Annotated[int, Field(ge=2, le=100)] = 3


class Gradual(Record):
    """Raise the share of zeros while training: s_t = s_f + (s_i - s_f)(1 - (t - t0)/(nΔt))³ (Zhu and Gupta, 2017).

    Attributes:
        begin, end: shares of the training steps between which sparsity rises.
        updates: how often masks are renewed in between, n.
        initial: s_i, share of zeros to begin with.
    """

    kind: Literal["gradual"] = "gradual"
    begin: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    end: Annotated[float, Field(gt=0.0, le=1.0)] = 0.7
    updates: Annotated[int, Field(ge=1)] = 20
    initial: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0

    @model_validator(mode="after")
    def _rises(self) -> Gradual:
        if self.end <= self.begin:
            raise ValueError(f"end: expected more than begin {self.begin}, got {self.end}")
        return self


class Adaptive(Record):
    """Renew masks while training, with gradients that reach masked weights, so that these may come back.

    The forward pass uses masked weights, the step is applied to the dense ones (Lin et al., 2020, "Dynamic Model
    Pruning with Feedback"); sparsity rises as in `Gradual` up to `end`, masks are fixed from `freeze` on.
    """

    kind: Literal["adaptive"] = "adaptive"
    end: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    freeze: Annotated[float, Field(gt=0.0, le=1.0)] = 0.75
    updates: Annotated[int, Field(ge=1)] = 30


class SparseTraining(Record):
    """Train sparse from freshly drawn weights, at constant sparsity.

    Attributes:
        method: ``"static"``: a random mask that stays; ``"set"``: every update drops the smallest weights and grows
            random ones (Mocanu et al., 2018); ``"rigl"``: grows those with the largest gradient (Evci et al., 2020).
        fraction: share of the weights that is replaced at the first update; decays to 0 as a cosine.
        begin: share of the training steps before which masks stay: while the learning rate still rises, a grown weight
            stays near 0 and would be the next to go.
        until: share of the training steps after which masks stay.
        updates: number of updates in between.
        batches: steps up to an update whose gradients ``"rigl"`` averages.
    """

    kind: Literal["sparse-training"] = "sparse-training"
    method: Literal["static", "set", "rigl"] = "rigl"
    fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.3
    begin: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.2
    until: Annotated[float, Field(gt=0.0, le=1.0)] = 0.75
    updates: Annotated[int, Field(ge=1)] = 10
    batches: Annotated[int, Field(ge=1)] = 64

    @model_validator(mode="after")
    def _lasts(self) -> SparseTraining:
        if self.until <= self.begin:
            raise ValueError(f"until: expected more than begin {self.begin}, got {self.until}")
        return self


class LotteryTicket(Record):
    """Train, prune, set the surviving weights back, repeat (Frankle and Carbin, 2019).

    Attributes:
        rounds: how often; sparsity rises by an equal share of what is left.
        rewind: share of the first training at which the weights are kept that later rounds start from; 0 is the
            initialization.
        reinitialize: draw the surviving weights anew instead: the control experiment.
    """

    kind: Literal["lottery-ticket"] = "lottery-ticket"
    rounds: Annotated[int, Field(ge=1, le=50)] = 3
    rewind: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    reinitialize: bool = False


class FromScratch(Record):
    """Draw all weights of the compressed network anew and train it: what the architecture alone is worth."""

    kind: Literal["from-scratch"] = "from-scratch"


Schedule = Annotated[
    OneShot | Iterative | Gradual | Adaptive | SparseTraining | LotteryTicket | FromScratch, Field(discriminator="kind")
]


class NoDistillation(Record):
    """Train on the task's own loss alone."""

    kind: Literal["none"] = "none"


class Response(Record):
    """(1 - α) L + α T² KL(p_t^T ‖ p_s^T) on the dense model's outputs (Hinton et al., 2015)."""

    kind: Literal["response"] = "response"
    temperature: Annotated[float, Field(gt=0.0)] = 3.0
    alpha: Annotated[float, Field(ge=0.0, le=1.0)] = 0.9


class Features(Record):
    """`Response` plus weight · ½‖F_t - r(F_s)‖² per element at inner layers (Romero et al., 2015, "FitNets")."""

    kind: Literal["features"] = "features"
    weight: Annotated[float, Field(gt=0.0)] = 1.0


class AttentionTransfer(Record):
    """`Response` plus weight · attention-weighted distances of all teacher-student layer pairs.

    References:
        Ji et al., 2021, "Show, Attend and Distill: Knowledge Distillation via Attention-based Feature Matching" (AFD).
    """

    kind: Literal["attention"] = "attention"
    weight: Annotated[float, Field(gt=0.0)] = 1.0


class SequenceLevel(Record):
    """Train on the dense model's own decoded outputs (Kim and Rush, 2016); for modules that `generate`.

    Attributes:
        beams: width of the dense model's beam search.
    """

    kind: Literal["sequence"] = "sequence"
    beams: Annotated[int, Field(ge=1)] = 1


Distillation = Annotated[
    NoDistillation | Response | Features | AttentionTransfer | SequenceLevel, Field(discriminator="kind")
]


class Quantizer(Record):
    """How integer grids are found.

    Attributes:
        training: ``"post"``: after recovery, from calibration data; ``"aware"``: recovery trains through the grids.
        ranges: of quantization-aware training: ``"learnt"`` step sizes (Esser et al., 2020, LSQ), or ``"calibrated"``
            once and kept.
        calibrator: how ranges of activations are taken from calibration data.
    """

    training: Literal["post", "aware"] = "post"
    ranges: Literal["learnt", "calibrated"] = "learnt"
    calibrator: Literal["minmax", "percentile", "entropy"] = "minmax"


class Plan(Record):
    """The physical request: what the artifact will be, with everything that has no effect left out.

    Two candidates that mean the same network, made the same way, have equal plans. Entries are sorted, so that
    equality is by content.

    Attributes:
        drops: blocks that are left out.
        cuts: groups of which some units are removed.
        ranks: layers that are factorized.
        masks: weights that are held at zero.
        codebooks: weights that share values.
        bits: layers that are quantized.
        order: whether channels are cut first and masks chosen in what is left, or masks first.
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
    schedule: Schedule = OneShot()
    distillation: Distillation = Response()
    quantizer: Quantizer = Quantizer()

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
        """True if weights are removed, replaced or shared, so that the network has to recover."""
        return bool(self.drops or self.cuts or self.ranks or self.masks or self.codebooks)

    @property
    def trains(self) -> bool:
        """True if the network is trained after it was compressed."""
        return self.changes_weights or (bool(self.bits) and self.quantizer.training == "aware")
