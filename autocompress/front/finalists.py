"""Which members of a search's front go on to full recovery."""

from __future__ import annotations

import numpy as np

from autocompress.front.dominance import non_dominated


def choose_finalists(points: np.ndarray, count: int) -> list[int]:
    """Up to `count` points, by non-dominated rank; within the last rank that fits in part, those farthest apart.

    Values at low fidelity order candidates only roughly, so when the first front is small the next ones fill up.
    Within a rank the points best in each objective come first, then greedily the point whose nearest chosen neighbour
    is farthest, in objectives scaled to [0, 1].

    Args:
        points: shape (n, m), every objective minimized, finite.
        count: at least 1.

    Returns:
        Indices into `points`, in the order chosen.
    """
    left = np.arange(len(points))
    chosen: list[int] = []
    span = np.ptp(points, axis=0) if len(points) else np.ones(0)
    scaled = (points - points.min(axis=0)) / np.where(span > 0, span, 1.0) if len(points) else points
    while len(left) and len(chosen) < count:
        mask = non_dominated(points[left])
        rank, left = left[mask], left[~mask]
        room = count - len(chosen)
        chosen += [int(i) for i in rank] if len(rank) <= room else _spread(scaled, rank, chosen, room)
    return chosen


def _spread(scaled: np.ndarray, rank: np.ndarray, chosen: list[int], room: int) -> list[int]:
    extremes = dict.fromkeys(int(rank[i]) for i in scaled[rank].argmin(axis=0))
    picked = list(extremes)[:room]
    while len(picked) < room:
        rest = [int(i) for i in rank if int(i) not in picked]
        near = np.linalg.norm(scaled[rest][:, None] - scaled[[*chosen, *picked]][None], axis=2).min(axis=1)
        picked.append(rest[int(near.argmax())])
    return picked
