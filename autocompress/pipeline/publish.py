"""Register and report: tracking, versions, aliases, the page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from pydantic import Field

from autocompress.front.selection import aliases
from autocompress.pipeline.final_front import as_point
from autocompress.pipeline.finalists import Finals
from autocompress.pipeline.folder import StudyFolder, read_record, write_record
from autocompress.pipeline.identity import versions
from autocompress.pipeline.prepare import Workbench
from autocompress.pipeline.profile import Profile
from autocompress.pipeline.progress import reporter
from autocompress.pipeline.summary import search_summary
from autocompress.records import Lineage, Record, TimeProfile, TrialRecord, Version, digest
from autocompress.registry.card import EvidenceCard, Origin, Split, TargetReference, TaskReference
from autocompress.registry.store import Store
from autocompress.report.data import ReportData
from autocompress.report.page import write_page
from autocompress.search.ledger import ENDED


class Registered(Record):
    """The versions of a study's final front, fastest first.

    Attributes:
        trials: how many had ended when the front was found.
    """

    versions: tuple[Version, ...] = ()
    tracking: str = ""
    trials: int = 0


def publish(bench: Workbench, trials: tuple[TrialRecord, ...], finals: Finals) -> Registered:
    """Track the study and its trials, register every member of the final front, move the aliases.

    Running it twice registers nothing twice.

    Raises:
        RegistryError: MLflow refused or is away.
    """
    study, report = bench.study, reporter()
    store = Store(None, Path(study.output).absolute())
    lineage, origin = _lineage(bench, finals), _origin(bench, finals)
    ended = sum(t.state in ENDED for t in trials)
    report.stage("register", f"tracking {ended} trials in {store.address}")
    found = search_summary(study, bench.prepared.baseline, trials)
    told = {"hypervolume": found.hypervolume, "search_seconds": found.seconds}
    told |= {f"search_share.{part}": share for part, share in found.shares.items()}
    params = _flat(study.model_dump(mode="json", exclude={"task"}))
    parent = store.track_study(study.name, params, lineage, trials, told)
    model = study.model_name
    dense = bench.folder.read_artifact(bench.prepared.baseline.artifact.sha256)
    store.keep_dense(parent, dense)
    front = sorted(finals.front, key=lambda f: f.final.values["latency_ms"].value)
    numbers: dict[str, int] = {}
    for index, finalist in enumerate(front):
        report.stage("register", f"registering {index + 1} of {len(front)} as {model}")
        version = store.register(
            model,
            finalist,
            bench.folder.read_artifact(finalist.final.artifact.sha256),
            EvidenceCard.of(model, finalist, origin),
            lineage,
            parent,
        )
        numbers[finalist.plan.key] = version.version
    chosen = aliases(
        [as_point(f.plan.key, f.final) for f in front],
        dense_accuracy=finals.baseline.accuracy["selection"].value,
        objectives=study.objectives,
        metrics=study.metrics,
    )
    store.alias(model, {alias: numbers[key] for alias, key in chosen.items()})
    known = {v.version: v for v in store.versions(model)}
    registered = Registered(
        versions=tuple(known[n] for n in numbers.values()),
        tracking=store.address,
        trials=ended,
    )
    write_record(bench.folder.registered, registered)
    return registered


def write_report(
    bench: Workbench,
    trials: tuple[TrialRecord, ...],
    finals: Finals,
    registered: tuple[Version, ...],
    seconds: dict[str, float],
    times: TimeProfile | None = None,
) -> Path:
    """Write the study's page; returns its path.

    Args:
        bench: the prepared study.
        trials: the ledger's.
        finals: the finalists.
        registered: versions of the final front.
        seconds: stage -> wall time of this run; the page has the longest of all runs.
        times: where the time of an inference goes; None where the runtime times no single nodes.
    """
    reporter().stage("report", f"writing {bench.folder.page}")
    data = ReportData(
        study=bench.study.name,
        trials=trials,
        finalists=finals.finalists,
        baseline=finals.baseline,
        structure=bench.prepared.structure,
        versions=registered,
        objectives=bench.study.objectives,
        metrics=bench.study.metrics,
        bounds=bench.study.bounds,
        failed_finalists=finals.failed,
        times=times,
        how=(*_how(bench), *_remarks(bench)),
        lineage=_lineage(bench, finals),
        seconds=longest_seconds(bench.folder, seconds),
        search=search_summary(bench.study, bench.prepared.baseline, trials),
        created=datetime.now(UTC),
    )
    write_page(bench.folder.page, data)
    return bench.folder.page


class StageSeconds(Record):
    """Stage -> its longest wall time over all runs of a study, in seconds."""

    seconds: dict[str, float] = Field(default_factory=dict)


def longest_seconds(folder: StudyFolder, seconds: Mapping[str, float]) -> dict[str, float]:
    """The longest known wall time of each stage, in their order; kept in the study's folder.

    A stage that finds its work done takes no time, which would say nothing about what the study took.

    Args:
        folder: of the study.
        seconds: of this run.
    """
    known = (read_record(folder.seconds, StageSeconds) or StageSeconds()).seconds
    kept = {stage: max(taken, known.get(stage, 0.0)) for stage, taken in {**known, **seconds}.items()}
    write_record(folder.seconds, StageSeconds(seconds=kept))
    return kept


def _remarks(bench: Workbench) -> tuple[str, ...]:
    found = read_record(bench.folder.profile, Profile)
    return found.remarks() if found is not None else ()


def _how(bench: Workbench) -> tuple[str, ...]:
    study, task, target = bench.study, bench.task, bench.study.target
    sizes = {role: f"{len(getattr(task, role)):,}" for role in ("train", "validation", "selection", "test")}
    threads = f"{target.threads} thread{'' if target.threads == 1 else 's'}"
    return (
        f"Four splits with one role each: training, recovery and calibration use {sizes['train']} examples, the search "
        f"sees {sizes['validation']} for validation, finalists are judged on {sizes['selection']} for selection, and "
        f"the {sizes['test']} test examples are opened once for each model of the final front.",
        f"A candidate of the search recovers for {_epochs(study.search.recovery_epochs)} by distillation from the "
        f"dense model, a finalist for {_epochs(study.finalists.recovery_epochs)}; values of unlike recovery are never "
        "compared.",
        f"Accuracy is {bench.target.runtime}'s on the exported bytes. Latency is of the same bytes, {threads}, batch "
        f"size {target.batch_size}: interleaved with the dense model in shuffled rounds while nothing of the study "
        "trains; the median of the rounds' ratios times the dense model's median, with a bootstrap interval over "
        "rounds.",
    )


def _epochs(number: float) -> str:
    return f"{number:g} epoch{'' if number == 1 else 's'}"


def _lineage(bench: Workbench, finals: Finals) -> Lineage:
    return Lineage(
        study=bench.study.name,
        model_sha256=bench.prepared.model_sha256,
        data_sha256=digest(finals.data_sha256),
        code_sha256=finals.code_sha256,
        space_sha256=digest(bench.study.space.model_dump(mode="json")),
        dense_sha256=bench.prepared.baseline.artifact.sha256,
        task=bench.prepared.task,
        host=bench.host.key,
        versions=versions(),
    )


def _origin(bench: Workbench, finals: Finals) -> Origin:
    study, task = bench.study, bench.task
    return Origin(
        task=TaskReference(
            factory=study.task.factory,
            arguments=study.task.arguments,
            name=task.name,
            metric=f"{task.metric.__module__}:{getattr(task.metric, '__qualname__', type(task.metric).__qualname__)}",
        ),
        splits=tuple(
            Split(role=role, size=len(getattr(task, role)), sha256=finals.data_sha256[role])
            for role in ("train", "validation", "selection", "test")
        ),
        target=TargetReference(
            kind=study.target.kind,
            threads=study.target.threads,
            batch_size=study.target.batch_size,
            options=study.target.options,
        ),
        objectives=study.objectives,
        metrics=study.metrics,
        seed=study.seed,
        dense=finals.baseline,
        lineage=_lineage(bench, finals),
        left_dense=bench.prepared.structure.left_dense,
    )


def _flat(document: dict[str, object], prefix: str = "") -> dict[str, object]:
    """Nested settings as ``a.b.c`` -> value."""
    flat: dict[str, object] = {}
    for key, value in document.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        elif value is not None:
            flat[f"{prefix}{key}"] = value if isinstance(value, str | int | float) else json.dumps(value)
    return flat
