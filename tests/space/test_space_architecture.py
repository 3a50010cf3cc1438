"""Another network instead of the dense one: in spaces, in plans' files, in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_draws import Draws, assert_comes_back

from autocompress.errors import ConfigError, InfeasibleError
from autocompress.records import (
    Architecture,
    Block,
    BlockDrop,
    ChannelCut,
    Group,
    Layer,
    LayerBits,
    NoDistillation,
    Plan,
    Quantizer,
    Structure,
    Use,
    WeightMask,
    starts_untrained,
)
from autocompress.records.training import FromScratch, Gradual
from autocompress.space.config import SpaceConfig, load_space
from autocompress.space.explain import validate
from autocompress.space.plan_file import dump_plan, load_plan
from autocompress.space.space import Space, resolve
from autocompress.space.words import plan_words
from autocompress.space.yaml import parse_document

C1 = (Use(parameter="c1.weight", axis=0, per_unit=1), Use(parameter="c2.weight", axis=1, per_unit=1))
NETWORK = Structure(
    groups=(Group(name="c1", width=32, layers=("c1",), consumers=("c2",), uses=C1),),
    layers=(
        Layer(name="c1", kind="conv2d", shape=(32, 3, 3, 3), macs=9, group="c1"),
        Layer(name="c2", kind="conv2d", shape=(64, 32, 3, 3), macs=9),
        Layer(name="fc", kind="linear", shape=(10, 64), macs=9),
    ),
    blocks=(Block(name="body", layers=("c2",)),),
)
FULL: dict[str, Any] = {
    "architecture": {"width": {"low": 0.25, "high": 1.0, "step": 0.25}, "depth": [8, 14, 20]},
    "width": {"low": 0.5, "high": 1.0, "step": 0.25},
    "groups": {"strategy": ["structured", "unstructured"], "sparsity": {"low": 0.0, "high": 0.5, "step": 0.25}},
    "layers": {
        "bits": {"choices": [32, 8, 4], "weights": ["both", "only"]},
        "rank": {"low": 0.5, "high": 1.0, "step": 0.5},
        "codebook": {"clusters": ["none", 16]},
    },
    "blocks": {},
    "schedule": ["one-shot", "gradual", "from-scratch"],
    "distillation": ["response", "none"],
    "quantizer": ["post", "aware"],
    "order": ["cut-mask", "mask-cut"],
    "reconstruction": ["least-squares", "none"],
}


def space_of(content: dict[str, Any], bits: tuple[int, ...] = (32, 8, 4)) -> Space:
    return resolve(SpaceConfig.model_validate(content), NETWORK, round_to=8, bits=bits)


SIZES = st.one_of(
    st.none(),
    st.lists(st.sampled_from([0.1, 0.25, 0.3, 0.5, 1, 2, 8, 20.5]), min_size=1, max_size=4, unique=True),
    st.sampled_from([{"low": 0.1, "high": 0.7, "step": 0.1}, {"low": 0.34, "high": 1, "step": 0.33}]),
)


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    sizes = {key: found for key in ("width", "depth") if (found := draw(SIZES)) is not None}
    content: dict[str, Any] = {"architecture": sizes or {"width": [0.5]}}
    for key in (
        "width",
        "groups",
        "layers",
        "blocks",
        "schedule",
        "distillation",
        "quantizer",
        "order",
        "reconstruction",
    ):
        if draw(st.booleans()):
            content[key] = FULL[key]
    return space_of(content)


@settings(max_examples=200, deadline=None)
@given(space=spaces(), seed=st.integers(0, 10**6))
def test_plans_survive_the_way_to_parameters_and_back(space: Space, seed: int) -> None:
    draws = Draws(seed)
    params = space.suggest(draws)
    assert draws.asked == list(params)
    plan = space.plan(params)
    assert_comes_back(space, plan)
    built = params["architecture"] == "built"
    assert (plan.architecture is not None) == built == starts_untrained(plan) or plan.schedule != Plan().schedule
    if built:
        # Nothing that speaks of the dense network is asked for.
        assert {key.partition("/")[0] for key in params} <= {"architecture", "distillation", "quantizer"}


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(space=spaces(), seed=st.integers(0, 10**6))
def test_plan_files_say_what_a_network_is_built_like(space: Space, seed: int, tmp_path: Path) -> None:
    plan = space.plan(space.suggest(Draws(seed, architecture="built")))
    (tmp_path / "plan.yaml").write_text(dump_plan(plan))
    assert plan.architecture is not None
    assert load_plan(tmp_path / "plan.yaml", NETWORK) == plan


def test_what_speaks_of_the_dense_network_has_no_effect_on_one_that_is_built() -> None:
    space = space_of(FULL)
    built: dict[str, Any] = {"architecture": "built", "architecture/width": 0.5, "architecture/depth": 14}
    built |= {"architecture/bits": 8, "architecture/weights": "both", "distillation": "none", "quantizer": "aware"}
    plan = space.plan(built)
    assert plan == Plan(
        architecture=Architecture(width=0.5, depth=14, bits=8),
        distillation=NoDistillation(),
        quantizer=Quantizer(training="aware"),
    )
    others = {"width": 0.5, "blocks": 1, "block/body": "drop", "bits/c2": 4, "schedule": "gradual"}
    known = {key: value for key, value in others.items() if key in frozenset().union(*(k.keys() for k in space.knobs))}
    assert len(known) >= 4
    assert space.plan(built | known) == plan


def test_a_built_network_is_another_candidate_and_defaults_leave_other_keys_as_they_were() -> None:
    assert Plan().key == "44136fa355b3678a"
    cut = Plan(cuts=(ChannelCut(group="a", keep=3, criterion="magnitude"),), bits=(LayerBits(layer="a", bits=8),))
    assert cut.key == "ec43438861afd1eb"
    sizes = [{"width": 0.5}, {"depth": 0.5}, {"width": 0.5, "depth": 0.5}, {"width": 0.5, "bits": 8}]
    assert len({Plan(architecture=Architecture(**size)).key for size in sizes} | {Plan().key}) == 5


def test_a_built_network_trains_and_starts_untrained() -> None:
    plan = Plan(architecture=Architecture(width=0.5))
    assert (plan.is_dense, plan.changes_weights, plan.trains, plan.quantizes) == (False, True, True, False)
    assert starts_untrained(plan)
    cut = (ChannelCut(group="c1", keep=8, criterion="magnitude"),)
    assert starts_untrained(Plan(cuts=cut, schedule=FromScratch()))
    assert not starts_untrained(Plan(cuts=cut))
    assert not starts_untrained(Plan(bits=(LayerBits(layer="c1", bits=8),), schedule=FromScratch()))


@pytest.mark.parametrize(("field", "entry"), [
    ("drops", BlockDrop(block="body")),
    ("cuts", ChannelCut(group="c1", keep=8, criterion="magnitude")),
    ("masks", WeightMask(layer="c1", sparsity=0.5, criterion="magnitude")),
    ("bits", LayerBits(layer="c1", bits=8)),
])  # fmt: skip
def test_a_built_network_is_not_compressed_further(field: str, entry: Any) -> None:
    with pytest.raises(
        ValueError, match=f"expected a network that is built, without {field}, which speak of the dense"
    ):
        Plan.model_validate({"architecture": {"width": 0.5}, field: (entry.model_dump(),)})


@pytest.mark.parametrize(("content", "message"), [
    ({}, "expected a width, a depth or both, got neither"),
    ({"width": 0.0}, "greater than 0"),
    ({"width": float("inf")}, "finite"),
    ({"width": 0.5, "bits": 16, "weights_only": True}, "expected 8 or 4 where only weights are quantized, got 16"),
])  # fmt: skip
def test_impossible_architectures_are_refused(content: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Architecture.model_validate(content)


def test_sizes_are_whole_numbers_where_they_are_whole() -> None:
    sizes = Architecture(width=1.0, depth=8.0).sizes
    assert sizes == {"width": 1, "depth": 8}
    assert {type(size) for size in sizes.values()} == {int}
    assert Architecture(depth=0.5).sizes == {"depth": 0.5}


@pytest.mark.parametrize(("text", "message"), [
    ("architecture: {}\n", "s.yaml:1: architecture: expected the key width, depth or both, got neither"),
    ("architecture: {width: []}\n", "architecture.width: expected a list of at least 1, each a finite number"),
    ("architecture: {width: [0.5, 0.5]}\n", r"architecture.width: expected distinct choices, got \[0.5, 0.5\]"),
    ("architecture: {width: [0]}\n", r"s.yaml:1: architecture.width\[0\]: expected a finite number > 0.0, got 0"),
    ("architecture: {width: {low: 0.5, high: 1}}\n",
     "s.yaml:1: architecture.width: expected a number > 0 for step, got nothing"),
    ("architecture: {width: {low: 0.5, high: 1, stride: 0.5}}\n",
     "s.yaml:1: architecture.width: expected low, high and step, or a list of sizes, got 'stride'"),
    ("architecture: {depth: {low: 0.5, high: 1, step: 0.3}}\n",
     "s.yaml:1: architecture.depth: expected a whole number of steps from low 0.5 to high 1.0, got step 0.3"),
    ("architecture: {height: [1]}\n", "expected one of the keys width, depth, got 'height'"),
])  # fmt: skip
def test_wrong_sizes_are_named_with_their_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(SpaceConfig, parse_document(text, "s.yaml"))


@pytest.mark.parametrize(("change", "message"), [
    ({"architecture": "bult"}, "architecture: expected 'dense' or 'built', got 'bult'"),
    ({"architecture/width": 0.3}, "architecture/width: expected one of 0.25/0.5/0.75/1, got 0.3"),
    ({"architecture/width": "wide"}, "architecture/width: expected one of 0.25/0.5/0.75/1, got 'wide'"),
    ({"architecture/bits": 16}, "architecture/bits: expected 32, 8 or 4, got 16"),
    ({"architecture/height": 3}, "architecture/height: expected a parameter of this space"),
])  # fmt: skip
def test_parameters_out_of_the_space_are_refused(change: dict[str, Any], message: str) -> None:
    params: dict[str, Any] = {"architecture": "built", "architecture/width": 0.5, "architecture/depth": 8}
    params |= {"architecture/bits": 8, "architecture/weights": "both", "distillation": "none", "quantizer": "post"}
    space = space_of(FULL)
    assert space.plan(params).architecture == Architecture(width=0.5, depth=8, bits=8)
    with pytest.raises(InfeasibleError, match=message):
        space.plan(params | change)


@pytest.mark.parametrize(("asked", "message"), [
    (Architecture(width=0.5), "plan.architecture.depth: expected one of 8/14/20, got none"),
    (Architecture(width=0.4, depth=8), "plan.architecture.width: expected one of 0.25/0.5/0.75/1, got 0.4"),
    (Architecture(width=0.5, depth=8, bits=2), "plan.architecture.bits: expected 32, 8 or 4, got 2"),
])  # fmt: skip
def test_plans_out_of_the_space_are_refused(asked: Architecture, message: str) -> None:
    with pytest.raises(InfeasibleError, match=message):
        space_of(FULL).params(Plan(architecture=asked))


def test_a_space_without_it_builds_nothing() -> None:
    space = space_of({"blocks": {}})
    with pytest.raises(InfeasibleError, match="expected none, as this space builds no network, got one"):
        space.params(Plan(architecture=Architecture(width=0.5)))
    assert not space.architecture.open
    assert "architecture" not in space.dense()


def test_a_bit_width_that_the_target_lacks_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"architecture: expected bits out of \[32, 8\], got 4"):
        space_of({"architecture": {"width": [0.5]}, "layers": FULL["layers"], "overrides": [
            {"match": "*", "bits": [32, 8]}]}, bits=(32, 8))  # fmt: skip


def test_the_dense_network_is_where_a_search_starts_and_small_ones_are_among_the_seeds() -> None:
    space = space_of({"architecture": FULL["architecture"], "layers": {"bits": {"choices": [32, 8], "per": "model"}}})
    seeds = dict(space.seeds())
    assert space.plan(seeds["dense"]).is_dense
    built = {name: space.plan(params).architecture for name, params in seeds.items() if name.startswith("built")}
    assert built["built-width-0.5-depth-20-8bit"] == Architecture(width=0.5, depth=20, bits=8)
    assert built["built-width-1-depth-8-8bit"] == Architecture(width=1.0, depth=8, bits=8)
    assert built["built-width-0.5-depth-8-8bit"] == Architecture(width=0.5, depth=8, bits=8)


def test_its_size_is_that_of_both_kinds_together() -> None:
    dense = {"layers": {"bits": {"choices": [32, 8], "per": "model"}}}
    both = space_of(dense | {"architecture": {"width": [0.5, 0.25], "depth": [1, 2, 3]}})
    assert 10 ** space_of(dense).size() == pytest.approx(2)
    assert 10 ** both.size() == pytest.approx(2 + 2 * 3 * 2)
    assert "or a smaller network, built and trained from fresh weights: width 0.25/0.5, depth 1/2/3" in both.describe()


def test_distillation_matters_where_a_network_may_be_built() -> None:
    space = space_of({"architecture": {"width": [0.5]}, "distillation": ["response", "none"]})
    assert "without effect" not in space.describe()


@pytest.mark.parametrize(("text", "message"), [
    ("architecture: {width: 0.5}\nbits: [{match: '*', bits: 8}]\n",
     "plan.yaml:1: expected either architecture, which builds another network, or bits, which speaks of the dense one, "
     "got both; give architecture.bits"),
    ("architecture: {width: 0.5}\ncuts: [{match: '*', keep: 8}]\n", "expected either architecture, .* or cuts"),
    ("architecture: {bits: 8}\n", "plan.yaml:1: architecture: expected the key width, depth or both, got neither"),
    ("architecture: {width: -1}\n", "plan.yaml:1: architecture.width: expected a finite number > 0.0 or null, got -1"),
    ("architecture: {width: 1, bits: 16, weights_only: true}\n",
     "expected 8 or 4 bits where only weights are quantized, got 16"),
    ("architecture: {width: 1, bits: 4}\n",
     r"plan.yaml:1: architecture.bits: expected bits out of \[32, 8\], which the target has, got 4"),
])  # fmt: skip
def test_mistakes_in_a_plan_file_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "plan.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_plan(tmp_path / "plan.yaml", NETWORK, bits=(32, 8))


def test_settings_without_effect_on_it_become_the_defaults(tmp_path: Path) -> None:
    text = "architecture: {width: 0.5}\nschedule: gradual\nquantizer: aware\norder: mask-cut\ndistillation: none\n"
    (tmp_path / "plan.yaml").write_text(text)
    assert load_plan(tmp_path / "plan.yaml", NETWORK) == Plan(
        architecture=Architecture(width=0.5), distillation=NoDistillation()
    )
    assert Gradual().kind == "gradual"


def test_words() -> None:
    plan = Plan(architecture=Architecture(width=0.5, depth=8, bits=8), distillation=NoDistillation())
    assert plan_words(plan, NETWORK) == (
        "another network, built at width 0.5, depth 8 and trained from fresh weights; all layers at 8 bits; "
        "no distillation"
    )
    assert plan_words(plan) == "built at width 0.5, depth 8 int8, no distillation"
    small = Plan(architecture=Architecture(width=0.25, bits=4, weights_only=True))
    assert plan_words(small) == "built at width 0.25 at 4 bits"
    assert "all layers at 4 bits, weights only where linear" in plan_words(small, NETWORK)


def test_the_packaged_space_has_both_kinds() -> None:
    space = resolve(load_space("nas"), NETWORK, round_to=8, bits=(32, 8))
    assert space.architecture.widths == (0.25, 0.5, 0.75, 1.0)
    assert space.architecture.depths == (0.34, 0.67, 1.0)
    assert space.depth.droppable
    assert space.groups
