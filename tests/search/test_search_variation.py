from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from toy_space import ToySpace

from autocompress.errors import InfeasibleError
from autocompress.records import Group, Layer, ParamValue, Plan, Structure
from autocompress.search.variation import Near, crossed, vary
from autocompress.space.config import SpaceConfig
from autocompress.space.space import Space, resolve


def joint(groups: int = 6) -> Space:
    """A space with conditions: a group has a sparsity only if it is pruned."""
    names = [f"g{i}" for i in range(groups)]
    config = SpaceConfig.model_validate(
        {
            "groups": {
                "strategy": ["structured", "none"],
                "criterion": ["magnitude", "random"],
                "sparsity": {"low": 0.125, "high": 0.875, "step": 0.125},
            },
            "layers": {"bits": {"choices": [32, 8], "per": "layer"}},
        }
    )
    structure = Structure(
        groups=tuple(Group(name=n, width=64, layers=(n,), consumers=(), norms=()) for n in names),
        layers=tuple(Layer(name=n, kind="linear", shape=(64, 64), macs=4096, group=n) for n in names),
        blocks=(),
    )
    return resolve(config, structure, round_to=8, bits=(32, 8))


def changed(first: Mapping[str, ParamValue], second: Mapping[str, ParamValue]) -> int:
    return sum(first.get(name) != second.get(name) for name in {*first, *second})


def test_a_neighbour_keeps_most_of_its_parent_and_a_rate_of_zero_nearly_all() -> None:
    space, rng = joint(), np.random.default_rng(0)
    parent = space.uniform(sparsity=0.5, bits=8)
    parent = space.suggest(Near(parent, 0.0, np.random.default_rng(3)))  # its own conditions' parameters only
    few = [changed(parent, space.suggest(Near(parent, 0.05, rng))) for _ in range(200)]
    many = [changed(parent, space.suggest(Near(parent, 0.5, rng))) for _ in range(200)]
    assert np.mean(few) < np.mean(many) < len(parent)
    assert np.median(few) <= 3


def test_a_number_moves_along_its_grid_and_stays_in_range() -> None:
    rng = np.random.default_rng(0)
    values = [Near({"s/a": 0.3}, 1.0, rng).suggest_float("s/a", 0.1, 0.5, step=0.1) for _ in range(300)]
    assert {round(v, 9) for v in values} == {0.1, 0.2, 0.3, 0.4, 0.5}
    steps = [Near({"k": 6}, 1.0, rng).suggest_int("k", 2, 10, step=2) for _ in range(300)]
    assert set(steps) == {2, 4, 6, 8, 10}
    assert np.mean([abs(v - 0.3) < 0.15 for v in values]) > 0.5  # small steps are the rule


def test_a_choice_moves_to_another_and_what_the_parent_lacks_is_drawn() -> None:
    rng = np.random.default_rng(0)
    assert {Near({"c": "x"}, 1.0, rng).suggest_categorical("c", ["x", "y", "z"]) for _ in range(60)} == {"y", "z"}
    assert {Near({}, 0.0, rng).suggest_categorical("c", ["x", "y"]) for _ in range(60)} == {"x", "y"}
    assert {Near({"c": "gone"}, 0.0, rng).suggest_categorical("c", ["x", "y"]) for _ in range(60)} == {"x", "y"}
    assert Near({"c": "only"}, 1.0, rng).suggest_categorical("c", ["only"]) == "only"
    assert 0.0 <= Near({}, 0.0, rng).suggest_float("s", 0.0, 1.0) <= 1.0
    assert Near({}, 0.0, rng).suggest_int("k", 3, 3) == 3


def test_a_crossing_takes_every_place_from_one_parent() -> None:
    first = {"strategy/a": "none", "strategy/b": "structured", "sparsity/b": 0.5, "bits": 8}
    second = {"strategy/a": "structured", "sparsity/a": 0.25, "strategy/b": "none", "bits": 32}
    seen = set()
    for seed in range(40):
        child = crossed(first, second, np.random.default_rng(seed))
        for place, names in {"a": ("strategy/a", "sparsity/a"), "b": ("strategy/b", "sparsity/b")}.items():
            got = {name: child.get(name) for name in names}
            parents = [{name: parent.get(name) for name in names} for parent in (first, second)]
            assert got in parents, place
        seen.add(tuple(sorted(child.items())))
    assert len(seen) == 8  # three places, each from either


def test_candidates_are_of_the_space_distinct_and_new() -> None:
    space, rng = joint(), np.random.default_rng(0)
    parents = [space.uniform(sparsity=s, bits=8) for s in (0.25, 0.5)]
    before = {drawn.key for drawn in vary(space, parents, 50, rng)}
    found = vary(space, parents, 200, rng, before.__contains__)
    assert len(found) == 200
    assert len({drawn.key for drawn in found}) == 200
    assert not before.intersection(drawn.key for drawn in found)
    assert all(space.plan(drawn.params) == drawn.plan and drawn.plan.key == drawn.key for drawn in found)


def test_candidates_lie_near_their_parents_but_not_only() -> None:
    space, rng = joint(12), np.random.default_rng(0)
    parent = space.suggest(Near(space.uniform(sparsity=0.5, bits=8), 0.0, rng))
    distances = [changed(parent, drawn.params) for drawn in vary(space, [parent], 300, rng)]
    assert np.mean([d <= 8 for d in distances]) > 0.4
    assert max(distances) > 15


def test_a_small_space_is_listed_once_and_then_nothing_comes() -> None:
    space, rng = ToySpace(), np.random.default_rng(0)
    found = vary(space, [], 1000, rng)
    assert 100 < len(found) <= 128
    assert vary(space, [], 10, rng, lambda key: True) == []


def test_what_the_space_refuses_is_left_out() -> None:
    class Picky(ToySpace):
        def plan(self, params: Mapping[str, ParamValue]) -> Plan:
            if int(params["keep"]) % 2:
                raise InfeasibleError("keep: odd")
            return super().plan(params)

    found = vary(Picky(), [{"keep": 32, "bits": 8}], 20, np.random.default_rng(0))
    assert len(found) == 20
    assert all(int(drawn.params["keep"]) % 2 == 0 for drawn in found)


@pytest.mark.parametrize("parents", [[], [{"keep": 32, "bits": 8}], [{"keep": 32, "bits": 8}, {"keep": 8, "bits": 32}]])
def test_a_seed_gives_the_same_candidates(parents: list[dict[str, Any]]) -> None:
    first, second = (vary(ToySpace(), parents, 30, np.random.default_rng(5)) for _ in range(2))
    assert first == second
