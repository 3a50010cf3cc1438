"""Which sampler a search gets: what was asked for, or for `auto` what fits the cost of a trial and the space's size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from autocompress.records import ParamValue, Plan, TrialRecord
from autocompress.rng import derive_seed
from autocompress.search.problem import Problem, Proposer
from autocompress.search.samplers import NSGA2, NSGA3, Auto, ChosenSampler, Random, Surrogate

if TYPE_CHECKING:
    from autocompress.search.ledger import SearchSpace

#: Trials beyond which a model of the best few hundred adds nothing to evolution.
MOST_MODELLED = 3000
#: Seconds per trial below which a proposal by the model would take longer than the trial.
CHEAPEST_MODELLED_S = 0.2
#: Objectives beyond which nearly every candidate is on the front, so that reference directions have to tell them apart.
MOST_CROWDED = 3


@dataclass(frozen=True)
class Choice:
    """A sampler and the reason for it.

    Attributes:
        config: never `Auto`.
        why: one sentence, such as ``"sampler surrogate: trials take about 4 s and ..."``.
    """

    config: ChosenSampler
    why: str


def choose_sampler(
    config: ChosenSampler | Auto,
    *,
    trials: int,
    rungs: int = 1,
    reduction: int = 3,
    space_log10_size: float,
    seconds_per_trial: float | None,
    problem: Problem,
) -> Choice:
    """The sampler to use, and why.

    Args:
        config: what was asked for; anything but `Auto` is kept.
        trials: that the study shall have in the end.
        rungs: that they pass; only what passes the last one is a parent of evolution.
        reduction: of so many at a rung one goes on.
        space_log10_size: log10 of the number of configurations, in [0, inf).
        seconds_per_trial: as far as they are known from earlier trials; None before any.
        problem: what is optimized.

    Returns:
        For `Auto`, the first that applies: a space that the trials can list is drawn from without repetition; trials
        that are over before a model has proposed, or more of them than a model holds, are left to evolution, NSGA-II or
        with more than three objectives NSGA-III; the surrogate takes all else.
    """
    if not isinstance(config, Auto):
        return Choice(config, f"sampler {config.kind}: as the study says")
    size = f"about {10**space_log10_size:,.0f}" if space_log10_size < 6 else f"about 10^{space_log10_size:.0f}"
    if 10 ** min(space_log10_size, 12.0) <= trials:
        return Choice(
            Random(repeats=False),
            f"sampler random without repetition: the space has {size} configurations, which {trials} trials can list",
        )
    population = int(np.clip(trials // reduction ** (rungs - 1) // 5, 8, 50))
    evolution: NSGA2 | NSGA3 = NSGA2(population_size=population)
    if len(problem.objectives) > MOST_CROWDED:
        evolution = NSGA3(population_size=population)
    if seconds_per_trial is not None and seconds_per_trial < CHEAPEST_MODELLED_S:
        return Choice(
            evolution,
            f"sampler {evolution.kind}: a trial takes about {seconds_per_trial * 1000:.0f} ms, less than a model needs "
            "to propose one",
        )
    if trials > MOST_MODELLED:
        return Choice(
            evolution,
            f"sampler {evolution.kind}: {trials} trials are more than a model is fitted to ({MOST_MODELLED})",
        )
    if not problem.dense.keys() >= set(problem.objectives):
        return Choice(evolution, f"sampler {evolution.kind}: a model needs the dense network's values to compare with")
    takes = "of unknown length" if seconds_per_trial is None else f"of about {seconds_per_trial:.2g} s"
    knows = (
        "what the profile knows of a plan" if problem.guide is not None else "the parameters alone, without a profile"
    )
    return Choice(
        Surrogate(),
        f"sampler surrogate: {trials} trials {takes} in a space of {size} configurations are few enough to learn from "
        f"each, by {knows}",
    )


def build_proposer(config: ChosenSampler, space: SearchSpace, problem: Problem, seed: int) -> Proposer | None:
    """What proposes for a sampler of our own; None for one of Optuna's, which `config.build(seed)` gives.

    Args:
        config: settled by `choose_sampler`.
        space: that candidates are of.
        problem: what is optimized.
        seed: of the proposals.
    """
    if isinstance(config, Surrogate):
        from autocompress.search.surrogate_proposer import SurrogateProposer

        return SurrogateProposer(config, space, problem, seed)
    if isinstance(config, Random) and not config.repeats:
        return DistinctProposer(space, seed)
    return None


class DistinctProposer:
    """Draws evenly from the space, and nothing twice as long as there is something else.

    Args:
        space: that candidates are drawn from.
        seed: of the draws.
    """

    def __init__(self, space: SearchSpace, seed: int) -> None:
        self._space, self._seed = space, seed

    def propose(self, trials: Sequence[TrialRecord]) -> dict[str, ParamValue]:
        """Parameters of a plan that no trial has; any if a thousand draws found no new one."""
        from autocompress.search.variation import draw_distinct

        rng = np.random.default_rng(derive_seed(self._seed, "draw", len(trials)))
        return draw_distinct(self._space, rng, {trial.plan for trial in trials}.__contains__)

    def hopeless(self, plan: Plan, trials: Sequence[TrialRecord]) -> str | None:
        """None: nothing is predicted."""
        return None
