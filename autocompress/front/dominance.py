"""Pareto dominance between points whose objectives are all minimized."""

from __future__ import annotations

import moocore
import numpy as np


def non_dominated(points: np.ndarray) -> np.ndarray:
    """Which points no other point dominates.

    A point dominates another if it is at least as good in every objective and better in one. All objectives are
    minimized. Equal points do not dominate each other: of duplicates on the front, every one is kept.

    Args:
        points: shape (n, m); n candidates, m >= 1 objectives, each in its own unit. n may be 0.

    Returns:
        Boolean mask of shape (n,).

    Raises:
        ValueError: not two-dimensional, without a column, or with a value that is not finite.

    Examples:
        >>> non_dominated(np.array([[0.1, 2.0], [0.2, 1.0], [0.2, 2.0]])).tolist()
        [True, True, False]

    References:
        Kung, Luccio and Preparata, 1975, "On finding the maxima of a set of vectors"; computed by moocore.
    """
    points = checked(points)
    if len(points) == 0:
        return np.zeros(0, dtype=bool)
    return np.asarray(moocore.is_nondominated(points, keep_weakly=True), dtype=bool)


def checked(points: np.ndarray) -> np.ndarray:
    """`points` as floats, shape (n, m).

    Raises:
        ValueError: not two-dimensional, without a column, or with a value that is not finite.
    """
    points = np.asarray(points, dtype=float)
    if points.ndim != 2 or points.shape[1] == 0:
        raise ValueError(f"points: expected shape (n, m) with m >= 1 objectives, got {points.shape}")
    bad = np.argwhere(~np.isfinite(points))
    if len(bad):
        row, column = (int(i) for i in bad[0])
        raise ValueError(f"points[{row}, {column}]: expected a finite value, got {points[row, column]}")
    return points
