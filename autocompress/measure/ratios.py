"""The mathematics of a latency reading, apart from any clock.

A *block* is the median time of a few inferences in a row. In each of R rounds every network has one block, the dense
baseline among them. Letters: c and b, shape (R,), are a candidate's and the baseline's blocks in seconds; r = c / b.

References:
    Efron and Tibshirani, 1993, "An Introduction to the Bootstrap" (percentile interval);
    Kalibera and Jones, 2013, "Rigorous benchmarking in reasonable time" (ratios of means with bootstrap intervals).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autocompress.errors import MeasurementError
from autocompress.records import Estimate


@dataclass(frozen=True)
class Comparison:
    """A candidate beside the baseline.

    Attributes:
        ratio: median of the rounds' ratios; below 1 is faster than the baseline.
        latency_ms: `ratio` × `baseline_ms`.
        baseline_ms: median of the baseline's blocks.
        dispersion: interquartile range of the rounds' ratios over their median.
        drift: see `drift`, of the baseline.
    """

    ratio: Estimate
    latency_ms: Estimate
    baseline_ms: float
    dispersion: float
    drift: float


def compare(candidate: np.ndarray, baseline: np.ndarray, *, seed: int, resamples: int = 1000) -> Comparison:
    """Compare a candidate with the baseline, round by round.

    ratio = median(c / b), latency = ratio × median(b). What changes both in one round alike, such as a slower clock,
    leaves the ratio as it is; outliers in fewer than half of the rounds cannot carry it away. The 95% intervals are
    percentiles of a bootstrap over rounds, candidate and baseline resampled together.

    Args:
        candidate: shape (R,), seconds.
        baseline: shape (R,), seconds, of the same rounds.
        seed: of the bootstrap.
        resamples: of the bootstrap.

    Raises:
        MeasurementError: shapes disagree, are empty, or a time is not finite and above 0.
    """
    for name, times in (("candidate", candidate), ("baseline", baseline)):
        if times.ndim != 1 or times.size == 0 or times.shape != candidate.shape:
            raise MeasurementError(
                f"{name}'s block times: expected one for each round, got shapes {candidate.shape}, {baseline.shape}"
            )
        bad = times[~(np.isfinite(times) & (times > 0))]
        if bad.size:
            raise MeasurementError(f"{name}'s block times: expected finite seconds above 0, got {bad[0]}")
    ratios = candidate / baseline
    rows = np.random.default_rng(seed).integers(0, len(ratios), (resamples, len(ratios)))
    sampled_ratios = np.median(ratios[rows], axis=1)
    sampled_latencies = sampled_ratios * np.median(baseline[rows], axis=1) * 1e3
    ratio, base_ms = float(np.median(ratios)), float(np.median(baseline)) * 1e3
    quartiles = np.percentile(ratios, (25, 75))
    return Comparison(
        ratio=interval(ratio, sampled_ratios),
        latency_ms=interval(ratio * base_ms, sampled_latencies),
        baseline_ms=base_ms,
        dispersion=float(quartiles[1] - quartiles[0]) / ratio,
        drift=drift(baseline),
    )


def drift(times: np.ndarray) -> float:
    """How far a network's speed moved while it was measured: a slow trend or a lasting step, not single outliers.

    (largest - smallest) / median(times), of the medians of the first, middle and last third of the rounds.

    Args:
        times: shape (R,), seconds, in the order taken.

    Returns:
        A share of the median; 0.0 for fewer than 3 rounds.
    """
    if len(times) < 3:
        return 0.0
    medians = [float(np.median(part)) for part in np.array_split(times, 3)]
    return (max(medians) - min(medians)) / float(np.median(times))


def interval(value: float, samples: np.ndarray) -> Estimate:
    """95% percentile interval of bootstrap samples, widened where it would leave out the value itself.

    Args:
        value: the estimate from all data.
        samples: shape (resamples,), the estimate from each resample.
    """
    low, high = (float(x) for x in np.percentile(samples, (2.5, 97.5)))
    return Estimate(value=value, low=min(low, value), high=max(high, value))


def middle_mean(values: Sequence[float] | np.ndarray) -> float:
    """Mean of the middle half: robust, and finer than a median where a clock counts whole microseconds.

    Args:
        values: at least one.

    Examples:
        >>> middle_mean([1.0, 2.0, 4.0, 100.0])
        3.0
    """
    ordered = np.sort(values)
    cut = len(ordered) // 4
    return float(ordered[cut : len(ordered) - cut].mean())
