"""Residual networks for ImageNet-sized images, with BatchNorm or GroupNorm.

References:
    He et al., 2016, "Deep Residual Learning for Image Recognition", table 1. The stride of a bottleneck lies in its
    3x3 convolution, as in the trained networks that are in use.
    Wu and He, 2018, "Group Normalization".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from autocompress.models.arguments import at_least, multiple_of, one_of
from autocompress.models.initial import he_normal

Norm = Literal["batch", "group"]
#: Depth -> blocks of each stage, and whether they are bottlenecks.
_DEPTHS: dict[int, tuple[tuple[int, int, int, int], bool]] = {
    10: ((1, 1, 1, 1), False),
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    26: ((2, 2, 2, 2), True),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}


def resnet_imagenet(
    depth: int = 50,
    width: int = 64,
    classes: int = 1000,
    channels: int = 3,
    norm: Norm = "batch",
    norm_groups: int = 32,
) -> nn.Module:
    """Residual network of four stages behind a 7x7 stem; the output sees 1/32 of the image's side.

    Args:
        depth: layers with weights on the longest path: 10, 18 and 34 of two 3x3 convolutions a block, 26, 50, 101 and
            152 of bottlenecks.
        width: channels of the first stage; they double at every stage, and a bottleneck's output has four times more.
        classes: size of the output.
        channels: of the input.
        norm: ``"batch"``, or ``"group"`` for normalization that depends on one example only.
        norm_groups: of GroupNorm; must divide `width`.

    Returns:
        A module from inputs of shape (n, channels, height, width) to outputs of shape (n, classes).

    Raises:
        TaskError: an argument is out of range.
    """
    name = "resnet_imagenet"
    one_of(name, _DEPTHS, depth=depth)
    one_of(name, ("batch", "group"), norm=norm)
    at_least(name, 1, width=width, classes=classes, channels=channels, norm_groups=norm_groups)

    def normalize(features: int) -> nn.Module:
        return nn.BatchNorm2d(features) if norm == "batch" else nn.GroupNorm(norm_groups, features)

    if norm == "group":
        multiple_of(name, norm_groups, width=width)
    blocks, bottleneck = _DEPTHS[depth]
    return ImageResNet(blocks, Bottleneck if bottleneck else BasicBlock, width, classes, channels, normalize)


Normalize = Callable[[int], nn.Module]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, normalize: Normalize) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride=stride, padding=1, bias=False)
        self.norm1 = normalize(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = normalize(width)
        self.shortcut = _shortcut(inputs, width, stride, normalize)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (n, inputs, h, w) to (n, width, h / stride, w / stride)."""
        y = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 and a 1x1 convolution beside a shortcut."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, normalize: Normalize) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.norm1 = normalize(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.norm2 = normalize(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.norm3 = normalize(4 * width)
        self.shortcut = _shortcut(inputs, 4 * width, stride, normalize)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (n, inputs, h, w) to (n, 4 width, h / stride, w / stride)."""
        y = functional.relu(self.norm1(self.conv1(x)))
        y = functional.relu(self.norm2(self.conv2(y)))
        return functional.relu(self.norm3(self.conv3(y)) + self.shortcut(x))


def _shortcut(inputs: int, outputs: int, stride: int, normalize: Normalize) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), normalize(outputs))


class ImageResNet(nn.Module):
    """``stem``, ``stages`` and ``head``."""

    def __init__(
        self,
        blocks: tuple[int, int, int, int],
        block: type[BasicBlock] | type[Bottleneck],
        width: int,
        classes: int,
        channels: int,
        normalize: Normalize,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=False),
            normalize(width),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        inputs, stages = width, []
        for stage, count in enumerate(blocks):
            parts = []
            for i in range(count):
                parts.append(block(inputs, width << stage, 2 if stage and i == 0 else 1, normalize))
                inputs = block.expansion * (width << stage)
            stages.append(nn.Sequential(*parts))
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(inputs, classes)
        he_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (n, channels, h, w) to (n, classes)."""
        x = self.stages(self.stem(x))
        logits: Tensor = self.head(functional.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits
