"""Plain scripts: draws from the space, and Optuna asked and told in memory, with either kind of trial."""

from __future__ import annotations

import warnings
from typing import Literal

import optuna
from recorder import Recorder
from works import Work

from arms.trials import EightBits, Trial, engineer, inherited, judge, ours, starting_point
from autocompress.errors import InfeasibleError
from autocompress.pipeline.prepare import Workbench
from autocompress.rng import derive_seed

Sampler = Literal["random", "nsga2", "tpe"]


def script(bench: Workbench, work: Work, seed: int, recorder: Recorder, sampler: Sampler, *, own: bool) -> None:
    """Ask, judge, tell until the time is up. The first candidate is the dense network in 8 bits.

    A plan that was judged before is answered from memory.

    Args:
        bench: the prepared study.
        work: what is compressed.
        seed: of everything random.
        recorder: takes down what is judged.
        sampler: what proposes.
        own: whether this project's evaluator judges, or the engineer's trial.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    trial_s, epochs = (work.own_s, work.own_epochs) if own else (work.trial_s, work.trial_epochs)
    judge_plan: Trial = ours(bench, work) if own else engineer(bench, work, seed)
    budget = int(60.0 * recorder.minutes / trial_s)
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=built(sampler, seed, budget))
    study.enqueue_trial(starting_point(bench))
    known: dict[str, tuple[float, float] | None] = {}
    while True:
        asked = study.ask()
        try:
            suggester = EightBits(asked)
            plan = bench.space.plan(bench.space.suggest(suggester)) if own else inherited(bench, suggester)
        except InfeasibleError:
            study.tell(asked, state=optuna.trial.TrialState.FAIL)
            continue
        if plan.key not in known:
            known[plan.key] = judge(plan, judge_plan, recorder, epochs)
        values = known[plan.key]
        if values is None:
            study.tell(asked, state=optuna.trial.TrialState.FAIL)
        else:
            study.tell(asked, values)


def built(sampler: Sampler, seed: int, budget: int) -> optuna.samplers.BaseSampler:
    """The sampler for about so many trials: a population, or a random beginning, of a fifth of them."""
    fifth, own = max(2, budget // 5), derive_seed(seed, "sampler")
    if sampler == "random":
        return optuna.samplers.RandomSampler(seed=own)
    if sampler == "nsga2":
        return optuna.samplers.NSGAIISampler(population_size=fifth, seed=own)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(n_startup_trials=fifth, multivariate=True, group=True, seed=own)
