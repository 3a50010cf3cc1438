"""The evidence card: what a registered model is, what was measured of it, and how to measure it again."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from autocompress.errors import RegistryError
from autocompress.records import (
    Artifact,
    Baseline,
    Estimate,
    Finalist,
    LeftDense,
    Lineage,
    Measurement,
    Metric,
    ObjectiveName,
    Plan,
    Record,
    Role,
)
from autocompress.registry.markdown import card_markdown

ROLES: tuple[Role, ...] = ("train", "validation", "selection", "test")


class TaskReference(Record):
    """How the task is built again: ``factory(**arguments)``.

    Attributes:
        factory: ``package.module:function`` or ``/path/file.py:function``.
        arguments: keyword arguments from the study file; JSON values.
        name: the task's own name.
        metric: qualified name of the metric function, such as ``"autocompress.task:top1"``.
    """

    factory: str
    arguments: dict[str, Any] = Field(default_factory=dict)
    name: str
    metric: str = "autocompress.task:top1"


class Split(Record):
    """One role's data: number of examples and content hash."""

    role: Role
    size: Annotated[int, Field(ge=1)]
    sha256: str


class TargetReference(Record):
    """What the latency was measured on.

    Attributes:
        options: settings that only this kind of target has, such as ``compiler``.
    """

    kind: str
    threads: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=1)]
    options: Annotated[dict[str, str], Field(default_factory=dict)]


class Origin(Record):
    """What is the same for every model that one study registers.

    Attributes:
        task: how the task is built.
        splits: the four roles, each once.
        target: what the latency was measured on.
        objectives: what the search looked for.
        metrics: what was measured beside the task's own metric, and how.
        seed: root seed of the study.
        dense: the dense model as it would ship, measured like this one.
        lineage: hashes of all inputs.
        left_dense: modules that could not be compressed, and why.
        warnings: what holds for the whole study and a reader should know.
    """

    task: TaskReference
    splits: tuple[Split, ...]
    target: TargetReference
    objectives: tuple[ObjectiveName, ...]
    metrics: tuple[Metric, ...] = ()
    seed: int
    dense: Baseline
    lineage: Lineage
    left_dense: tuple[LeftDense, ...] = ()
    warnings: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _four_roles(self) -> Origin:
        roles = [s.role for s in self.splits]
        if sorted(roles) != sorted(ROLES):
            raise ValueError(f"splits: expected each of {', '.join(ROLES)} once, got {', '.join(roles) or 'none'}")
        return self


class EvidenceCard(Record):
    """Everything needed to judge a registered model and to check the claim again.

    The file that the card speaks of is the one with ``artifact.sha256``; no figure stands for any other bytes.

    Attributes:
        format: version of this record's own layout.
        model: name of the registry model.
        trial: number of the trial in the study.
        plan: what was asked: cuts, masks, bits.
        origin: task, data, target, dense baseline and lineage.
        search: the measurement that put the candidate on the search's front (validation split); None if the search
            judged it before it was trained in full only.
        final: the measurement after full recovery (selection split).
        test: accuracy on the test split, opened once, after all selection was done.
        test_metrics: the study's metrics on the test split, likewise.
        created: when the card was written, UTC.
    """

    format: Literal[1] = 1
    model: str
    trial: int
    plan: Plan
    origin: Origin
    search: Measurement | None
    final: Measurement
    test: Estimate
    test_metrics: dict[str, Estimate] = Field(default_factory=dict)
    created: datetime

    @model_validator(mode="after")
    def _consistent(self) -> EvidenceCard:
        for name, measurement, role in (("search", self.search, "validation"), ("final", self.final, "selection")):
            if measurement is None:
                continue
            if measurement.plan_key != self.plan.key:
                raise ValueError(f"{name}.plan_key: expected {self.plan.key} (the plan's), got {measurement.plan_key}")
            if measurement.role != role:
                raise ValueError(f"{name}.role: expected {role!r}, got {measurement.role!r}")
        return self

    @classmethod
    def of(cls, model: str, finalist: Finalist, origin: Origin, *, created: datetime | None = None) -> EvidenceCard:
        """The card of a finalist.

        Args:
            model: name of the registry model.
            finalist: measured on the selection split, and on the test split.
            origin: what the study's models share.
            created: now, if it is not given.

        Raises:
            RegistryError: the finalist's accuracy on the test split is not known.
        """
        if finalist.test is None:
            raise RegistryError(
                f"trial {finalist.number}: expected its accuracy on the test split, got none; "
                "only models whose test split was opened can be registered"
            )
        return cls(
            model=model,
            trial=finalist.number,
            plan=finalist.plan,
            origin=origin,
            search=finalist.search,
            final=finalist.final,
            test=finalist.test,
            test_metrics=finalist.test_metrics,
            created=created or datetime.now(UTC),
        )

    @property
    def artifact(self) -> Artifact:
        """The registered file: sha256, size, multiply-adds, parameters and layers."""
        return self.final.artifact

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings of the study and of both measurements, each once."""
        early = self.search.warnings if self.search is not None else ()
        own = list(dict.fromkeys((*self.origin.warnings, *early, *self.final.warnings)))
        if self.final.latency.noisy:
            own.append("The latency reading stayed noisy after all repeats; do not rank by it.")
        return tuple(own)

    def to_markdown(self) -> str:
        """The card as a page for a reader who knows nothing of the study."""
        return card_markdown(self)
