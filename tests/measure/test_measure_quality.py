from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from autocompress.errors import MeasurementError
from autocompress.measure.quality import GENERIC_RESAMPLES, accuracy, difference, differences, predict, score
from autocompress.task import top1


class Doubling:
    """A session that doubles its inputs, and remembers the batches."""

    threads = 1

    def __init__(self) -> None:
        self.batches: list[int] = []

    def input_shapes(self, batch_size: int) -> dict[str, tuple[int, ...]]:
        return {"x": (batch_size, 2)}

    def run(self, inputs: np.ndarray) -> np.ndarray:
        self.batches.append(len(inputs))
        return 2.0 * inputs

    def runner(self, inputs: np.ndarray) -> Callable[[], object]:
        return lambda: self.run(inputs)


class Batched(Dataset[tuple[Tensor, Tensor]]):
    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return torch.stack([indices.float(), indices.float()], dim=1), indices


def one_hot(predicted: np.ndarray, classes: int) -> np.ndarray:
    return np.eye(classes, dtype=np.float32)[predicted]


def naive_interval(outputs: np.ndarray, targets: np.ndarray, seed: int) -> tuple[float, float]:
    rng = np.random.default_rng(seed)
    samples = []
    for _ in range(4000):
        rows = rng.integers(0, len(targets), len(targets))
        samples.append(top1(outputs[rows], targets[rows]))
    return tuple(np.percentile(samples, (2.5, 97.5)))  # type: ignore[return-value]


def named_metric(outputs: np.ndarray, targets: np.ndarray) -> float:
    return top1(outputs, targets)


def test_predict_keeps_the_order_and_takes_a_last_smaller_batch() -> None:
    session = Doubling()
    outputs, targets = predict(session, Batched(7), batch_size=3)
    assert session.batches == [3, 3, 1]
    np.testing.assert_array_equal(targets, np.arange(7))
    np.testing.assert_array_equal(outputs[:, 0], 2.0 * np.arange(7))


def test_predict_passes_several_inputs_by_their_names() -> None:
    class Summing(Doubling):
        def run(self, inputs: dict[str, np.ndarray]) -> np.ndarray:  # type: ignore[override]
            self.names = list(inputs)
            return sum(inputs.values())  # type: ignore[return-value]

    class Pairs(Batched):
        def batch(self, indices: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:  # type: ignore[override]
            return (indices.view(-1, 1), 10 * indices.view(-1, 1)), indices

    session = Summing()
    outputs, _ = predict(session, Pairs(5), batch_size=2)
    assert session.names == ["input_0", "input_1"]
    assert outputs.dtype == np.int64  # ids stay integers
    np.testing.assert_array_equal(outputs[:, 0], 11 * np.arange(5))


def test_predict_stacks_items_of_a_plain_dataset() -> None:
    inputs, targets = torch.rand(5, 2), torch.arange(5)
    outputs, got = predict(Doubling(), TensorDataset(inputs, targets))
    np.testing.assert_array_equal(outputs, 2.0 * inputs.numpy())
    np.testing.assert_array_equal(got, targets.numpy())


def test_predict_enters_the_guard_once_for_each_batch() -> None:
    entered = []

    @contextmanager
    def guard() -> Iterator[None]:
        entered.append(True)
        yield

    predict(Doubling(), Batched(7), batch_size=2, guard=guard)
    assert len(entered) == 4


@pytest.mark.parametrize(("count", "batch_size"), [(0, 5), (5, 0)])
def test_predict_refuses_an_empty_split_or_batch(count: int, batch_size: int) -> None:
    expected = f"expected a split with examples and batch_size >= 1, got {count} and {batch_size}"
    with pytest.raises(MeasurementError, match=expected):
        predict(Doubling(), Batched(count), batch_size=batch_size)


@pytest.mark.parametrize(("right", "count"), [(90, 100), (30, 40), (1, 200)])
def test_top1_interval_equals_a_naive_bootstrap(right: int, count: int) -> None:
    targets = np.zeros(count, dtype=np.int64)
    predicted = np.array([0] * right + [1] * (count - right))
    outputs = one_hot(predicted, 2)
    estimate = accuracy(outputs, targets, seed=0, resamples=4000)
    low, high = naive_interval(outputs, targets, seed=1)
    assert estimate.value == right / count
    assert estimate.low == pytest.approx(low, abs=1.01 / count)
    assert estimate.high == pytest.approx(high, abs=1.01 / count)


def test_top1_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for i in range(300):
        outputs = one_hot((rng.random(250) > 0.9).astype(int), 2)
        estimate = accuracy(outputs, np.zeros(250, dtype=np.int64), seed=i)
        covered += estimate.low <= 0.9 <= estimate.high
    assert 0.90 <= covered / 300 <= 0.99


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_any_estimate_holds_its_value_and_stays_in_range(right: list[bool], seed: int) -> None:
    outputs, targets = one_hot(np.array(right, dtype=int), 2), np.ones(len(right), dtype=np.int64)
    for metric in (top1, named_metric):
        estimate = accuracy(outputs, targets, metric, seed=seed, resamples=100)
        assert estimate.value == pytest.approx(np.mean(right))
        assert 0.0 <= estimate.low <= estimate.value <= estimate.high <= 1.0
        assert estimate == accuracy(outputs, targets, metric, seed=seed, resamples=100)


def test_another_metric_gets_about_the_interval_of_top1() -> None:
    targets = np.zeros(400, dtype=np.int64)
    outputs = one_hot(np.repeat([0, 1], [320, 80]), 2)
    fast, generic = accuracy(outputs, targets, seed=0), accuracy(outputs, targets, named_metric, seed=0)
    assert generic.value == fast.value
    assert generic.low == pytest.approx(fast.low, abs=0.015)
    assert generic.high == pytest.approx(fast.high, abs=0.015)


def test_top1_over_pixels_resamples_whole_examples() -> None:
    targets = np.zeros((2, 5), dtype=np.int64)
    predicted = np.array([[0] * 5, [1] * 5])
    estimate = accuracy(one_hot(predicted, 2), targets, seed=0)
    assert (estimate.low, estimate.value, estimate.high) == (0.0, 0.5, 1.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1.7, -0.1])
def test_a_metric_out_of_range_is_refused_by_name(value: float) -> None:
    def strange(outputs: np.ndarray, targets: np.ndarray) -> float:
        return value

    with pytest.raises(MeasurementError, match=r"metric 'strange': expected a value in \[0, 1\], got"):
        accuracy(np.ones((3, 2)), np.zeros(3), strange, seed=0)


def test_a_metric_that_raises_is_named() -> None:
    def broken(outputs: np.ndarray, targets: np.ndarray) -> float:
        raise KeyError("scores")

    with pytest.raises(MeasurementError, match="metric 'broken' raised KeyError on 3 examples: 'scores'"):
        accuracy(np.ones((3, 2)), np.zeros(3), broken, seed=0)


@pytest.mark.parametrize("rows", [(3, 4), (0, 0)])
def test_outputs_and_targets_of_other_lengths_are_refused(rows: tuple[int, int]) -> None:
    with pytest.raises(MeasurementError, match="expected outputs and targets for the same examples, got shapes"):
        accuracy(np.ones((rows[0], 2)), np.zeros(rows[1]), seed=0)


def test_difference_of_a_network_with_itself_is_exactly_zero() -> None:
    outputs, targets = np.random.default_rng(0).random((50, 3)), np.random.default_rng(1).integers(0, 3, 50)
    for metric in (top1, named_metric):
        estimate = difference(metric, outputs, outputs, targets, seed=0)
        assert (estimate.low, estimate.value, estimate.high) == (0.0, 0.0, 0.0)


def test_difference_is_positive_when_a_is_better_and_narrower_than_unpaired() -> None:
    targets = np.zeros(1000, dtype=np.int64)
    a, b = one_hot(np.repeat([0, 1], [900, 100]), 2), one_hot(np.repeat([0, 1], [880, 120]), 2)
    paired = difference(top1, a, b, targets, seed=0)
    single = accuracy(a, targets, seed=0)
    assert paired.value == pytest.approx(0.02)
    assert 0.0 < paired.low <= paired.value <= paired.high
    assert paired.high - paired.low < single.high - single.low
    flipped = difference(top1, b, a, targets, seed=0)
    assert flipped.value == pytest.approx(-0.02)


@given(st.integers(0, 200))
@settings(max_examples=10, deadline=None)
def test_difference_of_top1_equals_the_generic_bootstrap(seed: int) -> None:
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 3, 300)
    a, b = rng.random((300, 3)), rng.random((300, 3))
    fast = difference(top1, a, b, targets, seed=seed, resamples=2000)
    generic = difference(named_metric, a, b, targets, seed=seed)
    assert fast.value == generic.value
    assert fast.low == pytest.approx(generic.low, abs=0.04)
    assert fast.high == pytest.approx(generic.high, abs=0.04)


def error(outputs: np.ndarray, targets: np.ndarray) -> float:
    """Mean squared error, which may be above 1."""
    return float(np.mean((outputs - targets) ** 2))


def test_a_score_may_have_any_range_and_a_bootstrap_interval() -> None:
    rng = np.random.default_rng(0)
    outputs, targets = 10 * rng.normal(size=300), np.zeros(300)
    found = score(error, outputs, targets, seed=3)
    draws = np.random.default_rng(3)
    samples = [error(outputs[i], targets[i]) for i in (draws.integers(0, 300, 300) for _ in range(GENERIC_RESAMPLES))]
    assert found.value == error(outputs, targets) > 1
    assert (found.low, found.high) == pytest.approx(np.percentile(samples, (2.5, 97.5)))
    with pytest.raises(MeasurementError, match=r"metric 'error': expected a value in \[0, 1\], got "):
        accuracy(outputs, targets, error, seed=3)


def test_resamples_without_a_value_are_left_out_until_they_are_most() -> None:
    def rare(outputs: np.ndarray, targets: np.ndarray) -> float:
        """Mean output of class 1: none without an example of it."""
        return float(outputs[targets == 1].mean()) if (targets == 1).any() else float("nan")

    outputs, targets = np.arange(30.0), np.zeros(30)
    targets[:2] = 1
    assert score(rare, outputs, targets, seed=0).value == 0.5
    outputs, targets = np.arange(3000.0), np.zeros(3000)
    with pytest.raises(
        MeasurementError, match="metric 'rare': expected a finite value, got nan on 3000 examples; does a"
    ):
        score(rare, outputs, targets, seed=0)

    def never(outputs: np.ndarray, targets: np.ndarray) -> float:
        if len(np.unique(outputs)) < len(outputs):
            raise ValueError("doubles")
        return 1.0

    with pytest.raises(
        MeasurementError, match=r"'never': expected a value on most resamples of 30 examples, got one on 0"
    ):
        score(never, np.arange(30.0), np.zeros(30), seed=0)
    with pytest.raises(MeasurementError, match="metric 'never' raised ValueError on 2 examples: doubles"):
        score(never, np.zeros(2), np.zeros(2), seed=0)


def test_differences_of_many_are_those_of_each_pair() -> None:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 3, 100)
    nets = [rng.normal(size=(100, 3)) for _ in range(3)]
    found = differences(top1, nets, targets, seed=1)
    assert found == {(i, j): difference(top1, nets[i], nets[j], targets, seed=1) for i, j in found}
    assert set(found) == {(0, 1), (0, 2), (1, 2)}
    numbers = [rng.normal(size=100) for _ in range(3)]
    wanted = rng.normal(size=100)
    found = differences(error, numbers, wanted, seed=1, bounded=False)
    for (i, j), gap in found.items():
        assert gap == difference(error, numbers[i], numbers[j], wanted, seed=1, bounded=False)
