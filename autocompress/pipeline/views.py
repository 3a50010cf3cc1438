"""What a person asks of a study: its status, its front, a pick from the registry."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Literal

from pydantic import Field

from autocompress.config import Study
from autocompress.errors import RegistryError
from autocompress.front.selection import Point, Preference, pick
from autocompress.front.summary import SearchSummary
from autocompress.pipeline.finalists import Finals
from autocompress.pipeline.folder import StudyFolder, read_record
from autocompress.pipeline.prepare import Prepared
from autocompress.pipeline.publish import Registered
from autocompress.pipeline.summary import search_summary
from autocompress.pipeline.trials import load_trials, search_front
from autocompress.records import FIXED, Baseline, Estimate, Measurement, Plan, Record, Structure, TrialRecord
from autocompress.registry.store import Store
from autocompress.registry.tags import HOST, estimates, is_noisy, test_accuracy, values
from autocompress.report.search_words import search_line
from autocompress.search.ledger import ENDED
from autocompress.space.words import plan_words


class FrontRow(Record):
    """One member of a front.

    Attributes:
        values: objective name -> estimate; accuracy on the split that `role` names.
        ratio: latency as a share of the dense model's.
        noisy: the latency reading stayed noisy after all repeats.
        test: accuracy on the test split; None before it was opened.
        test_metrics: the study's metrics on the test split.
        tied_with: trial numbers of finalists that noise does not let tell apart from this one.
        uri: the registered version; None before it was registered.
    """

    trial: int
    role: str
    epochs: float
    values: dict[str, Estimate]
    ratio: Estimate
    noisy: bool = False
    test: Estimate | None = None
    test_metrics: dict[str, Estimate] = Field(default_factory=dict)
    tied_with: tuple[int, ...] = ()
    plan: Plan
    summary: str
    sha256: str
    uri: str | None = None
    aliases: tuple[str, ...] = ()


class FrontView(Record):
    """A study's front.

    Attributes:
        stage: ``"final"`` after full recovery, ``"search"`` before: then values are of search fidelity.
        dense: the dense model, measured likewise; None before it was.
        search: how the search went, its trace included; None before the dense model was measured.
    """

    study: str
    stage: Literal["final", "search", "none"]
    objectives: tuple[str, ...]
    rows: tuple[FrontRow, ...]
    dense: Baseline | None = None
    search: SearchSummary | None = None


class StatusView(Record):
    """How far a study is.

    Attributes:
        state: ``"running"`` if a process drives it now; ``"finished"`` if the front of all its trials is registered;
            ``"stopped"`` if the same command would continue it.
        done: trials that ended, or were judged at a rung at least.
        total: trials asked for.
        counts: trials by state. A trial that was running when the study stopped counts as interrupted.
        reasons: reason of failure -> number of trials.
        front: the final front, or that of the search so far. Its `search` has rungs, time by part and the trace.
    """

    study: str
    folder: str
    state: Literal["not started", "running", "stopped", "finished"]
    done: int
    total: int
    counts: dict[str, int]
    reasons: dict[str, int]
    hypervolume: float
    front: FrontView


class PickView(Record):
    """The version that was picked."""

    model: str
    version: int
    uri: str
    prefer: str
    values: dict[str, Estimate]
    test_accuracy: float | None
    sha256: str
    plan: str
    aliases: tuple[str, ...]
    downloaded: str | None = None


def study_front(study: Study) -> FrontView:
    """The final front if the study has one, else the front of its search so far."""
    return _front(study, load_trials(study))


def _front(study: Study, trials: tuple[TrialRecord, ...]) -> FrontView:
    folder = StudyFolder(study.folder)
    finals = read_record(folder.finalists, Finals)
    prepared = read_record(folder.prepared, Prepared)
    structure = prepared.structure if prepared else None
    went = search_summary(study, prepared.baseline, trials) if prepared else None
    if finals is None:
        rows = [
            _row(t.number, t.plan, t.measurement, structure)
            for t in search_front(trials, study.objectives, study.metrics)
        ]
        return FrontView(
            study=study.name,
            stage="search" if rows else "none",
            objectives=study.objectives,
            rows=tuple(r for r in rows if r is not None),
            dense=prepared.baseline if prepared else None,
            search=went,
        )
    versions = {v.sha256: v for v in (read_record(folder.registered, Registered) or Registered()).versions}
    found = []
    for member in finals.front:
        row = _row(member.number, member.plan, member.final, structure)
        if row is not None:
            version = versions.get(row.sha256)
            extra = {"uri": version.uri, "aliases": version.aliases} if version else {}
            found.append(
                row.model_copy(
                    update={
                        "test": member.test,
                        "test_metrics": member.test_metrics,
                        "tied_with": member.tied_with,
                        **extra,
                    }
                )
            )
    found.sort(key=lambda r: r.values["latency_ms"].value)
    return FrontView(
        study=study.name,
        stage="final",
        objectives=study.objectives,
        rows=tuple(found),
        dense=finals.baseline,
        search=went,
    )


def study_status(study: Study) -> StatusView:
    """How far a study is; reads only."""
    folder = StudyFolder(study.folder)
    trials = load_trials(study)
    registered = read_record(folder.registered, Registered) or Registered()
    driven = folder.is_driven()
    states = Counter(_state(t, driven) for t in trials)
    ended = sum(t.state in ENDED for t in trials)
    # A search whose time is over leaves candidates that were never begun.
    over = ended >= study.search.trials or (study.search.time_s is not None and not states.keys() - {*ENDED, "waiting"})
    state: Literal["not started", "running", "stopped", "finished"] = "stopped"
    if driven:
        state = "running"
    elif not folder.study.is_file():
        state = "not started"
    elif over and registered.trials >= min(ended, study.search.trials) > 0:
        state = "finished"
    front = _front(study, trials)
    return StatusView(
        study=study.name,
        folder=str(folder.root),
        state=state,
        done=ended + states["paused"],
        total=study.search.trials,
        counts=dict(states),
        reasons=dict(Counter(t.reason for t in trials if t.state == "failed")),
        hypervolume=front.search.hypervolume if front.search else 0.0,
        front=front,
    )


def pick_version(
    model: str,
    *,
    minimum: dict[str, float],
    maximum: dict[str, float],
    prefer: Preference,
    download: Path | None,
    output: Path,
) -> PickView:
    """Choose among a registered model's versions, by their own tags.

    Raises:
        RegistryError: there is no such model, or it has no version with measured values.
        NoCandidateError: no version meets the constraints; the message names the nearest.
    """
    store = Store(None, output)
    versions = {str(v.version): v for v in store.versions(model) if values(v)}
    if not versions:
        raise RegistryError(
            f"model {model!r} has no version with measured values; register one with 'autocompress run'"
        )
    # Latencies of unlike hosts do not compare: the host of the newest version is the one that is asked about. A noisy
    # latency ranks only where there is no other.
    newest = max(versions.values(), key=lambda v: v.version)
    here = {k: v for k, v in versions.items() if v.tags.get(HOST) == newest.tags.get(HOST)}
    quiet = {k: v for k, v in here.items() if not is_noisy(v)} or here
    points = [Point(id=number, values=values(v)) for number, v in quiet.items()]
    chosen = versions[pick(points, minimum=minimum, maximum=maximum, prefer=prefer).id]
    folder = store.download(chosen.uri, download) if download is not None else None
    return PickView(
        model=model,
        version=chosen.version,
        uri=chosen.uri,
        prefer=prefer,
        values=estimates(chosen),
        test_accuracy=test_accuracy(chosen),
        sha256=chosen.sha256,
        plan=chosen.tags.get("autocompress.plan", ""),
        aliases=chosen.aliases,
        downloaded=str(folder) if folder is not None else None,
    )


def _state(trial: TrialRecord, driven: bool) -> str:
    return "interrupted" if trial.state == "running" and not driven else trial.state


def _row(
    number: int, plan: Plan | None, measurement: Measurement | None, structure: Structure | None
) -> FrontRow | None:
    if plan is None or measurement is None:
        return None
    return FrontRow(
        trial=number,
        role=measurement.role,
        epochs=measurement.fidelity.epochs,
        values=measurement.values,
        ratio=measurement.latency.ratio,
        noisy=measurement.latency.noisy,
        plan=plan,
        summary=plan_words(plan, structure),
        sha256=measurement.artifact.sha256,
    )


def front_rows(view: FrontView) -> list[dict[str, object]]:
    """A front as plain rows, for a table artifact."""
    return [
        {
            "trial": row.trial,
            "accuracy": round(row.values["accuracy"].value, 5),
            "test accuracy": round(row.test.value, 5) if row.test else None,
            "latency ms": round(row.values["latency_ms"].value, 5),
            "of dense": round(row.ratio.value, 4),
            "size bytes": int(row.values["size_bytes"].value),
            **{name: round(estimate.value, 6) for name, estimate in row.values.items() if name not in FIXED},
            "plan": row.summary,
            "version": row.uri,
            "sha256": row.sha256,
        }
        for row in view.rows
    ]


def summary_markdown(view: FrontView, page: Path, tracking: str) -> str:
    """A finished study in a few lines of Markdown."""
    lines = [
        f"# {view.study}",
        "",
        f"{len(view.rows)} members of the final front, registered in {tracking}. Report: `{page}`.",
        "",
        *([f"The search: {search_line(view.search)}.", ""] if view.search else []),
        "| version | accuracy | test | latency ms | of dense | plan |",
        "|---|---|---|---|---|---|",
    ]
    for row in view.rows:
        test = f"{row.test.value:.4f}" if row.test else ""
        lines.append(
            f"| {row.uri or ''} {' '.join(row.aliases)} | {row.values['accuracy'].value:.4f} | {test} "
            f"| {row.values['latency_ms'].value:.4f} | {row.ratio.value:.3f} | {row.summary} |"
        )
    return "\n".join(lines)
