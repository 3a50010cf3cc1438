from __future__ import annotations

import time
from itertools import pairwise
from math import log2
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import KINDS, network, sensitivity, space, space_of, structure

from autocompress.compress.artifact import describe
from autocompress.compress.export import export_onnx
from autocompress.compress.quantize import quantize
from autocompress.compress.sensitivity import PairSensitivity
from autocompress.compress.skeleton import learn_skeleton
from autocompress.compress.statistics import Statistics
from autocompress.errors import InfeasibleError
from autocompress.pipeline.guide import PlanGuide
from autocompress.pipeline.latency_plans import Tilted
from autocompress.pipeline.losses import FLOOR, Curve, Losses
from autocompress.pipeline.work import INTEGER, Work
from autocompress.records import (
    Architecture,
    BlockDrop,
    ChannelCut,
    Estimate,
    LayerBits,
    LowRank,
    Plan,
    Quantizer,
    Structure,
)
from autocompress.space.config import packaged_spaces
from autocompress.space.space import Space


def guide_of(found: Space, kind: str, **more: Any) -> PlanGuide:
    return PlanGuide(found, sensitivity(kind), dense_ms=2.0, **more)


def plans(found: Space, count: int, seed: int = 0) -> list[Plan]:
    rng = np.random.default_rng(seed)
    return [found.plan(found.suggest(Tilted(rng))) for _ in range(count)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", packaged_spaces())
def test_features_of_every_plan_are_finite_and_as_many_as_their_names(kind: str, name: str) -> None:
    found = space(kind, name)
    guide = guide_of(found, kind)
    assert len(set(guide.names)) == len(guide.names)
    for plan in (Plan(), *plans(found, 12)):
        features = guide.features(plan)
        assert features.shape == (len(guide.names),)
        assert np.isfinite(features).all()
        assert guide.latency_share(plan) > 0.0


def test_features_tell_what_a_plan_does() -> None:
    found = space_of(
        "convolutional",
        {
            "groups": {
                "strategy": ["structured", "none"],
                "criterion": ["magnitude", "taylor"],
                "sparsity": {"low": 0.25, "high": 0.75, "step": 0.25},
            },
            "blocks": {"choices": ["keep", "drop"]},
            "layers": {"bits": {"choices": [32, 8], "per": "layer"}},
            "distillation": ["response", "none"],
        },
    )
    guide = guide_of(found, "convolutional")

    def told(plan: Plan) -> dict[str, float]:
        return dict(zip(guide.names, guide.features(plan), strict=True))

    dense = told(Plan())
    assert dense["log2 latency"] == dense["log2 multiply-adds"] == 0.0
    assert dense["bits"] == 1.0
    assert dense["distillation response"] == 1.0
    group, block = found.structure.groups[1], found.depth.droppable[0]
    everything = tuple(LayerBits(layer=n, bits=8) for n in sorted(x.name for x in found.structure.layers))
    assert told(Plan(bits=everything))["log2 latency"] == pytest.approx(log2(INTEGER))
    assert told(Plan(bits=everything))["integer multiply-adds"] == pytest.approx(1.0)
    cut = told(Plan(cuts=(ChannelCut(group=group.name, keep=group.width // 2, criterion="taylor"),)))
    assert cut[f"kept/{group.name}"] == 0.5
    assert cut["criterion taylor"] == 1.0
    assert cut["log10 loss"] == cut["log10 loss of cuts"] > dense["log10 loss"]
    assert cut["log2 latency"] < 0.0
    without = told(Plan(drops=(BlockDrop(block=block),)))
    assert without[f"without/{block}"] == 1.0
    inside = [g.name for g in found.structure.groups if all(x.startswith(f"{block}.") for x in g.layers)]
    assert inside
    assert all(without[f"kept/{name}"] == 0.0 for name in inside)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_multiply_adds_are_told_only_where_they_are_the_artifacts(kind: str) -> None:
    module, example = network(kind)
    dense = export_onnx(module, example).model
    found = space_of(
        kind,
        {
            "groups": {
                "strategy": ["structured", "none"],
                "criterion": ["magnitude"],
                "sparsity": {"low": 0.125, "high": 0.75, "step": 0.125},
            },
            "blocks": {"choices": ["keep", "drop"]},
            "layers": {"bits": {"choices": [32, 8], "per": "layer"}},
        },
    )
    guide = guide_of(found, kind, dense_macs=describe(dense).macs)
    if kind == "transformer":
        # Products of activations are nobody's weights.
        assert guide.costs(Plan()) == {}
        return
    skeleton = learn_skeleton(module, dense, structure(kind), Statistics({}), example, round_to=8, seed=0)
    asked = plans(found, 6, seed=1)
    assert any(plan.drops for plan in asked)
    for plan in asked:
        file = skeleton.model(plan.model_copy(update={"bits": ()}))
        if plan is asked[0]:
            file = quantize(file, list(plan.bits), Quantizer(), example)
        assert guide.costs(plan) == {"macs": describe(file).macs}


def test_parts_that_are_not_known_exactly_are_not_told() -> None:
    work = Work(structure("convolutional"))
    layer = next(x for x in structure("convolutional").layers if x.kind == "linear")
    ranked = Plan(ranks=(LowRank(layer=layer.name, ranks=(2,)),))
    assert work.macs(ranked) is None
    assert work.macs(Plan()) == work.dense_macs
    assert work.share(ranked) < 1.0
    built = Plan(architecture=Architecture(width=0.5, bits=8))
    assert work.macs(built) is None
    assert work.share(built) == pytest.approx(INTEGER / 4)


class Knows:
    """A model of the latency that knows nothing of factors."""

    def predict(self, plan: Plan) -> Estimate:
        if plan.ranks:
            raise InfeasibleError("no factors")
        return Estimate.exact(1.0 + len(plan.cuts))


def test_where_the_model_knows_nothing_the_work_stands_in() -> None:
    found = space("convolutional", "lowrank")
    guide = guide_of(found, "convolutional", predictor=Knows())
    assert guide.costs(Plan()) == {"latency_ms": 1.0}
    assert guide.latency_share(Plan()) == 0.5
    ranked = next(plan for plan in plans(found, 10) if plan.ranks)
    assert guide.costs(ranked) == {}
    assert guide.latency_share(ranked) == Work(found.structure).share(ranked)
    assert guide.latency_words == "latencies by the study's model"
    assert "0.35 times" in guide_of(found, "convolutional").latency_words


@settings(max_examples=100, deadline=None)
@given(
    points=st.dictionaries(st.sampled_from([i / 16 for i in range(1, 16)]), st.floats(-0.5, 5.0), max_size=6),
    shares=st.lists(st.floats(0.0, 0.999), min_size=2, max_size=8),
)
def test_a_curve_never_falls_and_goes_through_what_was_measured(
    points: dict[float, float], shares: list[float]
) -> None:
    curve = Curve(points.items())
    values = [curve.at(share) for share in sorted(shares)]
    assert all(a <= b * (1 + 1e-9) for a, b in pairwise(values))
    assert all(np.isfinite(values))
    assert curve.at(0.0) == 0.0
    highest = FLOOR
    for share, value in sorted(points.items()):
        highest = max(highest, value)
        assert curve.at(share) == pytest.approx(highest)


def test_losses_add_up_and_what_was_not_measured_is_like_the_rest() -> None:
    kind = "convolutional"
    found: Structure = structure(kind)
    losses = Losses(found, sensitivity(kind))
    first, second = found.groups[:2]
    layer, block = found.layers[0].name, found.blocks[0].name
    plan = Plan(
        cuts=tuple(ChannelCut(group=name, keep=8, criterion="magnitude") for name in sorted((first.name, second.name))),
        bits=(LayerBits(layer=layer, bits=8),),
        drops=(BlockDrop(block=block),),
    )
    told = losses.of(plan)
    assert told.cuts == pytest.approx(losses.cut(first.name, 8) + losses.cut(second.name, 8))
    assert (told.bits, told.drops) == (losses.rounding(layer, 8), losses.drop(block))
    assert told.total == pytest.approx(told.cuts + told.bits + told.drops)
    # Of two neighbours that are left out together the excess counts once.
    pair = PairSensitivity(blocks=(block, "other"), loss=9.0, kl=9.0)
    paired = Losses(found, sensitivity(kind).model_copy(update={"pairs": (pair,)}))
    both = plan.model_copy(update={"drops": (*plan.drops, BlockDrop(block="other"))})
    assert paired.of(plan).drops == told.drops
    assert paired.of(both).drops == pytest.approx(9.0 + paired.drop("other"))
    # Fewer bits lose more, also where they were not measured.
    assert losses.rounding(layer, 32) == 0.0 < losses.rounding(layer, 8) < losses.rounding(layer, 6)
    assert losses.rounding(layer, 6) < losses.rounding(layer, 4) < losses.rounding(layer, 2)
    few = Losses(found, sensitivity(kind).model_copy(update={"groups": sensitivity(kind).groups[:3], "blocks": ()}))
    assert few.cut(second.name, 8) > 0.0
    assert few.drop(block) == 1.0


def test_the_loss_stands_in_for_a_divergence_that_there_is_not() -> None:
    kind = "convolutional"
    one = sensitivity(kind)
    entry = one.groups[0].model_copy(update={"kl": None, "loss": 0.7})
    losses = Losses(structure(kind), one.model_copy(update={"groups": (entry, *one.groups[1:])}))
    assert losses.measure == "loss"
    assert losses.cut(entry.group, entry.keep) == pytest.approx(0.7)
    assert Losses(structure(kind), one).measure == "kl"


@pytest.mark.alone
def test_a_plan_is_told_in_about_a_millisecond() -> None:
    found = space("convolutional", "joint")
    guide = guide_of(found, "convolutional")
    asked = plans(found, 50)
    began = time.perf_counter()
    for plan in asked:
        guide.features(plan)
    assert (time.perf_counter() - began) / len(asked) < 2e-3
