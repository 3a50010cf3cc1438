"""The typed records that travel between the parts: validated when made, never changed afterwards.

Every record is JSON both ways: ``Record.model_validate_json(record.model_dump_json()) == record``.
No record knows of torch, Optuna, Ray or MLflow.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

ObjectiveName = Literal["accuracy", "latency_ms", "size_bytes", "macs", "parameters"]
Criterion = Literal["magnitude", "taylor", "random"]
Strategy = Literal["structured", "unstructured", "none"]
Bits = Literal[32, 8]
Role = Literal["train", "validation", "selection", "test"]

#: Objectives to be maximized; every other one is minimized.
MAXIMIZED: frozenset[str] = frozenset({"accuracy"})


class Record(BaseModel):
    """A frozen, strict value object."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


def digest(value: Any) -> str:
    """sha256, in hex, of the canonical JSON of a record or of plain JSON data.

    Examples:
        >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
        True
    """
    data = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class Estimate(Record):
    """A measured value with its 95% interval, in the objective's own unit. Without one, low == high == value."""

    value: float
    low: float
    high: float

    @classmethod
    def exact(cls, value: float) -> Estimate:
        """A value that carries no noise, such as a size in bytes."""
        return cls(value=value, low=value, high=value)


# --- what was found in the user's network -----------------------------------------------------------------------


class Group(Record):
    """Output channels that can only be cut together.

    Attributes:
        name: qualified name of the first layer whose output channels belong to the group.
        width: number of channels in the dense network.
        layers: layers whose output channels are cut together, `name` first.
        consumers: layers whose input channels shrink with them.
        norms: per-channel normalizations (BatchNorm, InstanceNorm) that shrink with them.
    """

    name: str
    width: Annotated[int, Field(ge=1)]
    layers: tuple[str, ...]
    consumers: tuple[str, ...] = ()
    norms: tuple[str, ...] = ()


class Layer(Record):
    """A layer with weights.

    Attributes:
        name: qualified name of the module.
        kind: ``"conv2d"`` or ``"linear"``.
        shape: shape of the weight, output channels first.
        macs: multiply-adds for one example.
        group: the group that its output channels belong to; None if these cannot be cut.
    """

    name: str
    kind: Literal["conv2d", "linear"]
    shape: tuple[int, ...]
    macs: int
    group: str | None = None


class LeftDense(Record):
    """A module that is not compressed, and why."""

    name: str
    reason: str


class Structure(Record):
    """What can be compressed in a network, and what cannot."""

    groups: tuple[Group, ...]
    layers: tuple[Layer, ...]
    left_dense: tuple[LeftDense, ...] = ()

    def group(self, name: str) -> Group:
        """The group called `name`; KeyError if there is none."""
        return next((g for g in self.groups if g.name == name), None) or _missing("group", name)

    def layer(self, name: str) -> Layer:
        """The layer called `name`; KeyError if there is none."""
        return next((x for x in self.layers if x.name == name), None) or _missing("layer", name)


def _missing(what: str, name: str) -> Any:
    raise KeyError(f"no {what} named {name!r}")


# --- what is asked of it ----------------------------------------------------------------------------------------


class ChannelCut(Record):
    """Keep `keep` channels of a group, those with the highest score under `criterion`."""

    group: str
    keep: Annotated[int, Field(ge=1)]
    criterion: Criterion


class WeightMask(Record):
    """Set the share `sparsity` of a layer's weights, those with the lowest score, to zero for good."""

    layer: str
    sparsity: Annotated[float, Field(gt=0.0, lt=1.0)]
    criterion: Criterion


class LayerBits(Record):
    """Quantize a layer's weights and input activations to `bits`. Layers without an entry stay 32-bit floats."""

    layer: str
    bits: Literal[8]


class Plan(Record):
    """The physical request: what the artifact will be, with everything that has no effect left out.

    Two candidates that mean the same network have equal plans. Entries are sorted, so that equality is by content.
    """

    cuts: tuple[ChannelCut, ...] = ()
    masks: tuple[WeightMask, ...] = ()
    bits: tuple[LayerBits, ...] = ()

    @model_validator(mode="after")
    def _sorted_and_unique(self) -> Plan:
        for field, names in (
            ("cuts", [c.group for c in self.cuts]),
            ("masks", [m.layer for m in self.masks]),
            ("bits", [b.layer for b in self.bits]),
        ):
            if names != sorted(set(names)):
                raise ValueError(f"plan.{field}: expected sorted, distinct names, got {names}")
        return self

    @property
    def key(self) -> str:
        """Content hash, 16 hex digits: the identity of the physical candidate."""
        return digest(self)[:16]

    @property
    def is_dense(self) -> bool:
        """True if nothing is asked for."""
        return not (self.cuts or self.masks or self.bits)


class Fidelity(Record):
    """How much recovery training a value rests on. Values of unlike fidelity are never compared.

    Attributes:
        epochs: passes over the training split, may be a fraction; 0 is inherited weights with recalibrated BN.
        rung: 0 for the first rung of a search; the finalists' rung is -1, "full".
    """

    epochs: Annotated[float, Field(ge=0.0)]
    rung: int = 0


# --- what came out ----------------------------------------------------------------------------------------------


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
    """What one layer really is in the artifact, read from the ONNX file."""

    name: str
    shape: tuple[int, ...]
    bits: int
    zeros: int
    weights: int


class Artifact(Record):
    """A deployable model file, bound by its sha256."""

    sha256: str
    size_bytes: int
    macs: int
    parameters: int
    layers: tuple[LayerReport, ...]


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
    """

    plan_key: str
    fidelity: Fidelity
    role: Role
    values: dict[str, Estimate]
    artifact: Artifact
    latency: LatencyReading
    host: Host
    agreement: float
    seconds: dict[str, float] = {}
    cached: bool = False
    warnings: tuple[str, ...] = ()


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
        if name != "accuracy" and not estimate.value > 0.0:
            raise ValueError(f"objective {name!r}: expected a value > 0, got {estimate.value}")


class Bound(Record):
    """A constraint: an objective's smallest or largest acceptable value, in its own unit. Exactly one is given."""

    objective: ObjectiveName
    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Bound:
        if (self.min is None) == (self.max is None):
            raise ValueError(f"constraint on {self.objective}: expected either min or max, got {self.min}, {self.max}")
        return self

    @property
    def name(self) -> str:
        """Such as ``"latency_ms<=1.0"``."""
        return f"{self.objective}<={self.max}" if self.min is None else f"{self.objective}>={self.min}"

    def violation(self, value: float) -> float:
        """By how much `value` misses the bound; <= 0 if it does not."""
        return self.min - value if self.min is not None else value - float(self.max or 0.0)


class EvaluatorReference(Record):
    """How a candidate's process builds ``evaluate(request) -> reply``: a function by name and its JSON arguments."""

    factory: str
    arguments: dict[str, Any] = {}


class Baseline(Record):
    """The dense model as it would ship: exported, unquantized, measured like every candidate.

    Attributes:
        accuracy: role -> estimate, for validation and selection; test is there once it was opened.
        latency_ms: of the dense artifact beside itself.
    """

    artifact: Artifact
    accuracy: dict[str, Estimate]
    latency_ms: float
    host: Host
    agreement: float


TrialState = Literal["waiting", "running", "complete", "failed"]
ParamValue = int | float | str


class TrialRecord(Record):
    """One row of the study's ledger, free of the ledger's library.

    Attributes:
        origin: where the parameters came from, ``"seed:dense"``, ``"seed:uniform-0.5-8bit"`` or ``"sampler"``.
        reason: why a trial failed, ``"kind: message"``; empty otherwise.
        violations: constraint name -> amount by which it is violated (<= 0 is satisfied).
        attempts: how often the candidate's process was started.
    """

    number: int
    state: TrialState
    origin: str = "sampler"
    params: dict[str, ParamValue] = {}
    plan: Plan | None = None
    measurement: Measurement | None = None
    violations: dict[str, float] = {}
    reason: str = ""
    attempts: int = 0
    started: datetime | None = None
    finished: datetime | None = None

    @property
    def feasible(self) -> bool:
        """Complete, and no constraint violated."""
        return self.state == "complete" and all(v <= 0 for v in self.violations.values())


class Finalist(Record):
    """A member of the search's front after full recovery, measured afresh.

    Attributes:
        number: the trial it came from.
        search: its measurement in the search (validation split).
        final: its measurement after full recovery (selection split).
        test: accuracy on the test split, opened once; None until then, and for finalists off the final front.
        on_front: non-dominated on the selection split.
    """

    number: int
    plan: Plan
    search: Measurement
    final: Measurement
    test: Estimate | None = None
    on_front: bool = False


class Lineage(Record):
    """What a model came from: each a content hash or a name."""

    study: str
    model_sha256: str
    data_sha256: str
    code_sha256: str
    space_sha256: str
    dense_sha256: str
    task: str
    host: str
    versions: dict[str, str]


class Version(Record):
    """A registered model version."""

    model: str
    version: int
    sha256: str
    run_id: str
    aliases: tuple[str, ...] = ()
    tags: dict[str, str] = {}

    @property
    def uri(self) -> str:
        """The MLflow address of exactly this version."""
        return f"models:/{self.model}/{self.version}"


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
