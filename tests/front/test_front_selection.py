from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from autocompress.errors import ConfigError, NoCandidateError
from autocompress.front.dominance import non_dominated
from autocompress.front.selection import Point, aliases, knee, nearest, pick
from autocompress.records import Bound, Metric


def point(identifier: str, accuracy: float, latency: float, size: float = 1000.0) -> Point:
    return Point(id=identifier, values={"accuracy": accuracy, "latency_ms": latency, "size_bytes": size})


FRONT = [
    point("1", 0.920, 1.00, 1000),
    point("2", 0.912, 0.60, 700),
    point("3", 0.900, 0.40, 300),
    point("4", 0.700, 0.30, 400),
]


def test_knee_is_the_point_farthest_below_the_line_through_the_extremes() -> None:
    points = np.array([[0.0, 1.0], [0.2, 0.3], [0.5, 0.2], [1.0, 0.0]])
    start, end = points[0], points[-1]
    unit = (end - start) / np.linalg.norm(end - start)
    offsets = [np.linalg.norm((p - start) - ((p - start) @ unit) * unit) for p in points]
    assert knee(points) == int(np.argmax(offsets)) == 1


def test_knee_does_not_depend_on_units_dominated_points_or_constant_objectives() -> None:
    points = np.array([[0.0, 1.0], [0.2, 0.3], [0.5, 0.2], [1.0, 0.0]])
    assert knee(points * [1e6, 1e-3] + [5.0, -7.0]) == 1
    assert knee(np.vstack([[[90.0, 90.0]], points])) == 2
    assert knee(np.column_stack([points, np.full(4, 3.0)])) == 1


def test_knee_of_points_on_a_line_is_its_middle_and_of_one_point_is_that() -> None:
    assert knee(np.array([[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]])) == 1
    assert knee(np.array([[3.0, 4.0]])) == 0
    with pytest.raises(ValueError, match="expected at least one point, got none"):
        knee(np.zeros((0, 2)))


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12))
def test_knee_is_non_dominated(rows: list[tuple[int, int, int]]) -> None:
    points = np.array(rows, dtype=float)
    assert non_dominated(points)[knee(points)]


@pytest.mark.parametrize(
    ("prefer", "expected"), [("fastest", "4"), ("smallest", "3"), ("accurate", "1"), ("knee", "3")]
)
def test_each_policy_picks_its_best(prefer: str, expected: str) -> None:
    assert pick(FRONT, prefer=prefer).id == expected  # type: ignore[arg-type]


def test_constraints_come_before_the_policy_and_bounds_are_inclusive() -> None:
    assert pick(FRONT, minimum={"accuracy": 0.9}).id == "3"
    assert pick(FRONT, minimum={"accuracy": 0.91}, maximum={"size_bytes": 700}).id == "2"
    assert pick(FRONT, maximum={"latency_ms": 0.35}, prefer="accurate").id == "4"


def test_ties_go_to_accuracy_then_size_then_the_smaller_id() -> None:
    assert pick([point("a", 0.8, 1.0), point("b", 0.9, 1.0)]).id == "b"
    assert pick([point("a", 0.9, 1.0, 20), point("b", 0.9, 1.0, 10)]).id == "b"
    assert pick([point("10", 0.9, 1.0), point("9", 0.9, 1.0)]).id == "9"


points_strategy = st.lists(
    st.tuples(st.floats(0, 1), st.floats(0.1, 5), st.integers(1, 9999)), min_size=1, max_size=15
).map(lambda rows: [point(str(i), *row) for i, row in enumerate(rows)])


@given(points_strategy, st.floats(0, 1), st.floats(0.1, 5))
def test_what_is_picked_is_feasible_and_no_feasible_point_is_faster(
    points: list[Point], accuracy: float, latency: float
) -> None:
    feasible = [p for p in points if p.values["accuracy"] >= accuracy and p.values["latency_ms"] <= latency]
    if not feasible:
        with pytest.raises(NoCandidateError):
            pick(points, minimum={"accuracy": accuracy}, maximum={"latency_ms": latency})
        return
    chosen = pick(points, minimum={"accuracy": accuracy}, maximum={"latency_ms": latency})
    assert chosen in feasible
    assert chosen.values["latency_ms"] == min(p.values["latency_ms"] for p in feasible)


def test_without_a_feasible_candidate_the_nearest_three_are_named_with_what_each_misses() -> None:
    with pytest.raises(NoCandidateError) as caught:
        pick(FRONT, minimum={"accuracy": 0.91}, maximum={"latency_ms": 0.5})
    assert str(caught.value) == (
        "no candidate meets accuracy >= 0.91 and latency_ms <= 0.5.\n"
        "The nearest 3 of 4:\n"
        "  3: accuracy 0.9 misses accuracy >= 0.91 by 0.01; latency_ms 0.4 is fine\n"
        "  2: accuracy 0.912 is fine; latency_ms 0.6 misses latency_ms <= 0.5 by 0.1\n"
        "  4: accuracy 0.7 misses accuracy >= 0.91 by 0.21; latency_ms 0.3 is fine\n"
        "Relax the constraints by that much, or search longer."
    )
    assert caught.value.exit_code == 3


def test_nearest_tells_sizes_as_whole_numbers_and_says_when_there_is_nothing() -> None:
    text = nearest(FRONT[:1], [Bound(objective="size_bytes", max=250.0)])
    assert text.splitlines()[:2] == ["The nearest:", "  1: size_bytes 1000 misses size_bytes <= 250 by 750"]
    assert nearest([], [Bound(objective="size_bytes", max=1.0)]) == "There is no candidate at all."


def test_no_points_unknown_names_and_missing_values_are_refused() -> None:
    with pytest.raises(NoCandidateError, match="expected at least one candidate to pick from, got none"):
        pick([])
    with pytest.raises(ConfigError, match=r"constraint: expected one of accuracy, latency_ms, .*, got 'latency'"):
        pick(FRONT, maximum={"latency": 1.0})
    with pytest.raises(ConfigError, match=r"prefer: expected one of fastest, .*, got 'cheapest'"):
        pick(FRONT, prefer="cheapest")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"candidate 7: expected a value of 'size_bytes', got \['accuracy'\]"):
        pick([Point(id="7", values={"accuracy": 0.5})], prefer="smallest")
    with pytest.raises(ValidationError, match="finite number"):
        Point(id="7", values={"accuracy": float("nan")})


def test_aliases_name_the_policies_and_a_champion_within_one_point() -> None:
    assert aliases(FRONT) == {
        "fastest": "4",
        "knee": "3",
        "most-accurate": "1",
        "smallest": "3",
        "champion": "2",
    }
    assert aliases(FRONT, dense_accuracy=0.910)["champion"] == "3"


def test_champion_is_the_knee_if_none_is_within_one_point_of_dense() -> None:
    named = aliases(FRONT, dense_accuracy=0.99)
    assert named["champion"] == named["knee"]


def test_a_loss_of_exactly_one_point_is_within_one_point() -> None:
    dense, loses_one_point = 7 / 100, 6 / 100
    assert dense - 0.01 > loses_one_point  # as floats
    assert aliases([point("1", 0.99, 2.0), point("2", loses_one_point, 1.0)], dense_accuracy=dense)["champion"] == "2"


def test_a_front_of_one_has_every_alias() -> None:
    assert set(aliases([point("5", 0.9, 1.0)]).values()) == {"5"}


def test_a_metric_bounds_and_the_knee_knows_its_direction():
    def point(identifier, loss, latency):
        return Point(
            id=identifier, values={"log_loss": loss, "latency_ms": latency, "accuracy": 0.9, "size_bytes": 1.0}
        )

    loss = Metric(name="log_loss", maximize=False, source="scikit-learn:neg_log_loss")
    points = [point("a", 0.1, 9.0), point("b", 0.2, 2.0), point("c", 1.0, 1.0)]
    assert pick(points, maximum={"log_loss": 0.15}).id == "a"
    assert pick(points, prefer="knee", objectives=("log_loss", "latency_ms"), metrics=(loss,)).id == "b"
    assert aliases(points, objectives=("log_loss", "latency_ms"), metrics=(loss,))["knee"] == "b"
    with pytest.raises(ConfigError, match=r"worst_class_drop, .*log_loss \(did you mean 'log_loss'\?\), got 'log_los'"):
        pick(points, maximum={"log_los": 0.15})
    with pytest.raises(ValueError, match="objective 'log_loss': expected one of accuracy"):
        pick(points, prefer="knee", objectives=("log_loss", "latency_ms"))
