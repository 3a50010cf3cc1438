"""Who is handed out and who is not, from rung to rung: the real ledger and ladder, without Ray's processes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from toy_evaluator import build
from toy_space import ToySpace

from autocompress.errors import SearchError
from autocompress.records import Bound, Plan, TrialRecord
from autocompress.search.choose import DistinctProposer
from autocompress.search.ledger import Ledger
from autocompress.search.problem import Problem, Proposer
from autocompress.search.rungs import Ladder, fidelities
from autocompress.search.samplers import Random
from autocompress.search.searcher import LedgerSearcher, close_open
from autocompress.search.settings import SearchSettings

OBJECTIVES = ("accuracy", "latency_ms")
DENSE = {"accuracy": 0.82, "latency_ms": 1.0}
RUNGS = fidelities((0.0, 0.25, 1.0))


class Search:
    """A search of one worker, driven as Tune does it."""

    def __init__(
        self,
        folder: Path,
        trials: int = 30,
        bounds: tuple[Bound, ...] = (),
        proposer: Proposer | None = None,
        **settings: Any,
    ) -> None:
        self.messages: list[str] = []
        self.ledger = Ledger.open(folder / "journal.log", "toy", OBJECTIVES, bounds)
        self.ledger.use(Random().build(self.ledger.count()))
        asked = SearchSettings(trials=trials, folder=folder, rungs=RUNGS, **settings)
        problem = Problem(objectives=OBJECTIVES, dense=DENSE, bounds=bounds)
        ladder = Ladder(RUNGS, asked.reduction, asked.bands, problem)
        self.searcher = LedgerSearcher(
            self.ledger, ToySpace(), asked, ladder, 1, proposer, lambda trial: None, self.messages.append
        )

    def run(self, evaluate: Callable[[dict[str, Any]], dict[str, Any]], stays: int = 10_000) -> tuple[TrialRecord, ...]:
        """Until nothing is left, or after so many stays of candidates with a worker."""
        for turn in range(stays):
            handed = self.searcher.suggest(str(turn))
            if not isinstance(handed, dict):
                break
            self._stay(str(turn), json.loads(handed["candidate"]), evaluate)
        else:
            return self.ledger.trials()
        if self.searcher.error is not None:
            raise self.searcher.error
        self.searcher.close()
        return self.ledger.trials()

    def _stay(self, name: str, candidate: dict[str, Any], evaluate: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        for request in candidate["requests"]:
            try:
                outcome = {"attempts": candidate["attempts"], "reply": evaluate(request)}
            except RuntimeError as error:
                outcome = {"attempts": candidate["attempts"], "error": f"died: {error}"}
            told = json.dumps(outcome)
            if "error" in outcome or not request["partial"]:
                self.searcher.on_trial_complete(name, {"outcome": told})
                return
            if not self.searcher.judged(name, told):
                return


def passed(trials: tuple[TrialRecord, ...], rung: int) -> int:
    return sum(any(r.fidelity.rung == rung for r in t.rungs) for t in trials)


def test_a_rung_lets_one_of_three_go_on_beside_five_that_check_it(tmp_path: Path) -> None:
    search = Search(tmp_path)
    trials = search.run(build())
    assert len(trials) == 30
    assert passed(trials, 0) >= 25
    # A third of each of four bands, rounded up, and five for the check.
    assert passed(trials, 1) <= 30 // 3 + 4 + 5
    probes = json.loads(search.ledger.noted("probes"))
    assert len(probes) == 5
    (message,) = search.messages
    assert "0 epochs rank candidates as full training does with Kendall tau" in message
    assert sum(trials[n].state == "complete" for n in probes) >= 4, "trained in full, unless the check was over before"


class _Pessimist(DistinctProposer):
    """Sees no hope for anything any more once the check of the first rung is chosen."""

    def __init__(self) -> None:
        super().__init__(ToySpace(), 0)
        self.chosen: Callable[[], bool] = lambda: False

    def hopeless(self, plan: Plan, trials: Sequence[TrialRecord]) -> str | None:
        return "it is predicted so" if self.chosen() else None


def test_what_checks_a_rung_is_trained_in_full_whatever_is_predicted_of_it(tmp_path: Path) -> None:
    pessimist = _Pessimist()
    search = Search(tmp_path, proposer=pessimist)
    pessimist.chosen = lambda: search.ledger.noted("probes") is not None
    trials = search.run(build())
    assert any(t.reason.startswith("hopeless: it is predicted so") for t in trials)
    assert search.messages, "the check was made"
    assert "0 epochs rank candidates as full training does" in search.messages[0]
    probes = json.loads(search.ledger.noted("probes"))
    assert sum(trials[n].state == "complete" for n in probes) >= 4


def test_a_search_that_is_taken_up_again_checks_with_the_same(tmp_path: Path) -> None:
    first = Search(tmp_path)
    stays = 1
    while first.ledger.noted("probes") is None:
        first.run(build(), stays=stays)
        first = Search(tmp_path)
    probes = first.ledger.noted("probes")
    again = Search(tmp_path)
    trials = again.run(build())
    assert again.ledger.noted("probes") == probes
    assert len(trials) == 30
    assert {t.attempts for t in trials} == {1}, "waiting at a rung is no attempt"
    assert any(t.taken_up is not None for t in trials)


def test_what_passes_the_first_rung_does_not_excuse_failures_at_the_last(tmp_path: Path) -> None:
    evaluate = build()

    def failing(request: dict[str, Any]) -> dict[str, Any]:
        if not request["partial"]:
            raise RuntimeError("out of memory")
        return evaluate(request)

    search = Search(tmp_path, trials=60)
    with pytest.raises(
        SearchError, match=r"5 of 5 trials failed after 2 rungs, over the limit of 50% .* trial \d+: died"
    ):
        search.run(failing)


def test_what_time_ended_while_it_waited_is_said_so(tmp_path: Path) -> None:
    search = Search(tmp_path, time_s=1000.0)
    search.run(build(), stays=8)
    search.searcher._ends = 0.0
    assert search.searcher.late
    assert search.searcher.suggest("late") == search.searcher.FINISHED
    search.searcher.close()
    waited = [t for t in search.ledger.trials() if t.state == "stopped"]
    assert waited
    assert {t.reason.partition(" ")[0] for t in waited} == {"rung:"}
    assert all("epochs when the time of the search was over" in t.reason for t in waited)
    assert "was not found out: it takes 8 pairs" in search.messages[-1]


def test_what_is_left_open_is_closed_by_whoever_comes_too_late(tmp_path: Path) -> None:
    search = Search(tmp_path)
    search.run(build(), stays=8)
    search.searcher.suggest("left running")
    states = [t.state for t in search.ledger.trials()]
    waited = states.count("paused")
    assert waited
    assert "running" in states
    closed = close_open(search.ledger, over_s=60.0)
    assert len(closed) == waited + 1
    assert {t.state for t in search.ledger.trials()} <= {"complete", "stopped"}
    assert [t.reason for t in closed if t.reason.startswith("time")] == ["time: the 60 s of the search were over"]
    assert close_open(search.ledger, over_s=60.0) == []


def test_a_stop_is_heard_while_candidates_end_unbuilt(tmp_path: Path) -> None:
    search = Search(tmp_path)
    search.searcher.stopping = lambda: True
    assert search.searcher.suggest("0") == search.searcher.FINISHED
    assert search.ledger.count() == 0
