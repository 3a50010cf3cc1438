from __future__ import annotations

from autocompress.records import ChannelCut, Group, Layer, LayerBits, Plan, Structure, WeightMask
from autocompress.space.words import plan_words

STRUCTURE = Structure(
    groups=(Group(name="a", width=32, layers=("a",)), Group(name="b", width=64, layers=("b",))),
    layers=tuple(Layer(name=n, kind="conv2d", shape=(32, 3, 3, 3), macs=1) for n in ("a", "b", "c")),
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
