"""Who may draw a candidate from a space in place of an Optuna trial, without any study."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

#: Half the width, as a share of a range, of what one network's parameters of a kind are drawn from.
_SPREAD = 0.35
#: Chance that a network prefers one choice for all its parameters of a kind.
_PREFERS = 0.6


class Even:
    """Draws each parameter by itself, every value alike.

    Args:
        rng: of the draws.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None) -> float:
        """A value of the grid."""
        if step is None:
            return float(self._rng.uniform(low, high))
        count = round((high - low) / step)
        return low + (high - low) * int(self._rng.integers(count + 1)) / max(1, count)

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:
        """Likewise."""
        return low + step * int(self._rng.integers((high - low) // step + 1))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of the choices."""
        return choices[int(self._rng.integers(len(choices)))]


class Tilted:
    """Draws parameters of one network around a level of its own for each kind.

    Parameters drawn one by one and evenly would give networks that are all of a middling size.

    Args:
        rng: of the draws.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._levels: dict[str, float] = {}
        self._preferred: dict[str, tuple[Any, float]] = {}

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None) -> float:
        """A value of the grid near this network's level."""
        count = round((high - low) / step) if step else 1000
        return low + (high - low) * self._share(name, count)

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:
        """Likewise."""
        count = (high - low) // step
        return low + step * round(count * self._share(name, count))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """This network's preferred choice with its own probability, else any."""
        kind = name.partition("/")[0]
        if kind not in self._preferred:
            strength = self._rng.uniform() if self._rng.uniform() < _PREFERS else 0.0
            self._preferred[kind] = (choices[int(self._rng.integers(len(choices)))], strength)
        preferred, strength = self._preferred[kind]
        if preferred in choices and self._rng.uniform() < strength:
            return preferred
        return choices[int(self._rng.integers(len(choices)))]

    def _share(self, name: str, count: int) -> float:
        kind = name.partition("/")[0]
        level = self._levels.setdefault(kind, float(self._rng.uniform()))
        share = float(np.clip(level + self._rng.uniform(-_SPREAD, _SPREAD), 0.0, 1.0))
        return round(share * count) / max(1, count)
