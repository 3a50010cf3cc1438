from __future__ import annotations

from typing import Any

import pytest

from autocompress.front.summary import SearchSummary, seed_kind, summarize
from autocompress.records import (
    Artifact,
    Baseline,
    Estimate,
    Fidelity,
    Host,
    LatencyReading,
    Measurement,
    Plan,
    RungResult,
    SearchLog,
    TrialRecord,
)

HOST = Host(cpu="cpu", cores=2, flags=(), memory_gb=4, system="linux", runtime="ort", threads=1)
ARTIFACT = Artifact(sha256="0" * 64, size_bytes=1000, macs=50, parameters=40, layers=())
BASELINE = Baseline(
    artifact=ARTIFACT, accuracy={"validation": Estimate.exact(0.9)}, latency_ms=2.0, host=HOST, agreement=0.0
)
PAIR = ("accuracy", "latency_ms")


def values(accuracy: float, latency: float) -> dict[str, Estimate]:
    return {"accuracy": Estimate.exact(accuracy), "latency_ms": Estimate.exact(latency)}


def rungs(*accuracies: float, latency: float = 1.0, seconds: float = 4.0) -> tuple[RungResult, ...]:
    return tuple(
        RungResult(
            plan_key="k",
            fidelity=Fidelity(epochs=0.25 * i, rung=i),
            values=values(accuracy, latency),
            seconds={"recover": seconds},
        )
        for i, accuracy in enumerate(accuracies)
    )


def trial(number: int, state: str, *, full: float | None = None, latency: float = 1.0, **changes: Any) -> TrialRecord:
    measurement = None
    if full is not None:
        reading = LatencyReading(
            latency_ms=Estimate.exact(latency),
            ratio=Estimate.exact(latency / 2.0),
            baseline_ms=2.0,
            p90_ms=latency,
            p99_ms=latency,
            rounds=10,
            batch_size=1,
            threads=1,
            load=0.0,
        )
        measurement = Measurement(
            plan_key="k",
            fidelity=Fidelity(epochs=1.0, rung=2),
            role="validation",
            values=values(full, latency),
            artifact=ARTIFACT,
            latency=reading,
            host=HOST,
            agreement=0.0,
            seconds={"recover": 20.0},
            cached=changes.pop("cached", False),
        )
    return TrialRecord(number=number, state=state, measurement=measurement, plan=Plan(), **changes)


TRIALS = (
    trial(0, "complete", full=0.90, rungs=rungs(0.60, 0.80), origin="seed:dense"),
    trial(1, "complete", full=0.85, rungs=rungs(0.50, 0.82), origin="seed:uniform-0.50-8bit"),
    trial(2, "complete", full=0.80, rungs=rungs(0.40, 0.70), origin="seed:uniform-0.25-8bit"),
    trial(3, "complete", full=0.85, cached=True),
    trial(4, "stopped", rungs=rungs(0.30), reason="rung: not among the best of like latency after 0 epochs"),
    trial(5, "stopped", rungs=rungs(0.50, 0.60), reason="rung: not among the best of like latency after 0.25 epochs"),
    trial(6, "stopped", reason="hopeless: it adds nothing"),
    trial(7, "stopped", reason="repeat: the same network as trial 4"),
    trial(8, "paused", rungs=rungs(0.55, seconds=8.0)),
    trial(9, "running", rungs=rungs(0.58)),
    trial(10, "failed", rungs=rungs(0.58), reason="died: its process, 3 times"),
    trial(11, "failed", reason="timeout: no reply"),
    trial(12, "waiting", origin="seed:uniform-0.75-8bit"),
)


@pytest.fixture(scope="module")
def summary() -> SearchSummary:
    return summarize(TRIALS, BASELINE, PAIR, total=40, time_s=600.0, log=SearchLog(sampler="tpe"))


def test_candidates_are_counted_by_what_became_of_them(summary: SearchSummary) -> None:
    assert (summary.total, summary.begun, summary.time_s) == (40, 12, 600.0)
    assert summary.counts == {"complete": 4, "stopped": 4, "paused": 1, "running": 1, "failed": 2}
    assert summary.stops == {"rung": 2, "hopeless": 1, "repeat": 1}
    assert summary.cached == 1
    assert summary.unbuilt == 3
    assert summary.seeds == {"dense": 1, "uniform": 2}  # the one that waits was not begun
    assert summary.log.sampler == "tpe"


def test_a_rung_counts_who_was_judged_there_and_what_followed(summary: SearchSummary) -> None:
    first, second, last = summary.rungs
    assert (first.epochs, first.judged, first.promoted, first.stopped, first.waiting) == (0.0, 8, 6, 1, 1)
    assert (second.epochs, second.judged, second.promoted, second.stopped, second.waiting) == (0.25, 4, 3, 1, 0)
    assert (last.epochs, last.judged, last.promoted, last.stopped, last.waiting) == (1.0, 4, 0, 0, 0)
    assert (first.seconds, last.seconds) == (4.0, 20.0)


def test_the_order_of_a_rung_is_held_against_full_recovery_where_that_is_known(summary: SearchSummary) -> None:
    first, second, last = summary.rungs
    assert (first.tau, first.pairs) == (1.0, 3)
    # 0.80 and 0.82 came the other way round.
    assert (second.tau, second.pairs) == (pytest.approx(1 / 3), 3)
    assert (last.tau, last.pairs) == (None, 0)
    early = summarize(TRIALS[4:6], BASELINE, PAIR)
    assert [r.tau for r in early.rungs] == [None, None]


def test_the_highest_rung_is_the_last_only_once_a_candidate_is_complete(summary: SearchSummary) -> None:
    assert [r.last for r in summary.rungs] == [False, False, True]
    assert [r.last for r in summarize(TRIALS[4:6], BASELINE, PAIR).rungs] == [False, False]


def test_a_search_without_rungs_has_one_and_without_trials_none() -> None:
    assert [r.judged for r in summarize([trial(0, "complete", full=0.9)], BASELINE, PAIR).rungs] == [1]
    empty = summarize([], BASELINE, PAIR)
    assert (empty.rungs, empty.trace, empty.hypervolume, empty.begun, empty.total) == ((), (), 0.0, 0, 0)


def test_a_summary_is_json_both_ways(summary: SearchSummary) -> None:
    assert SearchSummary.model_validate_json(summary.model_dump_json()) == summary


@pytest.mark.parametrize(
    ("origin", "kind"),
    [("seed:dense", "dense"), ("seed:uniform-0.50-8bit", "uniform"), ("seed:front:digits-3", "front"), ("seed:-", "-")],
)
def test_the_kind_of_a_seed_is_the_first_word_of_its_name(origin: str, kind: str) -> None:
    assert seed_kind(origin) == kind
