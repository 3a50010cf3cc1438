"""U-Net: an encoder, and a decoder that reads the encoder's maps beside its own.

References:
    Ronneberger et al., 2015, "U-Net: Convolutional Networks for Biomedical Image Segmentation". Convolutions are
    padded and normalized here, so that the output has the input's size.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from autocompress.models.arguments import at_least
from autocompress.models.initial import he_normal


def unet(width: int = 64, depth: int = 4, classes: int = 2, channels: int = 3) -> nn.Module:
    """U-Net with transposed convolutions.

    Args:
        width: channels at full size; they double at every level.
        depth: how often the map is halved; the input's sides must be multiples of 2 to that power.
        classes: channels of the output.
        channels: of the input.

    Returns:
        A module from inputs of shape (n, channels, height, width) to outputs of shape (n, classes, height, width).

    Raises:
        TaskError: an argument is out of range.
    """
    at_least("unet", 1, width=width, depth=depth, classes=classes, channels=channels)
    return UNet(width, depth, classes, channels)


def _double(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class UNet(nn.Module):
    """``down``, ``up`` (transposed convolutions), ``merge`` and ``head``."""

    def __init__(self, width: int, depth: int, classes: int, channels: int) -> None:
        super().__init__()
        sizes = [width << level for level in range(depth + 1)]
        self.pool = nn.MaxPool2d(2)
        self.down = nn.ModuleList(_double(i, o) for i, o in pairwise([channels, *sizes]))
        self.up = nn.ModuleList(nn.ConvTranspose2d(i, o, 2, stride=2) for o, i in pairwise(sizes))
        self.merge = nn.ModuleList(_double(2 * size, size) for size in sizes[:-1])
        self.head = nn.Conv2d(width, classes, 1)
        he_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (n, channels, h, w) to (n, classes, h, w)."""
        x = self.down[0](x)
        skipped = []
        for part in self.down[1:]:
            skipped.append(x)
            x = part(self.pool(x))
        for level in reversed(range(len(skipped))):
            x = self.merge[level](torch.cat((skipped[level], self.up[level](x)), dim=1))
        maps: Tensor = self.head(x)
        return maps
