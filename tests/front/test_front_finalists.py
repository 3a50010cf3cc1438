import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from autocompress.front.finalists import choose_finalists

points = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=25).map(
    lambda rows: np.array(rows, dtype=float)
)


def dominates(a, b):
    return (a <= b).all() and (a < b).any()


def rank_of(points):
    """Naive oracle: how many fronts have to be peeled before a point is non-dominated."""
    ranks, left, rank = {}, set(range(len(points))), 0
    while left:
        best = {
            i for i in left if not any((points[j] <= points[i]).all() and (points[j] < points[i]).any() for j in left)
        }
        ranks.update(dict.fromkeys(best, rank))
        left, rank = left - best, rank + 1
    return ranks


@given(points, st.integers(1, 12))
def test_no_point_is_passed_over_for_one_of_a_worse_rank(points, count):
    chosen = choose_finalists(points, count)
    ranks = rank_of(points)
    assert len(chosen) == len(set(chosen)) == min(count, len(points))
    passed_over = [ranks[i] for i in range(len(points)) if i not in chosen]
    assert not passed_over or max(ranks[i] for i in chosen) <= min(passed_over)


def test_the_best_in_each_objective_survive_when_a_front_is_too_large():
    front = np.array([[float(i), float(10 - i)] for i in range(11)])
    chosen = choose_finalists(front, 3)
    assert {0, 10} <= set(chosen)
    assert chosen[-1] == 5  # the one farthest from both ends


def test_none_of_none():
    assert choose_finalists(np.empty((0, 2)), 3) == []
