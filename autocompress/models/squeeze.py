"""SqueezeNet 1.1: fire modules squeeze to few channels and expand with 1x1 and 3x3 convolutions side by side.

References:
    Iandola et al., 2016, "SqueezeNet: AlexNet-level accuracy with 50x fewer parameters and <0.5MB model size"; version
    1.1 of its authors pools earlier.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from autocompress.models.arguments import at_least, multiple_of
from autocompress.models.initial import he_normal

#: Squeezed channels, and channels of each of the two expansions, over the first convolution's 64; None pools.
_FIRES = ((16, 64), (16, 64), None, (32, 128), (32, 128), None, (48, 192), (48, 192), (64, 256), (64, 256))


def squeezenet(width: int = 64, classes: int = 1000, channels: int = 3, dropout: float = 0.5) -> nn.Module:
    """SqueezeNet 1.1, without any linear layer: the last convolution's maps are averaged.

    Args:
        width: channels of the first convolution, a multiple of 4; all others scale with it.
        classes: size of the output.
        channels: of the input.
        dropout: in front of the last convolution.

    Returns:
        A module from inputs of shape (n, channels, height, width) to outputs of shape (n, classes).

    Raises:
        TaskError: an argument is out of range.
    """
    at_least("squeezenet", 1, width=width, classes=classes, channels=channels)
    multiple_of("squeezenet", 4, width=width)
    return SqueezeNet(width, classes, channels, dropout)


class Fire(nn.Module):
    """A 1x1 convolution, then a 1x1 and a 3x3 one whose outputs are concatenated."""

    def __init__(self, inputs: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (n, inputs, h, w) to (n, 2 expanded, h, w)."""
        x = functional.relu(self.squeeze(x))
        return torch.cat((functional.relu(self.expand1x1(x)), functional.relu(self.expand3x3(x))), dim=1)


class SqueezeNet(nn.Module):
    """``features`` and ``head``."""

    def __init__(self, width: int, classes: int, channels: int, dropout: float) -> None:
        super().__init__()
        parts: list[nn.Module] = [nn.Conv2d(channels, width, 3, stride=2), nn.ReLU(), _pool()]
        inputs = width
        for fire in _FIRES:
            if fire is None:
                parts.append(_pool())
                continue
            squeezed, expanded = (size * width // 64 for size in fire)
            parts.append(Fire(inputs, squeezed, expanded))
            inputs = 2 * expanded
        self.features = nn.Sequential(*parts)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Conv2d(inputs, classes, 1), nn.ReLU())
        he_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (n, channels, h, w) to (n, classes)."""
        maps = self.head(self.features(x))
        return functional.adaptive_avg_pool2d(maps, 1).flatten(1)


def _pool() -> nn.Module:
    return nn.MaxPool2d(3, stride=2, ceil_mode=True)
