from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.records import ChannelCut, Estimate, Group, Layer, LayerBits, Plan, Structure, WeightMask
from autocompress.report.words import (
    cost,
    duration,
    milliseconds,
    percent,
    percent_interval,
    plan_words,
    plural,
    significant,
    size,
)

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


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.00123, "0.00123"), (0.41234, "0.412"), (1.0, "1.00"), (12.34, "12.3"), (1234.5, "1,234")],
)
def test_three_significant_digits(value: float, text: str) -> None:
    assert significant(value) == text
    assert milliseconds(value) == f"{text} ms"


@given(st.floats(1e-6, 1e6))
def test_three_significant_digits_are_within_half_a_percent(value: float) -> None:
    assert float(significant(value).replace(",", "")) == pytest.approx(value, rel=0.0051)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (4.21, "4.2 s"), (42, "42 s"), (59.7, "1 min 00 s"), (192, "3 min 12 s"), (3840, "1 h 04 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_units() -> None:
    assert [size(x) for x in (999, 1080, 1_080_000, 2e9)] == ["999 B", "1.08 kB", "1.08 MB", "2.00 GB"]
    assert [cost("macs", 40.6e6), cost("size_bytes", 1500), cost("latency_ms", 0.5)] == [
        "40.6 M",
        "1.50 kB",
        "0.500 ms",
    ]
    assert percent(0.91234) == "91.23%"
    assert percent_interval(Estimate(value=0.9, low=0.88, high=0.92)) == "[88.0, 92.0]"
    assert percent_interval(Estimate.exact(0.9)) == ""
    assert [plural(1, "trial"), plural(0, "trial")] == ["1 trial", "0 trials"]
