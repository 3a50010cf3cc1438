"""A guide of the toy space, ledgers of it, and what the surrogate makes of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from toy_evaluator import measurement
from toy_space import ToySpace

from autocompress.records import Bound, Measurement, ParamValue, Plan, RungResult, TrialRecord, TrialState
from autocompress.search.problem import Problem
from autocompress.search.samplers import Surrogate
from autocompress.search.surrogate import Fitter
from autocompress.search.surrogate_data import Book, axes_of
from autocompress.search.surrogate_proposer import SurrogateProposer

SPACE = ToySpace()
DENSE = {"accuracy": 0.95, "latency_ms": 1.0}


class ToyGuide:
    """Knows latency up to a factor, and a plan's width and bits."""

    names = ("width", "quantized", "detail/g")

    def features(self, plan: Plan) -> np.ndarray:
        keep = plan.cuts[0].keep if plan.cuts else 64
        return np.array([keep / 64, float(bool(plan.bits)), 1.0])

    def costs(self, plan: Plan) -> dict[str, float]:
        return {"latency_ms": 0.8 * latency(plan)}


def latency(plan: Plan) -> float:
    keep = plan.cuts[0].keep if plan.cuts else 64
    return (0.1 + 0.9 * keep / 64) * (0.4 if plan.bits else 1.0)


def accuracy(plan: Plan, epochs: float = 1.0) -> float:
    keep = plan.cuts[0].keep if plan.cuts else 64
    lost = (1.0 - keep / 64) ** 2 + (0.02 if plan.bits else 0.0)
    return 0.95 - (0.15 if epochs else 0.6) * lost


def problem(*, guided: bool = True, bounds: tuple[Bound, ...] = ()) -> Problem:
    return Problem(("accuracy", "latency_ms"), DENSE, bounds=bounds, guide=ToyGuide() if guided else None)


def row(
    number: int,
    params: Mapping[str, ParamValue],
    state: TrialState = "complete",
    *,
    rungs: int = 0,
    seconds: float = 5.0,
    values: Mapping[str, float] | None = None,
    violations: dict[str, float] | None = None,
    noisy: bool = False,
) -> TrialRecord:
    plan = SPACE.plan(params)
    values = values or {"accuracy": accuracy(plan), "latency_ms": latency(plan)}
    begun = datetime(2026, 1, 1, tzinfo=UTC) + number * timedelta(seconds=seconds)
    judged = tuple(
        RungResult.model_validate(
            {
                "plan_key": plan.key,
                "fidelity": {"epochs": 0.1 * i, "rung": i},
                "values": {"accuracy": exact(accuracy(plan, 0.0)), "latency_ms": exact(99.0)},
                "predicted": ("latency_ms",),
                "seconds": {"quality": seconds, "propose": 1000.0},
            }
        )
        for i in range(rungs)
    )
    done = None
    if state == "complete":
        done = measurement(plan.key, values["accuracy"], values["latency_ms"])
        done["values"] |= {name: exact(value) for name, value in values.items()}
        done["latency"]["noisy"] = noisy
    return TrialRecord(
        number=number,
        state=state,
        params=dict(params),
        plan=plan,
        measurement=Measurement.model_validate(done) if done else None,
        rungs=judged,
        violations=violations or {},
        started=begun,
        finished=begun + timedelta(seconds=seconds) if state not in ("running", "waiting") else None,
    )


def exact(value: float) -> dict[str, float]:
    return {"value": value, "low": value, "high": value}


def some(count: int, seed: int = 0, **more: Any) -> list[TrialRecord]:
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(128)[:count]
    return [row(i, {"keep": int(c) // 2 + 1, "bits": 8 if c % 2 else 32}, **more) for i, c in enumerate(chosen)]


def fitted(trials: Sequence[TrialRecord], what: Problem, seed: int = 0) -> Any:
    book = Book(what, axes_of(what))
    book.read(trials)
    fitter = Fitter(book)
    return fitter.fit(np.random.default_rng(seed)), fitter


def predicted(trials: Sequence[TrialRecord], plans: Sequence[Mapping[str, ParamValue]], what: Problem) -> Any:
    model, fitter = fitted(trials, what)
    asked = [SPACE.plan(params) for params in plans]
    guide = what.guide
    known = [(guide.features(plan) if guide else None, params) for plan, params in zip(asked, plans, strict=True)]
    told = [guide.costs(plan) if guide else {} for plan in asked]
    costs = np.array([[t.get(axis.name, math.nan) for axis in model.axes] for t in told])
    return model.predict(fitter.features(known), costs)


def frozen(config: Surrogate, what: Problem, seed: int = 0, space: Any = SPACE) -> SurrogateProposer:
    small = config.model_copy(update={"candidates": 64})  # as the toy has 128 plans
    return SurrogateProposer(small, space, what, seed, clock=lambda: 0.0)
