"""Optuna's evolutionary samplers, with seeds among the parents."""

from __future__ import annotations

import optuna
from optuna.trial import FrozenTrial


class _WithSeeds(optuna.samplers.BaseGASampler):
    """Optuna gives a trial its generation where the trial asks for parameters, and a queued one asks for none.

    Without a generation it is never a parent: what a front of seeds is worth would be lost to evolution.
    """

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """A queued trial belongs to the generation that is being filled."""
        super().before_trial(study, trial)
        if "fixed_params" in trial.system_attrs:
            self.get_trial_generation(study, trial)


# Optuna keeps generations under the name of the class, so that these take up what its own began.


class NSGAIISampler(_WithSeeds, optuna.samplers.NSGAIISampler):
    """`optuna.samplers.NSGAIISampler`, with seeds."""


class NSGAIIISampler(_WithSeeds, optuna.samplers.NSGAIIISampler):
    """`optuna.samplers.NSGAIIISampler`, with seeds."""
