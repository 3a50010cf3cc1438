"""Properties of parameters and plans over random networks and spaces, every kind of choice at once."""

from __future__ import annotations

from math import prod

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_draws import Draws, assert_comes_back
from random_spaces import spaces

from autocompress.space.draft import effective
from autocompress.space.space import MAX_SEEDS, Space

SLOW = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@SLOW
@given(space=spaces(), seed=st.integers(0, 10**6))
def test_plan_survives_the_way_to_parameters_and_back(space: Space, seed: int) -> None:
    assert_comes_back(space, space.plan(space.suggest(Draws(seed))))


@SLOW
@given(space=spaces(), seed=st.integers(0, 10**6), share=st.floats(0.001, 1, exclude_max=True))
def test_shares_off_the_grid_come_back_too(space: Space, seed: int, share: float) -> None:
    # Another share may give other parameters an effect: they are as in the dense network then.
    params = space.dense() | space.suggest(Draws(seed))
    params |= {key: share for key in params if key.startswith(("sparsity/", "rank", "allocation/"))}
    plan = space.plan(params)
    assert space.plan(space.params(plan)) == plan


@SLOW
@given(space=spaces(), seed=st.integers(0, 10**6))
def test_what_is_asked_is_what_counts(space: Space, seed: int) -> None:
    draws = Draws(seed)
    params = space.suggest(draws)
    assert draws.asked == list(params)
    plan = space.plan(params)
    assert effective(plan) == plan  # nothing without effect is left
    gone = {name for drop in plan.drops for name in space.structure.block(drop.block).layers}
    named = [e.layer for e in (*plan.ranks, *plan.masks, *plan.codebooks, *plan.bits)]
    assert not gone.intersection(named)
    shapes = space.structure.shapes((cut.group, cut.keep) for cut in plan.cuts)
    for cut in plan.cuts:
        group = space.structure.group(cut.group)
        assert cut.keep < group.width
        assert cut.keep * group.unit % space.round_to == 0
        assert not gone.issuperset(group.layers)
    for entry in plan.ranks:
        assert weights_of_factors(shapes[entry.layer], entry.ranks) < prod(shapes[entry.layer])
    for codebook in plan.codebooks:
        assert codebook.clusters < prod(shapes[codebook.layer])
    for mask in plan.masks:
        if mask.n_m is not None:
            assert shapes[mask.layer][1] % mask.n_m[1] == 0


def weights_of_factors(shape: tuple[int, ...], ranks: tuple[int, ...]) -> int:
    """Counted part by part."""
    out, inputs, kernel = shape[0], shape[1], prod(shape[2:])
    if len(ranks) == 1:
        assert kernel == 1
        return sum([ranks[0] * inputs, out * ranks[0]])
    assert ranks[0] <= out
    assert ranks[1] <= inputs
    return sum([ranks[1] * inputs, ranks[0] * ranks[1] * kernel, out * ranks[0]])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(space=spaces())
def test_seeds_are_few_distinct_and_valid(space: Space) -> None:
    seeds = space.seeds()
    plans = [space.plan(params) for _, params in seeds]
    assert len(set(plans)) == len(plans) <= MAX_SEEDS
    assert len({name for name, _ in seeds}) == len(seeds)
    assert (seeds[0][0] == "dense") == plans[0].is_dense
    assert space.describe().count("\n") >= 1
