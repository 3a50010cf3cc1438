"""One kind of choice of a search space."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from autocompress.records import Criterion, ParamValue, Plan, Strategy
from autocompress.space.draft import Draft
from autocompress.space.params import Params, Suggester


@dataclass(frozen=True)
class Uniform:
    """The same request for everything that is searched.

    Attributes:
        sparsity: share to remove, in [0, 1).
        bits: bit width.
        strategy: preferred one.
        criterion: likewise.
    """

    sparsity: float
    bits: int
    strategy: Strategy = "structured"
    criterion: Criterion = "magnitude"


class Knob(Protocol):
    """A kind of choice: it asks for its parameters, adds what they mean to a draft, and finds its way back.

    Knobs are turned in a fixed order; each sees what those before it made of the draft. For every plan p of the space
    and the draft d before the knob, ``knob.apply(knob.invert(p, d), d)`` asks for what p has of the knob's kind.
    """

    def keys(self) -> frozenset[str]:
        """Names of all parameters."""
        ...

    def suggest(self, trial: Suggester, draft: Draft) -> Params:
        """Values for those parameters that have more than one choice, and an effect on the draft."""
        ...

    def apply(self, params: Mapping[str, ParamValue], draft: Draft) -> Draft:
        """The draft with what the parameters ask for.

        Raises:
            InfeasibleError: a parameter is missing or out of range.
        """
        ...

    def invert(self, plan: Plan, draft: Draft) -> Params:
        """Parameters that mean the plan.

        Raises:
            InfeasibleError: the plan is none of this space.
        """
        ...

    def uniform(self, request: Uniform) -> Params:
        """The request, moved to the nearest that is open; what it does not speak of as near to dense as possible."""
        ...

    def mild(self) -> list[tuple[str, Params]]:
        """Named settings that a search should try early, as changes to the dense ones."""
        ...

    def log10_size(self) -> float:
        """log10 of the number of settings."""
        ...

    def describe(self) -> list[str]:
        """In words, one line for each set of names with the same choices."""
        ...


def plural(count: int, noun: str) -> str:
    """``"1 layer"``, ``"2 layers"``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
