"""Making, profiling and measuring the networks that a latency model is learnt from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

from autocompress.errors import MeasurementError
from autocompress.inputs import Arrays
from autocompress.measure.kernels import OperationTime, operation_times
from autocompress.measure.latency_model import LatencyModel, fit_regression, fit_table, judged
from autocompress.pipeline.latency_plans import telling
from autocompress.records import Plan, Record
from autocompress.records.outline import Operation

#: Artifacts -> ratio of each one's latency to the dense network's, in their order.
Read = Callable[[Sequence[bytes]], list[float]]


class Makes(Protocol):
    """Makes the file of a plan, with arbitrary weights; `autocompress.compress.skeleton.Skeleton` is one."""

    def model(self, plan: Plan) -> bytes:
        """The file."""
        ...


#: Networks that are measured beside the dense one at a time.
_AT_A_TIME = 8


class Networks(Record):
    """How many networks a latency model is learnt from.

    Attributes:
        learning: of which every operation is timed, and which are measured whole beside the dense network.
        unseen: measured to judge the model on.
        twice: each of both is measured twice, with the others in between.
        pool: plans that these are chosen from.
        rounds: blocks of inferences in which each operation is timed.
    """

    learning: int = 50
    unseen: int = 20
    pool: int = 400
    twice: bool = True
    rounds: int = 30


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
    skeleton: Makes,
    dense: bytes,
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
        dense: the dense file.
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
    if len(pool) < networks.unseen + 12:
        raise MeasurementError(
            f"latency model: expected a space of at least {networks.unseen + 12} networks that differ in their "
            f"operations, got {len(pool)}"
        )
    # The pool is in random order: the first are like any candidate.
    unseen, rest = list(pool[: networks.unseen]), list(pool[networks.unseen :])
    chosen = [rest[i] for i in telling([outline for _, outline in rest], min(networks.learning, len(rest)))]
    profiled: list[tuple[Sequence[Operation], Sequence[OperationTime]]] = []
    notes: list[str] = []

    def timed(models: Sequence[bytes], seed: int) -> None:
        with alone():
            found = operation_times(
                models,
                dense,
                inputs,
                threads=threads,
                baseline_ms=baseline_ms,
                block_s=1e-3 * block_ms,
                rounds=networks.rounds,
                seed=seed,
            )
        profiled.extend((traced.outline, times) for traced, times in found)

    def measured(plans: Sequence[tuple[Plan, object]], what: str, *, profile: bool = False) -> list[float]:
        """Milliseconds of each."""
        latencies: list[float] = []
        for start in range(0, len(plans), _AT_A_TIME):
            on_step(f"{what}, {start + 1} of {len(plans)}")
            models = [skeleton.model(plan) for plan, _ in plans[start : start + _AT_A_TIME]]
            if profile and not notes:
                try:
                    timed(models, start)
                except MeasurementError as error:
                    notes.append(f"no table: {error}")
            latencies += [ratio * baseline_ms for ratio in read(models)]
        return latencies

    # Everything once, then everything again: a machine is not the same after minutes, and what a model is held against
    # should not rest on one moment.
    earlier = measured(chosen, "networks to learn from", profile=profiles)
    first = measured(unseen, "unseen networks")
    later = measured(chosen, "networks to learn from, again") if networks.twice else earlier
    second = measured(unseen, "unseen networks, again") if networks.twice else first
    whole = [(outline, (one * other) ** 0.5) for (_, outline), one, other in zip(chosen, earlier, later, strict=True)]
    candidates = [fit_regression(whole, baseline_ms)]
    if profiles and not notes:
        candidates.append(fit_table(profiled, whole, baseline_ms, block_ms))
    judged_ones = [judged(model, [outline for _, outline in unseen], first, second) for model in candidates]
    best = min(judged_ones, key=lambda model: model.accuracy.median_error if model.accuracy else 1.0)
    if best.kind == "regression" and len(judged_ones) > 1:
        table = judged_ones[1].accuracy
        notes.append(f"the table's median error is {table.median_error:.1%}" if table else "")
    return Learnt(best, tuple(notes), tuple(plan for plan, _ in unseen))
