"""Making, profiling and measuring the networks that a latency model is learnt from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import prod

from autocompress.compress.skeleton import Skeleton
from autocompress.errors import MeasurementError
from autocompress.inputs import Arrays
from autocompress.measure.kernels import OperationTime, operation_times
from autocompress.measure.latency_model import LatencyModel, fit_regression, fit_table, judged
from autocompress.pipeline.latency_plans import telling
from autocompress.records import Plan, Record
from autocompress.records.outline import Operation

#: Artifacts -> ratio of each one's latency to the dense network's, in their order.
Read = Callable[[Sequence[bytes]], list[float]]
#: Networks that are measured beside the dense one at a time.
_AT_A_TIME = 8


class Networks(Record):
    """How many networks a latency model is learnt from.

    Attributes:
        profiled: of which every operation is timed.
        calibrating: of these, measured whole beside the dense network.
        unseen: measured twice, to judge the model on.
        pool: plans that these are chosen from.
    """

    profiled: int = 60
    calibrating: int = 40
    unseen: int = 20
    pool: int = 400


@dataclass(frozen=True)
class Learnt:
    """A model with its accuracy, and what became of the other kind.

    Attributes:
        model: the better one.
        notes: in words, why there is no table, or why the regression was taken.
        unseen: plans that it was judged on.
    """

    model: LatencyModel
    notes: tuple[str, ...]
    unseen: tuple[Plan, ...]


def learn(
    skeleton: Skeleton,
    pool: Sequence[tuple[Plan, tuple[Operation, ...]]],
    inputs: Arrays,
    read: Read,
    *,
    networks: Networks,
    baseline_ms: float,
    block_ms: float,
    threads: int,
    profiles: bool = True,
    alone: Callable[[], AbstractContextManager[object]] = nullcontext,
    on_step: Callable[[str], None] = lambda _: None,
) -> Learnt:
    """Learn a latency model.

    Args:
        skeleton: makes networks.
        pool: plans to choose from, in random order, with their operations.
        inputs: the batch that is timed.
        read: measures networks beside the dense one.
        networks: how many of each kind.
        baseline_ms: the dense network's latency.
        block_ms: shortest block of inferences of a reading.
        threads: that share one inference.
        profiles: the runtime of the target is one whose profile this process can read.
        alone: opened around every profile, so that nothing else of the study runs meanwhile.
        on_step: told what is done.

    Raises:
        MeasurementError: there are too few networks, or one cannot be measured.
    """
    wanted = networks.unseen + networks.profiled
    if len(pool) < networks.unseen + 12:
        raise MeasurementError(
            f"latency model: expected a space of at least {networks.unseen + 12} networks that differ in their "
            f"operations, got {len(pool)}"
        )
    # The pool is in random order: the first are like any candidate.
    unseen, rest = list(pool[: networks.unseen]), list(pool[networks.unseen :])
    chosen = [rest[i] for i in telling([outline for _, outline in rest], min(networks.profiled, len(rest)))]
    by_work = sorted(range(len(chosen)), key=lambda i: _work(chosen[i][1]))
    count = min(networks.calibrating, len(chosen))
    calibrating = {by_work[round(i * (len(chosen) - 1) / max(1, count - 1))] for i in range(count)}
    profiled: list[tuple[tuple[Operation, ...], Sequence[OperationTime]]] = []
    waiting: list[tuple[tuple[Operation, ...], bytes]] = []
    measured: list[tuple[tuple[Operation, ...], float]] = []
    notes: list[str] = []

    def flush() -> None:
        ratios = read([model for _, model in waiting])
        measured.extend((outline, ratio * baseline_ms) for (outline, _), ratio in zip(waiting, ratios, strict=True))
        waiting.clear()

    for i, (plan, outline) in enumerate(chosen):
        on_step(f"network {i + 1} of {wanted}")
        if not profiles and i not in calibrating:
            continue
        model = skeleton.model(plan)
        if profiles:
            try:
                with alone():
                    traced, times = operation_times(model, inputs, threads=threads)
                profiled.append((traced.outline, times))
            except MeasurementError as error:
                profiles = False
                notes.append(f"no table: {error}")
        if i in calibrating:
            waiting.append((outline, model))
            if len(waiting) == _AT_A_TIME:
                flush()
    if waiting:
        flush()
    first: list[float] = []
    second: list[float] = []
    for start in range(0, len(unseen), _AT_A_TIME):
        on_step(f"network {len(chosen) + start + 1} of {wanted}, unseen ones, each twice")
        models = [skeleton.model(plan) for plan, _ in unseen[start : start + _AT_A_TIME]]
        first += [ratio * baseline_ms for ratio in read(models)]
        second += [ratio * baseline_ms for ratio in read(models)]
    candidates = [fit_regression(measured, baseline_ms)]
    if profiles and profiled:
        candidates.append(fit_table(profiled, measured, baseline_ms, block_ms))
    judged_ones = [judged(model, [outline for _, outline in unseen], first, second) for model in candidates]
    best = min(judged_ones, key=lambda model: model.accuracy.median_error if model.accuracy else 1.0)
    if profiles and best.kind == "regression":
        table = judged_ones[1].accuracy
        notes.append(f"the table's median error is {table.median_error:.1%}" if table else "")
    return Learnt(best, tuple(notes), tuple(plan for plan, _ in unseen))


def _work(outline: Sequence[Operation]) -> float:
    """Elements written and multiply-adds, roughly: an order of size."""
    total = 0.0
    for operation in outline:
        positions = operation.output[2:] if len(operation.output) == 4 else ()
        size = prod((*operation.weights, *positions))
        total += size / (4.0 if operation.mode != "float" else 1.0)
    return total
