"""The same kind of network in another size: a builder's arguments for a multiple of its width and depth."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from autocompress.errors import TaskError
from autocompress.models.arguments import above_zero
from autocompress.models.resnet import resnet_cifar, stages_of

#: Arguments that say how many channels, neurons or units there are.
_WIDE = ("width", "widths", "hidden", "growth", "stem")
#: Arguments that say how many layers or blocks there are.
_DEEP = ("depth", "blocks")
#: What channel counts of a smaller network are multiples of: what runtimes on CPUs compute at once.
_CHANNELS = 8


def scaled_channels(channels: int, multiplier: float, divisor: int = _CHANNELS) -> int:
    """``channels * multiplier`` to the nearest multiple of `divisor`, halves up; at least one multiple.

    A smaller network never gets more channels than there were, and at 1 the number stays as it is.

    Examples:
        >>> [scaled_channels(32, m) for m in (0.1, 0.25, 0.5, 0.65, 1.0, 1.5)], scaled_channels(6, 0.5)
        ([8, 8, 16, 24, 32, 48], 6)
    """
    if multiplier == 1.0:
        return channels
    rounded = max(divisor, math.floor(channels * multiplier / divisor + 0.5) * divisor)
    return min(channels, rounded) if multiplier < 1.0 else rounded


def scaled_count(count: int, multiplier: float) -> int:
    """``count * multiplier`` layers or blocks, to the nearest, halves up; at least 1.

    Examples:
        >>> [scaled_count(6, m) for m in (0.05, 0.25, 0.5, 1.0)]
        [1, 2, 3, 6]
    """
    return max(1, math.floor(count * multiplier + 0.5))


def scaled_arguments(
    function: Callable[..., nn.Module], arguments: Mapping[str, Any], *, width: float = 1.0, depth: float = 1.0
) -> dict[str, Any]:
    """Arguments for a network of `width` times the channels and `depth` times the blocks.

    Arguments that mean the width (``width``, ``widths``, ``hidden``, ``growth``, ``stem``) and the depth (``depth``,
    ``blocks``) are known by name. A whole number, and each of a tuple, is scaled and rounded: channels to multiples of
    8, layers to at least one. A float is taken for a multiplier. Where there are ``heads``, their number is scaled and
    the width follows, so that a head keeps its size. `resnet_cifar` gets blocks per stage, as not every number of
    layers makes three equal stages.

    Args:
        function: builds the network.
        arguments: those that it is called with; its defaults count for the others.
        width: multiplier of the channels, > 0.
        depth: multiplier of the layers or blocks, > 0.

    Raises:
        TaskError: a multiplier is not positive, or the function has no argument that it could change.
    """
    above_zero(function.__name__, width=width, depth=depth)
    known = {
        name: arguments.get(name, parameter.default)
        for name, parameter in inspect.signature(function).parameters.items()
        if name in arguments or parameter.default is not inspect.Parameter.empty
    }
    found = dict(arguments)
    if depth != 1.0 and function is resnet_cifar:
        dense = known["blocks"] or ((known["depth"] - 2) // 6,) * 3
        found["blocks"] = stages_of(scaled_count(sum(dense), depth))
    elif depth != 1.0:
        found |= _scaled(function, known, _DEEP, "depth", lambda count: scaled_count(count, depth), depth)
    if width != 1.0:
        found |= _scaled(function, known, _WIDE, "width", lambda n: scaled_channels(n, width), width)
        if isinstance(heads := known.get("heads"), int) and isinstance(features := known.get("width"), int):
            found["heads"] = scaled_count(heads, width)
            found["width"] = found["heads"] * (features // heads)
    return found


def _scaled(
    function: Callable[..., nn.Module],
    known: Mapping[str, Any],
    names: tuple[str, ...],
    what: str,
    rounded: Callable[[int], int],
    multiplier: float,
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in names:
        value = known.get(name)
        if isinstance(value, bool):
            continue
        if isinstance(value, int):
            found[name] = rounded(value)
        elif isinstance(value, float):
            found[name] = value * multiplier
        elif isinstance(value, tuple | list) and value and all(isinstance(n, int) for n in value):
            found[name] = tuple(map(rounded, value))
    if not found:
        raise TaskError(
            f"{function.__name__}: expected a network with one of the arguments {', '.join(names)}, so that its {what} "
            f"can be scaled by {multiplier:g}, got one with {', '.join(known) or 'none'}"
        )
    return found
