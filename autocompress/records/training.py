"""How what a plan removes and training alternate, what the dense network teaches, and how integer grids are found."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from autocompress.records.base import Record


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
