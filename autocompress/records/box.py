"""The box in which fronts are compared: fixed by the dense model, so that searches on the same ground compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from autocompress.records.objectives import FIXED, Metric

#: How much more error than the dense model's still counts, as a share of all examples.
ERROR_MARGIN = 0.10
#: How much recall the class that loses most may lose and still count.
WORST_CLASS_MARGIN = 0.20


def in_box(
    values: Sequence[Mapping[str, float]],
    dense: Mapping[str, float],
    objectives: Sequence[str],
    metrics: Sequence[Metric] = (),
) -> np.ndarray:
    """Points in the box, every objective minimized; what lies in [0, 1] in every column is inside.

    Error = 1 - accuracy is a share of dense error + 0.10, the worst class's drop of 0.20 (a gain counts as 0), every
    cost of the dense cost, and a metric's distance to its best value of the dense distance + margin, see `_gap`.

    Args:
        values: n points; each has a finite value for every objective.
        dense: the dense model's value for every objective, in the same units.
        objectives: m distinct names, the columns.
        metrics: those of the study among `objectives`.

    Returns:
        Shape (n, m), without unit.

    Raises:
        ValueError: there is no objective, one is missing, a value is not finite, or a dense cost is not above 0.
    """
    known = {metric.name: metric for metric in metrics}
    columns = []
    for name in objectives:
        for row in (dense, *values):
            if name not in row:
                raise ValueError(f"objective {name!r}: expected a value in every point, got {sorted(row)}")
        column = np.array([row[name] for row in values], dtype=float)
        if not np.isfinite(column).all():
            bad = int(np.flatnonzero(~np.isfinite(column))[0])
            raise ValueError(f"objective {name!r}: expected a finite value in point {bad}, got {column[bad]}")
        if name == "accuracy":
            columns.append((1.0 - column) / (1.0 - dense[name] + ERROR_MARGIN))
        elif name == "worst_class_drop":
            columns.append(np.maximum(column, 0.0) / WORST_CLASS_MARGIN)
        elif name in known:
            columns.append(_gap(known[name], column, dense[name]))
        elif name not in FIXED:
            raise ValueError(f"objective {name!r}: expected a fixed one or one of {sorted(known)}")
        elif dense[name] > 0:
            columns.append(column / dense[name])
        else:
            raise ValueError(f"dense {name}: expected a value > 0, got {dense[name]}")
    if not columns:
        raise ValueError("objectives: expected at least one, got none")
    return np.stack(columns, axis=1)


def _gap(metric: Metric, column: np.ndarray, dense: float) -> np.ndarray:
    """Distances to the metric's best value, as shares of the box's width.

    gap(x) = max(0, best - x), or max(0, x - best) for an error; the width is gap(dense) + margin. Unless the metric has
    its own, the margin is that of accuracy, 0.10, where 1 is the best value, as of a share; else half of the dense gap,
    and 1 where that is 0.
    Without a known best value it is dense + |dense|, or dense - |dense| for an error.

    Args:
        metric: knows direction and best value.
        column: shape (n,).
        dense: the dense model's value.
    """
    sign = 1.0 if metric.maximize else -1.0
    best = metric.best if metric.best is not None else dense + sign * abs(dense)
    gap = max(0.0, sign * (best - dense))
    margin = metric.margin or (ERROR_MARGIN if metric.maximize and metric.best == 1.0 else 0.5 * gap or 1.0)
    found: np.ndarray = np.maximum(0.0, sign * (best - column)) / (gap + margin)
    return found
