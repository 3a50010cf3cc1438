from __future__ import annotations

import time

import moocore
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from autocompress.search.ehvi import expected_improvement


def volume(points: np.ndarray, m: int) -> float:
    return float(moocore.hypervolume(points, ref=np.ones(m))) if len(points) else 0.0


def sampled(mean: np.ndarray, std: np.ndarray, front: np.ndarray, draws: np.ndarray) -> tuple[float, float]:
    """The definition, by Monte Carlo: mean improvement over draws of the candidate, and its standard error."""
    before = volume(front, len(mean))
    gains = np.array([volume(np.vstack([front, mean + std * z]), len(mean)) - before for z in draws])
    return float(gains.mean()), float(gains.std() / np.sqrt(len(gains)))


@given(
    m=st.integers(1, 4), k=st.integers(0, 8), seed=st.integers(0, 2**31), low=st.floats(0.05, 0.9),
    spread=st.floats(0.0, 0.4),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_it_is_the_mean_improvement_of_sampled_candidates(m: int, k: int, seed: int, low: float, spread: float) -> None:
    rng = np.random.default_rng(seed)
    front = rng.uniform(0.0, 1.2, (k, m))  # dominated points, and some beyond the reference
    mean = np.clip(rng.uniform(low, low + 0.3, m), None, 1.3)
    std = spread * rng.uniform(0.1, 1.0, m)
    found = expected_improvement(mean[None], std[None], front)
    expected, error = sampled(mean, std, front, rng.standard_normal((600, m)))
    assert found.shape == (1,)
    assert found[0] >= 0.0
    assert found[0] == pytest.approx(expected, abs=5.0 * error + 1e-3)


def test_one_objective_is_expected_improvement() -> None:
    mean, std, best = 0.5, 0.2, 0.45
    z = (best - mean) / std
    formula = (best - mean) * norm.cdf(z) + std * norm.pdf(z)
    found = expected_improvement(np.array([[mean]]), np.array([[std]]), np.array([[best], [0.9]]))
    assert found[0] == pytest.approx(formula)


def test_what_is_certain_counts_its_exclusive_volume_and_what_is_dominated_nothing() -> None:
    front = np.array([[0.2, 0.8], [0.6, 0.3]])
    means = np.array([[0.4, 0.5], [0.7, 0.9], [0.2, 0.8], [1.1, 0.1]])
    found = expected_improvement(means, np.zeros_like(means), front)
    assert found == pytest.approx([(0.6 - 0.4) * (0.8 - 0.5), 0.0, 0.0, 0.0])


def test_equal_and_dominated_points_of_the_front_change_nothing() -> None:
    rng = np.random.default_rng(0)
    means, stds = rng.uniform(0, 1, (50, 3)), rng.uniform(0, 0.3, (50, 3))
    front = np.array([[0.2, 0.8, 0.5], [0.6, 0.3, 0.5], [0.4, 0.4, 0.7]])
    more = np.vstack([front, front, [[0.7, 0.9, 0.9]], [[1.5, 0.0, 0.0]]])
    assert expected_improvement(means, stds, more) == pytest.approx(expected_improvement(means, stds, front))


def test_an_empty_front_leaves_the_whole_box() -> None:
    found = expected_improvement(np.array([[0.25, 0.5]]), np.zeros((1, 2)), np.empty((0, 2)))
    assert found == pytest.approx([0.75 * 0.5])


def test_thousands_of_candidates_take_milliseconds() -> None:
    rng = np.random.default_rng(1)
    x = np.sort(rng.uniform(0.1, 1, 60))
    front = np.stack([x, 0.1 / x], axis=1)
    means, stds = rng.uniform(0, 1, (3000, 2)), rng.uniform(0.01, 0.2, (3000, 2))
    started = time.perf_counter()
    expected_improvement(means, stds, front)
    assert time.perf_counter() - started < 0.5  # 10 ms on a quiet machine


def test_many_objectives_with_a_large_front_stay_affordable() -> None:
    rng = np.random.default_rng(1)
    started = time.perf_counter()
    found = expected_improvement(rng.uniform(0, 1, (50, 5)), np.full((50, 5), 0.1), rng.uniform(0.2, 1, (300, 5)))
    assert time.perf_counter() - started < 2.0
    assert np.isfinite(found).all()


@pytest.mark.parametrize(
    ("means", "stds", "front", "message"),
    [
        ([[0.1, 0.2]], [[0.1]], [[0.5, 0.5]], r"expected one shape \(n, m\) with m >= 1, got \(1, 2\) and \(1, 1\)"),
        ([[0.1, 0.2]], [[0.1, 0.1]], [[0.5]], r"front: expected shape \(k, 2\), got \(1, 1\)"),
        ([[0.1, np.nan]], [[0.1, 0.1]], [[0.5, 0.5]], "means: expected finite values, got nan"),
        ([[0.1, 0.2]], [[0.1, -0.1]], [[0.5, 0.5]], "stds: expected values >= 0, got -0.1"),
    ],
)
def test_refused(means: list[list[float]], stds: list[list[float]], front: list[list[float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        expected_improvement(np.array(means), np.array(stds), np.array(front))
