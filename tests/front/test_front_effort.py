from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.front.effort import PARTS, PAUSE_S, Clock, Parts, parts, steps
from autocompress.records import (
    Artifact,
    Estimate,
    Fidelity,
    Host,
    LatencyReading,
    Measurement,
    RungResult,
    TrialRecord,
)

START = datetime(2026, 1, 1, tzinfo=UTC)
HOST = Host(cpu="cpu", cores=2, flags=(), memory_gb=4, system="linux", runtime="ort", threads=1)
READING = LatencyReading(
    latency_ms=Estimate.exact(1.0),
    ratio=Estimate.exact(0.5),
    baseline_ms=2.0,
    p90_ms=1.0,
    p99_ms=1.0,
    rounds=10,
    batch_size=1,
    threads=1,
    load=0.0,
)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def rung(judged: float, index: int = 0, cached: bool = False, **seconds: float) -> RungResult:
    return RungResult(
        plan_key="k",
        fidelity=Fidelity(epochs=float(index), rung=index),
        values={"accuracy": Estimate.exact(0.9)},
        seconds=seconds,
        judged=at(judged),
        cached=cached,
    )


def measured(cached: bool = False, **seconds: float) -> Measurement:
    return Measurement(
        plan_key="k",
        fidelity=Fidelity(epochs=1.0, rung=2),
        role="validation",
        values={"accuracy": Estimate.exact(0.9)},
        artifact=Artifact(sha256="0" * 64, size_bytes=1, macs=1, parameters=1, layers=()),
        latency=READING,
        host=HOST,
        agreement=0.0,
        seconds=seconds,
        cached=cached,
    )


def trial(number: int, state: str, begin: float, end: float | None = None, **changes: Any) -> TrialRecord:
    finished = None if end is None else at(end)
    return TrialRecord(number=number, state=state, started=at(begin), finished=finished, **changes)


def about(**known: float) -> Any:
    return pytest.approx({name: known.get(name, 0.0) for name in PARTS})


def test_every_part_of_a_candidates_time_is_told_and_the_rest_is_orchestration() -> None:
    seconds = {
        "propose": 1.0,
        "compress": 2.0,
        "recover": 10.0,
        "export": 1.0,
        "quantize": 0.5,
        "pack": 0.5,
        "quality": 2.0,
        "wait": 0.25,
        "latency": 0.75,
    }
    found = parts([trial(0, "complete", 0, 20, measurement=measured(**seconds))])
    assert found == Parts(propose=1.0, compress=2.0, recover=10.0, export=2.0, measure=3.0, orchestration=2.0)
    assert found.shares["recover"] == 0.5
    assert sum(found.shares.values()) == pytest.approx(1.0)


def test_a_part_of_an_unknown_name_is_left_over() -> None:
    found = parts([trial(0, "complete", 0, 10, measurement=measured(recover=6.0, lunch=3.0))])
    assert (found.recover, found.orchestration) == (6.0, 4.0)


def test_without_a_judged_candidate_there_is_no_time_and_no_share() -> None:
    assert parts([]) == parts([trial(0, "running", 0), trial(1, "waiting", 0)]) == Parts()
    assert set(Parts().shares.values()) == {0.0}
    assert Clock([]).seconds(START) == 0.0


def test_rungs_add_up_whether_the_candidate_went_on_at_once_or_waited_in_between() -> None:
    trials = [
        trial(0, "complete", 0, 30, rungs=(rung(5, recover=4.0),), measurement=measured(recover=9.0)),
        trial(1, "paused", 5, rungs=(rung(10, recover=5.0),)),
        trial(2, "stopped", 10, 30, rungs=(rung(20, recover=10.0),), reason="rung: not among the best"),
    ]
    assert [(s.number, s.begin, s.end) for s in steps(trials)] == [
        (0, at(0), at(5)),
        (1, at(5), at(10)),
        (2, at(10), at(20)),
        (0, at(5), at(30)),  # waited for 16 s, less than a pause
    ]
    assert parts(trials).model_dump() == about(recover=28.0, orchestration=2.0)


def test_a_candidate_that_waited_over_a_pause_of_the_search_does_not_count_it() -> None:
    night = 40_000.0
    first = trial(0, "complete", 0, night + 10, rungs=(rung(5, recover=5.0),), measurement=measured(recover=8.0))
    second = trial(1, "complete", night, night + 2, measurement=measured(recover=2.0))
    assert parts([first, second]).total == pytest.approx(15.0)
    taken_up = trial(2, "complete", 0, night + 20, measurement=measured(recover=7.0))
    assert Clock(steps([first, taken_up])).seconds(at(night + 20)) == pytest.approx(5.0 + 18.0)


@pytest.mark.parametrize(("gap", "busy"), [(PAUSE_S - 1, 20.0 + PAUSE_S - 1), (PAUSE_S + 1, 20.0)])
def test_a_short_gap_is_time_of_the_search_and_a_long_one_a_pause(gap: float, busy: float) -> None:
    trials = [
        trial(0, "complete", 0, 10, measurement=measured(recover=10.0)),
        trial(1, "complete", 10 + gap, 20 + gap, measurement=measured(recover=10.0)),
    ]
    assert parts(trials).model_dump() == about(recover=20.0, orchestration=busy - 20.0)


def test_what_failed_after_it_was_taken_up_again_takes_the_time_since_then() -> None:
    night = 40_000.0
    first = trial(0, "complete", 0, 10, measurement=measured(recover=10.0))
    failed = trial(1, "failed", 5, night + 7, taken_up=at(night), reason="oom: over 8 GiB")
    late = trial(2, "stopped", 5, night + 9, taken_up=at(night + 2), reason="time: the 60 s of the search were over")
    assert parts([first, failed, late]).total == pytest.approx(10.0 + 9.0)
    # As does what waited at a rung meanwhile.
    waited = trial(3, "failed", 0, night + 7, taken_up=at(night), rungs=(rung(6, recover=6.0),), reason="died: twice")
    assert parts([first, waited]).total == pytest.approx(10.0 + 7.0)


def test_what_the_cache_answered_took_no_time_but_that_of_proposing_it() -> None:
    trials = [
        trial(0, "complete", 0, 10, measurement=measured(recover=10.0)),
        trial(1, "complete", 10, 11, measurement=measured(cached=True, recover=10.0, propose=0.75)),
        trial(2, "paused", 11, rungs=(rung(11.5, cached=True, recover=4.0),)),
    ]
    assert parts(trials).model_dump() == about(recover=10.0, propose=0.75, orchestration=0.75)


def test_what_failed_or_was_not_built_is_orchestration() -> None:
    trials = [
        trial(0, "failed", 0, 60, reason="timeout: no reply"),
        trial(1, "stopped", 60, 61, reason="hopeless: predicted at 0.3 of the front"),
        trial(2, "failed", 61, 70, rungs=(rung(66, recover=5.0),), reason="died: twice"),
    ]
    assert parts(trials).model_dump() == about(recover=5.0, orchestration=65.0)


def test_with_two_workers_a_second_is_two_and_an_idle_one_is_orchestration() -> None:
    trials = [
        trial(0, "complete", 0, 10, measurement=measured(recover=10.0)),
        trial(1, "complete", 0, 6, measurement=measured(export=6.0)),
    ]
    assert parts(trials, workers=2) == Parts(recover=10.0, export=6.0, orchestration=4.0)
    with pytest.raises(ValueError, match="workers: expected at least 1, got 0"):
        parts(trials, workers=0)


def test_what_is_under_way_counts_as_far_as_it_got() -> None:
    trials = [
        trial(0, "complete", 0, 20, measurement=measured(recover=20.0)),
        trial(1, "complete", 0, 10, measurement=measured(export=10.0)),
    ]
    half, end = Clock(steps(trials), 2).parts([at(10), at(20)])
    assert half.model_dump() == about(recover=10.0, export=10.0, orchestration=0.0)
    assert end.model_dump() == about(recover=20.0, export=10.0, orchestration=10.0)


@given(
    st.lists(
        st.tuples(st.floats(0, 500), st.floats(0, 50), st.floats(0, 1), st.sampled_from(["complete", "failed"])),
        min_size=1,
        max_size=12,
    ),
    st.integers(1, 3),
)
def test_parts_never_fall_and_shares_sum_to_one(spans: list[tuple[float, float, float, str]], workers: int) -> None:
    trials = [
        trial(
            i,
            state,
            begin,
            begin + length,
            measurement=measured(recover=share * length) if state == "complete" else None,
        )
        for i, (begin, length, share, state) in enumerate(spans)
    ]
    done = steps(trials)
    found = Clock(done, workers).parts([s.end for s in done])
    for earlier, later in itertools.pairwise(found):
        assert all(getattr(earlier, name) <= getattr(later, name) + 1e-6 for name in PARTS)
    total = sum(found[-1].shares.values())
    assert total == pytest.approx(1.0) or found[-1].total == 0.0
