"""Standings that are kept up to date say the same as standings that are made anew."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from autocompress.records import Estimate, Plan, RungResult, TrialRecord
from autocompress.search.problem import Problem
from autocompress.search.rungs import Ladder, fidelities
from autocompress.search.standings import Standings

RUNGS = fidelities((0.0, 0.5, 1.0, 2.0))
PROBLEM = Problem(objectives=("accuracy", "latency_ms"), dense={"accuracy": 0.9, "latency_ms": 1.0})


def trial(number: int, values: tuple[tuple[int, int], ...], state: str) -> TrialRecord:
    """``values``: accuracy and latency at each rung, in tenths, so that ties are frequent."""
    rungs = tuple(
        RungResult(
            plan_key="p",
            fidelity=RUNGS[rung],
            values={"accuracy": Estimate.exact(a / 10), "latency_ms": Estimate.exact(ms / 10)},
        )
        for rung, (a, ms) in enumerate(values)
    )
    return TrialRecord.model_validate({"number": number, "state": state, "rungs": rungs, "plan": Plan()})


STATES = ("running", "paused", "stopped", "failed")
TRIAL = st.tuples(
    st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), max_size=3).map(tuple), st.sampled_from(STATES)
)


@given(st.lists(st.tuples(st.integers(0, 11), TRIAL), max_size=60))
def test_what_is_kept_up_to_date_decides_as_what_is_made_anew(changes: list) -> None:
    kept, ledger = Ladder(RUNGS, 2, 3, PROBLEM), []
    for place, (values, state) in changes:
        changed = min(place, len(ledger))
        ledger[changed : changed + 1] = [trial(changed, values, state if values else "running")]
        anew = Ladder(RUNGS, 2, 3, PROBLEM)
        for final in (False, True):
            assert kept.promotable(ledger, final=final) == anew.promotable(ledger, final=final), ledger


@given(st.lists(st.lists(TRIAL, max_size=12), max_size=6))
def test_standings_are_a_plain_function_of_the_trials(histories: list) -> None:
    standings = Standings(3, PROBLEM)
    for history in histories:
        trials = [trial(number, values, state) for number, (values, state) in enumerate(history)]
        standings.update(trials)
        alive = [t for t in trials if t.state != "failed"]
        for rung in range(3):
            judged = [t for t in alive if len(t.rungs) > rung]
            order = sorted(judged, key=lambda t: (t.rungs[rung].values["latency_ms"].value, t.number))
            assert [row.number for row in standings.rows(rung)] == [t.number for t in order]
            stayed = {t.number for t in judged if len(t.rungs) == rung + 1 and t.state != "running"}
            assert set(standings.stayed(rung)) == stayed
        assert {t.number for t in standings.running} == {t.number for t in trials if t.state == "running"}
