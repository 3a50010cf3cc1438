"""A whole search under Ray, with every fault a candidate can have. One Ray session for the file."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from toy_space import ToySpace

from autocompress.cluster.pool import run_jobs
from autocompress.cluster.session import ray_session
from autocompress.errors import InterruptedStudyError, SearchError, WorkerError
from autocompress.records import Bound, EvaluatorReference, Plan, TrialRecord
from autocompress.search.executor import search
from autocompress.search.ledger import Ledger
from autocompress.search.problem import Problem
from autocompress.search.rungs import fidelities
from autocompress.search.samplers import NSGA2, Random, Surrogate
from autocompress.search.settings import SearchSettings

TOY = Path(__file__).with_name("toy_evaluator.py")
PROBLEM = Problem(objectives=("accuracy", "latency_ms"), dense={"accuracy": 0.82, "latency_ms": 1.0})
pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.fixture(scope="module", autouse=True)
def session() -> Iterator[None]:
    with ray_session(2) as workers:
        assert workers == 2
        yield


def run(
    folder: Path,
    trials: int,
    *,
    faults: dict[int, str] | None = None,
    seeds: tuple[int, ...] = (64, 32),
    space: ToySpace | None = None,
    on_trial: Any = lambda trial: None,
    on_message: Any = lambda message: None,
    seconds: float = 0.0,
    problem: Problem = PROBLEM,
    **settings: Any,
) -> tuple[TrialRecord, ...]:
    ledger = Ledger.open(
        folder / "journal.log", "toy", ["accuracy", "latency_ms"], (Bound(objective="latency_ms", max=0.7),)
    )
    arguments = {
        "journal": str(folder / "evaluations"),
        "faults": {str(k): v for k, v in (faults or {}).items()},
        "seconds": seconds,
    }
    evaluator = EvaluatorReference(factory=f"{TOY}:build", arguments=arguments)
    settings = {"sampler": Random(), "workers": 2, "memory_gb": 0.3, "timeout_s": 2.0, **settings}
    try:
        search(
            space or ToySpace(seeds=seeds),
            evaluator,
            SearchSettings(trials=trials, folder=folder, **settings),
            ledger,
            on_trial,
            problem=problem,
            on_message=on_message,
        )
    finally:
        written = folder / "evaluations"
        begun = [json.loads(line)["pid"] for line in written.read_text().splitlines()] if written.is_file() else []
        _, alive = psutil.wait_procs([psutil.Process(p) for p in set(begun) if psutil.pid_exists(p)], timeout=3)
        assert alive == []
    return ledger.trials()


def evaluations(folder: Path, what: str) -> list[int]:
    lines = [json.loads(line) for line in (folder / "evaluations").read_text().splitlines()]
    return [line[what] for line in lines if what in line]


def test_every_kind_of_fault_fails_its_own_trial_and_the_others_complete(tmp_path: Path) -> None:
    faults = {
        1: "nan", 2: "inf", 3: "string", 4: "zero", 5: "range", 6: "raise", 7: "export", 8: "exit", 9: "hard-exit",
        10: "segfault", 11: "hang", 12: "spin", 13: "memory", 14: "not-json", 15: "kill",
    }  # fmt: skip
    good = (64, 40, 32, 24)
    trials = run(
        tmp_path, len(faults) + len(good) + 1, faults=faults, max_failures=1.0, retries=1,
        space=ToySpace(refused=20, seeds=(64, *faults, 20, *good[1:])),
    )  # fmt: skip
    assert [t.number for t in trials] == list(range(len(faults) + len(good) + 1))
    by_keep = {int(t.params["keep"]): t for t in trials}
    assert [by_keep[k].state for k in good] == ["complete"] * 4
    reasons = {
        1: "measure: objective 'accuracy': expected a finite value, got nan",
        2: "measure: objective 'latency_ms': expected a finite value, got inf",
        3: "measure: values.accuracy.value: Input should be a valid number, got '0.9'",
        4: "measure: objective 'latency_ms': expected a value > 0, got 0.0",
        5: "measure: objective 'accuracy': expected 0 <= accuracy <= 1, got 1.7",
        6: "RuntimeError: boom",
        7: "export: operator not supported",
        8: "exit: the code called sys.exit(3)",
        9: "died: exit code 7",
        10: "died: signal 11",
        11: "timeout: no answer within 2 s",
        12: "timeout: no answer within 2 s",
        13: "oom: used ",
        14: "TypeError: Object of type object is not JSON serializable",
        15: "died: signal 9",
        20: "infeasible: keep: 20 is refused",
    }
    for keep, reason in reasons.items():
        assert by_keep[keep].state == "failed"
        assert by_keep[keep].reason.startswith(reason), (keep, by_keep[keep].reason)
    # Only a process that died is started again; a hog, a hang or a bad value is not.
    assert {k: t.attempts for k, t in by_keep.items() if t.attempts > 1} == {9: 2, 10: 2, 15: 2}
    begun = evaluations(tmp_path, "begun")
    assert all(begun.count(k) == (2 if k in (9, 10, 15) else 1) for k in by_keep if k != 20)
    for keep in (11, 12):
        took = by_keep[keep].finished - by_keep[keep].started  # type: ignore[operator]
        assert took.total_seconds() < 2.0 + 5.0
    assert {k: by_keep[k].feasible for k in good} == {64: False, 40: True, 32: True, 24: True}


def test_changes_of_state_are_told_in_order_and_the_sampler_goes_on_after_the_seeds(tmp_path: Path) -> None:
    told: list[tuple[int, str]] = []
    trials = run(tmp_path, 12, on_trial=lambda t: told.append((t.number, t.state)), sampler=NSGA2(population_size=4))
    repeats = [t for t in trials if t.measurement is not None and t.measurement.cached]
    for trial in trials:
        # What an earlier trial answers never runs.
        wanted = ["complete"] if trial in repeats else ["running", "complete"]
        assert [state for n, state in told if n == trial.number] == wanted
    assert [t.origin for t in trials] == ["seed:dense", "seed:uniform-32"] + ["sampler"] * 10
    # The same command again finds nothing to do; more trials continue where it ended.
    assert run(tmp_path, 12) == trials
    more = run(tmp_path, 14)
    assert more[:12] == trials
    assert len(more) == 14
    distinct = {t.plan.key for t in more if t.plan is not None}
    assert len(evaluations(tmp_path, "begun")) == len(distinct)


def test_candidates_climb_rungs_and_only_those_at_the_top_are_complete(tmp_path: Path) -> None:
    told: list[tuple[int, str]] = []
    keeps = (64, 60, 56, 48, 40, 36, 32, 28, 24, 20, 16, 12)
    trials = run(
        tmp_path, 12, seeds=keeps, rungs=fidelities((0.0, 0.5, 2.0)), reduction=2, bands=2,
        on_trial=lambda t: told.append((t.number, t.state)),
    )  # fmt: skip
    assert {t.state for t in trials} == {"complete", "stopped"}
    complete = [t for t in trials if t.state == "complete"]
    assert 2 <= len(complete) <= 8
    for t in trials:
        rungs = [r.fidelity.rung for r in t.rungs]
        if t.params["keep"] == 64:  # the dense network, which is not trained
            assert (t.state, rungs) == ("complete", [])
            continue
        assert rungs == [0, 1] if t.state == "complete" else rungs in ([0], [0, 1])
        assert all(r.judged is not None and r.values["latency_ms"].value == t.params["keep"] / 64 for r in t.rungs)
        assert t.reason == "" or t.reason.startswith("rung: not among the best of like latency after")
        if t.measurement is not None:
            assert t.measurement.fidelity.epochs == 0.0  # as the toy says; not a rung's
            assert t.measurement.values["accuracy"].value == 0.5 + t.params["keep"] / 200
    # Every rung of a candidate ran once.
    lines = [json.loads(line) for line in (tmp_path / "evaluations").read_text().splitlines()]
    ran = [(line["ended"], line["rung"]) for line in lines if "ended" in line]
    assert len(ran) == len(set(ran)) == sum(len(t.rungs) for t in trials) + len(complete)
    states = [state for number, state in told if number == complete[1].number]
    assert [*states[:2], states[-1]] == ["running", "paused", "complete"]
    assert run(tmp_path, 12, rungs=fidelities((0.0, 0.5, 2.0))) == trials


def test_a_search_ends_when_its_time_is_over_with_what_it_has(tmp_path: Path) -> None:
    began = time.monotonic()
    trials = run(tmp_path, 50, seconds=0.4, rungs=fidelities((0.0, 1.0)), time_s=4.0)
    assert time.monotonic() - began < 15.0
    assert 4 <= len(trials) < 40
    assert {t.state for t in trials} <= {"complete", "stopped"}
    assert any(t.state == "complete" for t in trials)
    reasons = {t.reason.partition(":")[0] for t in trials if t.state == "stopped"}
    assert reasons <= {"rung", "time"}
    # The budget is of the search, not of each run.
    with pytest.raises(SearchError, match=r"no candidate was judged within search\.time_s, 4 seconds"):
        run(tmp_path / "new", 50, seeds=(), time_s=4.0, spent_s=4.0)
    # Seeds are worth something without having been judged: they are left for whoever chooses finalists.
    assert [t.state for t in run(tmp_path / "seeds", 50, time_s=4.0, spent_s=4.0)] == ["waiting", "waiting"]
    # So are those that ran when it was over.
    said: list[str] = []
    late = run(tmp_path / "late", 50, seconds=30.0, timeout_s=60.0, time_s=4.0, on_message=said.append)
    assert said == [
        "no candidate was judged within search.time_s, 4 seconds: the finalists are seeds that nothing is known of yet;"
        " give the search more time"
    ]
    assert [t.reason for t in late] == ["time: the 4 s of the search were over"] * 2
    assert all(t.is_unseen_seed for t in late)


class RepeatingSpace(ToySpace):
    def seeds(self) -> list[tuple[str, dict[str, Any]]]:
        return [(str(i), {"keep": keep, "bits": 32}) for i, keep in enumerate((64, 32, 32, 64))]


def test_a_repeated_candidate_is_answered_by_the_trial_that_was_measured(tmp_path: Path) -> None:
    trials = run(tmp_path, 4, space=RepeatingSpace(), workers=1)
    assert [t.measurement.cached for t in trials if t.measurement is not None] == [False, False, True, True]
    assert trials[2].measurement.values == trials[1].measurement.values  # type: ignore[union-attr]
    assert evaluations(tmp_path, "begun") == [64, 32]


def test_a_process_killed_once_is_started_again_within_one_trial(tmp_path: Path) -> None:
    trials = run(tmp_path, 3, faults={32: f"kill-once:{tmp_path / 'mark'}"})
    assert [(t.state, t.attempts) for t in trials] == [("complete", 1), ("complete", 2), ("complete", 1)]


def test_too_many_failures_stop_the_search_with_the_first_cause(tmp_path: Path) -> None:
    faults = dict.fromkeys(range(1, 64), "export")
    begun = time.monotonic()
    with pytest.raises(SearchError) as caught:
        run(tmp_path, 30, faults=faults, max_failures=0.5, workers=1)  # of two, either may fail first
    assert time.monotonic() - begun < 15
    assert str(caught.value) == (
        "4 of 5 trials failed, over the limit of 50% (search.max_failures); mend the cause, then the same command goes "
        "on; the first, trial 1: "
        "export: operator not supported"
    )


def test_all_failing_within_a_short_search_is_an_error_too(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(SearchError, match=r"all 2 trials failed; mend .* the first, trial 0: RuntimeError: boom"):
            run(tmp_path, 2, faults={64: "raise", 32: "raise"})


def test_failures_leave_seeds_that_time_did_not_come_to(tmp_path: Path) -> None:
    with pytest.raises(SearchError, match=r"all 1 trials failed; mend .* the first, trial 0: RuntimeError: boom"):
        run(tmp_path, 1, seeds=(64,), faults={64: "raise"})
    trials = run(tmp_path, 50, seeds=(64, 32), faults={64: "raise"}, time_s=4.0, spent_s=4.0)
    assert [t.state for t in trials] == ["failed", "waiting"]
    assert trials[1].is_unseen_seed


def test_a_process_that_dies_at_one_rung_is_one_attempt_more_at_all_of_them(tmp_path: Path) -> None:
    rungs = fidelities((0.0, 0.25, 1.0))
    trials = run(tmp_path, 1, seeds=(32,), faults={32: f"kill-once:{tmp_path / 'mark'}"}, rungs=rungs)
    assert [(t.state, t.attempts, len(t.rungs)) for t in trials] == [("complete", 2, 2)]


def test_a_model_needs_the_dense_networks_values(tmp_path: Path) -> None:
    with pytest.raises(
        SearchError, match=r"surrogate: expected the dense model's value of every objective, got none of"
    ):
        run(tmp_path, 3, sampler=Surrogate(), problem=Problem(objectives=PROBLEM.objectives, dense={}))


def test_a_killed_actor_is_replaced_and_its_trial_run_again(tmp_path: Path) -> None:
    killed: list[int] = []

    def kill_actor() -> None:
        deadline = time.monotonic() + 20
        while not killed and time.monotonic() < deadline:
            time.sleep(0.2)
            path = tmp_path / "evaluations"
            for line in path.read_text().splitlines() if path.exists() else []:
                if json.loads(line).get("begun") == 32:
                    actor = psutil.Process(json.loads(line)["pid"]).ppid()
                    os.kill(actor, signal.SIGKILL)
                    killed.append(actor)

    thread = threading.Thread(target=kill_actor)
    thread.start()
    trials = run(tmp_path, 4, seconds=1.0, timeout_s=10.0)
    thread.join()
    assert killed
    assert [t.state for t in trials] == ["complete"] * 4
    assert trials[1].attempts == 2


def test_an_error_of_the_listener_ends_the_search(tmp_path: Path) -> None:
    def fail(trial: TrialRecord) -> None:
        if trial.state == "complete":
            raise ZeroDivisionError("listener")

    with pytest.raises(ZeroDivisionError, match="listener"):
        run(tmp_path, 4, on_trial=fail)
    assert len(run(tmp_path, 4)) == 4


def test_jobs_come_back_in_order_with_failures_as_values(tmp_path: Path) -> None:
    faults = {"8": "export", "16": "hang", "24": "memory", "32": f"kill-once:{tmp_path / 'mark'}", "40": "kill"}
    evaluator = EvaluatorReference(factory=f"{TOY}:build", arguments={"faults": faults})
    plans = [
        Plan.model_validate({"cuts": [{"group": "g", "keep": k, "criterion": "magnitude"}]}) for k in range(8, 64, 8)
    ]
    told: dict[int, Any] = {}
    outcomes = run_jobs(
        evaluator,
        [{"plan": p.model_dump(mode="json"), "role": "selection"} for p in plans],
        workers=2, timeout_s=2.0, memory_gb=0.3, logs=tmp_path, on_result=lambda i, o: told.__setitem__(i, o),
    )  # fmt: skip
    assert [told[i] for i in range(7)] == outcomes
    kinds = [o.kind if isinstance(o, WorkerError) else "ok" for o in outcomes]
    assert kinds == ["export", "timeout", "oom", "ok", "died", "ok", "ok"]
    assert str(outcomes[0]) == "export: operator not supported"
    assert [o["plan_key"] for o in outcomes if isinstance(o, dict)] == [plans[i].key for i in (3, 5, 6)]


def test_jobs_stop_on_a_signal_and_their_processes_die(tmp_path: Path) -> None:
    evaluator = EvaluatorReference(
        factory=f"{TOY}:build", arguments={"seconds": 60.0, "journal": str(tmp_path / "evaluations")}
    )

    def interrupt() -> None:
        while not (tmp_path / "evaluations").exists():
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    begun = time.monotonic()
    with pytest.raises(InterruptedStudyError, match="stopped by SIGTERM after 0 of 1 finalists"):
        run_jobs(evaluator, [{"plan": Plan().model_dump()}], workers=2, timeout_s=60, memory_gb=1, logs=tmp_path)
    thread.join()
    assert time.monotonic() - begun < 20
    pid = json.loads((tmp_path / "evaluations").read_text().splitlines()[0])["pid"]
    psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], timeout=3)
    assert not psutil.pid_exists(pid)
