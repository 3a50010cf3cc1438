"""What was measured of an artifact, and the gate that a value passes before a study hears of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from autocompress.records.base import Estimate, Record, digest

ObjectiveName = Literal[
    "accuracy", "latency_ms", "size_bytes", "packed_bytes", "macs", "parameters", "worst_class_drop"
]
Role = Literal["train", "validation", "selection", "test"]

#: Objectives to be maximized; every other one is minimized.
MAXIMIZED: frozenset[str] = frozenset({"accuracy"})


class Fidelity(Record):
    """How much recovery training a value rests on. Values of unlike fidelity are never compared.

    Attributes:
        epochs: passes over the training split, may be a fraction; 0 is inherited weights with recalibrated BN.
        rung: 0 for the first rung of a search; the finalists' rung is -1, "full".
    """

    epochs: Annotated[float, Field(ge=0.0)]
    rung: int = 0


class Host(Record):
    """Fingerprint of where a latency was taken. A reading never leaves the host that it names."""

    cpu: str
    cores: int
    flags: tuple[str, ...]
    memory_gb: int
    system: str
    runtime: str
    threads: int

    @property
    def key(self) -> str:
        """Content hash, 12 hex digits."""
        return digest(self)[:12]


class LatencyReading(Record):
    """Latency of one artifact beside the dense baseline, taken by the interleaved protocol.

    Attributes:
        latency_ms: median of per-round ratios × median of the baseline, with its bootstrap interval.
        ratio: median of per-round ratios to the dense baseline, with its interval.
        baseline_ms: the baseline's median in the same session.
        p90_ms, p99_ms: percentiles of all single inferences.
        rounds, batch_size, threads: how it was taken.
        load: 1-minute load average of the host before the reading.
        noisy: the reading was still too dispersed, or its baseline drifted by over 10%, after all repeats.
    """

    latency_ms: Estimate
    ratio: Estimate
    baseline_ms: float
    p90_ms: float
    p99_ms: float
    rounds: int
    batch_size: int
    threads: int
    load: float
    noisy: bool = False


class LayerReport(Record):
    """What one layer really is in the artifact, read from the ONNX file.

    Attributes:
        name: of the layer; the parts of a factorized one are called ``"<layer>.0"``, ``"<layer>.1"``, ...
        shape: of the weight, as torch keeps it.
        bits: width of the grid that the weights lie on: 32 for floats, 16 for half precision.
        zeros: weights that are zero.
        weights: number of weights.
        stored_bits: bits that the file spends on each weight.
        compute: what a runtime computes with: ``"integer"``: weights and activations are integers; ``"weights"``:
            the kernel reads integer weights and float activations; ``"float"``: floats, so that fewer bits are
            storage only.
    """

    name: str
    shape: tuple[int, ...]
    bits: int
    zeros: int
    weights: int
    stored_bits: int = 32
    compute: Literal["float", "weights", "integer"] = "float"

    @property
    def storage_only(self) -> bool:
        """True if the layer has fewer bits in the file than the runtime computes with."""
        return self.bits < 32 and self.compute == "float"


class Artifact(Record):
    """A deployable model file, bound by its sha256.

    Attributes:
        sha256: of the ONNX file.
        size_bytes: of the ONNX file.
        packed_bytes: of the packed form of the same file, which unpacks to exactly these bytes; 0 if not packed.
        macs: multiply-adds for one example.
        parameters: number of weights, biases and other constants.
        layers: in the order of computation.
    """

    sha256: str
    size_bytes: int
    packed_bytes: int = 0
    macs: int
    parameters: int
    layers: tuple[LayerReport, ...]


class ClassChange(Record):
    """What compression did to one class, dense and compressed model on the same examples.

    Attributes:
        target: index of the class.
        examples: of this class.
        dense, compressed: recall, the share of the class' examples that the model gets right, with its interval.
        change: compressed - dense recall, with its paired interval; below 0 is worse.
        impact: Welch's t of the class' change against that of all other examples; below 0: the class loses more than
            the others. None if there is nothing to compare: one example, or no example that changed.
        p_value: two-sided, of `impact`; not corrected for the number of classes.
    """

    target: Annotated[int, Field(ge=0)]
    examples: Annotated[int, Field(ge=1)]
    dense: Estimate
    compressed: Estimate
    change: Estimate
    impact: float | None = None
    p_value: float | None = None


class Fairness(Record):
    """What compression did to each class: an accuracy that hardly moves can hide a class that is lost.

    Attributes:
        classes: those with examples, by index.
        overall: change of the accuracy over all examples, with its paired interval.
        worst_class: index of the class with the largest drop of recall; the first of several.
        worst_class_drop: its dense - compressed recall; below 0 if every class gained. The interval is of the largest
            drop over all classes, whichever class it is.
        pies: indices of the examples on which most compressed models disagree with most dense ones
            (pruning-identified exemplars); None if only one model of each was compared.
        models: how many models of each kind `pies` rests on.
    """

    classes: Annotated[tuple[ClassChange, ...], Field(min_length=1)]
    overall: Estimate
    worst_class: int
    worst_class_drop: Estimate
    pies: tuple[int, ...] | None = None
    models: int | None = None


class Measurement(Record):
    """Everything measured of one artifact at one fidelity.

    Attributes:
        plan_key: the physical candidate.
        values: objective name -> estimate. Accuracy is the runtime's, on the bytes with `artifact.sha256`.
        role: the split that the accuracy was measured on.
        latency: the reading behind ``values["latency_ms"]``.
        agreement: largest absolute difference between torch's and the runtime's outputs before quantization.
        seconds: part name (``"compress"``, ``"recover"``, ``"export"``, ``"quality"``, ``"latency"``) -> wall time.
        cached: answered from an earlier evaluation of the same physical candidate.
        warnings: what a reader should know, in words.
        fairness: change per class on the same split; None for a task that is no classification.
    """

    plan_key: str
    fidelity: Fidelity
    role: Role
    values: dict[str, Estimate]
    artifact: Artifact
    latency: LatencyReading
    host: Host
    agreement: float
    seconds: dict[str, float] = Field(default_factory=dict)
    cached: bool = False
    warnings: tuple[str, ...] = ()
    fairness: Fairness | None = None


def check_values(values: dict[str, Estimate], names: tuple[str, ...]) -> None:
    """The gate before anything is told to a study: every objective is there, finite and in range.

    Raises:
        ValueError: naming the objective, its value and the range.
    """
    for name in names:
        if name not in values:
            raise ValueError(f"objective {name!r} is missing; measured: {sorted(values)}")
        estimate = values[name]
        for part in ("value", "low", "high"):
            if not math.isfinite(getattr(estimate, part)):
                raise ValueError(f"objective {name!r}: expected a finite {part}, got {getattr(estimate, part)}")
        if name == "accuracy" and not 0.0 <= estimate.value <= 1.0:
            raise ValueError(f"objective 'accuracy': expected 0 <= accuracy <= 1, got {estimate.value}")
        if name == "worst_class_drop":
            if not -1.0 <= estimate.value <= 1.0:
                raise ValueError(f"objective 'worst_class_drop': expected a value in [-1, 1], got {estimate.value}")
        elif name != "accuracy" and not estimate.value > 0.0:
            raise ValueError(f"objective {name!r}: expected a value > 0, got {estimate.value}")


def minimized(values: Sequence[dict[str, Estimate]], objectives: Sequence[str]) -> np.ndarray:
    """Objective values as an array in which every column is to be minimized.

    Args:
        values: n measurements' values by objective name.
        objectives: m names, the columns.

    Returns:
        Shape (n, m), each column in its objective's unit; maximized objectives are negated.
    """
    signs = [-1.0 if name in MAXIMIZED else 1.0 for name in objectives]
    rows = [[sign * v[name].value for name, sign in zip(objectives, signs, strict=True)] for v in values]
    return np.array(rows, dtype=float).reshape(len(values), len(objectives))
