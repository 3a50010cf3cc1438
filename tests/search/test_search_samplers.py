from __future__ import annotations

import subprocess
import sys
import warnings
from typing import Any

import optuna
import pytest
from pydantic import TypeAdapter, ValidationError

from autocompress.search.samplers import GP, NSGA2, NSGA3, TPE, Random, SamplerConfig, Surrogate

ADAPTER: TypeAdapter[Any] = TypeAdapter(SamplerConfig)


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (NSGA2(population_size=4), optuna.samplers.NSGAIISampler),
        (NSGA3(population_size=4), optuna.samplers.NSGAIIISampler),
        (TPE(startup_trials=3), optuna.samplers.TPESampler),
        (GP(startup_trials=3), optuna.samplers.GPSampler),
        (Random(), optuna.samplers.RandomSampler),
        (Surrogate(), optuna.samplers.RandomSampler),  # for what a proposal leaves open
    ],
)
def test_every_sampler_proposes_for_two_constrained_objectives_reproducibly_and_silently(
    config: Any, kind: type[optuna.samplers.BaseSampler]
) -> None:
    assert ADAPTER.validate_python(config.model_dump()) == config

    def run() -> list[dict[str, Any]]:
        study = optuna.create_study(directions=["maximize", "minimize"], sampler=config.build(3))
        for i in range(8):
            trial = study.ask()
            x = trial.suggest_float("x", 0, 1, step=0.1)
            y = trial.suggest_float("y", 0, 1) if trial.suggest_categorical("c", ["a", "b"]) == "a" else 0.5
            trial.set_constraint("x<=0.8", x - 0.8)
            study.tell(trial, [x, y], state=None) if i != 4 else study.tell(trial, state=optuna.trial.TrialState.FAIL)
        return [t.params for t in study.trials]

    assert isinstance(config.build(0), kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run() == run()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"kind": "nsga9"}, "does not match any of the expected tags: 'nsga2', 'nsga3', 'tpe', 'gp', 'random'"),
        ({"kind": "nsga2", "population_size": 1}, "greater than or equal to 2"),
        ({"kind": "nsga2", "population_size": "12"}, "valid integer"),
        ({"kind": "random", "seed": 3}, "Extra inputs are not permitted"),
        ({"kind": "surrogate", "candidates": 10}, "greater than or equal to 64"),
        ({"kind": "surrogate", "exploration": 1.5}, "less than or equal to 1"),
        ({"kind": "auto", "population_size": 4}, "Extra inputs are not permitted"),
        ({}, "Unable to extract tag"),
    ],
)
def test_refused(value: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ADAPTER.validate_python(value)


def test_a_configuration_is_checked_without_optuna() -> None:
    code = "import sys, autocompress.search.samplers; print('optuna' in sys.modules, 'ray' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "False False\n"
