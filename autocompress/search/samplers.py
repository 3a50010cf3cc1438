"""Which sampler proposes candidates: one frozen configuration per kind, joined in `SamplerConfig`.

Every sampler optimizes several objectives at once and prefers candidates that meet the constraints told with a trial.
Optuna is imported only when a sampler is built, so that a study file is checked without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    import optuna


class _Sampler(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class NSGA2(_Sampler):
    """NSGA-II: non-dominated sorting and crowding distance. Cheap at any number of trials and parameters.

    Attributes:
        population_size: candidates per generation, of those that were trained in full; the first generation is the
            seeds and random points.
        crossover_prob: probability that a child has two parents.

    References:
        Deb et al., 2002, "A fast and elitist multiobjective genetic algorithm: NSGA-II".
    """

    kind: Literal["nsga2"] = "nsga2"
    population_size: Annotated[int, Field(ge=2)] = 24
    crossover_prob: Annotated[float, Field(ge=0.0, le=1.0)] = 0.9

    def build(self, seed: int) -> optuna.samplers.BaseSampler:
        """A fresh sampler whose random stream starts at `seed`."""
        from autocompress.search.evolution import NSGAIISampler

        return NSGAIISampler(population_size=self.population_size, crossover_prob=self.crossover_prob, seed=seed)


class NSGA3(_Sampler):
    """NSGA-III: reference directions in place of crowding distance, for three objectives and more.

    Attributes:
        population_size: candidates per generation, of those that were trained in full.
        dividing_parameter: divisions of each axis between two objectives when reference directions are laid out.

    References:
        Deb and Jain, 2014, "An evolutionary many-objective optimization algorithm using reference-point-based
        nondominated sorting approach, part I".
    """

    kind: Literal["nsga3"] = "nsga3"
    population_size: Annotated[int, Field(ge=2)] = 24
    dividing_parameter: Annotated[int, Field(ge=1)] = 3

    def build(self, seed: int) -> optuna.samplers.BaseSampler:
        """A fresh sampler whose random stream starts at `seed`."""
        import warnings

        import optuna

        from autocompress.search.evolution import NSGAIIISampler

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return NSGAIIISampler(
                population_size=self.population_size, dividing_parameter=self.dividing_parameter, seed=seed
            )


class TPE(_Sampler):
    """Multivariate tree-structured Parzen estimator, grouped by the conditions of the space.

    Trials that still run count as bad ones, so that parallel workers do not ask for the same point.

    Attributes:
        startup_trials: random candidates before the model is used; completed seeds count.
        candidates: points scored for each proposal.

    References:
        Bergstra et al., 2011, "Algorithms for hyper-parameter optimization"; Ozaki et al., 2022, "Multiobjective
        tree-structured Parzen estimator".
    """

    kind: Literal["tpe"] = "tpe"
    startup_trials: Annotated[int, Field(ge=0)] = 10
    candidates: Annotated[int, Field(ge=1)] = 24

    def build(self, seed: int) -> optuna.samplers.BaseSampler:
        """A fresh sampler whose random stream starts at `seed`."""
        import warnings

        import optuna

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # multivariate, group
            return optuna.samplers.TPESampler(
                n_startup_trials=self.startup_trials,
                n_ei_candidates=self.candidates,
                multivariate=True,
                group=True,
                constant_liar=True,
                seed=seed,
            )


class GP(_Sampler):
    """Gaussian process with expected hypervolume improvement: for up to about a hundred slow trials.

    A proposal takes seconds beyond fifty trials. Parameters that are not in every trial, such as the sparsity of a
    group that may stay dense, are drawn at random.

    Attributes:
        startup_trials: random candidates before the model is used; completed seeds count.

    References:
        Daulton et al., 2020, "Differentiable expected hypervolume improvement for parallel multi-objective Bayesian
        optimization".
    """

    kind: Literal["gp"] = "gp"
    startup_trials: Annotated[int, Field(ge=0)] = 10

    def build(self, seed: int) -> optuna.samplers.BaseSampler:
        """A fresh sampler whose random stream starts at `seed`."""
        import warnings

        import optuna

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.samplers.GPSampler(
                n_startup_trials=self.startup_trials, seed=seed, warn_independent_sampling=False
            )


class Random(_Sampler):
    """Independent draws from the space: the baseline that every other sampler must beat.

    Attributes:
        repeats: whether a candidate may come again, as independent draws do; without, a small space is listed.
    """

    kind: Literal["random"] = "random"
    repeats: bool = True

    def build(self, seed: int) -> optuna.samplers.BaseSampler:
        """A fresh sampler whose random stream starts at `seed`."""
        import optuna

        return optuna.samplers.RandomSampler(seed=seed)


class Surrogate(_Sampler):
    """A model of the objectives over plans, and the candidate with the largest expected hypervolume improvement.

    It learns from all rungs and from what the profile knows of a plan, see `autocompress.search.surrogate`. It proposes
    among neighbours and crossings of the front and fresh draws, see `autocompress.search.variation`, as many as take a
    few percent of a trial's time.

    Attributes:
        startup_trials: results before the model is used; until then draws of every size.
        candidates: that are kept and scored for each proposal, at most.
        exploration: share of proposals that are drawn from the space whatever the model says.
    """

    kind: Literal["surrogate"] = "surrogate"
    startup_trials: Annotated[int, Field(ge=0)] = 8
    candidates: Annotated[int, Field(ge=64, le=100_000)] = 1500
    exploration: Annotated[float, Field(ge=0.0, le=1.0)] = 0.05

    def build(self, seed: int) -> optuna.samplers.BaseSampler:
        """What draws the parameters that a proposal leaves open: none, unless the model failed."""
        return Random().build(seed)


class Auto(_Sampler):
    """What fits the cost of a trial and the size of the space, see `autocompress.search.choose`."""

    kind: Literal["auto"] = "auto"


#: Samplers that propose; `Auto` has to be settled first.
ChosenSampler = NSGA2 | NSGA3 | TPE | GP | Random | Surrogate
SamplerConfig = Annotated[ChosenSampler | Auto, Field(discriminator="kind")]
