"""Integer grids: which values the weights and inputs of a layer may have, and how a number becomes one of them.

A weight w of output channel c is q · s_c with an integer q in ±(2^(b-1) - 1), so that a zero stays zero. An activation
x is (u - z) · s with 0 ≤ u ≤ 255. Halves are rounded to even, as ONNX's QuantizeLinear and `torch.round` do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: Largest value of an 8-bit activation.
LEVELS = 255
#: Shares of the largest weight that are tried as the end of a coarse grid.
_SHARES = np.linspace(1.0, 0.1, 46, dtype=np.float32)
#: Below 2^31, with room for what the products add.
_LARGEST_BIAS = float(2**30)


@dataclass(frozen=True, eq=False)
class Grid:
    """The grids of one layer.

    Attributes:
        bits: of the weights, 2 to 8.
        weight_scale: s, shape (output channels,), float32.
        input_scale: of the layer's input, float32; None if its input stays float.
        input_zero_point: z, 0 to 255.
    """

    bits: int
    weight_scale: np.ndarray
    input_scale: np.float32 | None = None
    input_zero_point: int = 0

    def integers(self, weight: np.ndarray) -> np.ndarray:
        """The integers nearest to `weight`, shape (output channels, ...); see `to_integers`."""
        return to_integers(weight, self.weight_scale, self.bits)


def largest(bits: int) -> int:
    """2^(b-1) - 1, the largest integer on a symmetric grid.

    Examples:
        >>> [largest(bits) for bits in (8, 4, 2)]
        [127, 7, 1]
    """
    return int(2 ** (bits - 1) - 1)


def to_integers(weight: np.ndarray, scale: np.ndarray, bits: int) -> np.ndarray:
    """clip(round(w / s)) to ±(2^(b-1) - 1).

    Args:
        weight: shape (output channels, ...).
        scale: shape (output channels,).
        bits: 2 to 8.

    Returns:
        int8, the shape of `weight`.
    """
    limit = largest(bits)
    divided = weight.astype(np.float32) / _per_channel(scale, weight.ndim)
    return np.asarray(np.clip(np.rint(divided), -limit, limit), dtype=np.int8)


def from_integers(values: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Q · s in float32, as a runtime computes it."""
    return np.asarray(values.astype(np.float32) * _per_channel(scale, values.ndim))


def weight_scales(weight: np.ndarray, bits: int) -> np.ndarray:
    """One scale per output channel.

    With 8 bits, the largest weight is the last point of the grid. With fewer, the grid ends at that share of the
    largest weight, 0.1 to 1, which gives the smallest squared error: a coarse grid resolves the many small weights
    rather than the few large ones. A channel of zeros gets scale 1.

    Args:
        weight: shape (output channels, ...).
        bits: 2 to 8.

    Returns:
        Shape (output channels,), float32, > 0.

    References:
        Nahshan et al., 2021, "Loss aware post-training quantization" (clipping by the error's norm).
    """
    rows = weight.reshape(len(weight), -1).astype(np.float32)
    limit = np.float32(largest(bits))
    top = np.abs(rows).max(axis=1, initial=0.0).astype(np.float32)
    full = np.where(top > 0, top / limit, np.float32(1.0)).astype(np.float32)
    # A channel of denormal numbers has no scale that a float can hold.
    full = np.where(full > np.finfo(np.float32).tiny, full, np.float32(1.0))
    if bits >= 8:
        return full
    best, error = full, np.full(len(rows), np.inf, dtype=np.float64)
    for share in _SHARES:
        scale = full * share
        found = ((from_integers(to_integers(rows, scale, bits), scale) - rows) ** 2).sum(axis=1, dtype=np.float64)
        better = found < error
        best, error = np.where(better, scale, best), np.where(better, found, error)
    return best.astype(np.float32)


def activation_grid(low: float, high: float) -> tuple[np.float32, int]:
    """Scale and zero point of the 8-bit grid from `low` to `high`, widened to hold zero exactly.

    s = (max(high, 0) - min(low, 0)) / 255, z = round(-min(low, 0) / s).

    Examples:
        >>> activation_grid(0.0, 25.5)
        (np.float32(0.1), 0)
    """
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    scale = np.float32((high - low) / LEVELS)
    if not scale > np.finfo(np.float32).tiny:
        return np.float32(1.0), 0
    return scale, int(np.clip(np.rint(-low / float(scale)), 0, LEVELS))


def bias_scale(weight_scale: np.ndarray, input_scale: float | np.float32) -> np.ndarray:
    """S · s_x in float32: the unit of an integer kernel's sums, in which it keeps the bias as a 32-bit integer.

    Args:
        weight_scale: s, shape (output channels,).
        input_scale: s_x.
    """
    return np.asarray(weight_scale.astype(np.float32) * np.float32(input_scale))


def smallest_scales(bias: np.ndarray, input_scale: float) -> np.ndarray:
    """Weight scales below which a bias, stored as round(b / (s · s_x)), would not fit into 32 bits.

    Args:
        bias: shape (output channels,).
        input_scale: s_x.

    Returns:
        Shape (output channels,), float32.
    """
    return np.asarray(np.abs(bias) / (float(input_scale) * _LARGEST_BIAS), dtype=np.float32)


def _per_channel(scale: np.ndarray, ndim: int) -> np.ndarray:
    return np.asarray(scale, dtype=np.float32).reshape(-1, *[1] * (ndim - 1))
