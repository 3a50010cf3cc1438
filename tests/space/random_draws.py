"""A suggester for the tests of this folder."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any


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
