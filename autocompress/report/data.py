"""What a report is made from."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from pydantic import Field

from autocompress.front.selection import Point, aliases
from autocompress.front.summary import SearchSummary, summarize
from autocompress.records import (
    FIXED,
    Agreement,
    Artifact,
    Baseline,
    Bound,
    Estimate,
    Fairness,
    Finalist,
    Lineage,
    Metric,
    ObjectiveName,
    Record,
    RuntimeGraph,
    Structure,
    TimeProfile,
    TrialRecord,
    Version,
    settled,
)
from autocompress.space.words import plan_words


class ReportData(Record):
    """Everything that the page shows.

    Attributes:
        study: its name, as the user wrote it.
        objectives: what was searched for.
        metrics: what was measured beside the task's own metric.
        trials: the search's ledger.
        finalists: recovered in full and measured afresh; those with `on_front` are the result.
        baseline: the dense model on all splits that were opened.
        structure: what could be compressed, and what was left dense.
        versions: registered versions; matched to finalists by sha256.
        bounds: constraints of the study.
        failed_finalists: trial number -> why it could not be recovered or measured.
        times: where the time of an inference goes, the dense model first, then the front, fastest first; None where
            the runtime times no single nodes.
        how: paragraphs that say how it was measured: splits, recovery, protocol.
        lineage: what the models came from.
        seconds: part of the run -> wall time, in the order in which they are to be shown.
        search: the search in numbers, in the box of the dense model as it was measured before it; None to sum up
            `trials` beside `baseline`.
        created: when the report was made.
    """

    study: str
    objectives: tuple[ObjectiveName, ...]
    trials: tuple[TrialRecord, ...]
    finalists: tuple[Finalist, ...]
    baseline: Baseline
    structure: Structure
    metrics: tuple[Metric, ...] = ()
    versions: tuple[Version, ...] = ()
    bounds: tuple[Bound, ...] = ()
    failed_finalists: dict[int, str] = Field(default_factory=dict)
    times: TimeProfile | None = None
    how: tuple[str, ...] = ()
    lineage: Lineage | None = None
    seconds: dict[str, float] = Field(default_factory=dict)
    search: SearchSummary | None = None
    created: datetime | None = None

    def summary(self) -> SearchSummary:
        """The search in numbers.

        Raises:
            ValueError: trials are not comparable; see :func:`autocompress.front.indicators.trace`.
        """
        if self.search is not None:
            return self.search
        return summarize(self.trials, self.baseline, self.objectives, self.metrics)


class FrontRow(Record):
    """One model as the tables show it.

    Attributes:
        name: ``"dense"``, or ``"trial 12"``.
        aliases: the names it is known by; suggested ones where nothing was registered.
        accuracy: on the selection split.
        test: on the test split; None where it was not opened.
        latency_ms, ratio: measured, and relative to the dense model.
        size_ratio: file size relative to the dense model's.
        plan: in words.
        version: such as ``"digits v3"``; empty where it was not registered.
        warnings: what a reader should know.
        fairness: change per class on the selection split; None for a task that is no classification.
        controls: control -> its accuracy on the selection split.
        metrics, test_metrics: the study's metrics on the selection and the test split.
        tied_with: finalists that noise does not let tell apart from this one.
        predictions: how often they are the dense model's; None for a task that is no classification.
        graph: what the runtime made of the file; None where it does not show it.
        costs: peak memory and energy, as far as they were measured.
    """

    name: str
    aliases: tuple[str, ...] = ()
    accuracy: Estimate
    test: Estimate | None
    latency_ms: Estimate
    ratio: Estimate
    noisy: bool = False
    size_ratio: float
    plan: str
    version: str = ""
    artifact: Artifact
    on_front: bool = True
    warnings: tuple[str, ...] = ()
    fairness: Fairness | None = None
    controls: dict[str, Estimate] = Field(default_factory=dict)
    metrics: dict[str, Estimate] = Field(default_factory=dict)
    test_metrics: dict[str, Estimate] = Field(default_factory=dict)
    tied_with: tuple[str, ...] = ()
    predictions: Agreement | None = None
    graph: RuntimeGraph | None = None
    costs: dict[str, Estimate] = Field(default_factory=dict)


def dense_row(baseline: Baseline) -> FrontRow:
    """The dense model. Its accuracy is that of the selection split, or of validation until that is opened."""
    return FrontRow(
        name="dense",
        accuracy=baseline.accuracy.get("selection") or baseline.accuracy["validation"],
        test=baseline.accuracy.get("test"),
        latency_ms=Estimate.exact(baseline.latency_ms),
        ratio=Estimate.exact(1.0),
        size_ratio=1.0,
        plan="the model as it came",
        artifact=settled(baseline.artifact, baseline.graph),
        graph=baseline.graph,
        metrics=baseline.metrics.get("selection") or baseline.metrics.get("validation", {}),
        test_metrics=baseline.metrics.get("test", {}),
        costs={
            **({"peak_memory_bytes": memory} if (memory := baseline.peak_memory_bytes) is not None else {}),
            **({"energy_mj": Estimate.exact(energy)} if (energy := baseline.energy_mj) is not None else {}),
        },
    )


def finalist_rows(
    finalists: Sequence[Finalist],
    baseline: Baseline,
    *,
    versions: Sequence[Version] = (),
    structure: Structure | None = None,
    objectives: Sequence[str] = ("accuracy", "latency_ms"),
    metrics: Sequence[Metric] = (),
) -> tuple[FrontRow, ...]:
    """Finalists, fastest first, with the version that holds the same bytes.

    Args:
        finalists: on the front or off it.
        baseline: the dense model.
        versions: registered versions. Without any, the aliases are those that would be given.
        structure: makes the plans' words say of how many.
        objectives: what the knee weighs.
        metrics: those of the study.
    """
    by_sha = {v.sha256: v for v in sorted(versions, key=lambda v: v.version)}
    suggested = _suggested(finalists, baseline, objectives, metrics) if not versions else {}
    rows = []
    for finalist in sorted(finalists, key=lambda f: (f.final.values["latency_ms"].value, f.number)):
        final, artifact = finalist.final, finalist.final.artifact
        version = by_sha.get(artifact.sha256)
        rows.append(
            FrontRow(
                name=f"trial {finalist.number}",
                aliases=version.aliases if version else suggested.get(finalist.number, ()),
                accuracy=final.values["accuracy"],
                test=finalist.test,
                latency_ms=final.values["latency_ms"],
                ratio=final.latency.ratio,
                noisy=final.latency.noisy,
                size_ratio=artifact.size_bytes / baseline.artifact.size_bytes,
                plan=plan_words(finalist.plan, structure),
                version=f"{version.model} v{version.version}" if version else "",
                artifact=settled(artifact, final.graph),
                graph=final.graph,
                on_front=finalist.on_front,
                warnings=final.warnings,
                fairness=final.fairness,
                controls=finalist.controls,
                metrics={name: e for name, e in final.values.items() if name not in FIXED},
                test_metrics=finalist.test_metrics,
                tied_with=tuple(f"trial {number}" for number in finalist.tied_with),
                predictions=final.predictions,
                costs={name: e for name, e in final.values.items() if name in ("peak_memory_bytes", "energy_mj")},
            )
        )
    return tuple(rows)


def champion(rows: Sequence[FrontRow]) -> FrontRow | None:
    """The row to lead with: the champion, else the fastest of the front; None without a front."""
    front = [row for row in rows if row.on_front]
    return next((row for row in front if "champion" in row.aliases), front[0] if front else None)


def champion_first(aliases: Sequence[str]) -> list[str]:
    """Aliases in the order in which they are shown."""
    return sorted(aliases, key=lambda alias: (alias != "champion", alias))


def _suggested(
    finalists: Sequence[Finalist], baseline: Baseline, objectives: Sequence[str], metrics: Sequence[Metric]
) -> dict[int, tuple[str, ...]]:
    points = [
        Point(id=str(f.number), values={name: e.value for name, e in f.final.values.items()})
        for f in finalists
        if f.on_front
    ]
    if not points:
        return {}
    named = aliases(points, dense_accuracy=dense_row(baseline).accuracy.value, objectives=objectives, metrics=metrics)
    return {int(p.id): tuple(a for a, who in named.items() if who == p.id) for p in points}
