from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from autocompress.errors import MeasurementError
from autocompress.measure.fairness import class_impact, fairness, is_classification, pies, tango, welch, wilson
from autocompress.records import Fairness

Z = stats.norm.ppf(0.975)


def scores(predicted: np.ndarray, classes: int) -> np.ndarray:
    return np.eye(classes, dtype=np.float32)[predicted]


def two_models(seed: int, n: int = 200, classes: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predictions of a dense and a compressed model, and targets; the compressed one is bad at the last class."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, classes, n)
    dense = np.where(rng.random(n) < 0.9, targets, rng.integers(0, classes, n))
    broken = (targets == classes - 1) & (rng.random(n) < 0.5)
    return dense, np.where(broken, (dense + 1) % classes, dense), targets


def test_recalls_changes_and_the_worst_class_are_those_counted_by_hand() -> None:
    #  class 0: 4 examples, dense 4 right, compressed 3; class 2: 5 examples, dense 3 right, compressed 1 + 1 gained.
    targets = np.array([0, 0, 0, 0, 2, 2, 2, 2, 2])
    dense = np.array([0, 0, 0, 0, 2, 2, 2, 0, 1])
    small = np.array([0, 0, 0, 1, 2, 0, 0, 0, 2])
    found = fairness(scores(dense, 3), scores(small, 3), targets, seed=0)
    assert [c.target for c in found.classes] == [0, 2]  # class 1 has no examples
    assert [c.examples for c in found.classes] == [4, 5]
    assert [c.dense.value for c in found.classes] == pytest.approx([1.0, 0.6])
    assert [c.compressed.value for c in found.classes] == pytest.approx([0.75, 0.4])
    assert [c.change.value for c in found.classes] == pytest.approx([-0.25, -0.2])
    assert found.overall.value == pytest.approx(-2 / 9)
    assert (found.worst_class, found.worst_class_drop.value) == (0, pytest.approx(0.25))
    assert (found.pies, found.models) == (None, None)
    assert Fairness.model_validate_json(found.model_dump_json()) == found


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 5), st.integers(3, 60))
def test_every_number_agrees_with_a_loop_over_examples(seed: int, classes: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    dense, small, targets = rng.integers(0, classes, (3, n))
    found = fairness(scores(dense, classes), scores(small, classes), targets, seed=seed)
    drops = {}
    for change in found.classes:
        members = [i for i in range(n) if targets[i] == change.target]
        before = sum(dense[i] == change.target for i in members) / len(members)
        after = sum(small[i] == change.target for i in members) / len(members)
        assert change.examples == len(members)
        assert (change.dense.value, change.compressed.value) == pytest.approx((before, after))
        assert change.change.value == pytest.approx(after - before)
        for estimate in (change.dense, change.compressed, change.change):
            assert estimate.low <= estimate.value <= estimate.high
        drops[change.target] = before - after
    assert sorted(drops) == sorted(set(targets.tolist()))
    assert found.worst_class_drop.value == pytest.approx(max(drops.values()))
    assert drops[found.worst_class] == pytest.approx(max(drops.values()))
    worst = found.worst_class_drop
    assert -1.0 <= worst.low <= worst.value <= worst.high <= 1.0


def test_the_impact_is_welchs_t_of_the_classs_examples_against_the_others() -> None:
    dense, small, targets = two_models(0)
    found = fairness(scores(dense, 4), scores(small, 4), targets, seed=0)
    moved = (small == targets).astype(float) - (dense == targets).astype(float)
    for change in found.classes:
        members = targets == change.target
        expected = stats.ttest_ind(moved[members], moved[~members], equal_var=False)
        assert change.impact == pytest.approx(expected.statistic)
        assert change.p_value == pytest.approx(expected.pvalue)
    last = found.classes[-1]
    assert found.worst_class == last.target == 3
    assert last.impact is not None
    assert last.impact < -3
    assert last.p_value is not None
    assert last.p_value < 0.01
    assert last.change.high < 0 < found.worst_class_drop.low  # a loss beyond doubt


def test_equal_models_have_no_drop_and_no_impact_but_doubt_stays() -> None:
    dense, _, targets = two_models(1, n=100)
    found = fairness(scores(dense, 4), scores(dense, 4), targets, seed=0)
    for change in found.classes:
        assert change.change.value == 0.0
        assert (change.impact, change.p_value) == (None, None)
        # No discordant pair among n: the bound solves n δ = z sqrt(n δ (1 - δ)), that is δ = z² / (n + z²).
        assert change.change.high == pytest.approx(Z**2 / (change.examples + Z**2))
        assert change.change.low == pytest.approx(-change.change.high)
    assert (found.worst_class, found.worst_class_drop.value) == (0, 0.0)


@pytest.mark.parametrize(
    ("outputs", "targets", "message"),
    [
        (np.zeros((4, 3, 2)), np.zeros((4, 3), dtype=int), r"expected a classification, .* got \(4, 3, 2\)"),
        (np.zeros((4, 3)), np.zeros(4), r"integer targets of shape \(n,\), got \(4, 3\) and float64 of shape \(4,\)"),
        (np.zeros((4, 1)), np.zeros(4, dtype=int), r"got \(4, 1\).*leave worst_class_drop out"),
        (np.zeros((4, 3)), np.array([0, 1, 2, 3]), "expected targets from 0 to 2, got 0 to 3"),
        (np.zeros((0, 3)), np.zeros(0, dtype=int), "expected targets from 0 to 2, got none"),
    ],
)
def test_what_is_no_classification_is_refused(outputs: np.ndarray, targets: np.ndarray, message: str) -> None:
    with pytest.raises(MeasurementError, match=message):
        fairness(outputs, outputs, targets, seed=0)


def test_outputs_of_different_shapes_are_refused() -> None:
    with pytest.raises(MeasurementError, match=r"expected outputs of one shape, got \(4, 2\) and \(4, 3\)"):
        fairness(np.zeros((4, 2)), np.zeros((4, 3)), np.zeros(4, dtype=int), seed=0)


def test_only_scores_of_classes_with_one_index_each_are_a_classification() -> None:
    assert is_classification(np.zeros((4, 2)), np.zeros(4, dtype=np.int64))
    assert not is_classification(np.zeros((4, 5, 2)), np.zeros((4, 5), dtype=np.int64))
    assert not is_classification(np.zeros((4, 2)), np.zeros((4, 2)))
    assert not is_classification(np.zeros(4), np.zeros(4, dtype=np.int64))


@given(st.integers(1, 300), st.data())
def test_wilsons_bounds_solve_its_quadratic(n: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, n))
    expected = stats.binomtest(right, n).proportion_ci(method="wilson")
    assert wilson(right, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 80), st.data())
def test_tangos_bounds_agree_with_a_search_over_likelihoods(n: int, data: st.DataObject) -> None:
    b = data.draw(st.integers(0, n))
    c = data.draw(st.integers(0, n - b))
    low, high = tango(b, c, n)
    assert -1.0 <= low <= (b - c) / n <= high <= 1.0

    def statistic(delta: float) -> float:
        # Shares (q + δ, q, 1 - 2q - δ) of pairs; the likeliest q on a grid, instead of the closed form.
        q = np.linspace(max(0.0, -delta), (1 - delta) / 2, 20001)[1:-1]
        with np.errstate(divide="ignore", invalid="ignore"):
            likelihood = sum(
                k * np.log(p) if k else np.zeros_like(p)
                for k, p in ((b, q + delta), (c, q), (n - b - c, 1 - 2 * q - delta))
            )
        best = q[np.argmax(likelihood)]
        return float((b - c - n * delta) / math.sqrt(n * (2 * best + delta * (1 - delta))))

    for bound, z in ((low, Z), (high, -Z)):
        if -0.999 < bound < 0.999:
            assert statistic(bound) == pytest.approx(z, abs=0.02)


def test_tangos_interval_turns_with_the_models_and_covers_the_truth() -> None:
    low, high = tango(12, 2, 50)
    assert tango(2, 12, 50) == pytest.approx((-high, -low))
    rng = np.random.default_rng(0)
    for shares in ((0.1, 0.8, 0.1), (0.2, 0.75, 0.05), (0.02, 0.97, 0.01)):
        drawn = rng.multinomial(40, shares, 400)
        covered = [lo <= shares[0] - shares[2] <= hi for lo, hi in (tango(int(b), int(c), 40) for b, _, c in drawn)]
        assert np.mean(covered) > 0.91


def test_the_interval_of_the_largest_drop_covers_it_though_the_worst_class_is_chosen_by_the_data() -> None:
    rng = np.random.default_rng(0)
    classes, n, covered = 6, 30, 0
    targets = np.repeat(np.arange(classes), n)
    dense = scores(targets, classes)
    for _ in range(60):
        lost = rng.random(classes * n) < 0.1  # every class loses 10 points
        found = fairness(dense, scores(np.where(lost, (targets + 1) % classes, targets), classes), targets, seed=0)
        covered += found.worst_class_drop.low <= 0.1 <= found.worst_class_drop.high
    assert covered >= 56


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 5), st.integers(1, 5), st.integers(1, 30))
def test_exemplars_are_those_found_by_counting_votes(seed: int, k: int, m: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    dense, small = rng.integers(0, 3, (k, n)), rng.integers(0, 4, (m, n))

    def mode(votes: list[int]) -> int:
        return min(sorted(set(votes)), key=lambda vote: (-votes.count(vote), vote))

    expected = [i for i in range(n) if mode(dense[:, i].tolist()) != mode(small[:, i].tolist())]
    assert pies(dense, small).tolist() == expected


@pytest.mark.parametrize(
    ("dense", "small", "message"),
    [
        (np.zeros((2, 3), dtype=int), np.zeros((2, 4), dtype=int), r"got \(2, 3\) and \(2, 4\)"),
        (np.zeros((0, 3), dtype=int), np.zeros((2, 3), dtype=int), r"got \(0, 3\) and \(2, 3\)"),
        (np.zeros((1, 3), dtype=int), np.zeros((0, 3), dtype=int), "at least one compressed model"),
        (np.zeros((1, 3)), np.zeros((1, 3), dtype=int), "dense: expected class indices >= 0, got float64"),
        (np.zeros((1, 3), dtype=int), np.full((1, 3), -1), "compressed: expected class indices >= 0"),
    ],
)
def test_predictions_that_cannot_be_compared_are_refused(dense: np.ndarray, small: np.ndarray, message: str) -> None:
    with pytest.raises(MeasurementError, match=message):
        pies(dense, small)


def test_the_impact_over_models_is_welchs_t_of_recalls_beside_accuracies() -> None:
    rng = np.random.default_rng(3)
    targets = rng.integers(0, 3, 90)
    dense = np.where(rng.random((5, 90)) < 0.9, targets, 0)
    small = np.where((rng.random((4, 90)) < 0.5) & (targets == 2), 1, np.where(rng.random((4, 90)) < 0.9, targets, 0))
    found = class_impact(dense, small, targets)
    for target in (0, 1, 2):
        samples = []
        for models in (small, dense):
            rows = []
            for row in models:
                members = [i for i in range(90) if targets[i] == target]
                rows.append(np.mean([row[i] == target for i in members]) - np.mean(row == targets))
            samples.append(rows)
        expected = stats.ttest_ind(*samples, equal_var=False)
        assert found[target] == pytest.approx((expected.statistic, expected.pvalue))
    assert found[2][0] < 0 < found[1][0]  # the last class is lost, so the others gain on the mean
    with pytest.raises(MeasurementError, match=r"models >= 2, n\) for n targets, got \(1, 90\), \(4, 90\) and \(90,\)"):
        class_impact(dense[:1], small, targets)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=8), st.lists(st.floats(-5, 5), min_size=2, max_size=8))
def test_welch_agrees_with_scipy(first: list[float], second: list[float]) -> None:
    a, b = np.array(first), np.array(second)
    assume(min(np.var(a), np.var(b)) > 1e-6)
    expected = stats.ttest_ind(a, b, equal_var=False)
    assert welch(a, b) == pytest.approx((expected.statistic, expected.pvalue), rel=1e-6, abs=1e-9)


def test_welch_has_nothing_to_say_of_constants_or_single_values() -> None:
    assert welch(np.ones(3), np.zeros(4)) is None
    assert welch(np.ones(1), np.arange(4.0)) is None


def test_no_change_is_plain_zero_not_minus_zero() -> None:
    dense, _, targets = two_models(2, n=40)
    found = fairness(scores(dense, 4), scores(dense, 4), targets, seed=0)
    assert math.copysign(1.0, found.worst_class_drop.value) == 1.0
