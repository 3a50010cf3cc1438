from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.front.indicators import baseline_values, counts, hypervolume, trace
from autocompress.records import (
    Artifact,
    Baseline,
    ChannelCut,
    Estimate,
    Fidelity,
    Host,
    LatencyReading,
    Measurement,
    Metric,
    Plan,
    RungResult,
    TrialRecord,
)

DENSE = {"accuracy": 0.9, "latency_ms": 2.0, "size_bytes": 1000.0, "macs": 50.0, "parameters": 40.0}
PAIR = ("accuracy", "latency_ms")
HOST = Host(cpu="cpu", cores=2, flags=(), memory_gb=4, system="linux", runtime="ort", threads=1)
ARTIFACT = Artifact(sha256="0" * 64, size_bytes=1000, macs=50, parameters=40, layers=())
BASELINE = Baseline(
    artifact=ARTIFACT, accuracy={"validation": Estimate.exact(0.9)}, latency_ms=2.0, host=HOST, agreement=0.0
)
START = datetime(2026, 1, 1, tzinfo=UTC)


def trial(number: int, accuracy: float, latency: float, *, start: float, end: float, **changes: Any) -> TrialRecord:
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
        noisy=changes.pop("noisy", False),
    )
    measurement = Measurement(
        plan_key=f"{number}",
        fidelity=Fidelity(epochs=changes.pop("epochs", 0.5)),
        role="validation",
        values={"accuracy": Estimate.exact(accuracy), "latency_ms": Estimate.exact(latency)},
        artifact=ARTIFACT,
        latency=reading,
        host=HOST,
        agreement=0.0,
    )
    fields: dict[str, Any] = {
        "number": number,
        "state": "complete",
        "plan": Plan(cuts=(ChannelCut(group="a", keep=8, criterion="magnitude"),)),
        "measurement": measurement,
        "started": START + timedelta(seconds=start),
        "finished": START + timedelta(seconds=end),
    }
    return TrialRecord(**{**fields, **changes})


def test_the_ideal_point_dominates_the_whole_box() -> None:
    assert hypervolume([{"accuracy": 1.0, "latency_ms": 0.0}], DENSE, PAIR) == pytest.approx(1.0)


def test_one_point_dominates_the_product_of_its_distances_to_the_reference() -> None:
    # error 0.1 of 0.2, latency 0.5 of 2.0
    assert hypervolume([{"accuracy": 0.9, "latency_ms": 0.5}], DENSE, PAIR) == pytest.approx(0.5 * 0.75)


def test_two_points_dominate_the_union_of_their_boxes() -> None:
    points = [{"accuracy": 0.9, "latency_ms": 1.0}, {"accuracy": 0.85, "latency_ms": 0.5}]
    # 0.5 * 0.5 + 0.25 * 0.75 - overlap 0.25 * 0.5
    assert hypervolume(points, DENSE, PAIR) == pytest.approx(0.25 + 0.1875 - 0.125)


def test_three_objectives_multiply() -> None:
    point = {"accuracy": 0.9, "latency_ms": 0.5, "size_bytes": 100.0}
    assert hypervolume([point], DENSE, (*PAIR, "size_bytes")) == pytest.approx(0.5 * 0.75 * 0.9)


def test_one_objective_is_a_length() -> None:
    assert hypervolume([{"latency_ms": 0.5}, {"latency_ms": 1.5}], DENSE, ("latency_ms",)) == pytest.approx(0.75)


@pytest.mark.parametrize(
    "values",
    [[], [DENSE], [{"accuracy": 0.5, "latency_ms": 0.1}], [{"accuracy": 1.0, "latency_ms": 2.1}]],
    ids=["nothing", "dense", "too-wrong", "slower-than-dense"],
)
def test_what_is_not_inside_the_box_adds_nothing(values: list[dict[str, float]]) -> None:
    assert hypervolume(values, DENSE, PAIR) == 0.0


unit = st.floats(0.0, 1.0)


@given(st.lists(st.tuples(unit, st.floats(0.01, 3.0)), max_size=8), st.tuples(unit, st.floats(0.01, 3.0)))
def test_a_further_point_never_lowers_the_value(points: list[tuple[float, float]], extra: tuple[float, float]) -> None:
    values = [{"accuracy": a, "latency_ms": b} for a, b in points]
    more = [*values, {"accuracy": extra[0], "latency_ms": extra[1]}]
    assert 0.0 <= hypervolume(values, DENSE, PAIR) <= hypervolume(more, DENSE, PAIR) + 1e-12 <= 1.0 + 1e-12


@given(st.lists(st.tuples(*[st.integers(0, 6)] * 3), max_size=6))
def test_agrees_with_counting_cells_of_a_grid(cells: list[tuple[int, int, int]]) -> None:
    names = ("latency_ms", "size_bytes", "macs")
    values = [{n: DENSE[n] * c / 6 for n, c in zip(names, cell, strict=True)} for cell in cells]
    covered = sum(
        any(all(c <= at for c, at in zip(cell, place, strict=True)) for cell in cells)
        for place in itertools.product(range(6), repeat=3)
    )
    assert hypervolume(values, DENSE, names) == pytest.approx(covered / 6**3)


def test_a_drop_of_the_worst_class_spans_twenty_points_and_a_gain_counts_as_none() -> None:
    dense = {"accuracy": 0.9, "worst_class_drop": 0.0}
    names = ("accuracy", "worst_class_drop")

    def volume(drop: float) -> float:
        return hypervolume([{"accuracy": 0.9, "worst_class_drop": drop}], dense, names)

    # The error of 0.1 takes half of the box, which ends 0.1 above it.
    assert volume(0.05) == pytest.approx(0.5 * 0.75)
    assert volume(-0.05) == volume(0.0) == pytest.approx(0.5)
    assert volume(0.2) == volume(0.3) == 0.0


def test_a_missing_objective_and_a_dense_cost_of_zero_are_refused() -> None:
    with pytest.raises(ValueError, match=r"objective 'latency_ms': expected .* every point, got \['accuracy'\]"):
        hypervolume([{"accuracy": 0.5}], DENSE, PAIR)
    with pytest.raises(ValueError, match=r"dense latency_ms: expected a value > 0, got 0\.0"):
        hypervolume([{"latency_ms": 1.0}], {"latency_ms": 0.0}, ("latency_ms",))
    with pytest.raises(ValueError, match=r"objective .accuracy.: expected a finite value in point 0, got nan"):
        hypervolume([{"accuracy": np.nan, "latency_ms": 1.0}], DENSE, PAIR)


def test_baseline_values_name_every_objective_and_refuse_a_split_that_was_not_evaluated() -> None:
    assert baseline_values(BASELINE, "validation") == {**DENSE, "worst_class_drop": 0.0}
    packed = BASELINE.model_copy(update={"artifact": BASELINE.artifact.model_copy(update={"packed_bytes": 7})})
    assert baseline_values(packed, "validation")["packed_bytes"] == 7.0
    with pytest.raises(ValueError, match=r"baseline\.accuracy: expected the split 'test', got \['validation'\]"):
        baseline_values(BASELINE, "test")


def test_trace_follows_the_order_of_ending_and_never_falls() -> None:
    trials = [
        trial(0, 0.9, 1.0, start=0, end=30),
        trial(1, 0.9, 1.5, start=0, end=10),
        trial(2, 0.85, 0.5, start=10, end=40),
        trial(3, 0.5, 0.1, start=30, end=50),
    ]
    result = trace(trials, BASELINE, PAIR)
    assert [(p.seconds, p.trials) for p in result] == [(10.0, 1), (30.0, 2), (40.0, 3), (50.0, 4)]
    assert [p.hypervolume for p in result] == pytest.approx([0.125, 0.25, 0.3125, 0.3125])


def test_trace_ends_at_the_hypervolume_of_all_its_trials() -> None:
    rng = np.random.default_rng(0)
    drawn = [(float(rng.uniform(0.8, 0.95)), float(rng.uniform(0.2, 2.2))) for _ in range(40)]
    trials = [trial(i, a, b, start=i, end=i + 1) for i, (a, b) in enumerate(drawn)]
    everything = hypervolume([{"accuracy": a, "latency_ms": b} for a, b in drawn], DENSE, PAIR)
    assert trace(trials, BASELINE, PAIR)[-1].hypervolume == pytest.approx(everything)


def test_failed_infeasible_and_noisy_trials_pass_time_but_add_nothing() -> None:
    trials = [
        trial(0, 0.9, 1.0, start=0, end=1, state="failed", measurement=None, reason="worker: died"),
        trial(1, 0.9, 1.0, start=1, end=2, violations={"size_bytes<=10": 5.0}),
        trial(2, 0.9, 1.0, start=2, end=3, noisy=True),
        trial(3, 0.9, 1.0, start=3, end=9, state="running", finished=None),
    ]
    found = [(p.seconds, p.hypervolume, p.trials) for p in trace(trials, BASELINE, PAIR)]
    assert found == [(1.0, 0.0, 1), (2.0, 0.0, 2), (3.0, 0.0, 3)]


def test_what_was_judged_below_the_last_rung_adds_time_and_a_candidate_but_no_hypervolume() -> None:
    early = RungResult(
        plan_key="0",
        fidelity=Fidelity(epochs=0.0),
        values={"accuracy": Estimate.exact(0.99), "latency_ms": Estimate.exact(0.1)},
        seconds={"recover": 4.0},
        judged=START + timedelta(seconds=4),
    )
    late = early.model_copy(update={"judged": START + timedelta(seconds=9)})
    trials = [
        trial(0, 0.9, 1.0, start=0, end=20, rungs=(early,)),
        trial(1, 0.9, 1.0, start=4, end=20, rungs=(late,), state="paused", measurement=None, finished=None),
        trial(2, 0.9, 1.0, start=9, end=12, state="stopped", measurement=None, reason="hopeless: far behind"),
    ]
    found = trace(trials, BASELINE, PAIR)
    assert [(p.seconds, p.hypervolume, p.trials) for p in found] == [
        (4.0, 0.0, 1),
        (9.0, 0.0, 2),
        (12.0, 0.0, 3),
        (20.0, pytest.approx(0.25), 3),
    ]
    assert found[-1].parts.recover == pytest.approx(8.0)


def test_noise_of_latency_does_not_matter_where_latency_is_no_objective() -> None:
    noisy = trial(0, 0.9, 1.0, start=0, end=1, noisy=True)
    assert not counts(noisy, PAIR)
    assert counts(noisy, ("accuracy",))
    bounded = noisy.model_copy(update={"violations": {"latency_ms<=2.0": -1.0}})
    assert not counts(bounded, ("accuracy",))


def test_trace_leaves_out_the_pause_between_an_interruption_and_its_resumption() -> None:
    trials = [
        trial(0, 0.9, 1.0, start=0, end=10),
        trial(1, 0.9, 0.9, start=5, end=15),
        trial(2, 0.9, 0.8, start=5000, end=5010),
    ]
    assert [p.seconds for p in trace(trials, BASELINE, PAIR)] == [10.0, 15.0, 25.0]


def test_trace_refuses_trials_of_unlike_fidelity_but_takes_the_dense_plan_at_any() -> None:
    trained = trial(0, 0.9, 1.0, start=0, end=1, epochs=0.5)
    with pytest.raises(ValueError, match=r"one fidelity.*trial 0 at 0\.5 epochs, rung 0, trial 1 at 1 epochs, rung 0"):
        trace([trained, trial(1, 0.9, 1.0, start=1, end=2, epochs=1.0)], BASELINE, PAIR)
    assert len(trace([trained, trial(1, 0.9, 1.0, start=1, end=2, epochs=0.0, plan=Plan())], BASELINE, PAIR)) == 2


def test_trace_of_no_trials_is_empty() -> None:
    assert trace([], BASELINE, PAIR) == []


LOSS = Metric(name="log_loss", maximize=False, best=0.0, source="scikit-learn:neg_log_loss")
F1 = Metric(name="f1_macro", maximize=True, best=1.0, source="scikit-learn:f1_macro")
BLEU = Metric(name="bleu", maximize=True, source="own.py:bleu")


@pytest.mark.parametrize(
    ("metric", "dense", "value", "share"),
    [
        (F1, 0.9, 0.9, 0.1 / 0.2),  # as accuracy: [0, dense gap + 0.10]
        (F1, 0.9, 1.0, 0.0),
        (LOSS, 0.2, 0.15, 0.15 / 0.3),  # half of the dense gap on top
        (LOSS, 0.0, 0.5, 0.5),
        (LOSS.model_copy(update={"margin": 0.8}), 0.2, 0.5, 0.5),
        (BLEU, 30.0, 15.0, 45.0 / 45.0),  # no best value: twice the dense one
        (BLEU, 30.0, 70.0, 0.0),
    ],
)
def test_the_box_of_a_metric_reaches_from_its_best_value_to_the_dense_ones_and_a_margin(metric, dense, value, share):
    found = hypervolume([{metric.name: value}], {metric.name: dense}, (metric.name,), (metric,))
    assert found == pytest.approx(1.0 - share)


def test_an_objective_of_unknown_direction_is_refused():
    with pytest.raises(ValueError, match=r"objective 'log_loss': expected a fixed one or one of \[\]"):
        hypervolume([{"log_loss": 1.0}], {"log_loss": 1.0}, ("log_loss",))
