from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autocompress.errors import RegistryError
from autocompress.records import Estimate, Fidelity, Lineage, RungResult, TrialRecord
from autocompress.registry.store import Store

pytestmark = pytest.mark.integration
MakeTrials = Callable[[int], list[TrialRecord]]


def _runs(store: Store) -> list[Any]:
    return list(store._connection.client.search_runs([store._connection.experiment("digits")], max_results=1000))


def _children(store: Store, parent: str) -> dict[str, Any]:
    runs = [r for r in _runs(store) if r.data.tags.get("mlflow.parentRunId") == parent]
    return {r.data.tags["autocompress.trial"]: r for r in runs}


@pytest.mark.slow
def test_a_hundred_trials_take_seconds_and_a_repeat_adds_none(
    store: Store, lineage: Lineage, trials: MakeTrials
) -> None:
    began = time.perf_counter()
    parent = store.track_study("digits", {"search.trials": 100}, lineage, trials(100))
    first = time.perf_counter() - began
    before = {r.info.run_id: r.to_dictionary() for r in _runs(store)}
    began = time.perf_counter()
    assert store.track_study("digits", {"search.trials": 100}, lineage, trials(100)) == parent
    second = time.perf_counter() - began
    assert {r.info.run_id: r.to_dictionary() for r in _runs(store)} == before
    assert len(before) == 101
    assert first < 60
    assert second < first


def test_a_trial_becomes_a_child_run_with_what_it_was(store: Store, lineage: Lineage, trials: MakeTrials) -> None:
    made = trials(10)
    parent = store.track_study("digits", {"seed": 7, "objectives": ["accuracy"]}, lineage, made)
    children = _children(store, parent)
    good, bad = children["3"], children["9"]
    assert good.info.status == "FINISHED"
    assert good.data.params["sparsity/layer0"] == str(made[3].params["sparsity/layer0"])
    assert good.data.metrics["latency_ms"] == made[3].measurement.values["latency_ms"].value  # type: ignore[union-attr]
    assert good.data.metrics["accuracy.low"] == made[3].measurement.values["accuracy"].low  # type: ignore[union-attr]
    assert good.info.end_time - good.info.start_time == 2000
    assert good.data.tags["autocompress.plan"] == "1 group cut, 1 layer int8"
    assert bad.info.status == "FAILED"
    assert bad.data.tags["autocompress.reason"] == "worker: died: signal 9"
    assert bad.data.metrics == {}
    run = store._connection.client.get_run(parent)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"seed": "7", "objectives": "['accuracy']"}
    assert run.data.metrics == {
        "trials_complete": 9,
        "trials_stopped": 0,
        "trials_failed": 1,
        "trials_feasible": 9,
    }
    assert run.data.tags["autocompress.version.torch"] == "2.13.0"
    assert run.data.tags["autocompress.data_sha256"] == lineage.data_sha256


def test_a_stopped_trial_is_no_failure_and_keeps_what_it_was_worth_at_its_rungs(
    store: Store, lineage: Lineage, trials: MakeTrials
) -> None:
    (complete,) = trials(1)
    rungs = tuple(
        RungResult(
            plan_key="k",
            fidelity=Fidelity(epochs=0.1 * i, rung=i),
            values={"accuracy": Estimate.exact(0.5 + 0.1 * i)},
            judged=complete.finished,
        )
        for i in range(2)
    )
    update = {
        "number": 1,
        "state": "stopped",
        "measurement": None,
        "rungs": rungs,
        "reason": "rung: not among the best",
    }
    waiting = complete.model_copy(update={"number": 2, "state": "paused", "measurement": None, "rungs": rungs})
    made = [complete, complete.model_copy(update=update), waiting]
    parent = store.track_study("digits", {}, lineage, made, {"hypervolume": 0.4})
    children = _children(store, parent)
    assert sorted(children) == ["0", "1"]
    stopped = children["1"]
    assert stopped.info.status == "KILLED"
    assert stopped.data.tags["autocompress.state"] == "stopped"
    assert stopped.data.tags["autocompress.reason"] == "rung: not among the best"
    history = store._connection.client.get_metric_history(stopped.info.run_id, "rung.accuracy")
    assert [(m.step, m.value) for m in history] == [(0, 0.5), (1, 0.6)]
    run = store._connection.client.get_run(parent)
    assert run.data.metrics["hypervolume"] == 0.4
    assert run.data.metrics["trials_stopped"] == 1


def test_only_finished_trials_are_written_and_later_ones_are_added(
    store: Store, lineage: Lineage, trials: MakeTrials
) -> None:
    made = trials(3)
    waiting = TrialRecord(number=3, state="running")
    parent = store.track_study("digits", {}, lineage, [*made, waiting])
    assert sorted(_children(store, parent)) == ["0", "1", "2"]
    assert store.track_study("digits", {}, lineage, trials(4)) == parent
    assert sorted(_children(store, parent)) == ["0", "1", "2", "3"]


def test_a_study_without_trials_is_a_parent_run(store: Store, lineage: Lineage) -> None:
    parent = store.track_study("digits", {}, lineage, [])
    assert [r.info.run_id for r in _runs(store)] == [parent]


def test_other_data_is_another_study_and_another_host_is_not(
    store: Store, lineage: Lineage, trials: MakeTrials
) -> None:
    parent = store.track_study("digits", {}, lineage, trials(1))
    moved = lineage.model_copy(update={"host": "other", "versions": {"torch": "2.13.1"}})
    assert store.track_study("digits", {}, moved, trials(1)) == parent
    other = lineage.model_copy(update={"data_sha256": "f" * 64})
    assert store.track_study("digits", {}, other, trials(1)) != parent


def test_a_setting_that_changed_later_is_kept_beside_the_first(store: Store, lineage: Lineage) -> None:
    parent = store.track_study("digits", {"search.trials": 24}, lineage, [])
    store.track_study("digits", {"search.trials": 50, "search.workers": 2}, lineage, [])
    data = store._connection.client.get_run(parent).data
    assert data.params == {"search.trials": "24", "search.workers": "2"}
    assert data.tags["autocompress.param.search.trials"] == "50"


def test_more_parameters_than_one_batch_takes(store: Store, lineage: Lineage, trials: MakeTrials) -> None:
    wide = trials(1)[0].model_copy(update={"params": {f"bits/layer{i}": 8 for i in range(250)}})
    parent = store.track_study("digits", {f"key.{i}": i for i in range(201)}, lineage, [wide])
    assert len(_children(store, parent)["0"].data.params) == 250
    assert len(store._connection.client.get_run(parent).data.params) == 201


def test_credentials_in_settings_and_reasons_are_hidden(store: Store, lineage: Lineage, trials: MakeTrials) -> None:
    failed = trials(10)[9].model_copy(update={"reason": "search: no postgresql://ann:s3cret@db:5432/optuna"})
    url = "postgresql+psycopg://ann:s3cret@db:5432/optuna?sslpassword=hunter22"
    store.track_study("digits", {"search.storage": url}, lineage, [failed])
    written = str([r.to_dictionary() for r in _runs(store)])
    assert "s3cret" not in written
    assert "hunter22" not in written
    assert "postgresql://***@db:5432/optuna" in written


@pytest.mark.slow
@pytest.mark.parametrize(("step", "call"), [("create_run", 3), ("log_batch", 3), ("set_terminated", 2)])
def test_a_process_that_dies_while_tracking_is_completed_by_the_next(
    step: str, call: int, store: Store, lineage: Lineage, trials: MakeTrials, tmp_path: Path
) -> None:
    script = """
        import os, sys
        from pathlib import Path
        from mlflow import MlflowClient
        from pydantic import TypeAdapter
        from autocompress.records import Estimate, Fidelity, Lineage, RungResult, TrialRecord
        from autocompress.registry.store import Store
        folder, store, step, call = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
        done, calls = getattr(MlflowClient, step), []
        def die(*args, **kwargs):
            result = done(*args, **kwargs)
            calls.append(1)
            if len(calls) == call:
                os._exit(9)
            return result
        setattr(MlflowClient, step, die)
        lineage = Lineage.model_validate_json((folder / "lineage.json").read_text())
        trials = TypeAdapter(list[TrialRecord]).validate_json((folder / "trials.json").read_text())
        Store(None, store).track_study("digits", {"seed": 7}, lineage, trials)
    """
    made = trials(4)
    (tmp_path / "lineage.json").write_text(lineage.model_dump_json())
    (tmp_path / "trials.json").write_text("[" + ",".join(t.model_dump_json() for t in made) + "]")
    root = store._connection.artifacts.parent  # type: ignore[union-attr]
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path), str(root), step, str(call)]
    assert subprocess.run(command, check=False, timeout=120).returncode == 9
    parent = store.track_study("digits", {"seed": 7}, lineage, made)
    children = _children(store, parent)
    assert sorted(children) == ["0", "1", "2", "3"]
    assert len(_runs(store)) == 5
    for number, trial in enumerate(made):
        run = children[str(number)]
        assert run.info.status == "FINISHED"
        assert run.data.metrics["accuracy"] == trial.measurement.values["accuracy"].value  # type: ignore[union-attr]
        assert len(run.data.params) == 9
    client = store._connection.client
    assert len(client.get_metric_history(children["1"].info.run_id, "accuracy")) == 1


def test_a_run_that_a_lost_reply_doubled_is_removed(store: Store, lineage: Lineage, trials: MakeTrials) -> None:
    parent = store.track_study("digits", {}, lineage, trials(2))
    client = store._connection.client
    original = client.get_run(parent)
    client.create_run(original.info.experiment_id, tags=_children(store, parent)["1"].data.tags)
    client.create_run(original.info.experiment_id, tags=original.data.tags)
    assert len(_runs(store)) == 5
    assert store.track_study("digits", {}, lineage, trials(2)) == parent
    assert len(_runs(store)) == 3


def test_a_study_name_that_mlflow_cannot_search_is_refused(store: Store, lineage: Lineage) -> None:
    with pytest.raises(RegistryError, match="expected letters, digits"):
        store.track_study("a'b", {}, lineage, [])
