"""ShuffleNetV2: half of the channels pass a block untouched, then the halves are shuffled.

References:
    Ma et al., 2018, "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design", table 5.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from autocompress.models.arguments import above_zero, at_least, multiple_of
from autocompress.models.initial import he_normal

_BLOCKS = (4, 8, 4)
#: Width -> channels of the three stages and of the last convolution, as published.
_PUBLISHED = {
    0.5: (48, 96, 192, 1024),
    1.0: (116, 232, 464, 1024),
    1.5: (176, 352, 704, 1024),
    2.0: (244, 488, 976, 2048),
}


def shufflenet_v2(
    width: float = 1.0, classes: int = 1000, channels: int = 3, blocks: tuple[int, int, int] = _BLOCKS, stem: int = 24
) -> nn.Module:
    """ShuffleNetV2 of three stages.

    Args:
        width: 0.5, 1.0, 1.5 and 2.0 have the published channels; others are 116 times that, rounded to an even number
            and doubling from stage to stage.
        classes: size of the output.
        channels: of the input.
        blocks: of each stage.
        stem: channels of the first convolution, an even number.

    Returns:
        A module from inputs of shape (n, channels, height, width) to outputs of shape (n, classes).

    Raises:
        TaskError: an argument is out of range.
    """
    name = "shufflenet_v2"
    above_zero(name, width=width)
    at_least(name, 1, classes=classes, channels=channels, blocks=min(blocks), stem=stem)
    multiple_of(name, 2, stem=stem)
    first = max(2, 2 * round(58 * width))
    sizes = _PUBLISHED.get(width, (first, 2 * first, 4 * first, 1024))
    return ShuffleNetV2(sizes, blocks, stem, classes, channels)


def shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleave the channels of `groups` groups: channel g c/groups + i becomes channel i groups + g.

    Args:
        x: shape (n, c, h, w).
        groups: a divisor of c.
    """
    n, c, h, w = x.shape
    return x.reshape(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


class ShuffleBlock(nn.Module):
    """Stride 1: half of the channels are left alone. Stride 2: two branches read all of them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        half = outputs // 2
        self.stride = stride
        self.short: nn.Module = nn.Identity()
        if stride == 2:
            self.short = nn.Sequential(*_filter(inputs, 2), *_mix(inputs, half))
        self.long = nn.Sequential(
            *_mix(inputs if stride == 2 else half, half), *_filter(half, stride), *_mix(half, half)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Shape (n, inputs, h, w) to (n, outputs, h / stride, w / stride)."""
        if self.stride == 2:
            return shuffle(torch.cat((self.short(x), self.long(x)), dim=1), 2)
        left, right = x.chunk(2, dim=1)
        return shuffle(torch.cat((left, self.long(right)), dim=1), 2)


def _filter(channels: int, stride: int) -> tuple[nn.Module, ...]:
    conv = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, groups=channels, bias=False)
    return conv, nn.BatchNorm2d(channels)


def _mix(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()


class ShuffleNetV2(nn.Module):
    """``stem``, ``stages``, ``last`` and ``head``."""

    def __init__(
        self,
        sizes: tuple[int, int, int, int],
        blocks: tuple[int, int, int],
        stem: int,
        classes: int,
        channels: int,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, stem, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(stem),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        inputs, stages = stem, []
        for outputs, count in zip(sizes[:3], blocks, strict=True):
            stages.append(
                nn.Sequential(
                    *(ShuffleBlock(outputs if i else inputs, outputs, 1 if i else 2) for i in range(count)),
                )
            )
            inputs = outputs
        self.stages = nn.Sequential(*stages)
        self.last = nn.Sequential(*_mix(inputs, sizes[3]))
        self.head = nn.Linear(sizes[3], classes)
        he_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (n, channels, h, w) to (n, classes)."""
        x = self.last(self.stages(self.stem(x)))
        logits: Tensor = self.head(functional.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits
