from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from autocompress.errors import TaskError
from autocompress.models.arguments import round_channels
from autocompress.models.dense import densenet
from autocompress.models.imagenet_resnet import resnet_imagenet
from autocompress.models.inverted import Bottleneck, InvertedResidual
from autocompress.models.lenet import lenet5, lenet_300_100, simple_cnn
from autocompress.models.mobile import efficientnet, mobilenet_v2, mobilenet_v3
from autocompress.models.shuffle import ShuffleBlock, shuffle, shufflenet_v2
from autocompress.models.squeeze import squeezenet
from autocompress.models.unet import unet
from autocompress.models.vgg import vgg
from autocompress.models.vit import vit

Build = Callable[..., nn.Module]


@pytest.mark.parametrize(
    ("build", "arguments", "parameters"),
    [
        (resnet_imagenet, {"depth": 18}, 11_689_512),
        (resnet_imagenet, {"depth": 34}, 21_797_672),
        (resnet_imagenet, {"depth": 50}, 25_557_032),
        (resnet_imagenet, {"depth": 50, "norm": "group"}, 25_557_032),
        (resnet_imagenet, {"depth": 101}, 44_549_160),
        (vgg, {"depth": 11}, 132_863_336),
        (vgg, {"depth": 16}, 138_357_544),
        (vgg, {"depth": 16, "norm": "batch"}, 138_365_992),
        (mobilenet_v2, {}, 3_504_872),
        (mobilenet_v3, {"size": "large"}, 5_483_032),
        (mobilenet_v3, {"size": "small"}, 2_542_856),
        (efficientnet, {}, 5_288_548),
        (efficientnet, {"width": 1.0, "depth": 1.1}, 7_794_184),
        (shufflenet_v2, {"width": 0.5}, 1_366_792),
        (shufflenet_v2, {"width": 1.0}, 2_278_604),
        (squeezenet, {}, 1_235_496),
        (densenet, {}, 7_978_856),
        (vit, {"qkv": "separate"}, 86_567_656),
        (vit, {"qkv": "fused"}, 86_567_656),
        (lenet_300_100, {}, 266_610),
        (lenet5, {}, 431_080),
    ],
)
def test_the_published_number_of_parameters_is_met(build: Build, arguments: dict[str, object], parameters: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in build(**arguments).parameters()) == parameters


SMALL: list[tuple[Build, dict[str, object]]] = [
    (resnet_imagenet, {"depth": 18, "width": 8}),
    (resnet_imagenet, {"depth": 26, "width": 8, "norm": "group", "norm_groups": 4}),
    (vgg, {"depth": 11, "width": 4, "image": 64, "hidden": 16}),
    (vgg, {"depth": 11, "width": 4, "image": 64, "hidden": 16, "norm": "batch"}),
    (mobilenet_v2, {"width": 0.25}),
    (mobilenet_v3, {"size": "large", "width": 0.25}),
    (mobilenet_v3, {"size": "small", "width": 0.5}),
    (efficientnet, {"width": 0.25}),
    (shufflenet_v2, {"width": 0.25, "blocks": (2, 2, 2)}),
    (squeezenet, {"width": 16}),
    (densenet, {"blocks": (2, 3), "growth": 4, "stem": 9}),
    (vit, {"image": 64, "patch": 16, "width": 24, "depth": 2, "heads": 3, "hidden": 20}),
    (vit, {"image": 64, "patch": 16, "width": 24, "depth": 2, "heads": 3, "qkv": "fused"}),
    (lenet_300_100, {"image": 64}),
    (lenet5, {"image": 64}),
    (simple_cnn, {"image": 64, "width": 4, "depth": 3}),
]


@pytest.mark.parametrize(("build", "arguments"), SMALL)
def test_any_number_of_images_becomes_as_many_outputs_and_each_by_itself(
    build: Build, arguments: dict[str, object]
) -> None:
    torch.manual_seed(0)
    module = build(classes=7, channels=2, **arguments).eval()
    x = torch.rand(3, 2, 64, 64)
    with torch.no_grad():
        together, alone = module(x), module(x[1:2])
    assert together.shape == (3, 7)
    assert alone.shape == (1, 7)
    assert torch.isfinite(together).all()
    assert together.std() > 0
    torch.testing.assert_close(alone, together[1:2], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("build", "arguments"), SMALL)
def test_every_parameter_takes_part(build: Build, arguments: dict[str, object]) -> None:
    torch.manual_seed(0)
    module = build(classes=7, channels=2, **arguments)
    module(torch.rand(3, 2, 64, 64)).sum().backward()
    assert [name for name, p in module.named_parameters() if p.grad is None] == []


def test_a_vit_is_exported_for_any_number_of_images() -> None:
    module = vit(16, 8, width=8, depth=1, heads=2, classes=3, channels=1).eval()
    x = torch.rand(2, 1, 16, 16)
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(module, (x,), dynamic_shapes=shapes)
    more = torch.rand(5, 1, 16, 16)
    torch.testing.assert_close(program.module()(more), module(more))


def test_a_unet_keeps_the_size_of_the_image() -> None:
    module = unet(width=4, depth=3, classes=5, channels=2)
    assert module(torch.rand(3, 2, 16, 24)).shape == (3, 5, 16, 24)
    assert sum(isinstance(part, nn.ConvTranspose2d) for part in module.modules()) == 3


def test_a_shuffle_interleaves_the_groups() -> None:
    x = torch.arange(6.0).reshape(1, 6, 1, 1)
    assert shuffle(x, 2).flatten().tolist() == [0, 3, 1, 4, 2, 5]
    assert shuffle(x, 3).flatten().tolist() == [0, 2, 4, 1, 3, 5]


def test_half_of_the_channels_pass_a_shuffle_block_untouched() -> None:
    x = torch.rand(2, 8, 4, 4)
    assert torch.equal(ShuffleBlock(8, 8, 1).eval()(x)[:, ::2], x[:, :4])


def test_an_inverted_residual_has_a_shortcut_only_where_the_shape_stays() -> None:
    def silent(sizes: Bottleneck) -> nn.Module:
        block = InvertedResidual(sizes, nn.ReLU).eval()
        nn.init.zeros_(block.project[1].weight)
        return block

    x = torch.rand(2, 4, 8, 8)
    assert torch.equal(silent(Bottleneck(4, 8, 4, 3, 1, 2))(x), x)
    assert not silent(Bottleneck(4, 8, 4, 3, 2))(x).any()
    assert not silent(Bottleneck(4, 8, 6, 3, 1))(x).any()


def test_the_first_layer_of_a_densenet_is_kept_in_its_output() -> None:
    module = densenet(blocks=(2,), growth=3, stem=4, channels=1, classes=2).eval()
    x = torch.rand(1, 1, 16, 16)
    stem = module.get_submodule("stem")(x)
    out = module.get_submodule("blocks")(stem)
    assert out.shape[1] == 4 + 2 * 3
    assert torch.equal(out[:, :4], stem)


@pytest.mark.parametrize("channels", [1.0, 7.9, 12.0, 20.0, 36.0, 100.0, 333.0])
def test_rounded_channels_are_multiples_that_lose_at_most_a_tenth(channels: float) -> None:
    rounded = round_channels(channels)
    assert rounded % 8 == 0
    assert rounded >= 0.9 * channels
    assert rounded == 8 or rounded - channels < 8


@pytest.mark.parametrize(
    ("build", "arguments", "message"),
    [
        (resnet_imagenet, {"depth": 20}, "resnet_imagenet: expected depth to be one of 10, 18, .* got 20"),
        (resnet_imagenet, {"norm": "layer"}, "expected norm to be one of 'batch', 'group', got 'layer'"),
        (resnet_imagenet, {"norm": "group", "width": 20}, "expected width to be a multiple of 32, got 20"),
        (vgg, {"depth": 12}, "vgg: expected depth to be one of 11, 13, 16, 19, got 12"),
        (vgg, {"image": 100}, "vgg: expected image to be a multiple of 32, got 100"),
        (mobilenet_v2, {"width": 0.0}, "mobilenet_v2: expected width > 0, got 0.0"),
        (mobilenet_v3, {"size": "tiny"}, "expected size to be one of 'large', 'small', got 'tiny'"),
        (efficientnet, {"depth": -1.0}, "efficientnet: expected depth > 0, got -1.0"),
        (shufflenet_v2, {"stem": 23}, "shufflenet_v2: expected stem to be a multiple of 2, got 23"),
        (shufflenet_v2, {"blocks": (1, 0, 1)}, "expected blocks >= 1, got 0"),
        (squeezenet, {"width": 6}, "squeezenet: expected width to be a multiple of 4, got 6"),
        (densenet, {"blocks": ()}, "densenet: expected blocks >= 1, got 0"),
        (densenet, {"stem": 1}, "densenet: expected stem >= 2, got 1"),
        (unet, {"depth": 0}, "unet: expected depth >= 1, got 0"),
        (vit, {"patch": 15}, "vit: expected image to be a multiple of 15, got 224"),
        (vit, {"heads": 5}, "vit: expected width to be a multiple of 5, got 768"),
        (vit, {"qkv": "joint"}, "vit: expected qkv to be one of 'separate', 'fused', got 'joint'"),
        (lenet5, {"image": 12}, "lenet5: expected image >= 16, got 12"),
        (lenet_300_100, {"classes": 0}, "lenet_300_100: expected classes >= 1, got 0"),
        (simple_cnn, {"depth": 5}, "simple_cnn: expected image >= 32, got 28"),
    ],
)
def test_arguments_out_of_range_are_refused(build: Build, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(TaskError, match=message), torch.device("meta"):
        build(**arguments)
