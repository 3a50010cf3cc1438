"""Networks of inverted residuals for phones: MobileNetV2, MobileNetV3 and EfficientNet.

References:
    Sandler et al., 2018, "MobileNetV2: Inverted Residuals and Linear Bottlenecks", table 2.
    Howard et al., 2019, "Searching for MobileNetV3", tables 1 and 2.
    Tan and Le, 2019, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", table 1.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Literal

from torch import nn

from autocompress.models.arguments import above_zero, at_least, one_of, round_channels
from autocompress.models.initial import he_normal
from autocompress.models.inverted import Bottleneck, InvertedResidual, MobileClassifier, convolution

#: Expansion, outputs, blocks, stride of the first.
_V2 = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
#: Kernel, expanded channels, outputs, squeeze-and-excitation, hard-swish, stride.
_V3 = {
    "large": (
        (3, 16, 16, False, False, 1),
        (3, 64, 24, False, False, 2),
        (3, 72, 24, False, False, 1),
        (5, 72, 40, True, False, 2),
        (5, 120, 40, True, False, 1),
        (5, 120, 40, True, False, 1),
        (3, 240, 80, False, True, 2),
        (3, 200, 80, False, True, 1),
        (3, 184, 80, False, True, 1),
        (3, 184, 80, False, True, 1),
        (3, 480, 112, True, True, 1),
        (3, 672, 112, True, True, 1),
        (5, 672, 160, True, True, 2),
        (5, 960, 160, True, True, 1),
        (5, 960, 160, True, True, 1),
    ),
    "small": (
        (3, 16, 16, True, False, 2),
        (3, 72, 24, False, False, 2),
        (3, 88, 24, False, False, 1),
        (5, 96, 40, True, True, 2),
        (5, 240, 40, True, True, 1),
        (5, 240, 40, True, True, 1),
        (5, 120, 48, True, True, 1),
        (5, 144, 48, True, True, 1),
        (5, 288, 96, True, True, 2),
        (5, 576, 96, True, True, 1),
        (5, 576, 96, True, True, 1),
    ),
}
_V3_HIDDEN = {"large": 1280, "small": 1024}
#: Expansion, kernel, stride of the first, outputs, blocks.
_EFFICIENT = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)


def mobilenet_v2(width: float = 1.0, classes: int = 1000, channels: int = 3, dropout: float = 0.2) -> nn.Module:
    """MobileNetV2: inverted residuals with ReLU6.

    Args:
        width: factor of all channels; 1280 channels remain in front of the classifier if it is below 1.
        classes: size of the output.
        channels: of the input.
        dropout: in front of the classifier.

    Returns:
        A module from inputs of shape (n, channels, height, width) to outputs of shape (n, classes).

    Raises:
        TaskError: an argument is out of range.
    """
    above_zero("mobilenet_v2", width=width)
    at_least("mobilenet_v2", 1, classes=classes, channels=channels)
    inputs = round_channels(32 * width)
    stem = convolution(channels, inputs, 3, 2, nn.ReLU6)
    blocks: list[nn.Module] = []
    for expansion, base, count, first_stride in _V2:
        outputs = round_channels(base * width)
        for i in range(count):
            sizes = Bottleneck(inputs, inputs * expansion, outputs, 3, 1 if i else first_stride)
            blocks.append(InvertedResidual(sizes, nn.ReLU6))
            inputs = outputs
    features = round_channels(1280 * max(1.0, width))
    head = nn.Sequential(nn.Dropout(dropout), nn.Linear(features, classes))
    return _finish(stem, blocks, convolution(inputs, features, 1, 1, nn.ReLU6), head)


def mobilenet_v3(
    size: Literal["large", "small"] = "large",
    width: float = 1.0,
    classes: int = 1000,
    channels: int = 3,
    dropout: float = 0.2,
) -> nn.Module:
    """MobileNetV3: inverted residuals with squeeze-and-excitation, ReLU and hard-swish.

    Args:
        size: ``"large"`` or ``"small"``.
        width: factor of all channels.
        classes: size of the output.
        channels: of the input.
        dropout: in front of the classifier.

    Returns:
        A module from inputs of shape (n, channels, height, width) to outputs of shape (n, classes).

    Raises:
        TaskError: an argument is out of range.
    """
    one_of("mobilenet_v3", _V3, size=size)
    above_zero("mobilenet_v3", width=width)
    at_least("mobilenet_v3", 1, classes=classes, channels=channels)
    normalize = partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01)
    inputs = round_channels(16 * width)
    stem = convolution(channels, inputs, 3, 2, nn.Hardswish, normalize)
    blocks: list[nn.Module] = []
    for kernel, base, base_outputs, squeezes, hard_swish, stride in _V3[size]:
        expanded, outputs = round_channels(base * width), round_channels(base_outputs * width)
        squeezed = round_channels(expanded // 4) if squeezes else 0
        sizes = Bottleneck(inputs, expanded, outputs, kernel, stride, squeezed)
        blocks.append(InvertedResidual(sizes, nn.Hardswish if hard_swish else nn.ReLU, normalize))
        inputs = outputs
    features, hidden = 6 * inputs, round_channels(_V3_HIDDEN[size] * width)
    head = nn.Sequential(nn.Linear(features, hidden), nn.Hardswish(), nn.Dropout(dropout), nn.Linear(hidden, classes))
    return _finish(stem, blocks, convolution(inputs, features, 1, 1, nn.Hardswish, normalize), head)


def efficientnet(
    width: float = 1.0, depth: float = 1.0, classes: int = 1000, channels: int = 3, dropout: float = 0.2
) -> nn.Module:
    """EfficientNet: inverted residuals with squeeze-and-excitation and SiLU. Without stochastic depth.

    Args:
        width: factor of all channels; 1.0 is B0, and 1.1 with depth 1.2 is B2.
        depth: factor of the blocks of each stage, rounded up.
        classes: size of the output.
        channels: of the input.
        dropout: in front of the classifier.

    Returns:
        A module from inputs of shape (n, channels, height, width) to outputs of shape (n, classes).

    Raises:
        TaskError: an argument is out of range.
    """
    above_zero("efficientnet", width=width, depth=depth)
    at_least("efficientnet", 1, classes=classes, channels=channels)
    inputs = round_channels(32 * width)
    stem = convolution(channels, inputs, 3, 2, nn.SiLU)
    blocks: list[nn.Module] = []
    for expansion, kernel, first_stride, base, count in _EFFICIENT:
        outputs = round_channels(base * width)
        for i in range(math.ceil(count * depth)):
            stride = 1 if i else first_stride
            sizes = Bottleneck(inputs, inputs * expansion, outputs, kernel, stride, max(1, inputs // 4))
            blocks.append(InvertedResidual(sizes, nn.SiLU, squeeze_activation=nn.SiLU, gate=nn.Sigmoid))
            inputs = outputs
    features = 4 * inputs
    head = nn.Sequential(nn.Dropout(dropout), nn.Linear(features, classes))
    return _finish(stem, blocks, convolution(inputs, features, 1, 1, nn.SiLU), head)


def _finish(stem: nn.Module, blocks: list[nn.Module], last: nn.Module, head: nn.Module) -> nn.Module:
    module = MobileClassifier(stem, nn.Sequential(*blocks), last, head)
    he_normal(module)
    return module
