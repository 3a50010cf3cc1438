from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import TensorDataset

from autocompress.config import Study
from autocompress.errors import NoCandidateError, SearchError
from autocompress.files import write_bytes
from autocompress.pipeline import choice, finalists, views
from autocompress.pipeline.folder import StudyFolder, write_record
from autocompress.pipeline.identity import dataset_digest
from autocompress.pipeline.publish import Registered
from autocompress.pipeline.trials import load_trials, search_front
from autocompress.records import (
    Artifact,
    Baseline,
    ChannelCut,
    Estimate,
    Fidelity,
    Host,
    LatencyReading,
    Measurement,
    Plan,
    RungResult,
    TrialRecord,
)

HOST = Host(cpu="c", cores=2, flags=(), memory_gb=8, system="s", runtime="r", threads=1)


def study_in(folder, **changes):
    return Study(**{"name": "s", "task": {"factory": "autocompress.tasks.digits:digits"}, "output": folder, **changes})


def trial(number, accuracy=0.9, latency=1.0, *, noisy=False, feasible=True):
    plan = cut_to(8 * (number + 1))
    reading = LatencyReading(
        latency_ms=Estimate.exact(latency), ratio=Estimate.exact(latency), baseline_ms=1.0, p90_ms=1.0, p99_ms=1.0,
        rounds=20, batch_size=1, threads=1, load=0.0, noisy=noisy,
    )  # fmt: skip
    values = {"accuracy": accuracy, "latency_ms": latency, "size_bytes": 10.0, "macs": 1.0, "parameters": 1.0}
    measurement = Measurement(
        plan_key=plan.key, fidelity=Fidelity(epochs=1.0), role="validation", latency=reading, host=HOST, agreement=0.0,
        values={name: Estimate.exact(value) for name, value in values.items()},
        artifact=Artifact(sha256=f"{number}", size_bytes=10, macs=1, parameters=1, layers=()),
    )  # fmt: skip
    return TrialRecord(
        number=number, state="complete", plan=plan, measurement=measurement, violations={"b": 0.0 if feasible else 1.0}
    )


def cut_to(keep):
    return Plan(cuts=(ChannelCut(group="g", keep=keep, criterion="magnitude"),))


def chosen(folder, trials, count=2, **changes):
    space = SimpleNamespace(plan=lambda params: cut_to(params["keep"]))
    bench = SimpleNamespace(study=study_in(folder, finalists={"count": count}, **changes), space=space)
    return [t.number for t in choice.choose(bench, trials)]


def test_a_noisy_latency_takes_no_finalist_s_place_and_only_fills_up(tmp_path):
    trials = [trial(0, 0.9, 1.0), trial(1, 0.8, 0.5), trial(2, 0.95, 0.001, noisy=True)]
    assert sorted(chosen(tmp_path, trials)) == [0, 1]
    assert chosen(tmp_path, trials, count=3)[-1] == 2
    assert chosen(tmp_path, trials[2:]) == [2]


def test_a_quarter_of_the_places_is_for_noisy_ones_that_may_be_on_the_front(tmp_path):
    trials = [trial(n, 0.9 - 0.01 * n, 1.0 - 0.1 * n) for n in range(8)]
    noisy = [trial(8, 0.95, 0.5, noisy=True), trial(9, 0.5, 0.9, noisy=True), trial(10, 0.94, 0.45, noisy=True)]
    more = [*trials, trial(11, 0.94, 1.5), *noisy]
    assert {8, 10} <= set(chosen(tmp_path, more, count=8))
    assert {8, 10}.isdisjoint(chosen(tmp_path, more, count=3))
    (only,) = set(chosen(tmp_path, more, count=4)) & {8, 9, 10}
    assert only in (8, 10)
    # What is dominated even by its own reading gets a place last.
    assert chosen(tmp_path, more, count=12)[-1] == 9


def test_noise_does_not_matter_where_latency_is_no_objective(tmp_path):
    trials = [trial(0, 0.9), trial(1, 0.95, noisy=True)]
    assert chosen(tmp_path, trials, count=1, objectives=["accuracy"]) == [1]


def test_finalists_that_failed_are_tried_again_under_other_limits(tmp_path):
    def starts():
        raise RuntimeError("it starts")

    def bench(seconds):
        return SimpleNamespace(
            study=study_in(tmp_path, finalists={"timeout_s": seconds}), space=None, folder=StudyFolder(tmp_path),
            host=HOST, task=SimpleNamespace(selection=TensorDataset(torch.zeros(2, 1), torch.zeros(2))),
            prepared=SimpleNamespace(model_sha256="m", data_sha256={}),
        )  # fmt: skip

    trials, first = [trial(0)], bench(60.0)
    with pytest.raises(RuntimeError, match="it starts"):
        finalists.finalists(first, trials, starts)
    measurement = trials[0].measurement
    baseline = Baseline(artifact=measurement.artifact, accuracy={}, latency_ms=1.0, host=HOST, agreement=0.0)
    fidelity = Fidelity(epochs=first.study.finalists.recovery_epochs, rung=finalists.FULL)
    kept = finalists.Finals(
        key=finalists._key(first, trials, fidelity, dataset_digest(first.task.selection)),
        finalists=(), baseline=baseline, data_sha256={}, code_sha256="", failed={0: "timeout: no reply"},
        limits=(60.0, first.study.search.memory_gb),
    )  # fmt: skip
    write_record(first.folder.finalists, kept)
    assert finalists.finalists(first, trials, starts) == kept
    with pytest.raises(RuntimeError, match="it starts"):
        finalists.finalists(bench(600.0), trials, starts)
    write_record(first.folder.finalists, kept.model_copy(update={"failed": {}}))
    assert finalists.finalists(bench(600.0), trials, starts).failed == {}


def test_without_a_complete_trial_the_first_cause_is_named(tmp_path):
    failed = TrialRecord(number=0, state="failed", reason="export: no way")
    with pytest.raises(SearchError, match="all 1 trials of study 's' failed; the first: export: no way"):
        chosen(tmp_path, [failed])
    with pytest.raises(NoCandidateError):
        chosen(tmp_path, [failed, trial(1, feasible=False)])


@pytest.mark.parametrize("objectives", [("latency_ms", "accuracy"), ("accuracy", "size_bytes", "latency_ms")])
def test_the_search_s_front_is_fastest_first_whatever_the_order_of_objectives(objectives):
    front = search_front((trial(0, 0.9, 1.0), trial(1, 0.8, 0.5), trial(2, 0.95, 2.0)), objectives)
    assert [t.number for t in front] == [1, 0, 2]


def test_a_study_is_finished_once_the_front_of_all_its_trials_is_registered(tmp_path, monkeypatch):
    study = study_in(tmp_path, search={"trials": 2})
    folder = StudyFolder(study.folder)
    write_bytes(folder.study, study.model_dump_json().encode())
    monkeypatch.setattr(views, "load_trials", lambda study: (trial(0), trial(1)))
    monkeypatch.setattr(
        views, "study_front", lambda study: views.FrontView(study="s", stage="none", objectives=(), rows=())
    )
    for registered, state in ((None, "stopped"), (1, "stopped"), (2, "finished")):
        if registered is not None:
            write_record(folder.registered, Registered(trials=registered))
        assert views.study_status(study).state == state


def test_a_study_in_a_database_has_no_trials_before_its_search_has_begun(tmp_path):
    database = tmp_path / "ledger.db"
    study = study_in(tmp_path, search={"storage": f"sqlite:///{database}"})
    assert load_trials(study) == ()
    assert not database.exists()


def judged(number, accuracy, latency, *, rung=0, state="stopped"):
    """A trial that was judged at rungs below the last only."""
    values = {"accuracy": Estimate.exact(accuracy), "latency_ms": Estimate.exact(latency)}
    rungs = tuple(
        RungResult(plan_key=f"{number}", fidelity=Fidelity(epochs=0.0, rung=i), values=values) for i in range(rung + 1)
    )
    return TrialRecord(number=number, state=state, plan=cut_to(1 + number), rungs=rungs)


def test_places_that_are_left_go_to_the_best_of_the_highest_rung(tmp_path):
    trials = [
        trial(0, 0.9, 1.0),
        judged(1, 0.5, 0.5),
        judged(2, 0.4, 0.6),  # dominated at its rung
        judged(3, 0.6, 0.7, rung=1, state="paused"),
        judged(4, 0.3, 0.4, state="running"),
    ]
    assert chosen(tmp_path, trials, count=1) == [0]
    assert chosen(tmp_path, trials, count=2) == [0, 3]
    assert sorted(chosen(tmp_path, trials, count=4)) == [0, 1, 3, 4]


def test_a_search_that_was_stopped_before_any_candidate_was_complete_still_gives_its_best(tmp_path):
    assert sorted(chosen(tmp_path, [judged(1, 0.5, 0.5), judged(2, 0.4, 0.6), judged(4, 0.3, 0.4)])) == [1, 4]


def test_what_breaks_a_bound_of_cost_or_is_hopeless_takes_no_place(tmp_path):
    lost = judged(3, 0.95, 0.2).model_copy(update={"reason": "hopeless: predicted to be far behind"})
    trials = [judged(1, 0.9, 0.7), judged(2, 0.5, 0.5), lost]
    bound = {"constraints": {"latency_ms": {"max": 0.6}, "accuracy": {"min": 0.8}}}
    # Of accuracy a lower rung says too little.
    assert chosen(tmp_path, trials, count=3, **bound) == [2]
    noisy = trials[0].model_copy(update={"rungs": (trials[0].rungs[0].model_copy(update={"noisy": True}),)})
    assert sorted(chosen(tmp_path, [noisy, *trials[1:]], count=3, **bound)) == [1, 2]
    assert chosen(tmp_path, [lost], count=3) == [3], "there is nothing else"


def seed(number, keep, state="waiting", *, plan=False, reason=""):
    """A seed of which nothing was judged."""
    known = cut_to(keep) if plan else None
    return TrialRecord(
        number=number, state=state, origin=f"seed:{keep}", params={"keep": keep}, plan=known, reason=reason
    )


def test_seeds_that_the_search_did_not_come_to_take_the_last_places_in_their_order(tmp_path):
    trials = [
        trial(0, 0.9, 1.0),
        judged(1, 0.5, 0.5),
        seed(2, 40, "stopped", plan=True, reason="time: the 4 s of the search were over"),
        seed(3, 41, "stopped", plan=True, reason="hopeless: predicted to be far behind"),
        seed(4, 42, "failed", plan=True, reason="export: no way"),
        TrialRecord(number=5, state="waiting", params={"keep": 43}),  # a sampler's
        seed(6, 8),  # the plan of trial 0
        seed(7, 44),
        seed(8, 44),
        seed(9, 45),
        seed(10, 46),
    ]
    assert chosen(tmp_path, trials, count=2) == [0, 1]
    assert chosen(tmp_path, trials, count=5) == [0, 1, 2, 7, 9]


def test_seeds_are_worth_recovering_though_nothing_was_judged(tmp_path):
    assert chosen(tmp_path, [seed(0, 40), seed(1, 41), seed(2, 42)]) == [0, 1]
    assert chosen(tmp_path, [trial(0, feasible=False), seed(1, 41)]) == [1]


def test_the_dense_network_takes_no_place_unless_there_is_nothing_else(tmp_path):
    dense = trial(0, 0.95, 2.0).model_copy(update={"plan": Plan()})
    assert chosen(tmp_path, [dense, trial(1, 0.9, 1.0), judged(2, 0.5, 0.5)], count=3) == [1, 2]
    assert chosen(tmp_path, [dense, trial(1, feasible=False)]) == [0]
