from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from autocompress.errors import TaskError
from autocompress.models.bert import bert
from autocompress.models.lenet import lenet5, simple_cnn
from autocompress.models.mobile import efficientnet
from autocompress.models.recurrent import language_model
from autocompress.models.resnet import resnet_cifar, stages_of
from autocompress.models.scaling import scaled_arguments, scaled_channels, scaled_count
from autocompress.models.vit import vit


@given(channels=st.integers(1, 2000), multiplier=st.floats(0.01, 4.0))
def test_channels_are_multiples_of_8_near_what_was_asked(channels: int, multiplier: float) -> None:
    found = scaled_channels(channels, multiplier)
    assert found >= 1
    assert scaled_channels(channels, 1.0) == channels
    if multiplier < 1:
        assert found <= channels
        assert found % 8 == 0 or found == channels
    else:
        assert found % 8 == 0 or multiplier == 1.0
    if channels >= 8:
        assert abs(found - channels * multiplier) <= 8


@given(count=st.integers(1, 200), multiplier=st.floats(0.01, 4.0))
def test_counts_are_nearest_and_never_none(count: int, multiplier: float) -> None:
    found = scaled_count(count, multiplier)
    assert found >= 1
    assert found == 1 or abs(found - count * multiplier) <= 0.5


@given(st.integers(1, 60))
def test_stages_share_blocks_evenly_and_the_last_get_the_rest(blocks: int) -> None:
    stages = stages_of(blocks)
    assert sum(stages) == blocks
    assert list(stages) == sorted(stages)
    assert stages[-1] - stages[0] <= 1


@pytest.mark.parametrize(("function", "arguments", "sizes", "expected"), [
    (resnet_cifar, {"depth": 20, "widths": (16, 32, 64)}, {"width": 0.5, "depth": 0.5},
     {"depth": 20, "widths": (8, 16, 32), "blocks": (1, 2, 2)}),
    (resnet_cifar, {}, {"depth": 0.34}, {"blocks": (1, 1, 1)}),
    (simple_cnn, {"width": 32, "depth": 2}, {"width": 0.25, "depth": 0.5}, {"width": 8, "depth": 1}),
    (vit, {"width": 64, "heads": 4, "depth": 4}, {"width": 0.5, "depth": 0.5}, {"width": 32, "heads": 2, "depth": 2}),
    (bert, {"width": 96, "heads": 3, "hidden": 200, "depth": 2}, {"width": 0.34},
     {"width": 32, "heads": 1, "hidden": 72, "depth": 2}),
    (language_model, {"vocabulary": 9}, {"width": 0.5, "depth": 0.5},
     {"vocabulary": 9, "width": 64, "hidden": 128, "depth": 1}),
    (efficientnet, {}, {"width": 0.5, "depth": 0.5}, {"width": 0.5, "depth": 0.5}),
    (lenet5, {"channels": 1}, {}, {"channels": 1}),
])  # fmt: skip
def test_arguments_that_mean_width_and_depth_are_scaled(
    function: Callable[..., nn.Module], arguments: dict[str, Any], sizes: dict[str, float], expected: dict[str, Any]
) -> None:
    before = dict(arguments)
    assert scaled_arguments(function, arguments, **sizes) == expected
    assert arguments == before


@pytest.mark.parametrize(("function", "sizes", "message"), [
    (lenet5, {"width": 0.5}, "lenet5: expected a network with one of the arguments width, widths, .* scaled by 0.5"),
    (lenet5, {"depth": 0.5}, "lenet5: expected a network with one of the arguments depth, blocks"),
    (simple_cnn, {"width": 0.0}, "simple_cnn: expected width > 0, got 0.0"),
    (simple_cnn, {"depth": -1}, "simple_cnn: expected depth > 0, got -1"),
])  # fmt: skip
def test_what_cannot_be_scaled_is_refused(
    function: Callable[..., nn.Module], sizes: dict[str, float], message: str
) -> None:
    with pytest.raises(TaskError, match=message):
        scaled_arguments(function, {}, **sizes)


@pytest.mark.parametrize("shortcut", ["pad", "projection"])
@pytest.mark.parametrize("blocks", [(0, 0, 1), (0, 1, 1), (1, 2, 2), (1, 0, 0), (0, 1, 0)])
def test_residual_networks_with_any_blocks_run(shortcut: Any, blocks: tuple[int, int, int]) -> None:
    module = resnet_cifar(widths=(8, 16, 32), blocks=blocks, shortcut=shortcut).eval()
    assert module(torch.randn(2, 3, 16, 16)).shape == (2, 10)
    convolutions = [x for x in module.modules() if isinstance(x, nn.Conv2d) and x.kernel_size == (3, 3)]
    assert len(convolutions) == 1 + 2 * sum(blocks)


def test_equal_blocks_are_the_depth_with_the_same_weights() -> None:
    found = []
    for arguments in ({"depth": 14}, {"blocks": (2, 2, 2)}):
        torch.manual_seed(0)
        found.append(resnet_cifar(**arguments).state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0].keys() | found[1].keys())


@pytest.mark.parametrize("blocks", [(0, 0, 0), (1, 2), (1, -1, 1)])
def test_impossible_blocks_are_refused(blocks: Any) -> None:
    with pytest.raises(TaskError, match="expected three numbers of blocks, one of them >= 1, got"):
        resnet_cifar(blocks=blocks)
