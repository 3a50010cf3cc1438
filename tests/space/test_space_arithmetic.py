"""What the space knows of shapes agrees with the passes that act on them."""

from __future__ import annotations

from fractions import Fraction
from math import prod
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from autocompress.compress.factorize import factorize
from autocompress.compress.patterns import check_fits, zeros_asked
from autocompress.errors import InfeasibleError
from autocompress.records import Layer, LayerKind, LowRank, WeightMask
from autocompress.space.grid import allowed_widths
from autocompress.space.groups import share_of_zeros
from autocompress.space.patterns import fits, n_m
from autocompress.space.ranks import max_ranks, ranks_of, round_ranks, saves, share_interval

SHAPES = st.one_of(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3]), st.sampled_from([1, 3])),
)


@settings(max_examples=50, deadline=None)
@given(shape=SHAPES, data=st.data())
def test_ranks_save_what_the_factors_have_less(shape: tuple[int, ...], data: st.DataObject) -> None:
    out, inputs, *kernel = shape
    layer = nn.Conv2d(inputs, out, kernel, bias=False) if kernel else nn.Linear(inputs, out, bias=False)  # type: ignore[arg-type]
    ranks = tuple(data.draw(st.integers(1, limit)) for limit in max_ranks(shape))
    small = factorize(nn.Sequential(layer), [LowRank(layer="0", ranks=ranks)])
    assert saves(shape, ranks) == (sum(p.numel() for p in small.parameters()) < prod(shape))


def test_ranks_by_hand() -> None:
    # mn / (m + n) = 12: twelve saves nothing, eleven does.
    assert [saves((20, 30), (r,)) for r in (11, 12, 13)] == [True, False, False]
    assert saves((64, 32, 3, 3), (32, 16))
    assert not saves((64, 32, 3, 3), (64, 32))
    assert (max_ranks((20, 30, 1, 1)), max_ranks((20, 30, 1, 3))) == ((20,), (20, 30))
    assert round_ranks((30, 20, 3, 3), (9, 17), 8) == (16, 20)
    with pytest.raises(ValueError, match="round_to: expected at least 1, got 0"):
        round_ranks((3, 3), (1,), 0)


@given(shape=SHAPES, share=st.fractions(0, 1).filter(lambda s: s > 0), round_to=st.sampled_from([1, 4, 8]))
def test_rank_is_the_nearest_allowed_one_and_its_share_is_found_again(
    shape: tuple[int, ...], share: Fraction, round_to: int
) -> None:
    ranks = ranks_of(shape, share, round_to)
    nearest = tuple(min(allowed_widths(n, round_to), key=lambda r: (abs(r - n * share), -r)) for n in max_ranks(shape))
    assert ranks == (nearest if saves(shape, nearest) else None)
    interval = share_interval(shape, ranks, round_to)
    assert interval is not None
    assert interval[0] <= share <= interval[1]
    inside = (interval[0] + interval[1]) / 2
    assert ranks_of(shape, inside, round_to) == ranks


@given(
    shape=SHAPES,
    pattern=st.sampled_from(["element", "2:4", "1:3", "block:4x4", "block:2x1", "block:1x9"]),
    kind=st.sampled_from(["conv2d", "conv_transpose2d"]),
    share=st.fractions(0, 1).filter(lambda s: 0 < s < 1),
)
def test_patterns_agree_with_masks(shape: tuple[int, ...], pattern: str, kind: LayerKind, share: Fraction) -> None:
    pair = n_m(pattern)
    sparsity = float(1 - Fraction(*pair)) if pair else share_of_zeros("element", share, (1000, 1000), "linear")
    mask = WeightMask(layer="x", sparsity=sparsity or 0.5, criterion="magnitude", pattern=pattern)
    layer: Any = Layer(name="x", kind=kind, shape=shape, macs=1)
    divides = True
    try:
        check_fits(mask, layer, shape)
    except InfeasibleError as error:
        divides = "leaves none" in str(error)
    assert fits(pattern, shape, kind) == divides
    reached = share_of_zeros(pattern, share, shape, kind)
    if reached > 0.0:
        asked = zeros_asked(mask.model_copy(update={"sparsity": reached}), shape)
        assert asked == round(reached * prod(shape)) < prod(shape)
