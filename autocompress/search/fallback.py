"""A sampler that raises stops nothing: it is said once, and candidates are drawn at random instead."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from autocompress.records import ParamValue, Plan, TrialRecord
from autocompress.rng import derive_seed
from autocompress.search.choose import DistinctProposer
from autocompress.search.problem import Proposer

if TYPE_CHECKING:
    from autocompress.search.ledger import SearchSpace

AnswerT = TypeVar("AnswerT")


class _Reporter:
    def __init__(self, name: str, report: Callable[[str], None]) -> None:
        self._name, self._report, self._told = name, report, set[str]()

    def tell(self, error: Exception, instead: str) -> None:
        """Once for each thing that is done instead."""
        if instead not in self._told:
            self._told.add(instead)
            text = " ".join(str(error).split())
            self._report(f"sampler {self._name} raised {type(error).__name__}: {text:.300}; {instead}")


class SafeProposer:
    """A proposer that may raise: what it raises is reported once, and each such proposal is drawn from the space.

    Args:
        proposer: the one that is asked first, every time.
        name: of its sampler, for the report.
        space: that is drawn from.
        seed: of the draws.
        report: told in words, once.
    """

    def __init__(
        self, proposer: Proposer, name: str, space: SearchSpace, seed: int, report: Callable[[str], None]
    ) -> None:
        self._proposer, self._instead = proposer, DistinctProposer(space, derive_seed(seed, "fallback"))
        self._reporter = _Reporter(name, report)

    def propose(self, trials: Sequence[TrialRecord]) -> dict[str, ParamValue]:
        """The proposer's parameters, or drawn ones whose plan no trial has."""
        try:
            return self._proposer.propose(trials)
        except Exception as error:  # noqa: BLE001 - whatever a model raises, the search goes on
            self._reporter.tell(error, "drawing at random instead")
            return self._instead.propose(trials)

    def hopeless(self, plan: Plan, trials: Sequence[TrialRecord]) -> str | None:
        """The proposer's answer; None, so that the candidate is built, if it raises."""
        try:
            return self._proposer.hopeless(plan, trials)
        except Exception as error:  # noqa: BLE001 - likewise
            self._reporter.tell(error, "building every candidate instead")
            return None


class SafeSampler(optuna.samplers.BaseSampler):
    """An Optuna sampler that may raise: what it raises is reported once, and those parameters are drawn at random.

    Args:
        sampler: the one that is asked first, every time.
        name: of it, for the report.
        seed: of the draws.
        report: told in words, once.
    """

    def __init__(
        self, sampler: optuna.samplers.BaseSampler, name: str, seed: int, report: Callable[[str], None]
    ) -> None:
        self._sampler = sampler
        self._random = optuna.samplers.RandomSampler(seed=derive_seed(seed, "fallback"))
        self._reporter = _Reporter(name, report)

    def reseed_rng(self) -> None:
        """As the sampler does."""
        self._sampler.reseed_rng()

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The sampler's; nothing if it raises, so that every parameter is drawn by itself."""
        return self._guarded(lambda s: s.infer_relative_search_space(study, trial), lambda s: {})

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Likewise."""
        return self._guarded(lambda s: s.sample_relative(study, trial, search_space), lambda s: {})

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The sampler's, or at random."""

        def draw(sampler: optuna.samplers.BaseSampler) -> Any:
            return sampler.sample_independent(study, trial, param_name, param_distribution)

        return self._guarded(draw, draw)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """As the sampler does."""
        self._guarded(lambda s: s.before_trial(study, trial), lambda s: None)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """As the sampler does."""
        self._guarded(lambda s: s.after_trial(study, trial, state, values), lambda s: None)

    def _guarded(
        self,
        ask: Callable[[optuna.samplers.BaseSampler], AnswerT],
        instead: Callable[[optuna.samplers.BaseSampler], AnswerT],
    ) -> AnswerT:
        try:
            return ask(self._sampler)
        except Exception as error:  # noqa: BLE001 - whatever a sampler raises, the search goes on
            self._reporter.tell(error, "drawing at random instead")
            return instead(self._random)
