"""Properties of the way from parameters to a plan and back, over random networks and spaces."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_draws import Draws, assert_comes_back

from autocompress.errors import ConfigError, InfeasibleError
from autocompress.records import ChannelCut, Group, Layer, LayerBits, Plan, Structure, Use, WeightMask
from autocompress.space.config import SpaceConfig, load_space
from autocompress.space.grid import allowed_widths, keep_interval, keep_of, simplest, zeros_interval, zeros_of
from autocompress.space.space import Space, resolve


def subset(values: Sequence[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(st.sampled_from(values), min_size=1, max_size=len(values), unique=True)


@st.composite
def structures(draw: st.DrawFn) -> Structure:
    """A chain of groups, each with up to three coupled layers, and a classifier behind a flatten."""
    widths = draw(st.lists(st.integers(1, 70), min_size=1, max_size=4))
    kernels = [draw(st.sampled_from([1, 3])) for _ in widths]
    flat = draw(st.sampled_from([1, 4]))
    groups, layers, before = [], [], (3, None)
    for i, (width, kernel) in enumerate(zip(widths, kernels, strict=True)):
        names = tuple(f"body.{i}.c{j}" for j in range(draw(st.integers(1, 3))))
        follower = (f"body.{i + 1}.c0",) if i + 1 < len(widths) else ("head",)
        shared = [(name, 0) for name in names] + [(name, 1) for name in names[1:]]
        flat_use = Use(parameter=f"{follower[0]}.weight", axis=1, per_unit=flat if follower == ("head",) else 1)
        groups.append(
            Group(
                name=names[0],
                width=width,
                layers=names,
                consumers=(*names[1:], *follower),
                uses=(*uses(*shared), flat_use),
            )
        )
        for j, name in enumerate(names):
            inputs = before[0] if j == 0 else width
            layers.append(
                Layer(name=name, kind="conv2d", shape=(width, inputs, kernel, kernel), macs=10, group=names[0])
            )
        before = (width, names[0])
    layers.append(Layer(name="head", kind="linear", shape=(10, widths[-1] * flat), macs=10))
    return Structure(groups=tuple(groups), layers=tuple(layers))


@st.composite
def ranges(draw: st.DrawFn, *, width: bool) -> dict[str, float]:
    steps = draw(st.sampled_from([4, 8, 10, 20]))
    low = draw(st.integers(1 if width else 0, steps - 1))
    high = draw(st.integers(low, steps if width else steps - 1))
    return {"low": low / steps, "high": high / steps, "step": 1 / steps}


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    structure = draw(structures())
    data: dict[str, Any] = {
        "groups": {
            "strategy": draw(subset(["structured", "unstructured", "none"])),
            "criterion": draw(subset(["magnitude", "taylor", "random"])),
            "sparsity": draw(ranges(width=False)),
        }
    }
    if draw(st.booleans()):
        data["width"] = draw(ranges(width=True))
    if draw(st.booleans()):
        data["layers"] = {
            "bits": {"choices": draw(subset([32, 8])), "per": draw(st.sampled_from(["layer", "group", "model"]))}
        }
    if draw(st.booleans()):
        data["overrides"] = [
            {"match": "body.0.*", "strategy": draw(subset(["structured", "unstructured", "none"]))},
            {"match": "head", "bits": [32, 8]},
        ]
    try:
        config = SpaceConfig.model_validate(data)
        return resolve(config, structure, round_to=draw(st.sampled_from([1, 4, 8])), bits=(32, 8))
    except (ConfigError, ValueError):
        data = {"layers": {"bits": {"choices": [32, 8]}}, **data, "width": {"low": 0.5, "high": 1.0, "step": 0.25}}
        return resolve(SpaceConfig.model_validate(data), structure, round_to=8, bits=(32, 8))


@settings(max_examples=300, deadline=None)
@given(space=spaces(), seed=st.integers(0, 10**6))
def test_plan_survives_the_way_to_parameters_and_back(space: Space, seed: int) -> None:
    assert_comes_back(space, space.plan(space.suggest(Draws(seed))))


@settings(max_examples=200, deadline=None)
@given(space=spaces(), seed=st.integers(0, 10**6), sparsity=st.floats(0, 1, exclude_max=True))
def test_plan_takes_any_sparsity_and_comes_back(space: Space, seed: int, sparsity: float) -> None:
    params = space.suggest(Draws(seed))
    params |= {key: sparsity for key in params if key.startswith("sparsity/")}
    plan = space.plan(params)
    assert space.plan(space.params(plan)) == plan


@settings(max_examples=200, deadline=None)
@given(space=spaces(), seed=st.integers(0, 10**6))
def test_plan_is_physical(space: Space, seed: int) -> None:
    params = space.suggest(Draws(seed))
    plan = space.plan(params)
    for cut in plan.cuts:
        assert cut.keep % space.round_to == 0
        assert space.round_to <= cut.keep < space.structure.group(cut.group).width
    for mask in plan.masks:
        assert 0 < mask.sparsity < 1
        assert params.get(f"strategy/{space.structure.layer(mask.layer).group}", "unstructured") == "unstructured"
    offered = {layer for unit in space.units if 8 in unit.choices for layer in unit.layers}
    assert {entry.layer for entry in plan.bits} <= offered


@settings(max_examples=100, deadline=None)
@given(space=spaces(), seed=st.integers(0, 10**6))
def test_criterion_and_sparsity_are_asked_for_only_if_the_strategy_prunes(space: Space, seed: int) -> None:
    draws = Draws(seed)
    params = space.suggest(draws)
    assert draws.asked == list(params)
    for key, value in params.items():
        if key.startswith("strategy/") and value == "none":
            group = key.removeprefix("strategy/")
            assert not {f"criterion/{group}", f"sparsity/{group}"} & set(params)


@settings(max_examples=100, deadline=None)
@given(space=spaces())
def test_seeds_are_distinct_valid_and_start_at_dense(space: Space) -> None:
    seeds = space.seeds()
    plans = [space.plan(params) for _, params in seeds]
    assert len(set(plans)) == len(plans)
    assert len({name for name, _ in seeds}) == len(seeds)
    assert (seeds[0][0] == "dense") == plans[0].is_dense
    for _, params in seeds:
        for choice in space.groups:
            sparsity = params.get(f"sparsity/{choice.name}")
            assert sparsity is None or sparsity in [float(value) for value in choice.grid]


@given(width=st.integers(1, 80), share=st.fractions(0, 1), round_to=st.sampled_from([1, 3, 8]))
def test_kept_width_is_the_nearest_allowed_one(width: int, share: Fraction, round_to: int) -> None:
    keep = keep_of(width, share, round_to)
    options = [n for n in range(1, width + 1) if n == width or n % round_to == 0]
    assert list(allowed_widths(width, round_to)) == options
    assert all(abs(keep - width * share) <= abs(n - width * share) for n in options)
    low, high = keep_interval(width, keep, round_to)
    assert low <= share <= high


@given(weights=st.integers(1, 10**6), sparsity=st.fractions(0, 1).filter(lambda s: s < 1))
def test_zeros_are_the_nearest_count_below_all(weights: int, sparsity: Fraction) -> None:
    zeros = zeros_of(weights, sparsity)
    assert 0 <= zeros < weights
    assert abs(zeros - sparsity * weights) <= Fraction(1, 2) or zeros == weights - 1
    low, high = zeros_interval(weights, zeros)
    assert low <= sparsity < high


@given(low=st.fractions(0, 3, max_denominator=60), high=st.fractions(0, 3, max_denominator=60))
def test_simplest_fraction_has_the_smallest_denominator(low: Fraction, high: Fraction) -> None:
    if low >= high:
        return
    found = simplest(low, high)
    assert low < found < high
    for denominator in range(1, found.denominator):
        assert not any(low < Fraction(n, denominator) < high for n in range(4 * denominator))


def uses(*places: tuple[str, int]) -> tuple[Use, ...]:
    return tuple(Use(parameter=f"{layer}.weight", axis=axis, per_unit=1) for layer, axis in places)


NETWORK = Structure(
    groups=(
        Group(
            name="c1",
            width=32,
            layers=("c1", "c3"),
            consumers=("c2", "fc"),
            uses=(*uses(("c1", 0), ("c3", 0), ("c2", 1)), Use(parameter="fc.weight", axis=1, per_unit=4)),
        ),
        Group(name="c2", width=64, layers=("c2",), consumers=("c3",), uses=uses(("c2", 0), ("c3", 1))),
    ),
    layers=(
        Layer(name="c1", kind="conv2d", shape=(32, 3, 3, 3), macs=10, group="c1"),
        Layer(name="c2", kind="conv2d", shape=(64, 32, 3, 3), macs=10, group="c2"),
        Layer(name="c3", kind="conv2d", shape=(32, 64, 3, 3), macs=10, group="c1"),
        Layer(name="fc", kind="linear", shape=(10, 128), macs=10),
    ),
)


def space_of(**data: Any) -> Space:
    return resolve(SpaceConfig.model_validate(data), NETWORK, round_to=8, bits=(32, 8))


JOINT = resolve(load_space("joint"), NETWORK, round_to=8, bits=(32, 8))


def test_request_without_effect_is_dense() -> None:
    params = JOINT.dense() | {
        "strategy/c1": "structured",
        "criterion/c1": "taylor",
        "sparsity/c1": 0.1,  # 28.8 of 32: no multiple of 8 is nearer than 32
        "strategy/c2": "unstructured",
        "criterion/c2": "random",
        "sparsity/c2": 1e-6,
    }
    assert JOINT.plan(params).is_dense
    assert JOINT.plan(params) == JOINT.plan(JOINT.dense())


def test_global_width_cuts_groups_of_every_strategy() -> None:
    params = JOINT.dense() | {
        "width": 0.5,
        "strategy/c1": "unstructured",
        "criterion/c1": "taylor",
        "sparsity/c1": 0.5,
    }
    plan = JOINT.plan(params)
    assert plan.cuts == (
        ChannelCut(group="c1", keep=16, criterion="magnitude"),
        ChannelCut(group="c2", keep=32, criterion="magnitude"),
    )
    assert plan.masks == (
        WeightMask(layer="c1", sparsity=0.5, criterion="taylor"),
        WeightMask(layer="c3", sparsity=0.5, criterion="taylor"),
    )
    assert JOINT.plan(JOINT.params(plan)) == plan


def test_share_of_zeros_is_one_that_the_cut_layer_can_have() -> None:
    params = JOINT.dense() | {"strategy/c1": "unstructured", "criterion/c1": "taylor", "sparsity/c1": 0.3}
    dense, halved = JOINT.plan(params), JOINT.plan(params | {"width": 0.5})
    assert [mask.sparsity for mask in dense.masks] == [259 / 864, 5530 / 18432]
    assert [mask.sparsity for mask in halved.masks] == [130 / 432, 1382 / 4608]


def test_seeds_of_the_joint_space() -> None:
    assert [name for name, _ in JOINT.seeds()] == [
        "dense",
        "uniform-0.00-8bit",
        "uniform-0.20-8bit",
        "uniform-0.50-8bit",
        "uniform-0.70-8bit",
        "uniform-0.20-32bit",
        "uniform-0.50-32bit",
        "uniform-0.70-32bit",
    ]


def test_uniform_takes_what_is_open_in_place_of_what_is_not() -> None:
    space = space_of(
        groups={
            "strategy": ["unstructured"],
            "criterion": ["random"],
            "sparsity": {"low": 0.2, "high": 0.8, "step": 0.2},
        }
    )
    assert space.uniform(sparsity=0.5, bits=8)["strategy/c1"] == "unstructured"
    assert space.uniform(sparsity=0.5, bits=8)["sparsity/c1"] == 0.4
    assert space.seeds()[0][0] == "lightest"
    only_width = space_of(width={"low": 0.5, "high": 1.0, "step": 0.25})
    assert [name for name, _ in only_width.seeds()] == ["dense", "uniform-0.25-32bit", "uniform-0.50-32bit"]


def test_size_counts_every_configuration() -> None:
    space = space_of(
        width={"low": 0.5, "high": 1.0, "step": 0.25},
        groups={
            "strategy": ["structured", "none"],
            "criterion": ["magnitude", "taylor"],
            "sparsity": {"low": 0.1, "high": 0.3, "step": 0.1},
        },
        layers={"bits": {"choices": [32, 8], "per": "model"}},
        overrides=[{"match": "fc", "bits": [32]}],
    )
    assert 10 ** space.size() == pytest.approx(3 * (1 + 2 * 3) ** 2 * 2)
    assert "3 layers: 32/8 bits" in space.describe()


@pytest.mark.parametrize(("per", "keys"), [
    ("layer", ["bits/c1", "bits/c2", "bits/c3", "bits/fc"]),
    ("group", ["bits/c1", "bits/c2", "bits/fc"]),
    ("model", ["bits"]),
])  # fmt: skip
def test_bits_are_shared_as_asked(per: str, keys: list[str]) -> None:
    space = space_of(layers={"bits": {"choices": [32, 8], "per": per}})
    assert [unit.key for unit in space.units] == keys
    assert space.plan(dict.fromkeys(keys, 8)).bits == tuple(
        LayerBits(layer=n, bits=8) for n in ("c1", "c2", "c3", "fc")
    )


def test_include_and_exclude_choose_groups_and_layers() -> None:
    space = space_of(
        groups={"strategy": ["structured", "none"], "sparsity": {"low": 0.5, "high": 0.5, "step": 0.1}},
        layers={"bits": {"choices": [32, 8]}},
        include=["c*"],
        exclude=["c1"],
    )
    assert [choice.name for choice in space.groups] == ["c2"]
    assert [unit.key for unit in space.units] == ["bits/c2", "bits/c3"]


@pytest.mark.parametrize(("change", "message"), [
    ({"sparsity/c1": 1.0}, r"sparsity/c1: expected a number >= 0 and < 1, got 1.0"),
    ({"sparsity/c1": float("nan")}, r"sparsity/c1: expected a number >= 0 and < 1, got nan"),
    ({"sparsity/c1": "much"}, r"sparsity/c1: expected a number >= 0 and < 1, got 'much'"),
    ({"width": 0.0}, r"width: expected a number > 0 and <= 1, got 0.0"),
    ({"strategy/c1": "low-rank"}, r"strategy/c1: expected 'structured', 'unstructured' or 'none', got 'low-rank'"),
    ({"bits/fc": 4}, r"bits/fc: expected 32 or 8, got 4"),
    ({"bits/fx": 8}, r"bits/fx: expected a parameter of this space, got an unknown one \(did you mean 'bits/fc'\?\)"),
])  # fmt: skip
def test_wrong_parameter_is_infeasible_and_named(change: dict[str, Any], message: str) -> None:
    params = JOINT.uniform(sparsity=0.5, bits=8)
    with pytest.raises(InfeasibleError, match=message):
        JOINT.plan(params | change)


def test_missing_parameter_is_infeasible() -> None:
    params = JOINT.uniform(sparsity=0.5, bits=8)
    del params["sparsity/c1"]
    with pytest.raises(InfeasibleError, match="sparsity/c1: expected a number >= 0 and < 1, got nothing"):
        JOINT.plan(params)


@pytest.mark.parametrize(("plan", "message"), [
    (Plan(cuts=(ChannelCut(group="c9", keep=8, criterion="taylor"),)), "plan.cuts: expected a name that this space"),
    (Plan(cuts=(ChannelCut(group="c1", keep=9, criterion="taylor"),)), "expected a multiple of 8 below 32, got 9"),
    (Plan(masks=(WeightMask(layer="c1", sparsity=0.5, criterion="taylor"),)), "sparsity/c1: expected one sparsity"),
])  # fmt: skip
def test_plan_of_another_space_has_no_parameters(plan: Plan, message: str) -> None:
    with pytest.raises(InfeasibleError, match=message):
        JOINT.params(plan)


BITS = {"bits": {"choices": [32, 8]}}
PRUNED = {"strategy": ["structured"], "sparsity": {"low": 0.1, "high": 0.9, "step": 0.1}}


@pytest.mark.parametrize(("data", "bits", "message"), [
    ({"layers": BITS}, (32,), r"space: bits/c1: expected bits out of \[32\], got 8"),
    ({"layers": {"bits": {"choices": [8]}}}, (32, 8), "expected at least two configurations for this network, got one"),
    ({"layers": BITS, "include": ["c1", "d*"]}, (32, 8), r"include\[1\]: .* \(c1, c2, c3, fc\), got 'd\*'"),
    ({"layers": BITS, "exclude": ["cc1"]}, (32, 8), r"exclude\[0\]: .* got 'cc1' \(did you mean 'c1'\?\)"),
    ({"groups": PRUNED, "overrides": [{"match": "fc", "strategy": ["none"]}]}, (32, 8),
     r"overrides\[0\].match: expected a pattern that matches a group"),
    ({"layers": BITS, "overrides": [{"match": "c1", "strategy": ["structured"]}]}, (32, 8),
     "group 'c1': expected groups.sparsity or an override's sparsity"),
])  # fmt: skip
def test_space_that_does_not_fit_the_network_is_refused(
    data: dict[str, Any], bits: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(SpaceConfig.model_validate(data), NETWORK, round_to=8, bits=bits)
