"""The study in MLflow Tracking: one parent run, one child run per finished trial.

MLflow holds a copy for reading; the study's own ledger stays the one truth, and this can be repeated from it at
any time. A repeat finds what is there by tags, completes what a crash left half done, and adds what is new.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from autocompress.records import Lineage, TrialRecord, TrialState
from autocompress.registry.connection import Connection, all_pages
from autocompress.registry.redact import redact
from autocompress.registry.tags import KIND, PLAN, PREFIX, STUDY, STUDY_KEY, TRIAL, registry_tags, study_key
from autocompress.space.words import plan_words

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, Run, RunTag

PARENT = "mlflow.parentRunId"
#: MLflow takes at most this many parameters in one batch.
_PARAMS = 100
#: How a trial ended -> MLflow's word for it. One that was stopped at a rung, or not even built, did not fail.
_STATUS: dict[TrialState, str] = {"complete": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


def track_study(
    connection: Connection,
    study: str,
    params: Mapping[str, object],
    lineage: Lineage,
    trials: Sequence[TrialRecord],
    summary: Mapping[str, float],
) -> str:
    """Write a study and its finished trials; see `Store.track_study`."""
    finished = [t for t in trials if t.state in _STATUS]
    with connection.guard(f"tracking study {study!r}") as client:
        experiment = connection.experiment(study)
        parent = _parent(client, experiment, study, params, lineage)
        done = _children(client, experiment, parent.info.run_id)
        for trial in finished:
            run = done.get(trial.number)
            if run is None or run.info.status == "RUNNING":
                _write_trial(client, experiment, parent.info.run_id, trial, run)
        if len(finished) > len(done):
            # A request repeated after a lost reply makes a second run: it is dropped here.
            _children(client, experiment, parent.info.run_id)
        _close_parent(client, parent, finished, summary)
    return str(parent.info.run_id)


def find_runs(client: MlflowClient, experiment: str, tags: Mapping[str, str]) -> list[Run]:
    """Active runs of an experiment that carry all `tags`, oldest first."""
    wanted = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
    found = all_pages(
        lambda token: client.search_runs([experiment], filter_string=wanted, max_results=1000, page_token=token)
    )
    return sorted(found, key=lambda run: (run.info.start_time, run.info.run_id))


def milliseconds(moment: datetime) -> int:
    """MLflow's timestamps."""
    return int(moment.timestamp() * 1000)


def log_params(client: MlflowClient, run: Run, params: Mapping[str, object]) -> None:
    """Write parameters that are new. MLflow's parameters never change: a new value goes to a tag, credentials nowhere.

    The tag is ``autocompress.param.<name>``, present only where the value differs from the first one.
    """
    from mlflow.entities import Param, RunTag

    wanted = {name[:250]: redact(str(value))[:6000] for name, value in params.items()}
    known = run.data.params
    new = [Param(name, value) for name, value in wanted.items() if name not in known]
    changed = [
        RunTag(f"{PREFIX}param.{name}"[:250], value)
        for name, value in wanted.items()
        if known.get(name, value) != value
    ]
    _log(client, run.info.run_id, (), new, changed)


def _log(
    client: MlflowClient,
    run_id: str,
    metrics: Sequence[Metric],
    params: Sequence[Param],
    tags: Sequence[RunTag] = (),
) -> None:
    client.log_batch(run_id, metrics=metrics, params=params[:_PARAMS], tags=tags[:_PARAMS])
    for start in range(_PARAMS, len(params), _PARAMS):
        client.log_batch(run_id, params=params[start : start + _PARAMS])
    for start in range(_PARAMS, len(tags), _PARAMS):
        client.log_batch(run_id, tags=tags[start : start + _PARAMS])


def _parent(client: MlflowClient, experiment: str, study: str, params: Mapping[str, object], lineage: Lineage) -> Run:
    key = {STUDY_KEY: study_key(lineage), KIND: "study"}
    found = find_runs(client, experiment, key)
    for double in found[1:]:
        client.delete_run(double.info.run_id)
    facts = {
        STUDY: study,
        **{f"{PREFIX}{name}": value for name, value in lineage.model_dump(mode="json").items() if name.endswith("256")},
        PREFIX + "task": lineage.task,
        PREFIX + "host": lineage.host,
        **{f"{PREFIX}version.{name}": version for name, version in lineage.versions.items()},
    }
    run = found[0] if found else client.create_run(experiment, tags=registry_tags(facts | key), run_name=study)
    log_params(client, run, params)
    return run


def _close_parent(
    client: MlflowClient, parent: Run, finished: Sequence[TrialRecord], summary: Mapping[str, float]
) -> None:
    from mlflow.entities import Metric

    ended = max((milliseconds(t.finished) for t in finished if t.finished), default=parent.info.start_time)
    counts = {
        "trials_complete": sum(t.state == "complete" for t in finished),
        "trials_stopped": sum(t.state == "stopped" for t in finished),
        "trials_failed": sum(t.state == "failed" for t in finished),
        "trials_feasible": sum(t.feasible for t in finished),
        **summary,
    }
    # The number of trials is the step: the same state written twice is the same point.
    client.log_batch(parent.info.run_id, metrics=[Metric(name, n, ended, len(finished)) for name, n in counts.items()])
    if parent.info.status == "RUNNING":
        client.set_terminated(parent.info.run_id, end_time=max(ended, parent.info.start_time))


def _children(client: MlflowClient, experiment: str, parent: str) -> dict[int, Run]:
    found: dict[int, Run] = {}
    for run in find_runs(client, experiment, {PARENT: parent, KIND: "trial"}):
        number = int(run.data.tags[TRIAL])
        if number in found:
            client.delete_run(run.info.run_id)
        else:
            found[number] = run
    return found


def _write_trial(client: MlflowClient, experiment: str, parent: str, trial: TrialRecord, run: Run | None) -> None:
    from mlflow.entities import Metric, Param

    started = None if trial.started is None else milliseconds(trial.started)
    if run is None:
        run = client.create_run(
            experiment,
            start_time=started,
            tags=registry_tags(_trial_tags(trial) | {PARENT: parent}),
            run_name=f"trial-{trial.number:04d}",
        )
    ended = milliseconds(trial.finished) if trial.finished else run.info.start_time
    metrics = [Metric(name, value, ended, 0) for name, value in _trial_metrics(trial).items()]
    for result in trial.rungs:
        told = milliseconds(result.judged) if result.judged else ended
        values = {"rung.epochs": result.fidelity.epochs, **{f"rung.{n}": e.value for n, e in result.values.items()}}
        metrics += [Metric(name, value, told, result.fidelity.rung) for name, value in values.items()]
    params = [Param(name[:250], redact(str(value))[:6000]) for name, value in trial.params.items()]
    _log(client, run.info.run_id, metrics, params)
    client.set_terminated(run.info.run_id, status=_STATUS[trial.state], end_time=ended)


def _trial_tags(trial: TrialRecord) -> dict[str, str]:
    tags = {
        KIND: "trial",
        TRIAL: str(trial.number),
        PREFIX + "state": trial.state,
        PREFIX + "origin": trial.origin,
        PREFIX + "attempts": str(trial.attempts),
        PREFIX + "feasible": str(trial.feasible).lower(),
    }
    if trial.plan is not None:
        tags |= {PLAN: plan_words(trial.plan), PREFIX + "plan_key": trial.plan.key}
    if trial.measurement is not None:
        tags |= {PREFIX + "sha256": trial.measurement.artifact.sha256}
    if trial.reason:
        tags |= {PREFIX + "reason": trial.reason}
    return tags


def _trial_metrics(trial: TrialRecord) -> dict[str, float]:
    if trial.measurement is None:
        return {}
    values: dict[str, float] = {}
    for name, estimate in trial.measurement.values.items():
        values |= {name: estimate.value, f"{name}.low": estimate.low, f"{name}.high": estimate.high}
    values["epochs"] = trial.measurement.fidelity.epochs
    values["seconds"] = sum(trial.measurement.seconds.values())
    return values
