"""Who goes on from a rung, and whether a rung ranks: on hand-made trials, against what is easy to see."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_evaluator import measurement

from autocompress.records import (
    Bound,
    ChannelCut,
    Estimate,
    FromScratch,
    LayerBits,
    Measurement,
    Plan,
    RungResult,
    TrialRecord,
)
from autocompress.search.problem import Problem
from autocompress.search.rungs import Ladder, best_first, fidelities, rank_agreement

DENSE = {"accuracy": 0.9, "latency_ms": 1.0}
PROBLEM = Problem(objectives=("accuracy", "latency_ms"), dense=DENSE)


def ladder(*epochs: float, reduction: int = 3, bands: int = 4, problem: Problem = PROBLEM) -> Ladder:
    return Ladder(fidelities(epochs), reduction, bands, problem)


def trial(number: int, *values: tuple[float, float], state: str = "paused", full: float | None = None) -> TrialRecord:
    """``values``: accuracy and latency at each rung that was passed."""
    rungs = tuple(
        RungResult(
            plan_key="p",
            fidelity=fidelities(range(len(values)))[i],
            values={"accuracy": Estimate.exact(a), "latency_ms": Estimate.exact(ms)},
        )
        for i, (a, ms) in enumerate(values)
    )
    found: dict[str, Any] = {"number": number, "state": state, "rungs": rungs, "plan": Plan()}
    if full is not None:
        found |= {
            "state": "complete",
            "measurement": Measurement.model_validate(measurement("p", full, values[0][1])),
        }
    return TrialRecord(**found)


def test_of_every_three_the_best_goes_on_and_nobody_waits_for_a_rung_to_fill() -> None:
    rungs = ladder(0.0, 1.0, bands=1)
    two = [trial(0, (0.5, 0.5)), trial(1, (0.7, 0.5))]
    assert rungs.promotable(two) == []
    assert rungs.promotable([*two, trial(2, (0.6, 0.5))]) == [1]
    # One of three went on: the next may once there are six.
    gone = [two[0], trial(1, (0.7, 0.5), state="running"), trial(2, (0.6, 0.5))]
    assert rungs.promotable(gone) == []
    assert rungs.promotable([*gone, *(trial(n, (0.4, 0.5)) for n in (3, 4, 5))]) == [2]


def test_a_fast_candidate_is_compared_with_fast_ones() -> None:
    slow = [trial(n, (0.80 + 0.01 * n, 0.9 + 0.001 * n)) for n in range(6)]
    fast = [trial(6 + n, (0.50 + 0.01 * n, 0.1 + 0.001 * n)) for n in range(6)]
    # By accuracy alone no fast one would go on. In a band the last has the best accuracy, the first the best latency.
    found = ladder(0.0, 1.0, bands=2).promotable([*slow, *fast])
    assert len(found) == 4
    assert sum(number >= 6 for number in found) == 2


def test_what_breaks_a_bound_of_cost_comes_last_and_an_accuracy_bound_says_nothing_yet() -> None:
    problem = Problem(
        objectives=PROBLEM.objectives,
        dense=DENSE,
        bounds=(Bound(objective="latency_ms", max=0.5), Bound(objective="accuracy", min=0.8)),
    )
    trials = [trial(0, (0.9, 0.6)), trial(1, (0.3, 0.45)), trial(2, (0.2, 0.49))]
    assert ladder(0.0, 1.0, bands=1, problem=problem).promotable(trials) == [1]


def test_at_the_end_every_band_sends_one_on() -> None:
    trials = [trial(0, (0.5, 0.5)), trial(1, (0.7, 0.6))]
    # Equal in rank; up to (1.1, 1.1) of their own span the first adds 0.1 * 1 and the second 1 * 0.1.
    assert ladder(0.0, 1.0).promotable(trials, final=True) == [0]
    assert ladder(0.0, 1.0).promotable(trials) == []
    assert ladder(0.0, 1.0).promotable([], final=True) == []


def test_higher_rungs_come_first_and_rungs_out_of_use_hold_nobody_back() -> None:
    low = [trial(n, (0.5 + 0.01 * n, 0.5)) for n in range(3)]
    high = [trial(3 + n, (0.8, 0.5), (0.8 + 0.01 * n, 0.5)) for n in range(3)]
    rungs = ladder(0.0, 1.0, 2.0, bands=1)
    assert rungs.promotable([*low, *high])[0] == 5
    assert set(rungs.promotable([*low, *high], begin=1)) == {5, 0, 1, 2}


CUT = (ChannelCut(group="g", keep=8, criterion="magnitude"),)


def test_fresh_weights_are_not_judged_without_training_nor_trained_ones_again_and_again() -> None:
    rungs = ladder(0.0, 0.25, 1.0)
    assert rungs.first(Plan(cuts=CUT), 0) == 0
    assert rungs.first(Plan(cuts=CUT), 1) == 1
    assert rungs.first(Plan(cuts=CUT, schedule=FromScratch()), 0) == 1
    assert ladder(0.0, 1.0).first(Plan(cuts=CUT, schedule=FromScratch()), 0) == 1
    # What is only quantized is never trained: its first value is its last.
    assert rungs.first(Plan(bits=(LayerBits(layer="l", bits=8),)), 0) == 2


def test_newcomers_that_change_who_is_best_do_not_let_all_go_on_in_turn() -> None:
    # All on one front: whoever adds most hypervolume changes with every candidate.
    front = [(0.5 + 0.04 * n, 0.3 + 0.06 * n) for n in range(9)]
    states: dict[int, str] = {}
    for count in range(1, 10):
        trials = [trial(n, front[n], state=states.get(n, "paused")) for n in range(count)]
        states |= dict.fromkeys(ladder(0.0, 1.0, bands=1).promotable(trials), "running")
    assert len(states) == 3


def full_trials(order: list[float]) -> list[TrialRecord]:
    """Five complete trials of like latency; `order` is the accuracy at the first rung of finally 0.80, 0.81, ..."""
    return [trial(n, (early, 0.5), full=0.80 + 0.01 * n) for n, early in enumerate(order)]


def test_a_rung_that_ranks_stays() -> None:
    begin, words = ladder(0.0, 1.0).checked(full_trials([0.5, 0.6, 0.7, 0.8, 0.75]), 0)
    assert begin == 0
    assert words == (
        "0 epochs rank candidates as full training does with Kendall tau 0.80 (10 pairs of like latency): the first "
        "rung stays"
    )


def test_a_rung_that_does_not_rank_is_lengthened_to_the_first_that_does() -> None:
    early = [0.8, 0.7, 0.6, 0.5, 0.4]
    trials = [trial(n, (e, 0.5), (0.6 + 0.01 * n, 0.5), full=0.8 + 0.01 * n) for n, e in enumerate(early)]
    begin, words = ladder(0.0, 0.25, 1.0).checked(trials, 0)
    assert begin == 1
    assert words.endswith("Kendall tau -1.00 (10 pairs of like latency), under 0.3: the first rung is lengthened to "
                          "0.25 epochs")  # fmt: skip
    begin, words = ladder(0.0, 1.0).checked(full_trials(early), 0)
    assert begin == 1
    assert "lengthened to 1 epochs" in words


def test_the_drop_of_the_worst_class_is_learnt_and_costs_alone_are_not_checked() -> None:
    def judged(number: int, early: float, late: float) -> TrialRecord:
        found = trial(number, (0.8, 0.5), full=0.8)
        assert found.measurement is not None
        values = {"latency_ms": Estimate.exact(0.5)}
        rung = found.rungs[0].model_copy(update={"values": {**values, "worst_class_drop": Estimate.exact(early)}})
        full = {**values, "worst_class_drop": Estimate.exact(late)}
        measured = found.measurement.model_copy(update={"values": full})
        return found.model_copy(update={"rungs": (rung,), "measurement": measured})

    trials = [judged(n, 0.01 * n, 0.05 - 0.01 * n) for n in range(5)]
    dense = {"worst_class_drop": 0.0, "latency_ms": 1.0}
    drop = Problem(objectives=("worst_class_drop", "latency_ms"), dense=dense)
    assert rank_agreement(trials, 0, drop) == (-1.0, 10)
    costs = ladder(0.0, 1.0, problem=Problem(objectives=("latency_ms",), dense=dense))
    assert costs.checked(trials, 0) == (0, "")
    assert costs.unchecked(trials, 0) == ""
    assert costs.probes([trial(n, (0.5, 0.5)) for n in range(12)], begin=0) == []


def test_candidates_of_unlike_latency_are_no_pairs_and_too_few_pairs_decide_nothing() -> None:
    trials = [trial(n, (0.5, 0.1 * 2**n), full=0.8) for n in range(5)]
    assert rank_agreement(trials, 0, PROBLEM) == (0.0, 0)
    assert ladder(0.0, 1.0).checked(trials, 0) == (0, "")
    assert ladder(0.0, 1.0).unchecked(trials, 0) == (
        "whether 0 epochs rank candidates as full training does was not found out: it takes 8 pairs of like latency "
        "that are trained in full, and there are 0"
    )


def test_five_of_like_latency_are_trained_in_full_to_check_the_rung() -> None:
    rungs = ladder(0.0, 1.0, bands=1)
    alike = [trial(n, (0.5 + 0.01 * n, 0.5 + 0.001 * n)) for n in range(1, 8)]
    others = [trial(n, (0.9, 0.1 * 2 ** (n - 8))) for n in (8, 9)]
    gone = trial(0, (0.7, 0.5), full=0.9)
    assert rungs.probes([gone, *alike, *others][:9], begin=0) == []
    # The one that is trained anyway, and of the others the best, the worst and what lies evenly between.
    assert rungs.probes([gone, *alike, *others], begin=0) == [0, 7, 5, 3, 1]
    assert rungs.probes([gone, *alike, *others], begin=1) == []
    # Ten of which no five are alike.
    assert rungs.probes([trial(n, (0.5, 0.1 * 1.4**n)) for n in range(10)], begin=0) == []


def test_what_is_trained_for_the_check_takes_nobodys_place() -> None:
    rungs = ladder(0.0, 1.0, bands=1)
    trials = [trial(0, (0.9, 0.5)), trial(1, (0.5, 0.5), state="running"), trial(2, (0.4, 0.5), state="running")]
    assert rungs.promotable(trials) == []
    assert rungs.promotable(trials, probes=[1, 2]) == [0]


def test_the_last_of_a_rung_go_on_as_soon_as_nobody_comes_to_it_any_more() -> None:
    rungs = ladder(0.0, 0.25, 1.0, bands=1)
    waiting = trial(0, (0.9, 0.5))
    begun, ahead = trial(1, state="running"), trial(2, (0.8, 0.4), state="running")
    assert rungs.promotable([waiting, begun], final=True) == []
    assert rungs.promotable([waiting, ahead], final=True) == []  # it is the best of two already
    assert rungs.promotable([waiting, trial(1, (0.2, 0.9)), ahead, trial(3, (0.1, 0.9))], final=True) == [0]


def test_a_noisy_latency_decides_nothing_about_a_bound() -> None:
    problem = Problem(PROBLEM.objectives, DENSE, bounds=(Bound(objective="latency_ms", max=0.4),))
    slow = [trial(0, (0.5, 0.41)), trial(1, (0.9, 0.41)), trial(2, (0.4, 0.41))]
    assert ladder(0.0, 1.0, bands=1, problem=problem).promotable(slow) == [1]
    noisy = slow[0].model_copy(update={"rungs": (slow[0].rungs[0].model_copy(update={"noisy": True}),)})
    # The others are known to be too slow.
    assert ladder(0.0, 1.0, bands=1, problem=problem).promotable([noisy, *slow[1:]]) == [0]


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12))
def test_the_order_never_puts_a_dominated_point_before_one_that_dominates_it(pairs: list[tuple[int, int]]) -> None:
    points = np.array(pairs, dtype=float)
    order = best_first(points)
    assert sorted(order) == list(range(len(points)))
    place = {index: i for i, index in enumerate(order)}
    for i, a in enumerate(points):
        for j, b in enumerate(points):
            if (a <= b).all() and (a < b).any():
                assert place[i] < place[j]


def test_of_equal_rank_the_one_that_adds_most_comes_first() -> None:
    points = np.array([[0.0, 1.0], [0.05, 0.95], [0.5, 0.4], [1.0, 0.0]])
    # Up to (1.1, 1.1) they add 0.05 * 0.1, 0.45 * 0.05, 0.5 * 0.55 and 0.1 * 0.4.
    assert best_first(points) == [2, 3, 1, 0]
    assert best_first(np.empty((0, 2))) == []


def test_a_search_of_several_rungs_needs_a_problem() -> None:
    with pytest.raises(ValueError, match="objective 'latency_ms': expected a value in every point"):
        ladder(0.0, 1.0, problem=Problem(objectives=("latency_ms",), dense={})).promotable(
            [trial(n, (0.5, 0.5)) for n in range(3)]
        )
