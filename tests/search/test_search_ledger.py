"""The ledger: what goes in is checked, what was in comes out, and a crash at any point loses and doubles nothing."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from toy_evaluator import measurement
from toy_space import ToySpace

from autocompress.errors import SearchError, StudyChangedError
from autocompress.records import Bound
from autocompress.search.ledger import Candidate, Ledger
from autocompress.search.samplers import NSGA2, NSGA3, Random

OBJECTIVES = ["accuracy", "latency_ms"]
SPACE = ToySpace()


def opened(folder: Path, bounds: tuple[Bound, ...] = (), **options: Any) -> Ledger:
    ledger = Ledger.open(folder / "journal.log", "toy", OBJECTIVES, bounds, **options)
    ledger.use(Random().build(0))
    return ledger


def asked(ledger: Ledger, space: ToySpace = SPACE) -> Candidate:
    candidate = ledger.ask(space)
    assert isinstance(candidate, Candidate)
    return candidate


def reply(candidate: Candidate, accuracy: Any = 0.9, latency_ms: Any = 0.5) -> dict[str, Any]:
    return measurement(candidate.plan.key, accuracy, latency_ms)


def test_a_complete_trial_comes_back_whole_from_the_file(tmp_path: Path) -> None:
    bound = Bound(objective="latency_ms", max=0.4)
    ledger = opened(tmp_path, (bound,))
    candidate = asked(ledger)
    told = ledger.tell(candidate.number, reply(candidate))
    again = opened(tmp_path, (bound,), create=False).trials()
    assert again == (told,)
    (trial,) = again
    assert (trial.state, trial.origin, trial.attempts, trial.reason) == ("complete", "sampler", 1, "")
    assert trial.plan == candidate.plan == SPACE.plan(trial.params)
    assert trial.measurement is not None
    assert trial.measurement.values["accuracy"].value == 0.9
    assert trial.violations == {"latency_ms<=0.4": pytest.approx(0.1)}
    assert not trial.feasible
    assert trial.started is not None
    assert trial.finished is not None


@pytest.mark.parametrize(
    ("accuracy", "latency_ms", "expected"),
    [
        (math.nan, 1.0, "measure: objective 'accuracy': expected a finite value, got nan"),
        (0.5, math.inf, "measure: objective 'latency_ms': expected a finite value, got inf"),
        (0.5, -math.inf, "measure: objective 'latency_ms': expected a finite value, got -inf"),
        (0.5, 0.0, "measure: objective 'latency_ms': expected a value > 0, got 0.0"),
        (1.7, 1.0, "measure: objective 'accuracy': expected 0 <= accuracy <= 1, got 1.7"),
        ("0.9", 1.0, "measure: values.accuracy.value: Input should be a valid number, got '0.9'"),
        (None, 1.0, "measure: values.accuracy.value: Input should be a valid number, got None"),
    ],
)
def test_the_gate_fails_a_trial_with_a_bad_value(tmp_path: Path, accuracy: Any, latency_ms: Any, expected: str) -> None:
    ledger = opened(tmp_path)
    candidate = asked(ledger)
    trial = ledger.tell(candidate.number, reply(candidate, accuracy, latency_ms))
    assert (trial.state, trial.reason) == ("failed", expected)
    assert trial.measurement is None


def test_the_gate_fails_a_missing_objective_and_another_plans_measurement(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    first, second, third = (asked(ledger) for _ in range(3))
    incomplete = reply(first)
    del incomplete["values"]["latency_ms"]
    assert ledger.tell(first.number, incomplete).reason == (
        "measure: objective 'latency_ms' is missing; measured: ['accuracy']"
    )
    assert ledger.tell(second.number, {**reply(second), "plan_key": "other"}).reason == (
        f"measure: plan_key: expected {second.plan.key}, got other"
    )
    assert ledger.tell(third.number, {"nothing": 1}).reason.startswith("measure: ")


def test_failed_trials_do_not_reach_the_sampler(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    ledger.use(NSGA2(population_size=4).build(0))
    for i in range(12):
        candidate = asked(ledger)
        ledger.tell(candidate.number, reply(candidate, math.nan if i % 2 else 0.5))
    assert ledger.count("failed") == ledger.count("complete") == 6
    study = optuna.load_study(study_name="toy", storage=_storage(tmp_path))
    assert all(math.isfinite(v) for t in study.best_trials for v in t.values)


def test_seeds_are_queued_once_in_order_and_never_beyond_the_total(tmp_path: Path) -> None:
    for total, expected in ((2, 2), (2, 2), (10, 3), (10, 3)):
        ledger = opened(tmp_path)
        ledger.enqueue(SPACE.seeds(), total)
        assert ledger.count("waiting") == expected
    ledger = opened(tmp_path)
    origins = [ledger.record(asked(ledger).number).origin for _ in range(4)]
    assert origins == ["seed:dense", "seed:uniform-32", "seed:uniform-16", "sampler"]
    assert [t.number for t in ledger.trials()] == [0, 1, 2, 3]
    assert ledger.trials()[1].params == {"keep": 32, "bits": 32}


def test_a_seed_that_was_changed_is_another_one_and_the_same_is_never_queued_twice(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    assert ledger.enqueue([("plan-mine", {"keep": 8, "bits": 32}), ("plan-mine", {"bits": 32, "keep": 8})], 10) == []
    assert ledger.count("waiting") == 1
    # Another file of the same name, or the same one edited.
    ledger.enqueue([("plan-mine", {"keep": 16, "bits": 32}), ("plan-mine", {"keep": 8, "bits": 32})], 10)
    again = opened(tmp_path)
    again.enqueue([("plan-mine", {"keep": 16, "bits": 32})], 10)
    assert [(t.origin, t.params["keep"]) for t in again.trials()] == [("seed:plan-mine", 8), ("seed:plan-mine", 16)]


def test_seeds_without_room_are_named(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    seeds = [(f"plan-{keep}", {"keep": keep, "bits": 32}) for keep in (8, 16, 32)]
    assert ledger.enqueue(seeds, 2) == ["plan-32"]
    assert ledger.enqueue(seeds, 2) == ["plan-32"], "those that are there are not missed"
    assert ledger.enqueue(seeds, 3) == []


@pytest.mark.parametrize("config", [NSGA2(population_size=4), NSGA3(population_size=4)])
def test_seeds_are_parents_of_evolution(tmp_path: Path, config: NSGA2 | NSGA3) -> None:
    ledger = opened(tmp_path)
    ledger.use(config.build(0))
    ledger.enqueue([(str(keep), {"keep": keep, "bits": 32}) for keep in (8, 16, 24, 32)], 20)
    for accuracy in (0.6, 0.7, 0.8, 0.9):
        candidate = asked(ledger)
        ledger.tell(candidate.number, reply(candidate, accuracy, accuracy))
    asked(ledger)
    study = optuna.load_study(study_name="toy", storage=_storage(tmp_path))
    found = [
        {name.partition(":")[2]: value for name, value in t.system_attrs.items()}["generation"] for t in study.trials
    ]
    assert found == [0, 0, 0, 0, 1], "a generation of seeds, and the first of its children"


def test_a_candidate_is_answered_by_what_was_judged_and_by_nothing_else(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    ledger.enqueue([(f"plan-{i}", {"keep": 16, "bits": 32}) for i in range(6)], 20)
    failed, hopeless, late, judged, repeat, complete = (asked(ledger) for _ in range(6))
    assert ledger.twin(hopeless) is not None, "the first may still be judged"
    ledger.fail(failed.number, "died: it did")
    assert ledger.twin(hopeless) is None
    ledger.stop(hopeless.number, "hopeless: predicted so")
    ledger.stop(late.number, "time: over")
    assert ledger.twin(judged) is None, "neither was built"
    result = {k: v for k, v in reply(judged).items() if k in ("plan_key", "values")}
    ledger.judge(judged.number, {**result, "fidelity": {"epochs": 0.0, "rung": 0}})
    ledger.stop(judged.number, "rung: not among the best")
    for candidate in (repeat, complete):
        found = ledger.twin(candidate)
        assert found is not None
        assert found.number == judged.number
    # Read again from the file it is the same.
    again = opened(tmp_path).twin(complete)
    assert again is not None
    assert again.number == judged.number


def test_what_a_rung_says_reaches_no_sampler(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    fidelity = {"epochs": 0.0, "rung": 0}
    waits, stopped, done = (asked(ledger) for _ in range(3))
    for candidate in (waits, stopped):
        result = {k: v for k, v in reply(candidate).items() if k in ("plan_key", "values")}
        assert ledger.judge(candidate.number, {**result, "fidelity": fidelity}).state == "paused"
    ledger.stop(stopped.number, "rung: not among the best")
    ledger.tell(done.number, reply(done))
    study = optuna.load_study(study_name="toy", storage=_storage(tmp_path))
    names = {0: "RUNNING", 1: "PRUNED", 2: "COMPLETE"}
    assert {t.number: t.state.name for t in study.trials} == names
    assert [t.values for t in study.trials] == [None, None, [0.9, 0.5]]
    assert all(t.intermediate_values == {} for t in study.trials)


def test_a_refused_proposal_is_a_failed_trial(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    space = ToySpace(refused=32)
    ledger.enqueue(space.seeds(), 3)
    asked(ledger, space)
    trial = ledger.ask(space)
    assert not isinstance(trial, Candidate)
    assert (trial.number, trial.state, trial.reason) == (1, "failed", "infeasible: keep: 32 is refused")


def test_an_open_trial_is_taken_up_under_its_number_with_its_plan(tmp_path: Path) -> None:
    candidate = asked(opened(tmp_path))
    ledger = opened(tmp_path)
    assert ledger.unfinished() == [candidate.number]
    again = ledger.take_up(candidate.number, SPACE)
    assert again == candidate.model_copy(update={"attempts": 2})
    assert ledger.tell(again.number, reply(candidate)).state == "complete"
    assert len(ledger.trials()) == 1


@pytest.mark.parametrize("keep_lines", range(1, 18))
def test_a_crash_after_any_line_is_continued_without_loss_or_double(tmp_path: Path, keep_lines: int) -> None:
    path = tmp_path / "journal.log"
    bound = (Bound(objective="latency_ms", max=0.4),)
    ledger = opened(tmp_path, bound)
    ledger.enqueue(SPACE.seeds()[:1], 2)
    for _ in range(2):
        candidate = asked(ledger)
        told = ledger.tell(candidate.number, reply(candidate))
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) >= keep_lines
    path.write_bytes(b"".join(lines[:keep_lines]) + (lines[keep_lines][:7] if keep_lines < len(lines) else b""))

    ledger = opened(tmp_path, bound)
    ledger.enqueue(SPACE.seeds()[:1], 2)
    todo = ledger.unfinished()
    measured = 0
    while todo or ledger.count("complete") < 2:
        found = ledger.take_up(todo.pop(), SPACE) if todo else ledger.ask(SPACE)
        assert isinstance(found, Candidate)
        ledger.tell(found.number, reply(found))
        measured += 1
    trials = opened(tmp_path, bound).trials()
    assert [(t.number, t.state, t.violations) for t in trials] == [
        (0, "complete", told.violations),
        (1, "complete", told.violations),
    ]
    already = sum(b'"measurement"' in line for line in lines[:keep_lines])
    assert measured == 2 - already


WRITER = """
import sys
from pathlib import Path
from autocompress.search.journal import JournalFile
backend = JournalFile(Path(sys.argv[1]))
print("ready", flush=True)
for i in range(10**9):
    backend.append_logs([{"op_code": 2, "i": i, "text": "x" * 3000}])
"""


@pytest.mark.slow
def test_a_writer_killed_at_random_leaves_a_readable_file_and_no_lock(tmp_path: Path) -> None:
    from autocompress.search.journal import JournalFile

    path = tmp_path / "journal.log"
    written = 0
    for i in range(6):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(0.05 + 0.037 * i)
        writer.kill()
        writer.wait()
        begun = time.monotonic()
        backend = JournalFile(path)
        backend.append_logs([{"op_code": 6, "mine": i}])
        assert time.monotonic() - begun < 1
        logs = list(backend.read_logs(0))
        assert logs[-1] == {"op_code": 6, "mine": i}
        assert len(logs) > written
        written = len(logs)
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_other_objectives_are_refused(tmp_path: Path) -> None:
    opened(tmp_path)
    for other in (["accuracy", "size_bytes"], ["latency_ms", "accuracy"], ["accuracy"]):
        with pytest.raises(
            StudyChangedError, match=r"study 'toy': objectives: its ledger holds trials of \['accuracy'"
        ):
            Ledger.open(tmp_path / "journal.log", "toy", other)


def test_reading_creates_nothing(tmp_path: Path) -> None:
    with pytest.raises(SearchError, match=r"journal.log: no such file; run the study first"):
        opened(tmp_path, create=False)
    assert list(tmp_path.iterdir()) == []
    opened(tmp_path)
    with pytest.raises(SearchError, match="holds no study 'other', but \\['toy'\\]"):
        Ledger.open(tmp_path / "journal.log", "other", OBJECTIVES, create=False)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    opened(tmp_path)
    path = tmp_path / "journal.log"
    path.write_bytes(b"garbage\n" + path.read_bytes())
    with pytest.raises(SearchError, match=r"journal.log cannot be opened: JSONDecodeError"):
        opened(tmp_path)


def test_no_message_repeats_a_password() -> None:
    for url in ("nosuch://me:hunter2@localhost/db", "sqlite:////no/such/folder/me:hunter2@x.db", "hunter2 no url"):
        with pytest.raises(SearchError, match="cannot be opened") as caught:
            Ledger.open(url, "toy", OBJECTIVES)
        if "://me:" in url:
            assert "hunter2" not in str(caught.value)
        assert caught.value.__cause__ is None


def test_a_database_serves_as_well(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    bound = (Bound(objective="accuracy", min=0.95),)
    ledger = Ledger.open(url, "toy", OBJECTIVES, bound)
    ledger.use(Random().build(0))
    first, second = asked(ledger), asked(ledger)
    told = ledger.tell(first.number, reply(first))
    again = Ledger.open(url, "toy", OBJECTIVES, bound)
    assert again.trials()[0] == told
    assert again.unfinished() == [second.number]
    assert isinstance(again.take_up(second.number, SPACE), Candidate)


def test_asking_for_all_trials_again_is_cheap(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    for _ in range(150):
        candidate = asked(ledger)
        ledger.tell(candidate.number, reply(candidate))
    ledger.trials()
    begun = time.perf_counter()
    for _ in range(10):
        assert len(ledger.trials()) == 150
    assert (time.perf_counter() - begun) / 10 < 0.01


def _storage(folder: Path) -> optuna.storages.BaseStorage:
    """The file is Optuna's own format."""
    from optuna.storages.journal import JournalFileBackend

    return optuna.storages.JournalStorage(JournalFileBackend(str(folder / "journal.log")))
