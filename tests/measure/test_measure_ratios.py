from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autocompress.errors import MeasurementError
from autocompress.measure.ratios import compare, drift, interval

ROUNDS = 20


@st.composite
def readings(draw: st.DrawFn) -> tuple[float, float, np.ndarray, np.ndarray]:
    """True ratio, baseline seconds, and blocks under common-mode changes and some 10x outliers on either side."""
    ratio = draw(st.floats(0.05, 4.0))
    base = draw(st.floats(1e-5, 0.1))
    common = np.array(draw(st.lists(st.floats(0.5, 3.0), min_size=ROUNDS, max_size=ROUNDS)))
    candidate, baseline = ratio * base * common, base * common
    for times in (candidate, baseline):
        hit = draw(st.lists(st.integers(0, ROUNDS - 1), max_size=4, unique=True))
        times[hit] *= 10.0
    return ratio, base, candidate, baseline


@given(readings(), st.integers(0, 2**31 - 1))
@settings(max_examples=100, deadline=None)
def test_known_ratio_is_recovered_under_common_drift_and_outliers(
    reading: tuple[float, float, np.ndarray, np.ndarray], seed: int
) -> None:
    ratio, _, candidate, baseline = reading
    result = compare(candidate, baseline, seed=seed, resamples=100)
    assert result.ratio.value == pytest.approx(ratio)
    assert result.ratio.low <= result.ratio.value <= result.ratio.high
    assert result.latency_ms.low <= result.latency_ms.value <= result.latency_ms.high
    assert result.baseline_ms == pytest.approx(np.median(baseline) * 1e3)
    assert result.latency_ms.value == pytest.approx(result.ratio.value * result.baseline_ms)


@given(st.floats(0.1, 3.0), st.floats(0.0, 0.02), st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_jitter_moves_the_ratio_no_more_than_itself(ratio: float, jitter: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    candidate, baseline = (1.0 + jitter * rng.uniform(-1, 1, (2, ROUNDS))) * np.array([[ratio], [1.0]]) * 1e-3
    result = compare(candidate, baseline, seed=seed)
    assert result.ratio.value == pytest.approx(ratio, rel=2.1 * jitter + 1e-9)
    assert result.dispersion <= 4.2 * jitter + 1e-9
    assert result.drift <= 2.1 * jitter + 1e-9


def test_interval_covers_the_true_ratio_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for i in range(200):
        candidate, baseline = rng.lognormal(0.0, 0.05, (2, ROUNDS)) * np.array([[0.5], [1.0]])
        ratio = compare(candidate, baseline, seed=i, resamples=300).ratio
        covered += ratio.low <= 0.5 <= ratio.high
    assert 0.88 <= covered / 200 <= 1.0


def test_equal_networks_have_ratio_one_with_a_point_interval() -> None:
    times = np.full(ROUNDS, 2e-3)
    result = compare(times, times, seed=0)
    assert (result.ratio.low, result.ratio.value, result.ratio.high) == (1.0, 1.0, 1.0)
    assert result.latency_ms.value == pytest.approx(2.0)
    assert result.dispersion == 0.0


def test_same_seed_gives_the_same_intervals() -> None:
    candidate, baseline = np.random.default_rng(1).lognormal(0.0, 0.1, (2, ROUNDS))
    assert compare(candidate, baseline, seed=5) == compare(candidate, baseline, seed=5)


def test_dispersion_is_the_interquartile_range_over_the_median() -> None:
    ratios = np.array([0.8, 0.9, 1.0, 1.1, 1.2])
    assert compare(ratios, np.ones(5), seed=0).dispersion == pytest.approx(0.2)


@pytest.mark.parametrize("bad", [0.0, -1e-3, float("nan"), float("inf")])
def test_times_that_no_clock_gives_are_refused(bad: float) -> None:
    good, times = np.full(ROUNDS, 1e-3), np.full(ROUNDS, 1e-3)
    times[3] = bad
    with pytest.raises(MeasurementError, match="candidate's block times: expected finite seconds above 0, got"):
        compare(times, good, seed=0)
    with pytest.raises(MeasurementError, match="baseline's block times: expected finite seconds above 0, got"):
        compare(good, times, seed=0)


@pytest.mark.parametrize("shapes", [((3,), (4,)), ((0,), (0,)), ((2, 2), (2, 2))])
def test_shapes_that_disagree_are_refused(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(MeasurementError, match="expected one for each round, got shapes"):
        compare(np.ones(shapes[0]), np.ones(shapes[1]), seed=0)


def test_drift_of_a_trend_and_of_a_step_and_of_a_bump() -> None:
    trend = np.linspace(1.0, 1.3, 21)
    assert drift(trend) == pytest.approx(14 / 20 * 0.3 / 1.15)
    assert drift(np.repeat([1.0, 1.2], 10)) > 0.1
    assert drift(np.repeat([1.0, 1.2, 1.0], 7)) == pytest.approx(0.2)


def test_drift_ignores_outliers_and_needs_three_rounds() -> None:
    times = np.ones(21)
    times[[0, 9, 20]] = 10.0
    assert drift(times) == 0.0
    assert drift(np.array([1.0, 9.0])) == 0.0


def test_interval_never_leaves_out_its_value() -> None:
    estimate = interval(2.0, np.array([0.0, 1.0]))
    assert estimate.low <= estimate.value == estimate.high == 2.0


@given(readings(), st.floats(1e-3, 1e3), st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_the_speed_of_the_machine_leaves_ratios_alone(
    reading: tuple[float, float, np.ndarray, np.ndarray], speed: float, seed: int
) -> None:
    _, _, candidate, baseline = reading
    before = compare(candidate, baseline, seed=seed, resamples=100)
    after = compare(candidate * speed, baseline * speed, seed=seed, resamples=100)
    for name in ("value", "low", "high"):
        assert getattr(after.ratio, name) == pytest.approx(getattr(before.ratio, name))
        assert getattr(after.latency_ms, name) == pytest.approx(speed * getattr(before.latency_ms, name))
    assert after.dispersion == pytest.approx(before.dispersion, abs=1e-9)
    assert after.drift == pytest.approx(before.drift, abs=1e-9)


@given(st.data(), st.floats(0.05, 4.0), st.sampled_from([1e-6, 1e-2, 1e2, 1e6]))
@settings(max_examples=50, deadline=None)
def test_outliers_in_fewer_than_half_of_the_rounds_leave_the_ratio_where_it_was(
    data: st.DataObject, ratio: float, size: float
) -> None:
    hit = data.draw(st.lists(st.integers(0, ROUNDS - 1), max_size=ROUNDS // 2 - 1, unique=True))
    candidate, baseline = np.full(ROUNDS, ratio * 1e-3), np.full(ROUNDS, 1e-3)
    candidate[hit] *= size
    assert compare(candidate, baseline, seed=0, resamples=100).ratio.value == pytest.approx(ratio)


@given(readings(), st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_the_bootstrap_is_that_of_a_naive_loop(reading: tuple[float, float, np.ndarray, np.ndarray], seed: int) -> None:
    _, _, candidate, baseline = reading
    found = compare(candidate, baseline, seed=seed, resamples=200)
    draws = np.random.default_rng(seed).integers(0, ROUNDS, (200, ROUNDS))
    ratios, latencies = [], []
    for draw in draws:
        rounds = sorted(float(candidate[i]) / float(baseline[i]) for i in draw)
        middle = (rounds[ROUNDS // 2 - 1] + rounds[ROUNDS // 2]) / 2
        base = sorted(float(baseline[i]) for i in draw)
        ratios.append(middle)
        latencies.append(1e3 * middle * (base[ROUNDS // 2 - 1] + base[ROUNDS // 2]) / 2)
    for estimate, samples in ((found.ratio, sorted(ratios)), (found.latency_ms, sorted(latencies))):
        ends = []
        for share in (0.025, 0.975):
            # Linear between the two order statistics around the share.
            place = share * (len(samples) - 1)
            below = int(place)
            ends.append(samples[below] + (place - below) * (samples[below + 1] - samples[below]))
        assert estimate.low == pytest.approx(min(ends[0], estimate.value))
        assert estimate.high == pytest.approx(max(ends[1], estimate.value))
