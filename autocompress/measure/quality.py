"""Quality of an artifact: its runtime's own outputs on a split, and how sure a metric of them is.

Intervals are bootstrap percentiles over examples: they say how much another draw of examples would move the value,
not another training run. Where every example, or none, is right, resampling has nothing to vary, and the interval is
a point.

References:
    Efron and Tibshirani, 1993, "An Introduction to the Bootstrap", chapter 13.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence, Sized
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from autocompress.errors import MeasurementError
from autocompress.inputs import arrays
from autocompress.measure.ratios import interval
from autocompress.measure.target import Session
from autocompress.records import Estimate
from autocompress.task import MetricFunction, fetch, top1

if TYPE_CHECKING:
    from torch.utils.data import Dataset

#: Resamples of a metric that has to be computed anew for each of them.
GENERIC_RESAMPLES = 200


def predict(
    session: Session,
    dataset: Dataset[Any],
    batch_size: int = 250,
    guard: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> tuple[np.ndarray, np.ndarray]:
    """The artifact's outputs on every example of a split.

    Args:
        session: the loaded artifact.
        dataset: map-style, n examples; its ``batch(indices)`` is used if it has one.
        batch_size: examples per inference; the last batch may be smaller.
        guard: entered around every batch, as ``slot.training``, so that latency can be taken in between.

    Returns:
        Outputs of shape (n, ...) and targets of shape (n, ...), in the dataset's order.

    Raises:
        MeasurementError: the split is empty, the batch size is below 1, or an output is NaN or infinite.
    """
    count = len(dataset) if isinstance(dataset, Sized) else 0
    if count == 0 or batch_size < 1:
        raise MeasurementError(f"expected a split with examples and batch_size >= 1, got {count} and {batch_size}")
    outputs, targets = [], []
    for start in range(0, count, batch_size):
        with guard():
            inputs, wanted = fetch(dataset, torch.arange(start, min(start + batch_size, count)))
            outputs.append(session.run(arrays(inputs)))
            targets.append(wanted.detach().cpu().numpy())
    return np.concatenate(outputs), np.concatenate(targets)


def accuracy(
    outputs: np.ndarray, targets: np.ndarray, metric: MetricFunction = top1, *, seed: int, resamples: int = 1000
) -> Estimate:
    """A metric's value with its 95% interval.

    For top-1, a resample of n examples of which k are right has Binomial(n, k / n) right ones, which is drawn
    directly. Any other metric is computed on at most `GENERIC_RESAMPLES` resamples.

    Args:
        outputs: shape (n, ...).
        targets: shape (n, ...).
        metric: ``(outputs, targets) -> value in [0, 1]``.
        seed: of the bootstrap.
        resamples: of the bootstrap.

    Raises:
        MeasurementError: shapes disagree, the metric raised, or its value is not in [0, 1].
    """
    count = _check(outputs, targets, resamples)
    value = _value(metric, outputs, targets)
    rng = np.random.default_rng(seed)
    if _is_plain_top1(metric, outputs, targets):
        return interval(value, rng.binomial(count, value, resamples) / count)
    rows = (rng.integers(0, count, count) for _ in range(min(resamples, GENERIC_RESAMPLES)))
    return interval(value, np.array([_value(metric, outputs[i], targets[i]) for i in rows]))


def score(
    metric: MetricFunction, outputs: np.ndarray, targets: np.ndarray, *, seed: int, resamples: int = GENERIC_RESAMPLES
) -> Estimate:
    """A metric of any range with its 95% interval, a bootstrap over examples.

    Resamples on which the metric has no value, such as those that lack a class, are left out.

    Args:
        metric: ``(outputs, targets) -> value``.
        outputs: shape (n, ...).
        targets: shape (n, ...).
        seed: of the bootstrap.
        resamples: of the bootstrap.

    Raises:
        MeasurementError: shapes disagree, the metric raised or has no finite value, or has none on most resamples.
    """
    count = _check(outputs, targets, resamples)
    value = _value(metric, outputs, targets, bounded=False)
    rng = np.random.default_rng(seed)
    samples = [
        _sample(metric, [outputs[i]], targets[i]) for i in (rng.integers(0, count, count) for _ in range(resamples))
    ]
    return interval(value, _defined(metric, samples, count))


def difference(
    metric: MetricFunction,
    outputs_a: np.ndarray,
    outputs_b: np.ndarray,
    targets: np.ndarray,
    *,
    seed: int,
    resamples: int = 1000,
    bounded: bool = True,
) -> Estimate:
    """metric(a) - metric(b) with its 95% interval, both networks resampled on the same examples.

    The paired interval is far narrower than what the two single intervals suggest, as most errors are shared. Above
    0 throughout: a is better. For top-1, the examples that only a, both or neither, and only b get right are one
    multinomial draw per resample.

    Args:
        metric: ``(outputs, targets) -> value``, in [0, 1] if `bounded`.
        outputs_a: shape (n, ...).
        outputs_b: shape (n, ...).
        targets: shape (n, ...).
        seed: of the bootstrap.
        resamples: of the bootstrap; at most `GENERIC_RESAMPLES` for other metrics than top-1.
        bounded: refuse values outside [0, 1]; else resamples on which there is no value are left out, as by `score`.

    Raises:
        MeasurementError: as `accuracy`.
    """
    count = _check(outputs_a, targets, resamples)
    _check(outputs_b, targets, resamples)
    value = _value(metric, outputs_a, targets, bounded) - _value(metric, outputs_b, targets, bounded)
    rng = np.random.default_rng(seed)
    if _is_plain_top1(metric, outputs_a, targets) and _is_plain_top1(metric, outputs_b, targets):
        right_a, right_b = (out.argmax(axis=-1) == targets for out in (outputs_a, outputs_b))
        only_a, only_b = int(np.sum(right_a & ~right_b)), int(np.sum(right_b & ~right_a))
        shares = np.array([only_a, count - only_a - only_b, only_b]) / count
        drawn = rng.multinomial(count, shares, resamples)
        return interval(value, (drawn[:, 0] - drawn[:, 2]) / count)
    samples = []
    for _ in range(min(resamples, GENERIC_RESAMPLES)):
        rows = rng.integers(0, count, count)
        if bounded:
            a, b = (_value(metric, out[rows], targets[rows]) for out in (outputs_a, outputs_b))
            samples.append(a - b)
        else:
            samples.append(_sample(metric, [outputs_a[rows], outputs_b[rows]], targets[rows]))
    return interval(value, np.array(samples) if bounded else _defined(metric, samples, count))


def differences(
    metric: MetricFunction,
    outputs: Sequence[np.ndarray],
    targets: np.ndarray,
    *,
    seed: int,
    bounded: bool = True,
) -> dict[tuple[int, int], Estimate]:
    """`difference` of every pair of several networks, each resampled once.

    Args:
        metric: ``(outputs, targets) -> value``, in [0, 1] if `bounded`.
        outputs: of k networks, shape (n, ...) each.
        targets: shape (n, ...).
        seed: of the bootstrap.
        bounded: as for `difference`.

    Returns:
        (i, j), i < j -> metric(i) - metric(j).

    Raises:
        MeasurementError: as `accuracy` and `score`.
    """
    pairs = [(i, j) for j in range(len(outputs)) for i in range(j)]
    if all(_is_plain_top1(metric, each, targets) for each in outputs):
        return {(i, j): difference(metric, outputs[i], outputs[j], targets, seed=seed) for i, j in pairs}
    count = max((_check(each, targets, 1) for each in outputs), default=0)
    values = [_value(metric, each, targets, bounded) for each in outputs]
    rng = np.random.default_rng(seed)
    rows = [rng.integers(0, count, count) for _ in range(GENERIC_RESAMPLES)]
    samples = [np.array([_sample(metric, [each[i]], targets[i]) for i in rows]) for each in outputs]
    return {
        (i, j): interval(values[i] - values[j], _defined(metric, list(samples[i] - samples[j]), count))
        for i, j in pairs
    }


def _is_plain_top1(metric: MetricFunction, outputs: np.ndarray, targets: np.ndarray) -> bool:
    """True if every example is simply right or wrong."""
    return metric is top1 and outputs.ndim == 2 and targets.ndim == 1


def _check(outputs: np.ndarray, targets: np.ndarray, resamples: int) -> int:
    if outputs.ndim == 0 or targets.ndim == 0 or len(outputs) != len(targets) or len(targets) == 0:
        raise MeasurementError(
            f"expected outputs and targets for the same examples, got shapes {outputs.shape} and {targets.shape}"
        )
    if resamples < 1:
        raise MeasurementError(f"resamples: expected >= 1, got {resamples}")
    return len(targets)


def _sample(metric: MetricFunction, outputs: Sequence[np.ndarray], targets: np.ndarray) -> float:
    """The metric on a resample, or the difference of two; NaN where it has no value."""
    try:
        values = [_value(metric, each, targets, bounded=False) for each in outputs]
    except MeasurementError:
        return math.nan
    return values[0] - sum(values[1:])


def _defined(metric: MetricFunction, samples: Sequence[float], count: int) -> np.ndarray:
    found = np.array([sample for sample in samples if math.isfinite(sample)])
    if 2 * len(found) < len(samples):
        raise MeasurementError(
            f"metric {getattr(metric, '__name__', repr(metric))!r}: expected a value on most resamples of {count} "
            f"examples, got one on {len(found)} of {len(samples)}; it needs more examples of each class"
        )
    return found


def _value(metric: MetricFunction, outputs: np.ndarray, targets: np.ndarray, bounded: bool = True) -> float:
    name = getattr(metric, "__name__", repr(metric))
    try:
        value = float(metric(outputs, targets))
    except MeasurementError:
        raise
    except Exception as error:
        raise MeasurementError(
            f"metric {name!r} raised {type(error).__name__} on {len(targets)} examples: {error}"
        ) from error
    if not bounded and not math.isfinite(value):
        raise MeasurementError(
            f"metric {name!r}: expected a finite value, got {value} on {len(targets)} examples; does a class have none?"
        )
    if bounded and not (math.isfinite(value) and 0.0 <= value <= 1.0):
        raise MeasurementError(f"metric {name!r}: expected a value in [0, 1], got {value}")
    return value
