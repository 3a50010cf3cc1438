from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from autocompress.front.dominance import non_dominated


def naive(points: np.ndarray) -> list[bool]:
    def dominates(a: np.ndarray, b: np.ndarray) -> bool:
        return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))

    return [not any(dominates(other, point) for other in points) for point in points]


def sets(elements: st.SearchStrategy[float], least: int = 0) -> st.SearchStrategy[np.ndarray]:
    shapes = st.tuples(st.integers(least, 25), st.integers(1, 5))
    return shapes.flatmap(lambda shape: hnp.arrays(np.float64, shape, elements=elements))


@given(sets(st.integers(0, 4).map(float)))
def test_agrees_with_the_definition_where_ties_and_duplicates_are_common(points: np.ndarray) -> None:
    assert non_dominated(points).tolist() == naive(points)


@given(sets(st.floats(-1e12, 1e12)))
def test_agrees_with_the_definition_on_any_finite_floats(points: np.ndarray) -> None:
    assert non_dominated(points).tolist() == naive(points)


@given(sets(st.floats(-1e6, 1e6), least=1))
def test_a_front_is_never_empty_and_is_its_own_front(points: np.ndarray) -> None:
    front = points[non_dominated(points)]
    assert len(front) > 0
    assert non_dominated(front).all()


def test_every_duplicate_on_the_front_is_kept() -> None:
    assert non_dominated(np.array([[1.0, 2.0], [1.0, 2.0], [2.0, 2.0]])).tolist() == [True, True, False]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused_with_its_place(bad: float) -> None:
    with pytest.raises(ValueError, match=r"points\[1, 0\]: expected a finite value, got -?(nan|inf)"):
        non_dominated(np.array([[0.0, 1.0], [bad, 1.0]]))


@pytest.mark.parametrize("shape", [(3,), (2, 0), (2, 2, 2)])
def test_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected shape \(n, m\) with m >= 1 objectives, got"):
        non_dominated(np.zeros(shape))
