from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import optuna
import pytest
from toy_space import ToySpace

from autocompress.records import ParamValue, Plan, TrialRecord
from autocompress.search.choose import build_proposer, choose_sampler
from autocompress.search.fallback import SafeProposer, SafeSampler
from autocompress.search.problem import Problem
from autocompress.search.samplers import NSGA2, NSGA3, TPE, Auto, Random, Surrogate
from autocompress.search.surrogate_proposer import SurrogateProposer

PROBLEM = Problem(("accuracy", "latency_ms"), {"accuracy": 0.9, "latency_ms": 1.0})


def choose(config: Any = None, **more: Any) -> Any:
    asked = {"trials": 100, "space_log10_size": 28.0, "seconds_per_trial": None, "problem": PROBLEM} | more
    return choose_sampler(Auto() if config is None else config, **asked)


@pytest.mark.parametrize(
    ("more", "config", "words"),
    [
        ({}, Surrogate(), "surrogate: 100 trials of unknown length in a space of about 10^28 configurations"),
        ({"seconds_per_trial": 4.2}, Surrogate(), "surrogate: 100 trials of about 4.2 s"),
        (
            {"seconds_per_trial": 0.01},
            NSGA2(population_size=20),
            "nsga2: a trial takes about 10 ms, less than a model needs to propose one",
        ),
        ({"trials": 5000}, NSGA2(population_size=50), "nsga2: 5000 trials are more than a model is fitted to (3000)"),
        (
            {"trials": 5000, "problem": Problem(("accuracy", "latency_ms", "size_bytes", "macs"), {})},
            NSGA3(population_size=50),
            "nsga3: 5000 trials",
        ),
        (
            {"space_log10_size": 1.7},
            Random(repeats=False),
            "random without repetition: the space has about 50 configurations, which 100 trials can list",
        ),
    ],
)
def test_auto_picks_by_cost_and_size_and_says_why(more: dict[str, Any], config: Any, words: str) -> None:
    choice = choose(**more)
    assert choice.config == config
    assert choice.why.startswith("sampler ")
    assert words in choice.why
    assert "\n" not in choice.why


def test_what_was_asked_for_is_kept() -> None:
    choice = choose(TPE(candidates=7), trials=10**6, seconds_per_trial=0.0)
    assert choice.config == TPE(candidates=7)
    assert choice.why == "sampler tpe: as the study says"


def test_a_huge_space_is_no_overflow() -> None:
    assert choose(space_log10_size=5000.0).config == Surrogate()


def test_proposers_are_built_for_our_own_samplers_only() -> None:
    assert isinstance(build_proposer(Surrogate(), ToySpace(), PROBLEM, 0), SurrogateProposer)
    assert build_proposer(NSGA2(), ToySpace(), PROBLEM, 0) is None
    assert build_proposer(Random(), ToySpace(), PROBLEM, 0) is None
    assert isinstance(Surrogate().build(0), optuna.samplers.RandomSampler)


def test_random_without_repetition_lists_a_space() -> None:
    space = ToySpace()
    proposer = build_proposer(Random(repeats=False), space, PROBLEM, 3)
    assert proposer is not None
    trials: list[TrialRecord] = []
    for i in range(128):
        params = proposer.propose(trials)
        trials.append(TrialRecord(number=i, state="complete", params=params, plan=space.plan(params)))
    assert len({t.plan for t in trials}) == 128
    assert set(proposer.propose(trials)) == {"keep", "bits"}  # exhausted: it repeats
    assert proposer.hopeless(Plan(), trials) is None
    assert build_proposer(Random(repeats=False), space, PROBLEM, 3).propose([]) == trials[0].params  # type: ignore[union-attr]


# --- what raises stops nothing --------------------------------------------------------------------------------------


class Broken:
    def __init__(self) -> None:
        self.asked = 0

    def propose(self, trials: Sequence[TrialRecord]) -> dict[str, ParamValue]:
        self.asked += 1
        raise ValueError("the matrix is\nnot positive definite")

    def hopeless(self, plan: Plan, trials: Sequence[TrialRecord]) -> str | None:
        raise KeyError("gone")


def test_a_proposer_that_raises_is_reported_once_and_replaced_by_draws() -> None:
    said: list[str] = []
    broken, space = Broken(), ToySpace()
    safe = SafeProposer(broken, "surrogate", space, 5, said.append)
    first = safe.propose([])
    trials = [TrialRecord(number=0, state="complete", params=first, plan=space.plan(first))]
    assert space.plan(safe.propose(trials)) != trials[0].plan
    assert SafeProposer(broken, "surrogate", space, 5, said.append).propose([]) == first
    assert said[0] == (
        "sampler surrogate raised ValueError: the matrix is not positive definite; drawing at random instead"
    )
    assert len(said) == 2  # once for each of the two
    assert broken.asked == 3  # asked again every time: the next data may do
    assert safe.hopeless(Plan(), []) is None


def test_a_judgement_that_raises_builds_the_candidate() -> None:
    said: list[str] = []
    assert SafeProposer(Broken(), "surrogate", ToySpace(), 5, said.append).hopeless(Plan(), []) is None
    assert said == ["sampler surrogate raised KeyError: 'gone'; building every candidate instead"]


def test_a_proposer_that_works_is_left_alone() -> None:
    class Fine(Broken):
        def propose(self, trials: Sequence[TrialRecord]) -> dict[str, ParamValue]:
            return {"keep": 8, "bits": 8}

        def hopeless(self, plan: Plan, trials: Sequence[TrialRecord]) -> str | None:
            return "far behind"

    said: list[str] = []
    safe = SafeProposer(Fine(), "surrogate", ToySpace(), 0, said.append)
    assert safe.propose([]) == {"keep": 8, "bits": 8}
    assert safe.hopeless(Plan(), []) == "far behind"
    assert said == []


def test_an_interrupt_is_no_fault_of_the_sampler() -> None:
    class Interrupted(Broken):
        def propose(self, trials: Sequence[TrialRecord]) -> dict[str, ParamValue]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        SafeProposer(Interrupted(), "surrogate", ToySpace(), 0, lambda text: None).propose([])


class BrokenSampler(optuna.samplers.BaseSampler):
    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
        raise RuntimeError("no space")

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
        raise RuntimeError("no relative sample")

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        raise RuntimeError("no sample")

    def after_trial(self, study: Any, trial: Any, state: Any, values: Any) -> None:
        raise RuntimeError("no end")


def run(sampler: optuna.samplers.BaseSampler) -> list[dict[str, Any]]:
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    for _ in range(6):
        trial = study.ask()
        params = ToySpace().suggest(trial)
        study.tell(trial, [float(params["keep"]), 1.0])
    return [trial.params for trial in study.trials]


def test_an_optuna_sampler_that_raises_is_reported_once_and_replaced_by_draws() -> None:
    said: list[str] = []
    found = run(SafeSampler(BrokenSampler(), "tpe", 1, said.append))
    assert len({tuple(params.items()) for params in found}) > 3
    assert said == ["sampler tpe raised RuntimeError: no space; drawing at random instead"]
    assert found == run(SafeSampler(BrokenSampler(), "tpe", 1, said.append))


@pytest.mark.parametrize("config", [NSGA2(population_size=4), TPE(startup_trials=2)])
def test_an_optuna_sampler_that_works_is_left_alone(config: Any) -> None:
    said: list[str] = []
    assert run(SafeSampler(config.build(3), config.kind, 3, said.append)) == run(config.build(3))
    assert said == []


def test_choosing_loads_neither_optuna_nor_scikit_learn() -> None:
    code = (
        "import sys, autocompress.search.choose, autocompress.search.variation, autocompress.search.ehvi; "
        "print([name for name in ('optuna', 'ray', 'sklearn', 'torch') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
