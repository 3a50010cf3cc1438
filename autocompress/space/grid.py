"""Exact arithmetic for shares and widths, so that a value and its way back through a plan agree to the last bit.

Floats such as ``0.7`` and ``0.1 + 6 * 0.1`` differ; both are read as the fraction 7/10 here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from fractions import Fraction
from functools import lru_cache

#: Far above any layer's number of weights in one share, far below what a float can hold.
_DENOMINATOR = 10**9
_MAX_STEPS = 10_000
#: A search draws thousands of candidates, which ask for the same few values again and again.
_KEPT = 1 << 14


@lru_cache(maxsize=_KEPT)
def exact(value: float) -> Fraction:
    """The simple fraction that a float stands for.

    Examples:
        >>> exact(0.1 + 0.6)
        Fraction(7, 10)
    """
    return Fraction(value).limit_denominator(_DENOMINATOR)


@lru_cache(maxsize=_KEPT)
def grid_of(low: float, high: float, step: float) -> tuple[Fraction, ...]:
    """``low, low + step, ..., high``, exactly.

    Raises:
        ValueError: `high` is below `low` or not on the grid, or the grid has over 10 000 points.
    """
    start, end, distance = exact(low), exact(high), exact(step)
    if end < start:
        raise ValueError(f"expected low <= high, got low {low} and high {high}")
    if distance == 0 or (end - start) / distance > _MAX_STEPS:
        raise ValueError(f"expected a step that gives at most {_MAX_STEPS} values, got {step}")
    steps = (end - start) / distance
    if steps.denominator != 1:
        reached = start + math.floor(steps) * distance
        raise ValueError(
            f"expected a whole number of steps from low {low} to high {high}, got step {step}; "
            f"high could be {float(reached):g}"
        )
    return tuple(start + i * distance for i in range(int(steps) + 1))


def nearest_value(target: float, values: Iterable[Fraction]) -> Fraction:
    """The value closest to `target`; of two, the smaller."""
    wanted = exact(target)
    return min(values, key=lambda value: (abs(value - wanted), value))


def allowed_widths(width: int, round_to: int) -> tuple[int, ...]:
    """Channel counts that a group may have: the multiples of `round_to` below `width`, and `width`; ascending.

    Args:
        width: channels of the dense group, >= 1.
        round_to: the target's multiple, >= 1.
    """
    return (*range(round_to, width, round_to), width)


@lru_cache(maxsize=_KEPT)
def keep_of(width: int, share: Fraction, round_to: int) -> int:
    """The allowed channel count nearest to ``width * share``; of two equally near, the larger.

    Args:
        width: channels of the dense group.
        share: share to keep, in [0, 1].
        round_to: the target's multiple.

    Examples:
        >>> keep_of(32, Fraction(1, 2), 8), keep_of(20, Fraction(9, 10), 8), keep_of(4, Fraction(1, 10), 8)
        (16, 20, 4)
    """
    wanted = width * share
    return min(allowed_widths(width, round_to), key=lambda keep: (abs(keep - wanted), -keep))


def keep_interval(width: int, keep: int, round_to: int) -> tuple[Fraction, Fraction]:
    """Shares, from (included) and to (excluded, unless it is 1), for which `keep_of` gives `keep`.

    Args:
        width: channels of the dense group.
        keep: one of `allowed_widths`.
        round_to: the target's multiple.
    """
    widths = allowed_widths(width, round_to)
    i = widths.index(keep)
    low = Fraction(0) if i == 0 else Fraction(widths[i - 1] + keep, 2 * width)
    high = Fraction(1) if i == len(widths) - 1 else Fraction(keep + widths[i + 1], 2 * width)
    return low, high


@lru_cache(maxsize=_KEPT)
def zeros_of(weights: int, sparsity: Fraction) -> int:
    """How many of a layer's weights become zero: ``sparsity * weights`` to the nearest, halves up; never all.

    Args:
        weights: number of weights, >= 1.
        sparsity: share in [0, 1).
    """
    return min(math.floor(sparsity * weights + Fraction(1, 2)), weights - 1)


def zeros_interval(weights: int, zeros: int) -> tuple[Fraction, Fraction]:
    """Shares, from (included) and to (excluded), for which `zeros_of` gives `zeros`."""
    low = max(Fraction(0), Fraction(2 * zeros - 1, 2 * weights))
    return low, Fraction(1) if zeros == weights - 1 else Fraction(2 * zeros + 1, 2 * weights)


def choose(
    low: Fraction, high: Fraction, grid: Iterable[Fraction], fits: Callable[[Fraction], bool]
) -> Fraction | None:
    """A value from `low` to `high` that `fits`: one of the grid if possible, else the simplest fraction.

    Args:
        low: lower end; whether it belongs is for `fits` to say.
        high: upper end, likewise.
        grid: preferred values.
        fits: true on the interval's inside.

    Returns:
        None if nothing fits.
    """
    centre = (low + high) / 2
    inside = sorted((value for value in grid if low <= value <= high), key=lambda value: abs(value - centre))
    for value in (*inside, low, high):
        if fits(exact(float(value))):
            return value
    if low >= high:
        return None
    value = simplest(low, high)
    return value if fits(exact(float(value))) else None


def simplest(low: Fraction, high: Fraction) -> Fraction:
    """The fraction with the smallest denominator strictly between `low` and `high`, 0 <= low < high.

    References:
        Graham, Knuth and Patashnik, "Concrete Mathematics", section 4.5, Stern-Brocot tree.

    Examples:
        >>> simplest(Fraction(24, 100), Fraction(31, 100))
        Fraction(1, 4)
    """
    whole = math.floor(low)
    if whole + 1 < high:
        return Fraction(whole + 1)
    # high <= whole + 1: the answer is whole + 1/y with y between 1/(high - whole) and 1/(low - whole).
    below = low - whole
    if below == 0:
        return whole + Fraction(1, math.floor(1 / (high - whole)) + 1)
    return whole + 1 / simplest(1 / (high - whole), 1 / below)
