from __future__ import annotations

import math

import numpy as np
import pytest
from toy_guide import SPACE, accuracy, frozen, latency, predicted, problem, row, some

from autocompress.records import Bound, ParamValue, TrialRecord
from autocompress.search.samplers import Surrogate
from autocompress.search.surrogate_data import LAST, Book, Encoder, axes_of, summaries_first

# --- the model ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guided", [True, False])
def test_it_predicts_plans_that_it_has_not_seen(guided: bool) -> None:
    what = problem(guided=guided)
    trials = some(40)
    seen = {t.plan for t in trials}
    new = [
        {"keep": k, "bits": b}
        for k in range(4, 65, 3)
        for b in (32, 8)
        if SPACE.plan({"keep": k, "bits": b}) not in seen
    ]
    means, stds = predicted(trials, new, what)
    plans = [SPACE.plan(params) for params in new]
    truth = what.points([{"accuracy": accuracy(plan), "latency_ms": latency(plan)} for plan in plans])
    assert np.abs(means - truth).max() < 0.06
    assert (stds > 0).all()
    assert (np.abs(means - truth) < 4 * stds + 0.01).mean() > 0.95


def test_a_cost_that_the_guide_knows_is_corrected_by_readings_and_by_no_prediction() -> None:
    what = problem()
    means, stds = predicted(some(10), [{"keep": 32, "bits": 8}], what)
    assert means[0, 1] == pytest.approx(latency(SPACE.plan({"keep": 32, "bits": 8})))  # the guide is 20% low
    assert stds[0, 1] < 0.01
    rungs = some(10, rungs=1, state="paused")  # whose latencies a model told
    means, stds = predicted(rungs, [{"keep": 32, "bits": 8}], what)
    assert means[0, 1] == pytest.approx(0.8 * latency(SPACE.plan({"keep": 32, "bits": 8})))
    assert stds[0, 1] > 0.008  # 5% as long as no reading tells


def test_a_lower_rung_tells_of_the_last() -> None:
    what = problem()
    few = [row(i, {"keep": k, "bits": 32}, rungs=1) for i, k in enumerate((60, 40, 20, 8))]
    paused = [row(10 + k, {"keep": k, "bits": 32}, "paused", rungs=1) for k in range(2, 64, 4)]
    new = [{"keep": k, "bits": 32} for k in (13, 29, 47)]
    truth = what.points([{"accuracy": accuracy(p), "latency_ms": latency(p)} for p in map(SPACE.plan, new)])
    with_rungs, _ = predicted([*few, *paused], new, what)
    assert np.abs(with_rungs - truth)[:, 0].max() < 0.1


def test_rungs_alone_order_candidates() -> None:
    paused = [row(k, {"keep": k, "bits": 32}, "paused", rungs=1) for k in range(4, 64, 6)]
    means, stds = predicted(paused, [{"keep": k, "bits": 32} for k in (10, 30, 50)], problem())
    assert means[0, 0] > means[1, 0] > means[2, 0]
    assert (stds[:, 0] >= 0.1).all()  # what the last rung adds is not known yet


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize(
    "trials",
    [
        [],
        [row(0, {"keep": 64, "bits": 32})],
        [row(i, {"keep": 64, "bits": 32}) for i in range(5)],  # one point
        [row(i, {"keep": 8 * i + 8, "bits": 32}, values={"accuracy": 0.1, "latency_ms": 0.5}) for i in range(6)],
        [row(0, {"keep": 64, "bits": 32}), row(1, {"keep": 32, "bits": 8}, "failed")],
        [row(i, {"keep": 8 * i + 8, "bits": 32}, "paused", rungs=2) for i in range(2)],
        [row(i, {"keep": 8 * i + 8, "bits": 32}, "running") for i in range(3)],
        [row(i, {"keep": 8 * i + 8, "bits": 32}, noisy=True) for i in range(4)],
    ],
    ids=["none", "one", "equal", "constant", "failed", "rungs", "running", "noisy"],
)
def test_little_or_degenerate_data_gives_finite_predictions_and_a_proposal(
    trials: list[TrialRecord], guided: bool
) -> None:
    what = problem(guided=guided)
    means, stds = predicted(trials, [{"keep": 24, "bits": 8}, {"keep": 64, "bits": 32}], what)
    assert np.isfinite(means).all()
    assert (stds > 0).all()
    proposer = frozen(Surrogate(startup_trials=0, exploration=0.0), what)
    assert SPACE.plan(proposer.propose(trials)) not in {t.plan for t in trials}


def test_large_ledgers_are_cut_to_what_lies_near_the_front_and_is_new() -> None:
    from autocompress.search.surrogate import _chosen

    rng = np.random.default_rng(0)
    values = rng.uniform(0.2, 2.0, (2000, 2))
    values[77] = 0.1  # the front
    chosen = _chosen(values, rng)
    assert len(chosen) == 300
    assert len(set(chosen)) == 300
    assert 77 in chosen
    assert set(range(1950, 2000)) <= set(chosen)


def test_running_trials_are_believed_at_their_mean() -> None:
    what = problem()
    done = [row(i, {"keep": k, "bits": 32}) for i, k in enumerate((64, 4))]
    done += [row(9, {"keep": 5, "bits": 8})]
    running = row(20, {"keep": 32, "bits": 32}, "running")
    before, loose = predicted(done, [{"keep": 32, "bits": 32}], what)
    after, tight = predicted([*done, running], [{"keep": 32, "bits": 32}], what)
    assert after[0] == pytest.approx(before[0], abs=0.02)
    assert tight[0, 0] < 0.7 * loose[0, 0]


# --- features -------------------------------------------------------------------------------------------------------


def test_parameters_become_columns_that_say_what_is_missing() -> None:
    encoder = Encoder()
    rows: list[dict[str, ParamValue]] = [
        {"strategy/a": "cut", "sparsity/a": 0.5, "bits": 8},
        {"strategy/a": "none", "bits": 32},
    ]
    for params in rows:
        encoder.show(params)
    found, few = encoder.encode([*rows, {"strategy/a": "never seen", "bits": 8}])
    # kinds first: bits, sparsity, two strategies; then bits, sparsity/a, two choices, whether sparsity/a is there
    assert few == 4
    assert found.tolist() == [
        [8, 0.5, 1, 0, 8, 0.5, 1, 0, 1],
        [32, 0, 0, 1, 32, 0, 0, 1, 0],
        [8, 0, 0, 0, 8, 0, 0, 0, 0],
    ]
    version = encoder.version
    encoder.show(rows[0])
    assert encoder.version == version
    encoder.show({"bits": 8, "width": 0.5})
    assert encoder.version != version


def test_features_of_the_whole_plan_come_first() -> None:
    order, few = summaries_first(["keep/a", "latency", "keep/b", "damage"])
    assert order.tolist() == [1, 3, 0, 2]
    assert few == 2


def test_the_box_ends_in_a_logarithm_and_bounds_follow_the_direction() -> None:
    what = problem(bounds=(Bound(objective="accuracy", min=0.9), Bound(objective="size_bytes", max=100.0)))
    accuracy_axis, latency_axis, size_axis = axes_of(what)
    units = latency_axis.units(np.array([0.5, 1.0, math.e, math.nan]))
    assert units[:3] == pytest.approx([0.5, 1.0, 2.0])
    assert math.isnan(units[3])
    assert not size_axis.boxed  # the dense model's is not known
    good, bad = accuracy_axis.units(np.array([0.94, 0.80]))
    sure = np.full(2, 1e-6)
    assert accuracy_axis.feasible(what.bounds[0], np.array([good, bad]), sure) == pytest.approx([1.0, 0.0])
    assert size_axis.feasible(what.bounds[1], np.array([50.0, 150.0]), sure) == pytest.approx([1.0, 0.0])


# --- hopeless -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guided", [True, False])
def test_a_plan_far_behind_the_front_is_hopeless_in_words(guided: bool) -> None:
    good = [row(i, {"keep": k, "bits": 8}) for i, k in enumerate(range(8, 65, 4))]
    bad = [row(30 + k, {"keep": k, "bits": 32}) for k in (10, 20, 30, 40, 50, 60)]
    asked = row(99, {"keep": 35, "bits": 32}, "running")
    why = frozen(Surrogate(), problem(guided=guided)).hopeless(asked.plan, [*good, *bad, asked])  # type: ignore[arg-type]
    assert why is not None
    assert why.startswith("predicted accuracy 0.")
    assert ", at best accuracy 0." in why
    assert "behind trial" in why
    assert why.endswith("(shares of the box, less is better)")


def test_nothing_is_hopeless_that_may_join_the_front_or_of_which_little_is_known() -> None:
    proposer = frozen(Surrogate(), problem())
    trials = [row(i, {"keep": k, "bits": 8}) for i, k in enumerate(range(8, 65, 4))]
    for keep in (14, 26, 34, 50):
        assert proposer.hopeless(SPACE.plan({"keep": keep, "bits": 8}), trials) is None
    early = frozen(Surrogate(), problem())
    assert early.hopeless(SPACE.plan({"keep": 35, "bits": 32}), trials[:11]) is None
    unknown = frozen(Surrogate(), problem(guided=False))
    assert unknown.hopeless(SPACE.plan({"keep": 35, "bits": 32}), trials) is None  # no parameters to go by


def test_what_lies_outside_of_the_box_is_hopeless_once_six_trials_are_complete() -> None:
    trials = [row(i, {"keep": k, "bits": 8}) for i, k in enumerate(range(8, 65, 8))]
    asked = row(99, {"keep": 6, "bits": 8}, "paused", rungs=1)
    why = frozen(Surrogate(), problem()).hopeless(asked.plan, [*trials, asked])  # type: ignore[arg-type]
    assert why is not None
    assert why.endswith("outside of the box (shares of it, less is better)")
    assert frozen(Surrogate(), problem()).hopeless(asked.plan, [*trials[:5], asked]) is None  # type: ignore[arg-type]


def test_what_did_not_count_sets_nobody_back() -> None:
    trials = [row(i, {"keep": k, "bits": 8}, noisy=True) for i, k in enumerate(range(8, 65, 4))]
    assert frozen(Surrogate(), problem()).hopeless(SPACE.plan({"keep": 35, "bits": 32}), trials) is None


def test_a_row_is_read_once_and_again_when_its_trial_has_changed() -> None:
    what = problem()
    book = Book(what, axes_of(what))
    waiting = row(0, {"keep": 32, "bits": 8}, "running")
    assert not book.read([waiting])
    assert book.rows[0].open
    paused = row(0, {"keep": 32, "bits": 8}, "paused", rungs=1)
    assert book.read([paused])
    assert not book.read([paused])
    assert list(book.rows[0].levels) == [0.0]
    assert book.rows[0].seconds == 5.0  # without the time of the proposal
    assert book.read([row(0, {"keep": 32, "bits": 8}, rungs=1)])
    assert list(book.rows[0].levels) == [0.0, LAST]
    assert book.rows[0].counts
    assert not book.rows[0].open
