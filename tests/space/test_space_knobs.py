"""Each rule of the choices by hand."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from pydantic import ValidationError
from random_draws import Draws
from random_spaces import BITS, residual, tables

from autocompress.errors import ConfigError, InfeasibleError
from autocompress.records import (
    Block,
    BlockDrop,
    ChannelCut,
    Codebook,
    FromScratch,
    Gradual,
    Group,
    Iterative,
    Layer,
    LayerBits,
    LowRank,
    NoDistillation,
    Plan,
    Quantizer,
    Response,
    Structure,
    WeightMask,
)
from autocompress.space.config import SpaceConfig, load_space, packaged_spaces
from autocompress.space.draft import effective
from autocompress.space.space import Space, resolve

NETWORK = residual(32, [16, 16, 16], 3, norms=True)
MLP = residual(64, [128, 128], 0, norms=False)


def space_of(structure: Structure = NETWORK, *, round_to: int = 8, **data: Any) -> Space:
    return resolve(SpaceConfig.model_validate(data), structure, round_to=round_to, bits=BITS)


SPARSITY = {"low": 0.25, "high": 0.75, "step": 0.25}
MASKED = {"strategy": ["unstructured", "none"], "sparsity": SPARSITY}
CUT = {"strategy": ["structured", "none"], "sparsity": SPARSITY}
KEPT = {f"block/{name}": "keep" for name in ("body.0", "body.1", "body.2", "body")}


def test_blocks_inside_a_block_that_is_left_out_go_with_it() -> None:
    space = space_of(blocks={})
    plan = space.plan(KEPT | {"block/body": "drop", "block/body.1": "drop"})
    assert plan.drops == (BlockDrop(block="body"),)
    assert space.params(plan) == KEPT | {"block/body": "drop"}


def test_what_is_asked_of_a_block_that_is_left_out_has_no_effect() -> None:
    space = space_of(blocks={}, groups=CUT, layers={"bits": {"choices": [32, 8]}})
    params = space.uniform(sparsity=0.5, bits=8) | {"block/body.1": "drop"}
    plan = space.plan(params)
    assert [cut.group for cut in plan.cuts] == ["body.0.a", "body.2.a", "stem"]
    assert not [entry for entry in plan.bits if entry.layer.startswith("body.1.")]
    changed = params | {"strategy/body.1.a": "none", "bits/body.1.a": 32}
    assert space.plan(changed) == plan


def test_heads_of_a_block_that_is_left_out_are_not_cut() -> None:
    names = [f"body.{i}.attention.in_proj_weight" for i in range(2)]
    structure = Structure(
        groups=tuple(Group(name=name, width=4, layers=(name,), kind="heads", unit=48) for name in names),
        layers=(Layer(name="head", kind="linear", shape=(10, 64), macs=1),),
        blocks=tuple(Block(name=f"body.{i}", layers=()) for i in range(2)),
    )
    space = space_of(structure, groups=CUT, blocks={})
    plan = space.plan(space.uniform(sparsity=0.5, bits=32) | {"block/body.1": "drop"})
    assert plan.drops == (BlockDrop(block="body.1"),)
    assert plan.cuts == (ChannelCut(group=names[0], keep=2, criterion="magnitude"),)


def test_at_most_so_many_blocks_are_left_out() -> None:
    space = space_of(blocks={"max": 2})
    assert 10 ** space.size() == pytest.approx(1 + 4 + 6)
    for seed in range(50):
        draws = Draws(seed)
        assert len(space.plan(space.suggest(draws)).drops) <= 2
    with pytest.raises(InfeasibleError, match=r"blocks: expected at most 2 blocks left out, got 3"):
        space.plan({"blocks": 2} | {f"block/body.{i}": "drop" for i in range(3)})
    with pytest.raises(InfeasibleError, match="blocks: expected 0, 1 or 2, got 3"):
        space.plan(KEPT | {"blocks": 3})
    with pytest.raises(InfeasibleError, match=r"plan.drops: expected at most 2 blocks left out, got 3"):
        space.params(Plan(drops=tuple(BlockDrop(block=f"body.{i}") for i in range(3))))


def test_seed_leaves_out_half_of_the_blocks() -> None:
    space = space_of(blocks={}, exclude=["body"])
    assert [name for name, _ in space.seeds()] == ["dense", "depth-half"]
    assert space.plan(space.seeds()[1][1]).drops == (BlockDrop(block="body.1"),)


def test_rank_is_of_the_layer_as_it_is_after_cuts() -> None:
    rank = {"low": 0.25, "high": 1.0, "step": 0.25}
    space = space_of(MLP, layers={"rank": rank}, groups=CUT)
    params = space.dense() | {"rank/body.0.a": 0.25}
    assert space.plan(params).ranks == (LowRank(layer="body.0.a", ranks=(16,)),)
    cut = params | {"strategy/body.0.a": "structured", "criterion/body.0.a": "magnitude", "sparsity/body.0.a": 0.75}
    assert space.plan(cut).ranks == (LowRank(layer="body.0.a", ranks=(8,)),)  # (32, 64) has rank 32


@pytest.mark.parametrize(("share", "ranks"), [
    (0.25, (8, 8)), (0.5, (16, 16)), (0.75, (24, 24)), (1.0, None), (0.9, None), (0.01, (8, 8)),
])  # fmt: skip
def test_kernel_has_two_ranks_and_none_if_they_save_nothing(share: float, ranks: tuple[int, int] | None) -> None:
    square = Structure(groups=(), layers=(Layer(name="c", kind="conv2d", shape=(32, 32, 3, 3), macs=1),))
    space = space_of(square, layers={"rank": {"low": 0.25, "high": 1.0, "step": 0.25}})
    # 24 * 32 + 24 * 24 * 9 + 24 * 32 = 6720 < 9216; 32 * 32 * 11 is more.
    assert space.plan({"rank/c": share}).ranks == (() if ranks is None else (LowRank(layer="c", ranks=ranks),))


def test_matrix_below_its_break_even_rank_only() -> None:
    square = Structure(groups=(), layers=(Layer(name="c", kind="linear", shape=(32, 32), macs=1),))
    space = space_of(square, round_to=1, layers={"rank": {"low": 0.25, "high": 1.0, "step": 0.25}})
    assert space.plan({"rank/c": 15 / 32}).ranks == (LowRank(layer="c", ranks=(15,)),)
    assert space.plan({"rank/c": 0.5}).is_dense  # 16 = 32 * 32 / (32 + 32)
    with pytest.raises(InfeasibleError, match=r"rank/c: expected ranks that one share"):
        space.params(Plan(ranks=(LowRank(layer="c", ranks=(16,)),)))


def test_depthwise_layers_have_no_rank() -> None:
    space = space_of(layers={"rank": {"low": 0.5, "high": 1.0, "step": 0.25}})
    assert (
        {"rank/stem", "rank/head"}
        < space.ranks.keys()
        <= {f"rank/{x.name}" for x in NETWORK.layers[:-2]} | {"rank/head"}
    )
    only = Structure(groups=(), layers=(Layer(name="deep", kind="conv2d", shape=(8, 1, 3, 3), macs=9),))
    with pytest.raises(ConfigError, match=r"layers.rank: expected a network with linear layers or ungrouped"):
        space_of(only, layers={"rank": {"low": 0.5, "high": 1.0, "step": 0.25}})


def test_factorized_layer_has_neither_mask_nor_codebook_and_codebook_keeps_floats() -> None:
    space = space_of(
        MLP,
        groups=MASKED,
        layers={
            "rank": {"low": 0.25, "high": 1.0, "step": 0.25},
            "codebook": {"clusters": ["none", 16]},
            "bits": {"choices": [32, 8], "per": "model"},
        },
    )
    params = space.dense() | {
        "strategy/stem": "unstructured", "criterion/stem": "magnitude", "sparsity/stem": 0.5, "bits": 8,
        "rank/body.0.b": 0.25, "codebook/body.0.b": 16, "codebook/body.1.b": 16, "codebook/head": 16,
    }  # fmt: skip
    plan = space.plan(params)
    assert [entry.layer for entry in plan.ranks] == ["body.0.b"]
    assert [entry.layer for entry in plan.masks] == ["body.1.b", "stem"]
    assert plan.codebooks == (Codebook(layer="body.1.b", clusters=16), Codebook(layer="head", clusters=16))
    assert [entry.layer for entry in plan.bits] == ["body.0.a", "body.0.b", "body.1.a", "deep", "stem"]
    assert space.plan(space.params(plan)) == plan


def test_codebook_of_more_values_than_weights_is_none() -> None:
    space = space_of(layers={"codebook": {"clusters": ["none", 64, 128], "per": "layer"}}, include=["deep"])
    assert space.plan({"codebook/deep": 64}).codebooks == (Codebook(layer="deep", clusters=64),)
    assert space.plan({"codebook/deep": 128}).is_dense


def test_n_m_pattern_fixes_the_share_and_skips_layers_it_does_not_divide() -> None:
    space = space_of(groups=MASKED | {"pattern": ["element", "2:4", "block:8x4"]})
    params = space.dense() | {"strategy/stem": "unstructured", "criterion/stem": "magnitude", "pattern/stem": "2:4"}
    masks = tuple(WeightMask(layer=f"body.{i}.b", sparsity=0.5, criterion="magnitude", pattern="2:4") for i in range(3))
    assert space.plan(params).masks == masks  # not the stem, with three inputs
    assert space.plan(params | {"sparsity/stem": 0.75}).masks == masks
    blocks = space.plan(params | {"pattern/stem": "block:8x4", "sparsity/stem": 0.25}).masks
    assert [mask.layer for mask in blocks] == ["body.0.b", "body.1.b", "body.2.b"]
    assert {mask.sparsity for mask in blocks} == {0.25}
    assert "pattern-2:4" in [name for name, _ in space.seeds()]


def test_pattern_that_divides_no_layer_is_refused_by_name() -> None:
    groups = {"strategy": ["unstructured", "none"], "pattern": ["3:7"]}
    with pytest.raises(ConfigError, match=r"group 'body.0.a': .* \(body.0.a \(16, 32, 3, 3\)\), got \['3:7'\]"):
        space_of(groups=groups)


@pytest.mark.parametrize(("groups", "message"), [
    ({"criterion": ["lamp"]}, r"what structured pruning removes \(bn_scale, f_statistic, .*\), got 'lamp'"),
    ({"strategy": ["unstructured"], "criterion": ["fpgm"]},
     r"\(hessian, lamp, magnitude, random, taylor\), got 'fpgm'"),
    ({"strategy": ["structured", "unstructured"], "criterion": ["taylor", "l1"]},
     r"structured and unstructured pruning removes \(hessian, magnitude, random, taylor\), got 'l1'"),
    ({"pattern": ["4:2"]}, r"expected a pattern 'element', 'n:m' with n < m or 'block:RxC', got '4:2'"),
])  # fmt: skip
def test_criterion_that_cannot_score_is_refused(groups: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SpaceConfig.model_validate({"groups": CUT | groups})


def test_bn_scale_needs_normalizations() -> None:
    with pytest.raises(ConfigError, match=r"group 'stem': .* need no normalization.*, got 'bn_scale'"):
        space_of(groups=CUT | {"criterion": ["bn_scale"]})
    assert space_of(groups=CUT | {"criterion": ["bn_scale"]}, exclude=["stem"])


def test_reduction_that_ranks_alike_is_the_same_plan() -> None:
    space = space_of(groups=CUT | {"criterion": ["magnitude", "random"], "reduction": ["max", "mean", "sum"]})
    base = space.uniform(sparsity=0.5, bits=32)
    plans = {r: space.plan(base | {"reduction/stem": r, "reduction/body.0.a": r}) for r in ("max", "mean", "sum")}
    assert plans["mean"] == plans["sum"] != plans["max"]
    assert [cut.reduction for cut in plans["max"].cuts] == [
        "mean",
        "mean",
        "mean",
        "max",
    ]  # one layer each but the stem
    rolled = space.plan(base | {"reduction/stem": "max", "criterion/stem": "random"})
    assert rolled.cuts[-1] == ChannelCut(group="stem", keep=16, criterion="random")


def test_weights_alone_in_linear_layers_only() -> None:
    space = space_of(layers={"bits": {"choices": [32, 16, 8, 4], "weights": ["both", "only"], "per": "model"}})
    plan = space.plan({"bits": 4, "weights": "only"})
    assert {entry.layer for entry in plan.bits if entry.weights_only} == {"head"}
    assert LayerBits(layer="stem", bits=4) in plan.bits
    assert space.plan({"bits": 16}) == space.plan({"bits": 16, "weights": "only"})
    with pytest.raises(InfeasibleError, match="weights: expected 'both' or 'only', got 'nothing'"):
        space.plan({"bits": 8})
    assert "weights-only-4bit" in [name for name, _ in space.seeds()]


def test_settings_are_asked_for_only_where_they_matter() -> None:
    space = space_of(
        groups=MASKED,
        layers={"bits": {"choices": [32, 8], "per": "model"}},
        schedule=["one-shot", {"kind": "gradual", "end": 0.9}, "from-scratch"],
        distillation=["response", "none"],
        quantizer=["post", {"training": "aware", "ranges": "calibrated"}],
    )
    dense = space.dense()
    words = {"schedule": "gradual(end=0.9)", "distillation": "none", "quantizer": "aware(ranges=calibrated)"}
    assert space.plan(dense | words).is_dense
    assert space.plan(dense | words) == Plan()
    eight = space.plan(dense | words | {"bits": 8})
    assert eight.quantizer == Quantizer(training="aware", ranges="calibrated")
    assert (eight.schedule.kind, eight.distillation) == ("one-shot", NoDistillation())
    masked = space.plan(space.uniform(sparsity=0.5, bits=32, strategy="unstructured") | words)
    assert (masked.schedule, masked.quantizer) == (Gradual(end=0.9), Quantizer())
    with pytest.raises(InfeasibleError, match=r"schedule: expected 'one-shot', 'gradual\(end=0.9\)' or 'from-scratch'"):
        space.plan(space.uniform(sparsity=0.5, bits=32) | {"schedule": "gradual"})


CUTS = (ChannelCut(group="stem", keep=8, criterion="magnitude"),)
MASKS = (WeightMask(layer="head", sparsity=0.5, criterion="magnitude"),)


@pytest.mark.parametrize(("plan", "expected"), [
    (Plan(schedule=Gradual(), cuts=CUTS), Plan(cuts=CUTS)),
    (Plan(schedule=Iterative(), cuts=CUTS), Plan(schedule=Iterative(), cuts=CUTS)),
    (Plan(schedule=FromScratch(), cuts=CUTS), Plan(schedule=FromScratch(), cuts=CUTS)),
    (Plan(schedule=FromScratch(), distillation=NoDistillation()), Plan()),
    (Plan(order="mask-cut", cuts=CUTS), Plan(cuts=CUTS)),
    (Plan(reconstruction="none", masks=MASKS), Plan(masks=MASKS)),
    (Plan(reconstruction="none", cuts=CUTS), Plan(reconstruction="none", cuts=CUTS)),
    (Plan(reconstruction="none", cuts=CUTS, schedule=FromScratch()), Plan(cuts=CUTS, schedule=FromScratch())),
    (Plan(order="mask-cut", cuts=CUTS, masks=MASKS), Plan(order="mask-cut", cuts=CUTS, masks=MASKS)),
    (Plan(quantizer=Quantizer(calibrator="entropy"), bits=(LayerBits(layer="a", bits=8, weights_only=True),)),
     Plan(bits=(LayerBits(layer="a", bits=8, weights_only=True),))),
    (Plan(quantizer=Quantizer(ranges="calibrated"), bits=(LayerBits(layer="a", bits=8),)),
     Plan(bits=(LayerBits(layer="a", bits=8),))),
    (Plan(quantizer=Quantizer(training="aware"), bits=(LayerBits(layer="a", bits=16),)),
     Plan(bits=(LayerBits(layer="a", bits=16),))),
    (Plan(distillation=Response(alpha=0.5), bits=(LayerBits(layer="a", bits=8),)),
     Plan(bits=(LayerBits(layer="a", bits=8),))),
])  # fmt: skip
def test_setting_without_effect_is_the_default(plan: Plan, expected: Plan) -> None:
    assert effective(plan) == expected
    assert effective(plan).key == expected.key


def test_space_says_which_settings_have_no_effect() -> None:
    space = space_of(groups=CUT, schedule=["one-shot", "gradual"], quantizer=["post", "aware"], distillation=["none"])
    lines = space.describe().splitlines()
    assert "schedule: one-shot/gradual, without effect in this space: it needs weights set to zero, iterative also " \
           "channels that are cut" in lines  # fmt: skip
    assert "quantizer: post/aware, without effect in this space: it needs integers: bits of 8 and below" in lines
    assert "distillation: none" in lines
    only_bits = space_of(layers={"bits": {"choices": [32, 8]}}, reconstruction=["least-squares", "none"]).describe()
    assert "reconstruction: least-squares/none, without effect in this space: it needs channels that are cut, and " \
           "weights that are not drawn anew" in only_bits.splitlines()  # fmt: skip
    assert space.size() == space_of(groups=CUT).size()


def test_overrides_reach_every_kind_of_choice() -> None:
    space = space_of(
        MLP,
        layers={"bits": {"choices": [32, 8], "per": "model"}},
        overrides=[
            {"match": "body.1", "block": ["drop"]},
            {"match": "head", "rank": {"low": 0.5, "high": 1.0, "step": 0.5}, "clusters": ["none", 4]},
            {"match": "stem", "bits": [4]},
        ],
    )
    assert {"rank/head", "codebook/head", "bits", "bits/stem"} < frozenset().union(*(k.keys() for k in space.knobs))
    assert space.plan(space.dense()).drops == (BlockDrop(block="body.1"),)
    assert LayerBits(layer="stem", bits=4) in space.plan(space.dense()).bits


@pytest.mark.parametrize(("data", "message"), [
    ({"blocks": {}, "overrides": [{"match": "stem", "block": ["drop"]}]},
     r"overrides\[0\].match: expected a pattern that matches a block of the network \(body.0, body.1, body.2, body\)"),
    ({"blocks": {"max": 1}, "overrides": [{"match": "body.*", "block": ["drop"]}]},
     "blocks.max: expected at least the 3 blocks that overrides always leave out, got 1"),
    ({"layers": {"bits": {"choices": [32, 8]}}, "overrides": [{"match": "x", "clusters": [4]}]},
     r"overrides\[0\].match: expected a pattern that matches a layer"),
])  # fmt: skip
def test_space_that_does_not_fit_is_refused(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        space_of(**data)
    flat = Structure(groups=(), layers=NETWORK.layers)
    with pytest.raises(ConfigError, match="blocks: expected a network with blocks"):
        space_of(flat, blocks={})


@pytest.mark.parametrize(("plan", "message"), [
    (Plan(drops=(BlockDrop(block="stem"),)), "plan.drops: expected a block that this space may leave out, got 'stem'"),
    (Plan(ranks=(LowRank(layer="deep", ranks=(4, 1)),)), "plan.ranks: expected a layer that this space searches"),
    (Plan(codebooks=(Codebook(layer="head", clusters=5),)), r"codebook/head: .* out of \['none', 16\] .*, got \[5\]"),
    (Plan(codebooks=(Codebook(layer="x", clusters=5),)), "plan.codebooks: expected a layer that this space searches"),
    (Plan(bits=(LayerBits(layer="head", bits=4),)), r"bits: expected one bit width out of \[32, 8\]"),
    (Plan(bits=(LayerBits(layer="head", bits=8),)), r"bits: expected one bit width out of \[32, 8\]"),
])  # fmt: skip
def test_plan_of_another_space_has_no_parameters(plan: Plan, message: str) -> None:
    layers = {"codebook": {"clusters": ["none", 16]}, "rank": {"low": 0.5, "high": 1.0, "step": 0.25}}
    space = space_of(blocks={}, layers=layers | {"bits": {"choices": [32, 8], "per": "model"}})
    with pytest.raises(InfeasibleError, match=message):
        space.params(plan)


@pytest.mark.parametrize("name", packaged_spaces())
def test_packaged_spaces_fit_and_optuna_takes_their_points(name: str) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    config = load_space(name)
    space = resolve(config, MLP, round_to=8, bits=(32, 8), allocations=tables(config, MLP, round_to=8))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _, params in space.seeds():
        study.enqueue_trial(params)
    for _, params in space.seeds():
        assert space.plan(space.suggest(study.ask())) == space.plan(params)
    plans = [space.plan(space.suggest(study.ask())) for _ in range(20)]
    assert len(set(plans)) > 5
