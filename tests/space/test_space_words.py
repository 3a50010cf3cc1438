from __future__ import annotations

from autocompress.records import (
    Block,
    BlockDrop,
    ChannelCut,
    Codebook,
    Gradual,
    Group,
    Layer,
    LayerBits,
    LowRank,
    NoDistillation,
    Plan,
    Quantizer,
    Structure,
    WeightMask,
)
from autocompress.space.words import plan_words

STRUCTURE = Structure(
    groups=(Group(name="a", width=32, layers=("a",)), Group(name="b", width=64, layers=("b",))),
    layers=tuple(Layer(name=n, kind="conv2d", shape=(32, 3, 3, 3), macs=1) for n in ("a", "b", "c")),
    blocks=(Block(name="x", layers=("a",)), Block(name="y", layers=("b",))),
)
PLAN = Plan(
    cuts=(ChannelCut(group="a", keep=8, criterion="taylor"), ChannelCut(group="b", keep=48, criterion="magnitude")),
    masks=(WeightMask(layer="c", sparsity=0.5, criterion="magnitude"),),
    bits=(LayerBits(layer="a", bits=8),),
)


def test_plan_in_words_says_how_many_of_how_many() -> None:
    assert plan_words(PLAN, STRUCTURE) == (
        "all 2 groups cut to 25–75% of channels (magnitude, taylor); "
        "1 of 3 layers with 50% zeros (magnitude); 1 of 3 layers at 8 bits"
    )


def test_plan_in_words_without_the_structure_only_counts() -> None:
    assert plan_words(PLAN) == "2 groups cut, 1 layer masked, 1 layer int8"
    assert plan_words(Plan()) == "dense"


def test_a_plan_that_asks_for_nothing_is_dense() -> None:
    assert plan_words(Plan(), STRUCTURE) == "dense"


def test_every_kind_of_compression_has_words() -> None:
    plan = Plan(
        drops=(BlockDrop(block="x"),),
        cuts=(ChannelCut(group="b", keep=48, criterion="fpgm", reduction="max"),),
        ranks=(LowRank(layer="a", ranks=(8,)), LowRank(layer="b", ranks=(24, 16))),
        masks=(WeightMask(layer="c", sparsity=0.5, criterion="lamp", pattern="2:4"),),
        codebooks=(Codebook(layer="c", clusters=16),),
        bits=(LayerBits(layer="a", bits=4, weights_only=True), LayerBits(layer="b", bits=16)),
        order="mask-cut",
        reconstruction="none",
        schedule=Gradual(end=0.9),
        distillation=NoDistillation(),
        quantizer=Quantizer(training="aware"),
    )
    assert plan_words(plan, STRUCTURE).split("; ") == [
        "1 of 2 blocks left out",
        "1 of 2 groups cut to 75% of channels (fpgm, max)",
        "2 of 3 layers factorized to ranks 8–16",
        "1 of 3 layers with 50% zeros in 2:4 (lamp)",
        "1 of 3 layers with a codebook of 16",
        "1 of 3 layers at 16 bits",
        "1 of 3 layers at 4 bits, weights only",
        "masks before cuts",
        "without reconstruction",
        "gradual(end=0.9)",
        "aware quantization",
        "no distillation",
    ]
    assert plan_words(plan) == (
        "1 block left out, 1 group cut, 2 layers factorized, 1 layer masked, 1 layer with a codebook, "
        "2 layers at 4/16 bits, masks before cuts, without reconstruction, gradual(end=0.9), "
        "aware quantization, no distillation"
    )
