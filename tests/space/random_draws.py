"""A suggester for the tests of this folder, and what every plan that it leads to has to hold."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from autocompress.records import Plan
from autocompress.space.space import Space


class Draws:
    """Draws at random, or answers with what it was told to; nothing without a choice may be asked."""

    def __init__(self, seed: int, **answers: Any) -> None:
        self.random = random.Random(seed)  # noqa: S311
        self.answers = answers
        self.asked: list[str] = []

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None) -> float:
        assert step is not None
        self.asked.append(name)
        return low + step * self.random.randint(0, round((high - low) / step))

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:
        self.asked.append(name)
        return self.random.randrange(low, high + 1, step)

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        self.asked.append(name)
        assert len(choices) > 1
        return self.answers.get(name, self.random.choice(choices))


def assert_comes_back(space: Space, plan: Plan) -> None:
    """A plan survives the way to parameters, and to JSON, and back; parameters the way to a plan."""
    params = space.params(plan)
    assert space.plan(params) == plan
    assert space.params(space.plan(params)) == params
    assert Plan.model_validate_json(plan.model_dump_json()) == plan
