from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from toy_guide import DENSE, SPACE, ToyGuide, accuracy, frozen, problem, row, some
from toy_space import ToySpace

from autocompress.errors import InfeasibleError
from autocompress.records import Bound, ParamValue, Plan, TrialRecord
from autocompress.search.problem import Problem
from autocompress.search.samplers import Surrogate
from autocompress.search.surrogate_proposer import SurrogateProposer

# --- proposals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guided", [True, False])
def test_proposals_are_reproducible_and_survive_a_restart(guided: bool) -> None:
    what, config = problem(guided=guided), Surrogate(startup_trials=4)
    trials = some(10)
    first, second = frozen(config, what), frozen(config, what)
    assert first.propose(trials) == second.propose(trials)
    more = [*trials, row(10, {"keep": 33, "bits": 8})]
    assert SPACE.plan(first.propose(more)) not in {t.plan for t in more}


def test_a_parameter_that_appears_late_is_learnt_from_then_on() -> None:
    proposer, trials = frozen(Surrogate(startup_trials=4), problem(guided=False)), some(10)
    proposer.propose(trials)
    proposer._for_fits = -1e9  # a fit is not due for a long time
    more = [*trials, row(10, {"keep": 33, "bits": 8, "schedule": "gradual"})]
    assert set(proposer.propose(more)) == {"keep", "bits"}
    assert proposer.hopeless(SPACE.plan({"keep": 33, "bits": 8}), more) is None


def test_what_is_in_the_ledger_is_never_proposed_again_until_nothing_is_left() -> None:
    every = [row(2 * k + b, {"keep": k + 1, "bits": (32, 8)[b]}) for k in range(64) for b in range(2)]
    left = [t for t in every if t.params != {"keep": 20, "bits": 8}]
    proposer = frozen(Surrogate(), problem())
    assert proposer.propose(left) == {"keep": 20, "bits": 8}
    assert set(proposer.propose(every)) == {"keep", "bits"}  # it repeats, and does not fail


def test_it_finds_the_front_sooner_than_chance() -> None:
    import moocore

    what = problem()

    def volume(propose: Any) -> float:
        trials: list[TrialRecord] = []
        for i in range(20):
            trials.append(row(i, propose(trials)))
        points = what.points([{k: e.value for k, e in t.measurement.values.items()} for t in trials if t.measurement])
        return float(moocore.hypervolume(points, ref=np.ones(2)))

    rng = np.random.default_rng(0)
    chance = [volume(lambda _: {"keep": int(rng.integers(1, 65)), "bits": int(rng.choice([32, 8]))}) for _ in range(5)]
    found = [volume(frozen(Surrogate(startup_trials=6), what, seed).propose) for seed in range(3)]
    assert min(found) > max(chance)


def test_a_bound_keeps_proposals_in_its_region() -> None:
    bound = Bound(objective="accuracy", min=0.93)
    what = problem(bounds=(bound,))
    trials = [
        t.model_copy(update={"violations": {bound.name: bound.violation(t.measurement.values["accuracy"].value)}})
        for t in some(24)
        if t.measurement is not None
    ]
    for seed in range(4):
        plan = SPACE.plan(frozen(Surrogate(exploration=0.0), what, seed).propose(trials))
        assert accuracy(plan) > 0.92


def test_startup_draws_from_the_space() -> None:
    asked: list[int] = []

    class Watched(ToyGuide):
        def features(self, plan: Plan) -> np.ndarray:
            asked.append(1)
            return super().features(plan)

    what = Problem(("accuracy", "latency_ms"), DENSE, guide=Watched())
    few = some(3)
    frozen(Surrogate(startup_trials=8), what).propose(few)
    assert len(asked) == len(few)  # those of the trials alone: no candidate was looked at


def test_exploration_draws_from_all_of_the_space_but_nothing_hopeless() -> None:
    what, trials = problem(), some(30)
    bold = [SPACE.plan(frozen(Surrogate(exploration=1.0), what, seed).propose(trials)) for seed in range(12)]
    best = [SPACE.plan(frozen(Surrogate(exploration=0.0), what, seed).propose(trials)) for seed in range(12)]
    assert len(set(bold)) > len(set(best))
    assert all(frozen(Surrogate(), what).hopeless(plan, trials) is None for plan in (*bold, *best))


def test_nothing_hopeless_is_proposed_while_the_space_has_something_else() -> None:
    what, trials = problem(), some(30)
    proposer = frozen(Surrogate(), what)
    for count in range(30, 60):
        params = proposer.propose(trials)
        asked = row(count, params, "running")
        assert proposer.hopeless(asked.plan, [*trials, asked]) is None  # type: ignore[arg-type]
        trials.append(row(count, params))


def test_where_a_trial_costs_nothing_no_plan_is_hopeless() -> None:
    trials = [row(i, {"keep": k, "bits": 8}, seconds=0.01) for i, k in enumerate(range(8, 65, 4))]
    assert frozen(Surrogate(), problem()).hopeless(SPACE.plan({"keep": 35, "bits": 32}), trials) is None


def test_a_plan_that_the_guide_refuses_is_left_out() -> None:
    class Picky(ToyGuide):
        def features(self, plan: Plan) -> np.ndarray:
            if not plan.bits:
                raise InfeasibleError("bits: not predicted")
            return super().features(plan)

    what = Problem(("accuracy", "latency_ms"), DENSE, guide=Picky())
    found = SPACE.plan(frozen(Surrogate(exploration=0.0), what).propose(some(20)))
    assert found.bits


# --- the time that it takes -----------------------------------------------------------------------------------------


class Clock:
    """Runs on by what the space and the guide are said to take."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Slow(ToySpace):
    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock, self.drawn = clock, 0

    def suggest(self, trial: Any) -> dict[str, ParamValue]:
        self.clock.now += 0.001
        self.drawn += 1
        return {**super().suggest(trial), "tag": trial.suggest_int("tag", 0, 10**6)}

    def plan(self, params: Mapping[str, ParamValue]) -> Plan:
        return super().plan(params).model_copy(update={"drops": ()})


@pytest.mark.parametrize("seconds", [1.0, 30.0])
def test_drawing_takes_a_few_percent_of_a_trial(seconds: float) -> None:
    clock = Clock()
    space = Slow(clock)
    proposer = SurrogateProposer(Surrogate(), space, problem(), 0, clock=clock)
    trials = [row(i, {"keep": k, "bits": 32}, seconds=seconds) for i, k in enumerate((64, 48, 40, 32, 24, 16, 8, 4, 2))]
    asks = 30
    for _ in range(asks):
        proposer.propose(trials)
    assert clock.now <= 0.05 * seconds * asks


def test_a_fit_is_put_off_while_trials_are_cheaper(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, fits = Clock(), []
    proposer = SurrogateProposer(Surrogate(exploration=0.0, candidates=64), SPACE, problem(), 0, clock=clock)
    fit = proposer._fitter.fit

    def slow(*args: Any, **more: Any) -> Any:
        clock.now += 0.2
        fits.append(clock.now)
        return fit(*args, **more)

    monkeypatch.setattr(proposer._fitter, "fit", slow)
    trials = some(40, seconds=0.001)
    for count in range(10, 40):
        proposer.propose(trials[:count])
    assert 1 <= len(fits) <= 3  # 30 asks of 0.02 s, half of it for fits of 0.2 s
