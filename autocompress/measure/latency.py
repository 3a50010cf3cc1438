"""Latency of artifacts beside the dense baseline: interleaved, shuffled, repeated when it is too noisy.

In every round each network, the baseline among them, runs one block of inferences, in an order shuffled afresh; what
is compared are ratios within a round, so that a machine that slows down slows down both sides. The caller keeps
everything else off the machine meanwhile, as `autocompress.cluster.slot` does.

The protocol's numbers are the defaults of `Procedure`: 20 rounds of blocks of at least 5 ms; a warm-up of at most
0.2 s per network, over once two blocks agree within 5%; a reading is noisy if the interquartile range of its rounds'
ratios is over 10% of their median, or if the baseline drifted by over 10%; what is noisy is taken again twice.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from autocompress.errors import MeasurementError
from autocompress.measure.affinity import computing, held, quietest, thread_times
from autocompress.measure.host import load
from autocompress.measure.ratios import Comparison, compare
from autocompress.measure.target import Session, rows
from autocompress.records import Estimate, LatencyReading, Record, Throughput
from autocompress.rng import derive_seed

if TYPE_CHECKING:
    # Lazy: it brings torch.
    from autocompress.inputs import Arrays

Clock = Callable[[], int]
Call = Callable[[], object]


class Procedure(Record):
    """How a latency is taken.

    Attributes:
        rounds: blocks per network.
        block_s: shortest time of a block, filled with as many inferences as it takes.
        warm_up_s: longest warm-up of one network; it ends sooner once two blocks in a row agree.
        repeats: how often a noisy reading is taken again before it is marked.
        dispersion: largest interquartile range of the rounds' ratios, as a share of their median.
        drift: largest drift of the baseline within a reading, as a share of its median.
        resamples: of the bootstrap.
        pin: the threads that compute are held to the least busy cores while a reading lasts, where the system can.
    """

    rounds: Annotated[int, Field(ge=10)] = 20
    block_s: Annotated[float, Field(gt=0.0)] = 0.005
    warm_up_s: Annotated[float, Field(ge=0.0)] = 0.2
    repeats: Annotated[int, Field(ge=0)] = 2
    dispersion: Annotated[float, Field(gt=0.0)] = 0.1
    drift: Annotated[float, Field(gt=0.0)] = 0.1
    resamples: Annotated[int, Field(ge=100)] = 1000
    pin: bool = True


def measure(
    candidates: Sequence[Session],
    baseline: Session,
    inputs: Arrays,
    *,
    seed: int,
    procedure: Procedure | None = None,
    clock: Clock = time.perf_counter_ns,
) -> list[LatencyReading]:
    """Measure candidates beside the baseline.

    A reading is noisy if its rounds' ratios are too dispersed, or if the baseline drifted; what is noisy is measured
    again, up to ``procedure.repeats`` times, and its last reading is marked if it still is. Never the minimum, always
    the median.

    Args:
        candidates: networks to compare; the baseline itself may be one of them.
        baseline: the dense network.
        inputs: the batch that every network runs on: one array of shape (n, ...), or several by the names of the
            networks' inputs; n is the reading's batch size.
        seed: of the order of networks and of the bootstrap.
        procedure: how; `Procedure()` if None.
        clock: nanoseconds, monotonic.

    Returns:
        One reading for each candidate, in their order.

    Raises:
        MeasurementError: a network fails on the inputs, yields NaN, or takes no time at all.
    """
    procedure = procedure or Procedure()
    batch_size = rows(inputs)
    baseline_call = baseline.runner(inputs)
    calls = [session.runner(inputs) for session in candidates]
    repetitions: dict[Call, int] = {}
    computes: set[int] = set()
    for call in (baseline_call, *calls):
        ran = thread_times()
        repetitions[call] = _warm_up(call, procedure, clock)
        computes |= computing(ran, thread_times())
    wide = max(session.threads for session in (baseline, *candidates))
    readings: dict[int, LatencyReading] = {}
    noisy = list(range(len(candidates)))
    for attempt in range(procedure.repeats + 1):
        if not noisy:
            break
        before = load()
        rng = np.random.default_rng(derive_seed(seed, "latency", attempt))
        chosen = [baseline_call, *(calls[i] for i in noisy)]
        # Chosen anew for every attempt: what disturbed one core may leave another alone.
        with held(computes, quietest(wide) if procedure.pin else ()) as cores:
            times = _take(chosen, [repetitions[call] for call in chosen], procedure.rounds, rng, clock)
        base_blocks = _blocks(times[0])
        for i, singles in zip(noisy, times[1:], strict=True):
            bootstrap_seed = derive_seed(seed, "bootstrap", attempt, i)
            comparison = compare(_blocks(singles), base_blocks, seed=bootstrap_seed, resamples=procedure.resamples)
            p90, p99 = np.percentile(np.concatenate(singles), (90, 99)) * 1e3
            readings[i] = LatencyReading(
                latency_ms=comparison.latency_ms,
                ratio=comparison.ratio,
                baseline_ms=comparison.baseline_ms,
                p90_ms=float(p90),
                p99_ms=float(p99),
                rounds=procedure.rounds,
                batch_size=batch_size,
                threads=candidates[i].threads,
                load=before,
                noisy=is_noisy(comparison, procedure),
                attempts=attempt + 1,
                dispersion=comparison.dispersion,
                drift=comparison.drift,
                cores=cores,
            )
        noisy = [i for i in noisy if readings[i].noisy]
    return [readings[i] for i in range(len(candidates))]


def together(readings: Sequence[LatencyReading]) -> LatencyReading:
    """One reading of several sittings of the same network.

    Where weights of tens of megabytes come to lie, and what the host's other tenants do to a shared cache for a minute,
    is worth more than the rounds of a single sitting show. So values are the medians of the sittings', and intervals
    reach from the lowest to the highest end of theirs. It is noisy if most of them are.

    Args:
        readings: at least one, of one batch size; the first one's throughput is kept.
    """

    def middle(values: Iterable[float]) -> float:
        return float(np.median(list(values)))

    def spanning(estimates: Sequence[Estimate]) -> Estimate:
        low, high = min(e.low for e in estimates), max(e.high for e in estimates)
        return Estimate(value=middle(e.value for e in estimates), low=low, high=high)

    return readings[0].model_copy(
        update={
            "latency_ms": spanning([r.latency_ms for r in readings]),
            "ratio": spanning([r.ratio for r in readings]),
            "rounds": sum(r.rounds for r in readings),
            "load": max(r.load for r in readings),
            "noisy": 2 * sum(r.noisy for r in readings) > len(readings),
            "attempts": max(r.attempts for r in readings),
            "cores": tuple(sorted({core for r in readings for core in r.cores})),
            **{
                name: middle(getattr(r, name) for r in readings)
                for name in ("baseline_ms", "p90_ms", "p99_ms", "dispersion", "drift")
            },
        }
    )


def throughput(
    candidates: Sequence[Session],
    baseline: Session,
    batches: Sequence[Arrays],
    *,
    seed: int,
    procedure: Procedure | None = None,
    clock: Clock = time.perf_counter_ns,
) -> list[tuple[Throughput, ...]]:
    """Examples per second of candidates beside the baseline, at each batch size: see `rate`.

    Args:
        candidates: networks to compare.
        baseline: the dense network.
        batches: inputs as for `measure`, one for each batch size; none means that nothing is measured.
        seed: of the order of networks and of the bootstrap.
        procedure: how; `Procedure()` if None.
        clock: nanoseconds, monotonic.

    Returns:
        One entry for each candidate, in their order; in each one for each batch, in their order.

    Raises:
        MeasurementError: as `measure`.
    """
    found: list[list[Throughput]] = [[] for _ in candidates]
    for batch in batches:
        batch_seed = derive_seed(seed, "throughput", rows(batch))
        readings = measure(candidates, baseline, batch, seed=batch_seed, procedure=procedure, clock=clock)
        for rates, reading in zip(found, readings, strict=True):
            rates.append(rate(reading, readings[0].baseline_ms))
    return [tuple(rates) for rates in found]


def rate(reading: LatencyReading, baseline_ms: float) -> Throughput:
    """Examples per second: batch size / (ratio × baseline), one inference after the other.

    Args:
        reading: of the latency at this batch size.
        baseline_ms: the baseline's latency that all networks of a table are compared by.
    """
    dense = 1e3 * reading.batch_size / baseline_ms
    ratio = reading.ratio
    return Throughput(
        batch_size=reading.batch_size,
        # A longer latency is a lower rate: the interval's ends change places.
        examples_per_s=Estimate(value=dense / ratio.value, low=dense / ratio.high, high=dense / ratio.low),
        baseline_per_s=dense,
        noisy=reading.noisy,
    )


def is_noisy(comparison: Comparison, procedure: Procedure) -> bool:
    """True if the rounds' ratios are too dispersed, or if the baseline drifted too far, to be taken as they are."""
    return comparison.dispersion > procedure.dispersion or comparison.drift > procedure.drift


def _warm_up(call: Call, procedure: Procedure, clock: Clock) -> int:
    """Run until two blocks in a row agree within 5%; returns how many inferences fill a block.

    The first block is not judged: of a slow network it is a single inference, which is cold.
    """
    start, medians = clock(), list[float]()
    while True:
        singles = [_time(call, clock)]
        while sum(singles) < procedure.block_s:
            singles.append(_time(call, clock))
        medians.append(float(np.median(singles)))
        stable = len(medians) > 2 and abs(medians[-1] - medians[-2]) <= 0.05 * medians[-1]
        if stable or (clock() - start) * 1e-9 >= procedure.warm_up_s:
            return max(1, math.ceil(procedure.block_s / medians[-1]))


def _take(
    calls: Sequence[Call], repetitions: Sequence[int], rounds: int, rng: np.random.Generator, clock: Clock
) -> list[list[np.ndarray]]:
    """Seconds of every inference: for each network, for each round, shape (repetitions,)."""
    times: list[list[np.ndarray]] = [[] for _ in calls]
    with _no_garbage_collection():
        for _ in range(rounds):
            for i in rng.permutation(len(calls)):
                times[i].append(np.array([_time(calls[i], clock) for _ in range(repetitions[i])]))
    return times


def _time(call: Call, clock: Clock) -> float:
    """Seconds of one inference."""
    start = clock()
    call()
    seconds = (clock() - start) * 1e-9
    if not seconds > 0:
        raise MeasurementError(f"expected an inference to take some time, the clock says {seconds} s")
    return seconds


def _blocks(singles: Sequence[np.ndarray]) -> np.ndarray:
    return np.array([np.median(block) for block in singles])


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Keep Python's collector from running in the middle of an inference."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
