from __future__ import annotations

import ctypes
import itertools
import math
import os
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autocompress.compress.knapsack import AtMost, _silent, choose_levels
from autocompress.errors import CompressionError, InfeasibleError

NUMBER = st.integers(-20, 100).map(lambda v: v / 7)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_levels_are_as_good_as_the_best_of_all_combinations_that_the_limits_allow(data: Any) -> None:
    names = [f"g{i}" for i in range(data.draw(st.integers(1, 4)))]
    levels = {n: list(range(data.draw(st.integers(1, 4)))) for n in names}
    losses = {n: {k: data.draw(NUMBER) for k in levels[n]} for n in names}
    costs = {n: {k: data.draw(st.integers(-200, 1000).map(float)) for k in levels[n]} for n in names}
    choices = st.sampled_from([(n, k) for n in names for k in levels[n]])
    sets = st.builds(AtMost, st.lists(choices, min_size=1, max_size=4, unique=True).map(tuple), st.integers(0, 2))
    limits = data.draw(st.lists(sets, max_size=4))
    pairs = data.draw(st.dictionaries(st.tuples(choices, choices), st.integers(0, 60).map(float), max_size=4))
    budget = float(data.draw(st.one_of(st.integers(-500, 3000), st.just(math.inf))))
    allowed = [
        made
        for made in itertools.product(*levels.values())
        if all(sum((n, k) in limit.choices for n, k in zip(names, made, strict=True)) <= limit.most for limit in limits)
    ]

    def total(of: Any, made: Any) -> float:
        return sum(of[n][k] for n, k in zip(names, made, strict=True))

    if not allowed:
        with pytest.raises(InfeasibleError, match="limits: expected some that leave a level for every name"):
            choose_levels(losses, costs, budget, limits)
        return
    least = min(total(costs, made) for made in allowed)
    if least > budget:
        with pytest.raises(InfeasibleError, match=rf"expected at least {least:g}, .* got {budget:g}"):
            choose_levels(losses, costs, budget, limits)
        return
    found = choose_levels(losses, costs, budget, limits, pairs=pairs)
    made = tuple(found[n] for n in names)
    assert made in allowed
    assert total(costs, made) <= budget

    def lost(made: Any) -> float:
        both = {(n, k) for n, k in zip(names, made, strict=True)}
        return total(losses, made) + sum(more for pair, more in pairs.items() if both.issuperset(pair))

    best = min(lost(made) for made in allowed if total(costs, made) <= budget)
    assert lost(made) == pytest.approx(best, abs=1e-6)


def test_a_block_that_is_left_out_takes_its_groups_with_it() -> None:
    losses = {"block": {1: 0.0, 0: 1.0}, "inside": {8: 0.0, 4: 0.1}, "outside": {8: 0.0, 4: 5.0}}
    costs = {"block": {1: 4.0, 0: 0.0}, "inside": {8: 8.0, 4: 4.0}, "outside": {8: 8.0, 4: 2.0}}
    together = choose_levels(losses, costs, 12.0)
    assert together == {"block": 0, "inside": 4, "outside": 8}
    apart = AtMost((("block", 0), ("inside", 4)))
    # Both together would cost 12 and lose 1.1; apart, the cheapest that keeps the outside whole costs 16.
    assert choose_levels(losses, costs, 12.0, [apart]) == {"block": 1, "inside": 4, "outside": 4}
    assert choose_levels(losses, costs, 16.0, [apart]) == {"block": 1, "inside": 4, "outside": 8}


def test_two_that_lose_more_together_are_not_made_together() -> None:
    losses = {name: {1: 0.0, 0: loss} for name, loss in (("a", 1.0), ("b", 1.0), ("c", 1.5))}
    costs = {name: {1: 1.0, 0: 0.0} for name in losses}
    assert choose_levels(losses, costs, 1.0) == {"a": 0, "b": 0, "c": 1}
    more = {(("a", 0), ("b", 0)): 1.0}
    assert sorted(choose_levels(losses, costs, 1.0, pairs=more).items())[2] == ("c", 0)
    alone = {(("a", 0), ("a", 0)): 0.7}  # a choice with a price of its own
    assert choose_levels(losses, costs, 1.0, pairs=alone) == {"a": 1, "b": 0, "c": 0}
    with pytest.raises(
        CompressionError, match=r"pairs: expected two of the levels and a finite number >= 0, got .* -1"
    ):
        choose_levels(losses, costs, 1.0, pairs={(("a", 0), ("b", 0)): -1.0})


def test_of_several_choices_only_so_many_are_made() -> None:
    blocks = [f"b{i}" for i in range(5)]
    losses = {name: {1: 0.0, 0: float(i)} for i, name in enumerate(blocks)}
    costs = {name: {1: 1.0, 0: 0.0} for name in blocks}
    two = AtMost(tuple((name, 0) for name in blocks), 2)
    assert choose_levels(losses, costs, 3.0, [two]) == {"b0": 0, "b1": 0, "b2": 1, "b3": 1, "b4": 1}
    with pytest.raises(InfeasibleError, match="budget: expected at least 3, the cheapest levels' cost, got 2"):
        choose_levels(losses, costs, 2.0, [two])


def test_a_gap_lets_the_answer_lose_a_little_more() -> None:
    losses = {f"g{i}": {1: 0.0, 0: 1.0 + i / 1000} for i in range(12)}
    costs = {name: {1: 1.0, 0: 0.0} for name in losses}
    found = choose_levels(losses, costs, 6.0, gap=0.05)
    assert sum(1 - level for level in found.values()) >= 6
    best = choose_levels(losses, costs, 6.0)
    assert sum(losses[n][k] for n, k in found.items()) <= 1.06 * sum(losses[n][k] for n, k in best.items())


def test_limits_that_name_what_there_is_not_are_refused() -> None:
    levels = {"a": {0: 1.0, 1: 0.0}}
    with pytest.raises(CompressionError, match=r"limits: expected distinct choices .* got the unknown \('b', 0\)"):
        choose_levels(levels, levels, 1.0, [AtMost((("b", 0),))])
    with pytest.raises(CompressionError, match=r"got \[\('a', 0\), \('a', 0\)\] at most 1 times"):
        choose_levels(levels, levels, 1.0, [AtMost((("a", 0), ("a", 0)))])
    with pytest.raises(CompressionError, match=r"got \[\('a', 0\)\] at most -1 times"):
        choose_levels(levels, levels, 1.0, [AtMost((("a", 0),), -1)])


def test_what_the_solver_prints_past_its_options_is_not_seen(capfd: pytest.CaptureFixture[str]) -> None:
    libc = ctypes.CDLL(None)
    print("before")
    with _silent():
        libc.puts(b"a line of the solver's")
        os.write(1, b"and another")
    libc.puts(b"after")
    libc.fflush(None)
    assert capfd.readouterr().out.split() == ["before", "after"]
