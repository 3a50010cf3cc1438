"""DenseNet: every layer reads the concatenated outputs of all layers before it in its block.

References:
    Huang et al., 2017, "Densely Connected Convolutional Networks", table 1 (DenseNet-BC).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from autocompress.models.arguments import at_least
from autocompress.models.initial import he_normal


def densenet(
    blocks: tuple[int, ...] = (6, 12, 24, 16),
    growth: int = 32,
    stem: int = 64,
    bottleneck: int = 4,
    classes: int = 1000,
    channels: int = 3,
) -> nn.Module:
    """DenseNet with bottlenecks and halving transitions; the default is DenseNet-121.

    Args:
        blocks: layers of each dense block.
        growth: channels that each layer adds.
        stem: channels of the 7x7 convolution.
        bottleneck: channels of a layer's 1x1 convolution, in units of `growth`.
        classes: size of the output.
        channels: of the input.

    Returns:
        A module from inputs of shape (n, channels, height, width) to outputs of shape (n, classes).

    Raises:
        TaskError: an argument is out of range.
    """
    at_least("densenet", 1, blocks=len(blocks))
    at_least("densenet", 1, blocks=min(blocks), growth=growth, bottleneck=bottleneck, classes=classes)
    at_least("densenet", 1, channels=channels)
    at_least("densenet", 2, stem=stem)
    return DenseNet(blocks, growth, stem, bottleneck, classes, channels)


class DenseLayer(nn.Module):
    """Normalized, rectified, then a 1x1 and a 3x3 convolution; the result is appended to the input."""

    def __init__(self, inputs: int, growth: int, bottleneck: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, bottleneck * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(bottleneck * growth)
        self.conv2 = nn.Conv2d(bottleneck * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (n, inputs, h, w) to (n, inputs + growth, h, w)."""
        y = self.conv1(functional.relu(self.norm1(x)))
        y = self.conv2(functional.relu(self.norm2(y)))
        return torch.cat((x, y), dim=1)


class DenseNet(nn.Module):
    """``stem``, ``blocks`` of `DenseLayer` with transitions between them, ``norm`` and ``head``."""

    def __init__(
        self, blocks: tuple[int, ...], growth: int, stem: int, bottleneck: int, classes: int, channels: int
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, stem, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(stem),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        parts: list[nn.Module] = []
        inputs = stem
        for i, count in enumerate(blocks):
            if i:
                parts.append(_transition(inputs))
                inputs //= 2
            parts.append(nn.Sequential(*(DenseLayer(inputs + j * growth, growth, bottleneck) for j in range(count))))
            inputs += count * growth
        self.blocks = nn.Sequential(*parts)
        self.norm = nn.BatchNorm2d(inputs)
        self.head = nn.Linear(inputs, classes)
        he_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (n, channels, h, w) to (n, classes)."""
        x = functional.relu(self.norm(self.blocks(self.stem(x))))
        logits: Tensor = self.head(functional.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def _transition(inputs: int) -> nn.Module:
    return nn.Sequential(
        nn.BatchNorm2d(inputs), nn.ReLU(), nn.Conv2d(inputs, inputs // 2, 1, bias=False), nn.AvgPool2d(2)
    )
