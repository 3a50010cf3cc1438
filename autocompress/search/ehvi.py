"""Expected hypervolume improvement: what a candidate is expected to add to the front, before it is built."""

from __future__ import annotations

import numpy as np

#: The work grows as the front's size to the power m - 2; beyond this many slices the front is thinned.
_MOST_SLICES = 1000


def expected_improvement(means: np.ndarray, stds: np.ndarray, front: np.ndarray) -> np.ndarray:
    """Hypervolume that each candidate is expected to add to the front: exact, for any number of objectives.

    All objectives are minimized, the reference point is (1, ..., 1), and objectives are independent Gaussians. With
    psi_j(c) = E[(c - y_j)+] = (c - mu_j) Phi(z) + sigma_j phi(z), z = (c - mu_j) / sigma_j, a front whose last
    objectives are c_1 < ... < c_k cuts what it does not dominate into slices, so that

        EHVI_m = sum_i [psi_m(c_{i+1}) - psi_m(c_i)] EHVI_{m-1}(first m - 1 objectives of the points with c <= c_i)

    with c_0 = -inf, where nothing is dominated yet, and c_{k+1} = 1. EHVI_1 = psi_1(min(1, the best)), which is
    expected improvement. For m = 2 this is a sum over the front's strips, taken for all candidates at once; for m >= 3
    the slices are taken one by one. Where there are too many of them (more than 31 points of four objectives, ten of
    five) the front is thinned evenly along the last objective, which overrates candidates near the points left out.

    Args:
        means: shape (n, m), m >= 1; each candidate's expected objectives, as shares of the box.
        stds: shape (n, m), >= 0; 0 is certainty.
        front: shape (k, m); may be empty, dominated points and points beyond the reference are allowed.

    Returns:
        Shape (n,), in [0, inf): above 1 only where a Gaussian reaches below 0.

    Raises:
        ValueError: shapes disagree, or a value is not finite.

    References:
        Emmerich, Giannakoglou and Naujoks, 2006, "Single- and multiobjective evolutionary optimization assisted by
        Gaussian random field metamodels"; Yang et al., 2019, "Efficient computation of expected hypervolume improvement
        using box decomposition algorithms", whose boxes the slices are.
    """
    means, stds, front = (np.asarray(values, dtype=float) for values in (means, stds, front))
    if means.ndim != 2 or means.shape[1] == 0 or stds.shape != means.shape:
        raise ValueError(f"means and stds: expected one shape (n, m) with m >= 1, got {means.shape} and {stds.shape}")
    if front.ndim != 2 or front.shape[1] != means.shape[1]:
        raise ValueError(f"front: expected shape (k, {means.shape[1]}), got {front.shape}")
    for name, values in (("means", means), ("stds", stds), ("front", front)):
        if not np.isfinite(values).all():
            raise ValueError(f"{name}: expected finite values, got {values[~np.isfinite(values)][0]}")
    if (stds < 0).any():
        raise ValueError(f"stds: expected values >= 0, got {stds.min()}")
    return _slices(means, stds, _thinned(front[(front < 1.0).all(axis=1)]))


def _slices(means: np.ndarray, stds: np.ndarray, front: np.ndarray) -> np.ndarray:
    if means.shape[1] == 1:
        best = min(1.0, front.min()) if len(front) else 1.0
        return np.asarray(_below(means, stds, np.array([best]))[:, 0])
    front = front[np.argsort(front[:, -1], kind="stable")]
    levels = np.append(front[:, -1], 1.0)
    reached = _below(means[:, -1:], stds[:, -1:], levels)
    widths = np.diff(reached, axis=1, prepend=0.0)  # psi(-inf) is 0
    if means.shape[1] == 2:
        # In slice i the points before it are open to comparison: the least of their first objective bounds it.
        bounds = np.minimum.accumulate(np.append(1.0, front[:, 0]))
        heights = _below(means[:, :1], stds[:, :1], bounds)
        return np.asarray((widths * heights).sum(axis=1))
    total = np.zeros(len(means))
    for i in range(len(levels)):
        if i == 0 or levels[i] > levels[i - 1]:
            total += widths[:, i] * _slices(means[:, :-1], stds[:, :-1], front[:i, :-1])
    return total


def _below(means: np.ndarray, stds: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """psi(c) = E[(c - y)+] of each candidate at each level.

    Args:
        means: shape (n, 1).
        stds: shape (n, 1).
        levels: shape (k,).

    Returns:
        Shape (n, k).
    """
    from scipy.special import ndtr

    gap = levels[None, :] - means
    sure = stds <= 1e-12
    spread = np.where(sure, 1.0, stds)
    z = gap / spread
    found = gap * ndtr(z) + spread * np.exp(-0.5 * z * z) / np.sqrt(2.0 * np.pi)
    return np.asarray(np.where(sure, np.maximum(gap, 0.0), np.maximum(found, 0.0)))


def _thinned(front: np.ndarray) -> np.ndarray:
    """At most as many points as the slices of m - 2 objectives allow, spread evenly along the last one."""
    m = front.shape[1]
    most = len(front) if m <= 2 else max(2, int(_MOST_SLICES ** (1.0 / (m - 2)) + 1e-9))
    if len(front) <= most:
        return front
    order = np.argsort(front[:, -1], kind="stable")
    return np.asarray(front[order[np.linspace(0, len(front) - 1, most).round().astype(int)]])
