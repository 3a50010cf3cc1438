"""What was measured of an artifact, and the gate that a value passes before a study hears of it."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from autocompress.records.base import Estimate, Record, digest
from autocompress.records.graph import RuntimeGraph
from autocompress.records.objectives import FIXED

Role = Literal["train", "validation", "selection", "test"]


class Fidelity(Record):
    """How much recovery training a value rests on. Values of unlike fidelity are never compared.

    Attributes:
        epochs: passes over the training split, may be a fraction; 0 is inherited weights with recalibrated BN.
        rung: 0 for the first rung of a search; the finalists' rung is -1, "full".
    """

    epochs: Annotated[float, Field(ge=0.0)]
    rung: int = 0


class Host(Record):
    """Fingerprint of where a latency was taken. A reading never leaves the host that it names.

    Attributes:
        cpu: name, family and model.
        cores: of the machine.
        flags: instruction sets by which runtimes choose their kernels.
        memory_gb: of the machine, in GiB.
        system: kernel, its release, and architecture.
        runtime: name and version.
        threads: that share one inference.
        governor: of the processor's clock, such as ``"performance"``; None where the system does not say.
        device: name and driver of what computes beside the processor; None where nothing does.
        node: labels of the cluster's node that took the reading, such as ``"device=rpi5"``; None for the machine that
            the candidate was built on.
    """

    cpu: str
    cores: int
    flags: tuple[str, ...]
    memory_gb: int
    system: str
    runtime: str
    threads: int
    governor: str | None = None
    device: str | None = None
    node: str | None = None

    @property
    def key(self) -> str:
        """Content hash, 12 hex digits; of what is known, so that a new attribute leaves other hosts' keys alone."""
        return digest(self.model_dump(mode="json", exclude_none=True))[:12]

    @property
    def setup(self) -> str:
        """Governor, device and node in words, as far as there are any."""
        parts = (("governor", self.governor), ("device", self.device), ("Ray node", self.node))
        return ", ".join(f"{name} {value}" for name, value in parts if value) or "governor not told by the system"


class Throughput(Record):
    """Examples per second of one artifact beside the dense baseline, at one batch size.

    Attributes:
        batch_size: examples per inference.
        examples_per_s: batch size / latency of one inference, taken by the interleaved protocol, with its interval.
        baseline_per_s: of the dense baseline in the same session.
        noisy: as of the latency that it was computed from.
    """

    batch_size: Annotated[int, Field(ge=1)]
    examples_per_s: Estimate
    baseline_per_s: float
    noisy: bool = False


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
        attempts: how often it was taken until it was not noisy, or given up.
        dispersion: interquartile range of the rounds' ratios over their median.
        drift: of the baseline within the reading, as a share of its median.
        cores: that the computing threads were held to; empty if they were left to the system.
        throughput: by batch size; empty where only the latency was asked for.
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
    attempts: int = 1
    dispersion: float = 0.0
    drift: float = 0.0
    cores: tuple[int, ...] = ()
    throughput: tuple[Throughput, ...] = ()


class EnergyReading(Record):
    """Energy of one inference beside the dense baseline, from the host's counters; idle power is in it.

    Attributes:
        energy_mj: median of per-window ratios × median of the baseline, in millijoules, with its bootstrap interval.
        ratio: median of per-window ratios to the dense baseline, with its interval.
        baseline_mj: the baseline's median in the same session.
        windows: per network.
        counters: what was summed, such as ``"intel-rapl:0 package-0"``.
        noisy: the windows' ratios were too dispersed, or the baseline drifted.
    """

    energy_mj: Estimate
    ratio: Estimate
    baseline_mj: float
    windows: int
    counters: tuple[str, ...]
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
        compute: what a runtime is expected to compute with, by the file: ``"integer"``: weights and activations are
            integers; ``"weights"``: the kernel reads integer weights and float activations; ``"float"``: floats, so
            that fewer bits are storage only. What it does, its graph tells: see `settled`.
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


def settled(artifact: Artifact, graph: RuntimeGraph | None) -> Artifact:
    """The artifact with what its layers are computed with as the runtime tells it, where the file only lets expect it.

    Args:
        artifact: read from the file.
        graph: the runtime's; None leaves the artifact as it is.
    """
    found = {layer.name: layer.compute for layer in graph.layers} if graph is not None else {}
    layers = (r.model_copy(update={"compute": found.get(r.name, r.compute)}) for r in artifact.layers)
    return artifact.model_copy(update={"layers": tuple(layers)})


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


class ClassAgreement(Record):
    """How often two models predict alike on the examples of one class.

    Attributes:
        target: index of the class.
        examples: of this class.
        dense: share of them on which artifact and dense artifact predict alike, with its interval.
        torch: share on which artifact and its own torch network do; None where that was not asked.
    """

    target: Annotated[int, Field(ge=0)]
    examples: Annotated[int, Field(ge=1)]
    dense: Estimate
    torch: Estimate | None = None


class Agreement(Record):
    """How often the artifact's prediction is another model's, whether right or wrong, on the same examples.

    Attributes:
        dense: the dense artifact's, on the runtime.
        torch: the torch network's that the artifact was exported from; None where the artifact is quantized, and so
            is another network.
        classes: those with examples, by index.
    """

    dense: Estimate
    torch: Estimate | None = None
    classes: Annotated[tuple[ClassAgreement, ...], Field(min_length=1)]


class Measurement(Record):
    """Everything measured of one artifact at one fidelity.

    Attributes:
        plan_key: the physical candidate.
        values: objective name -> estimate, of fixed objectives and the study's metrics. Accuracy and metrics are the
            runtime's, on the bytes with `artifact.sha256`.
        role: the split that the accuracy was measured on.
        latency: the reading behind ``values["latency_ms"]``.
        energy: the reading behind ``values["energy_mj"]``; None if it was not asked for.
        agreement: largest absolute difference between torch's and the runtime's outputs before quantization.
        seconds: part name (``"compress"``, ``"recover"``, ``"export"``, ``"quality"``, ``"latency"``) -> wall time.
        cached: answered from an earlier evaluation of the same physical candidate.
        warnings: what a reader should know, in words.
        fairness: change per class on the same split; None for a task that is no classification.
        graph: what the runtime made of the artifact; None in a search, and where the runtime does not show it.
        node_id: Ray's id of the node that took the latency; empty for the machine that the candidate was built on.
        predictions: how often predictions are the dense model's and torch's, of a finalist; None in the search, and
            for a task that is no classification.
    """

    plan_key: str
    fidelity: Fidelity
    role: Role
    values: dict[str, Estimate]
    artifact: Artifact
    latency: LatencyReading
    energy: EnergyReading | None = None
    host: Host
    agreement: float
    seconds: dict[str, float] = Field(default_factory=dict)
    cached: bool = False
    warnings: tuple[str, ...] = ()
    fairness: Fairness | None = None
    graph: RuntimeGraph | None = None
    predictions: Agreement | None = None
    node_id: str = ""


def check_values(values: dict[str, Estimate], names: tuple[str, ...]) -> None:
    """The gate before anything is told to a study: every objective is there, finite and in range.

    A metric of the study may have any finite value.

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
        elif name in FIXED and name != "accuracy" and not estimate.value > 0.0:
            raise ValueError(f"objective {name!r}: expected a value > 0, got {estimate.value}")
