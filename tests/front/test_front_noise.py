from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autocompress.front.dominance import non_dominated
from autocompress.front.noise import RESOLUTION, dominated, noisy_front
from autocompress.records import REMEASURED, Estimate, Metric, minimized

PAIR = ("accuracy", "latency_ms")
TRIPLE = ("latency_ms", "energy_mj", "peak_memory_bytes")


def near(value: float, half: float) -> Estimate:
    return Estimate(value=value, low=value - half, high=value + half)


def candidate(accuracy: float, latency: float, *, wide: float = 0.0, noise: float = 0.0) -> dict[str, Estimate]:
    return {"accuracy": near(accuracy, wide), "latency_ms": near(latency, noise)}


def exact_pairs(values: list[dict[str, Estimate]]) -> dict[str, dict[tuple[int, int], Estimate]]:
    """Paired differences without noise."""
    return {
        "accuracy": {
            (i, j): Estimate.exact(values[i]["accuracy"].value - values[j]["accuracy"].value)
            for i, j in itertools.combinations(range(len(values)), 2)
        }
    }


levels = st.integers(0, 4)
ESTIMATES = st.builds(lambda value, half: near(float(value), half), levels, st.sampled_from([0.0, 0.4, 0.6, 1.2]))


def rows(names: tuple[str, ...]) -> st.SearchStrategy[list[dict[str, Estimate]]]:
    return st.lists(st.fixed_dictionaries(dict.fromkeys(names, ESTIMATES)), min_size=1, max_size=8)


def oracle(values: list[dict[str, Estimate]], names: tuple[str, ...]) -> tuple[set[tuple[int, int]], set[int]]:
    """Who dominates whom, and who is off the front, word by word as the module says it."""

    def clearly(a: dict[str, Estimate], b: dict[str, Estimate], name: str) -> bool:
        if name == "accuracy":
            return a[name].low > b[name].high
        out = RESOLUTION if name in REMEASURED else 0.0
        return a[name].high + out * abs(a[name].high) < b[name].low - out * abs(b[name].low)

    def no_worse(a: dict[str, Estimate], b: dict[str, Estimate], name: str) -> bool:
        if name in REMEASURED:
            return not clearly(b, a, name)
        return a[name].value >= b[name].value if name == "accuracy" else a[name].value <= b[name].value

    n = len(values)
    edges = {
        (i, j)
        for i, j in itertools.permutations(range(n), 2)
        if all(no_worse(values[i], values[j], name) for name in names)
        and any(clearly(values[i], values[j], name) for name in names)
    }

    def reached(start: int) -> set[int]:
        seen: set[int] = set()
        todo = [start]
        while todo:
            fresh = {j for i, j in edges if i == todo[-1]} - seen
            todo.pop()
            seen |= fresh
            todo += fresh
        return seen

    off = {j for j in range(n) for i in range(n) if j in reached(i) and i not in reached(j)}
    return edges, off


@pytest.mark.parametrize("names", [PAIR, TRIPLE, (*PAIR, "size_bytes"), ("accuracy", *TRIPLE)])
@settings(max_examples=60)
@given(data=st.data())
def test_it_is_what_the_definition_says(names, data):
    values = data.draw(rows(names))
    found = noisy_front(values, names)
    edges, off = oracle(values, names)
    assert {(int(i), int(j)) for i, j in np.argwhere(found.dominates)} == edges
    assert set(np.flatnonzero(found.off)) == off
    assert not found.off.all()
    assert (found.tied == found.tied.T).all()
    assert not found.tied.diagonal().any()
    members = np.flatnonzero(found.members)
    assert not found.off[members].any()
    assert not found.tied[np.ix_(members, members)].any()
    # Whoever is on the front and no member is tied with a member.
    for i in np.flatnonzero(~found.off & ~found.members):
        assert found.tied[i, members].any()


@settings(max_examples=60)
@given(st.lists(st.tuples(levels, levels, levels), min_size=1, max_size=10))
def test_without_noise_it_is_pareto_dominance_with_one_of_equal_points(points):
    names = ("accuracy", "latency_ms", "size_bytes")
    values = [dict(zip(names, map(Estimate.exact, map(float, point)), strict=True)) for point in points]
    found = noisy_front(values, names)
    assert (~found.off == non_dominated(minimized(values, names))).all()
    kept = {points[i] for i in np.flatnonzero(found.members)}
    assert kept == {points[i] for i in np.flatnonzero(~found.off)}
    assert len(kept) == found.members.sum()


@settings(max_examples=60)
@given(rows(PAIR), st.data())
def test_another_reading_within_the_intervals_changes_nothing(values, data):
    """Latencies read again, anywhere within their intervals, as long as the intervals themselves stay."""
    again = []
    for row in values:
        taken = row["latency_ms"]
        other = data.draw(st.floats(taken.low, taken.high))
        again.append({**row, "latency_ms": Estimate(value=other, low=taken.low, high=taken.high)})
    assert (noisy_front(values, PAIR).members == noisy_front(again, PAIR).members).all()


def test_overlapping_latencies_do_not_dominate_but_a_clearly_better_accuracy_does():
    values = [candidate(0.95, 1.01, noise=0.02), candidate(0.90, 1.00, noise=0.02)]
    assert non_dominated(minimized(values, PAIR)).all()
    found = noisy_front(values, PAIR, paired=exact_pairs(values))
    assert found.members.tolist() == [True, False]
    # The same accuracies with an interval of the difference that holds 0: tied, and the better one stands for both.
    unsure = {"accuracy": {(0, 1): Estimate(value=0.05, low=-0.01, high=0.11)}}
    found = noisy_front(values, PAIR, paired=unsure)
    assert not found.dominates.any()
    assert found.tied[0, 1]
    assert found.members.tolist() == [True, False]


def test_a_clearly_faster_one_does_not_drop_one_that_is_more_accurate_on_the_evidence():
    values = [candidate(0.90, 1.0, wide=0.05), candidate(0.91, 2.0, wide=0.05)]
    assert noisy_front(values, PAIR).members.all()
    values = [candidate(0.91, 1.0, wide=0.05), candidate(0.90, 2.0, wide=0.05)]
    assert noisy_front(values, PAIR).members.tolist() == [True, False]


def test_being_tied_is_not_transitive_and_every_one_left_out_is_tied_with_a_member():
    values = [candidate(0.9, 1.0 + 0.1 * i, noise=0.06) for i in range(5)]  # each overlaps its neighbours alone
    found = noisy_front(values, PAIR)
    assert found.tied[0, 1]
    assert not found.tied[0, 2]
    assert found.members.tolist() == [True, False, False, False, False]
    assert found.off.tolist() == [False, False, True, True, True]


def test_of_a_cycle_all_are_on_the_front_or_none():
    def row(latency: Estimate, energy: Estimate, memory: Estimate) -> dict[str, Estimate]:
        return dict(zip(TRIPLE, (latency, energy, memory), strict=True))

    low, high, wide = near(1.0, 0.1), near(2.0, 0.1), near(1.5, 1.0)
    cycle = [row(low, wide, high), row(high, low, wide), row(wide, high, low)]
    found = noisy_front(cycle, TRIPLE)
    assert {tuple(map(int, edge)) for edge in np.argwhere(found.dominates)} == {(0, 1), (1, 2), (2, 0)}
    assert found.members.all()
    best = row(near(0.1, 0.01), near(0.1, 0.01), near(0.1, 0.01))
    assert noisy_front([*cycle, best], TRIPLE).members.tolist() == [False, False, False, True]


def test_dominated_follows_chains():
    chain = np.zeros((4, 4), dtype=bool)
    chain[0, 1] = chain[1, 2] = chain[2, 1] = True
    assert dominated(chain).tolist() == [False, True, True, False]


def test_a_metric_knows_its_direction():
    loss = Metric(name="log_loss", maximize=False, source="scikit-learn:neg_log_loss")
    values = [
        {"log_loss": near(0.1, 0.01), "size_bytes": Estimate.exact(5.0)},
        {"log_loss": near(0.5, 0.01), "size_bytes": Estimate.exact(5.0)},
    ]
    assert noisy_front(values, ("log_loss", "size_bytes"), (loss,)).members.tolist() == [True, False]
    with pytest.raises(ValueError, match="objective 'log_loss': expected one of accuracy, "):
        noisy_front(values, ("log_loss",))
    with pytest.raises(
        ValueError, match=r"values\[0\]: expected a value of 'latency_ms', got \['log_loss', 'size_bytes'\]"
    ):
        noisy_front(values, ("latency_ms",))


def test_latencies_nearer_than_another_reading_would_be_are_tied_however_narrow_their_intervals():
    near_by = [candidate(0.9, 1.0), candidate(0.9, 1.0 + 1.9 * RESOLUTION)]
    assert noisy_front(near_by, PAIR).tied[0, 1]
    apart = [candidate(0.9, 1.0), candidate(0.9, 1.0 + 2.1 * RESOLUTION)]
    assert noisy_front(apart, PAIR).members.tolist() == [True, False]
    sizes = [{"size_bytes": Estimate.exact(1000.0)}, {"size_bytes": Estimate.exact(1001.0)}]
    assert noisy_front(sizes, ("size_bytes",)).members.tolist() == [True, False]
