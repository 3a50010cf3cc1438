"""Checks of the builders' arguments, and rounding of channels."""

from __future__ import annotations

from collections.abc import Collection

from autocompress.errors import TaskError


def at_least(builder: str, minimum: float, **values: float) -> None:
    """Check that every value is `minimum` or more.

    Raises:
        TaskError: one is not.
    """
    for name, value in values.items():
        if not value >= minimum:
            raise TaskError(f"{builder}: expected {name} >= {minimum:g}, got {value}")


def above_zero(builder: str, **values: float) -> None:
    """Check that every value is greater than 0.

    Raises:
        TaskError: one is not.
    """
    for name, value in values.items():
        if not value > 0:
            raise TaskError(f"{builder}: expected {name} > 0, got {value}")


def one_of(builder: str, choices: Collection[object], **values: object) -> None:
    """Check that every value is one of `choices`.

    Raises:
        TaskError: one is not.
    """
    for name, value in values.items():
        if value not in choices:
            shown = ", ".join(repr(choice) for choice in choices)
            raise TaskError(f"{builder}: expected {name} to be one of {shown}, got {value!r}")


def multiple_of(builder: str, divisor: int, **values: int) -> None:
    """Check that `divisor` divides every value.

    Raises:
        TaskError: it does not.
    """
    for name, value in values.items():
        if value % divisor:
            raise TaskError(f"{builder}: expected {name} to be a multiple of {divisor}, got {value}")


def round_channels(channels: float, divisor: int = 8) -> int:
    """The nearest multiple of `divisor` that is at least `divisor`, and at least 0.9 of `channels`.

    Examples:
        >>> [round_channels(c) for c in (3, 18, 20.0, 100)]
        [8, 24, 24, 104]
    """
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded
