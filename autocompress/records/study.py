"""The study's own records: constraints, trials, finalists, versions."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Literal

from pydantic import Field, model_validator

from autocompress.records.base import Estimate, Record
from autocompress.records.graph import RuntimeGraph
from autocompress.records.objectives import ObjectiveName
from autocompress.records.plan import Plan
from autocompress.records.results import Artifact, Host, Measurement
from autocompress.records.rungs import RungResult


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


def meets(result: RungResult, bounds: Iterable[Bound]) -> bool:
    """Whether a rung's result violates none of `bounds`, as far as it tells; a noisy latency tells nothing."""
    known = {name: e.value for name, e in result.values.items() if not (result.noisy and name == "latency_ms")}
    return all(bound.violation(known[bound.objective]) <= 0.0 for bound in bounds if bound.objective in known)


class EvaluatorReference(Record):
    """How a candidate's process builds ``evaluate(request) -> reply``: a function by name and its JSON arguments."""

    factory: str
    arguments: dict[str, Any] = Field(default_factory=dict)


class Baseline(Record):
    """The dense model as it would ship: exported, unquantized, measured like every candidate.

    Attributes:
        accuracy: role -> estimate, for validation and selection; test is there once it was opened.
        metrics: role -> metric -> estimate, of the study's metrics.
        latency_ms: of the dense artifact beside itself.
        peak_memory_bytes: of the dense artifact's session; None until it is asked for or finalists are measured.
        energy_mj: of one inference; None if it is not asked for.
        graph: what the runtime made of the dense artifact; None until finalists are measured, and where the runtime
            does not show it.
    """

    artifact: Artifact
    accuracy: dict[str, Estimate]
    latency_ms: float
    peak_memory_bytes: Estimate | None = None
    energy_mj: float | None = None
    host: Host
    agreement: float
    metrics: dict[str, dict[str, Estimate]] = Field(default_factory=dict)
    graph: RuntimeGraph | None = None


#: ``paused``: judged at a rung below the last, and not running; ``stopped``: ended there.
TrialState = Literal["waiting", "running", "paused", "complete", "stopped", "failed"]
ParamValue = int | float | str


class TrialRecord(Record):
    """One row of the study's ledger, free of the ledger's library.

    Attributes:
        origin: where the parameters came from, ``"seed:dense"``, ``"seed:uniform-0.5-8bit"`` or ``"sampler"``.
        measurement: of a complete trial.
        rungs: what it was worth at the rungs below the last that it has passed, in their order.
        reason: why a trial failed or was stopped, ``"kind: message"``; empty otherwise.
        violations: constraint name -> amount by which it is violated (<= 0 is satisfied).
        attempts: how often the candidate's process was started.
        taken_up: when a worker went on with it last, after a wait or an interruption; None if that never was.
    """

    number: int
    state: TrialState
    origin: str = "sampler"
    params: dict[str, ParamValue] = Field(default_factory=dict)
    plan: Plan | None = None
    measurement: Measurement | None = None
    rungs: tuple[RungResult, ...] = ()
    violations: dict[str, float] = Field(default_factory=dict)
    reason: str = ""
    attempts: int = 0
    started: datetime | None = None
    taken_up: datetime | None = None
    finished: datetime | None = None

    @property
    def feasible(self) -> bool:
        """Complete, and no constraint violated."""
        return self.state == "complete" and all(v <= 0 for v in self.violations.values())

    @property
    def is_unseen_seed(self) -> bool:
        """A seed of which nothing is judged yet: it waits, runs, or was stopped since the search's time was over."""
        open_ = self.state in ("waiting", "running") or (self.state == "stopped" and self.reason.startswith("time:"))
        return open_ and self.origin.startswith("seed:") and not self.rungs


class Finalist(Record):
    """A member of the search's front after full recovery, measured afresh.

    Attributes:
        number: the trial it came from.
        search: its measurement in the search (validation split); None if the search judged it at lower rungs only.
        final: its measurement after full recovery (selection split).
        test: accuracy on the test split, opened once; None until then, and for finalists off the final front.
        test_metrics: the study's metrics on the test split, likewise.
        on_front: a member of the final front: no other finalist dominates it beyond noise, on the selection split,
            and of finalists that noise does not let tell apart it stands for the others.
        tied_with: trial numbers of the feasible finalists that noise does not let tell apart from this one.
        controls: control ("magnitude", "random", "from-scratch") -> accuracy on the selection split of the same plan
            made that way, with as much training; only for members of the final front, and those that were asked for.
    """

    number: int
    plan: Plan
    search: Measurement | None
    final: Measurement
    test: Estimate | None = None
    test_metrics: dict[str, Estimate] = Field(default_factory=dict)
    on_front: bool = False
    tied_with: tuple[int, ...] = ()
    controls: dict[str, Estimate] = Field(default_factory=dict)


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
    tags: dict[str, str] = Field(default_factory=dict)

    @property
    def uri(self) -> str:
        """The MLflow address of exactly this version."""
        return f"models:/{self.model}/{self.version}"
