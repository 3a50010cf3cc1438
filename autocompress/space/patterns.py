"""Patterns of zeros, and which shapes of weights they divide."""

from __future__ import annotations

from fractions import Fraction
from math import prod

from autocompress.records import LayerKind


def n_m(pattern: str) -> tuple[int, int] | None:
    """(n, m) of ``"n:m"``: n non-zeros in every m; None for another pattern.

    Examples:
        >>> n_m("2:4"), n_m("element"), n_m("block:4x4")
        ((2, 4), None, None)
    """
    kept, colon, every = pattern.partition(":")
    return (int(kept), int(every)) if colon and kept != "block" else None


def block_of(pattern: str) -> tuple[int, int]:
    """Rows (output channels) and columns (input weights) that become zero together; (1, 1) for single weights.

    Examples:
        >>> block_of("block:4x2"), block_of("element")
        ((4, 2), (1, 1))
    """
    if not pattern.startswith("block:"):
        return 1, 1
    rows, _, columns = pattern.removeprefix("block:").partition("x")
    return int(rows), int(columns)


def fits(pattern: str, shape: tuple[int, ...], kind: LayerKind = "linear") -> bool:
    """Whether a pattern divides a weight, read as a matrix of output channels × (positions · input channels).

    Args:
        pattern: ``"element"``; ``"n:m"``, which needs input channels in multiples of m; or ``"block:RxC"``, which needs
            output channels in multiples of R and input weights in multiples of C.
        shape: of the weight as torch keeps it: (out, in, ...), or (in, out, ...) of a transposed convolution.
        kind: of the layer.
    """
    out, inputs = (shape[1], shape[0]) if kind == "conv_transpose2d" else (shape[0], shape[1])
    pair = n_m(pattern)
    if pair is not None:
        return inputs % pair[1] == 0
    rows, columns = block_of(pattern)
    return out % rows == 0 and prod(shape) // out % columns == 0


def fixed_sparsity(pattern: str) -> Fraction | None:
    """Share of zeros that ``"n:m"`` means, 1 - n/m; None where it is free."""
    pair = n_m(pattern)
    return None if pair is None else 1 - Fraction(*pair)


def pieces(pattern: str, shape: tuple[int, ...]) -> int:
    """How many parts of a weight become zero one by one: its weights, or its blocks."""
    rows, columns = block_of(pattern)
    return prod(shape) // (rows * columns)
