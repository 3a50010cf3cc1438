"""Parameters of a search: who proposes them, and how they are read back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, Protocol, TypeVar, cast

from autocompress.errors import InfeasibleError
from autocompress.records import ParamValue
from autocompress.space.explain import alternatives
from autocompress.space.grid import exact

Params = dict[str, ParamValue]
ChoiceT = TypeVar("ChoiceT", bound=ParamValue)


class Suggester(Protocol):
    """What proposes values one by one; Optuna's ``Trial`` is one."""

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None) -> float:
        """A value of ``low, low + step, ..., high``."""

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:
        """A value of ``low, low + step, ..., high``."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of the choices."""


def read_choice(params: Mapping[str, ParamValue], key: str, choices: tuple[ChoiceT, ...]) -> ChoiceT:
    """The value of `key`; it may be absent if there is only one choice.

    Raises:
        InfeasibleError: it is missing, or none of the choices.
    """
    if key not in params and len(choices) == 1:
        return choices[0]
    if params.get(key) not in choices:
        raise InfeasibleError(f"{key}: expected {alternatives(choices)}, got {params.get(key, 'nothing')!r}")
    return cast(ChoiceT, params[key])


def read_number(params: Mapping[str, ParamValue], key: str, grid: tuple[Fraction, ...], *, zero: bool) -> Fraction:
    """The value of `key`, on the grid or off it; it may be absent if the grid has only one value.

    Args:
        params: all parameters.
        key: name of the one that is read.
        grid: what is offered.
        zero: a share in [0, 1), rather than one in (0, 1].

    Raises:
        InfeasibleError: it is missing, no number, or out of range.
    """
    if key not in params and len(grid) == 1:
        return grid[0]
    value = params.get(key)
    accepted = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not accepted or not (0 <= float(value) < 1 if zero else 0 < float(value) <= 1):  # type: ignore[arg-type]
        expected = "a number >= 0 and < 1" if zero else "a number > 0 and <= 1"
        raise InfeasibleError(f"{key}: expected {expected}, got {'nothing' if value is None else repr(value)}")
    return exact(float(value))  # type: ignore[arg-type]
