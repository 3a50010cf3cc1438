"""What is optimized, and what is known of a candidate before it is built: all that a sampler may ask."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from autocompress.records import MAXIMIZED, Bound, Metric, ParamValue, Plan, TrialRecord
from autocompress.records.box import in_box


class Guide(Protocol):
    """What the profile tells of a plan without building it, in about a millisecond."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the features."""
        ...

    def features(self, plan: Plan) -> np.ndarray:
        """What a model may learn from; shape (d,), finite, in the order of `names`."""
        ...

    def costs(self, plan: Plan) -> dict[str, float]:
        """Objectives that are known beforehand, such as ``"latency_ms"`` from a latency model; may be empty."""
        ...


@dataclass(frozen=True)
class Problem:
    """What is optimized.

    Attributes:
        objectives: names, in the order of the study's values.
        dense: the dense model's value of every objective, accuracy and metrics on the validation split.
        metrics: those of the study among the objectives; they know their directions.
        bounds: constraints.
        guide: what is known beforehand; None without a profile.
    """

    objectives: tuple[str, ...]
    dense: Mapping[str, float]
    metrics: tuple[Metric, ...] = ()
    bounds: tuple[Bound, ...] = ()
    guide: Guide | None = None

    @property
    def learnt(self) -> tuple[int, ...]:
        """Indices of the objectives that training changes."""
        names = learnt_names(self.metrics)
        return tuple(i for i, name in enumerate(self.objectives) if name in names)

    @property
    def cost_bounds(self) -> tuple[Bound, ...]:
        """Bounds that training does not change: a low accuracy says little before it."""
        return cost_bounds(self.bounds, self.metrics)

    def points(self, values: Sequence[Mapping[str, float]]) -> np.ndarray:
        """Objectives as shares of the box that the dense model fixes, minimized, shape (n, m): see `in_box`."""
        return in_box(values, self.dense, self.objectives, self.metrics)


def learnt_names(metrics: Iterable[Metric]) -> frozenset[str]:
    """Names of what training changes; everything else is a cost.

    Args:
        metrics: those of the study.
    """
    return frozenset({*MAXIMIZED, "worst_class_drop", *(metric.name for metric in metrics)})


def cost_bounds(bounds: Iterable[Bound], metrics: Iterable[Metric]) -> tuple[Bound, ...]:
    """Those of `bounds` that training does not change.

    Args:
        bounds: constraints.
        metrics: those of the study, which training changes.
    """
    names = learnt_names(metrics)
    return tuple(bound for bound in bounds if bound.objective not in names)


class Proposer(Protocol):
    """Proposes candidates from all that the ledger knows, so that a resumed search has nothing to restore."""

    def propose(self, trials: Sequence[TrialRecord]) -> dict[str, ParamValue]:
        """Parameters of the next candidate; `trials` are all of the ledger, by number, running ones included."""
        ...

    def hopeless(self, plan: Plan, trials: Sequence[TrialRecord]) -> str | None:
        """Why the plan need not be built, or trained further: it is predicted to be no use. None to go on with it."""
        ...
