"""Residual networks for small images, in the two layouts that the field's checkpoints use.

References:
    He et al., 2016, "Deep Residual Learning for Image Recognition", section 4.2 (6n + 2 layers; option A shortcuts
    without weights, option B projections).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from autocompress.errors import TaskError

Shortcut = Literal["pad", "projection"]


def resnet_cifar(
    depth: int = 20,
    widths: tuple[int, int, int] = (16, 32, 64),
    classes: int = 10,
    channels: int = 3,
    shortcut: Shortcut = "pad",
    blocks: tuple[int, int, int] | None = None,
) -> nn.Module:
    """Residual network of three stages; the second and third halve the image.

    Args:
        depth: layers with weights on the longest path, 6 n + 2 for n blocks per stage: 8, 14, 20, 32, 44, 56, ...
        widths: channels of each stage.
        classes: size of the output.
        channels: of the input.
        shortcut: where the size changes, ``"pad"`` subsamples and pads with zero channels (names ``conv1``,
            ``layer1.0.conv1``, ``linear``), ``"projection"`` is a 1x1 convolution (names ``stem.0``, ``body.0.c1``,
            ``fc``).
        blocks: of each stage, in place of the equal numbers that `depth` means. A stage without blocks is left out,
            and with it its halving of the image; at least one block is needed.

    Returns:
        A module from inputs of shape (n, channels, height, width) to outputs of shape (n, classes). Weights are
        drawn from torch's global generator.

    Raises:
        TaskError: an argument is out of range.
    """
    if depth < 8 or (depth - 2) % 6:
        raise TaskError(f"resnet_cifar: expected a depth of 6 n + 2 with n >= 1 (8, 14, 20, ...), got {depth}")
    if len(widths) != 3 or min(widths) < 1:
        raise TaskError(f"resnet_cifar: expected three positive widths, got {tuple(widths)}")
    if classes < 1 or channels < 1:
        raise TaskError(f"resnet_cifar: expected classes and channels >= 1, got {classes} and {channels}")
    if blocks is not None and (len(blocks) != 3 or min(blocks) < 0 or sum(blocks) < 1):
        raise TaskError(f"resnet_cifar: expected three numbers of blocks, one of them >= 1, got {tuple(blocks)}")
    first, second, third = widths
    stages = tuple(blocks) if blocks is not None else ((depth - 2) // 6,) * 3
    if shortcut == "pad":
        if first > second or second > third:
            raise TaskError(f"resnet_cifar: a padded shortcut expects widths that do not fall, got {tuple(widths)}")
        return PadResNet(stages, (first, second, third), classes, channels)
    if shortcut == "projection":
        return ProjectionResNet(stages, (first, second, third), classes, channels)
    raise TaskError(f"resnet_cifar: expected shortcut 'pad' or 'projection', got {shortcut!r}")


def stages_of(blocks: int) -> tuple[int, int, int]:
    """As many blocks in three stages: equal numbers, what is left over in the last stages, whose maps are smallest.

    Examples:
        >>> stages_of(9), stages_of(4), stages_of(1)
        ((3, 3, 3), (1, 1, 2), (0, 0, 1))
    """
    each, over = divmod(blocks, 3)
    return each, each + (over > 1), each + (over > 0)


def _conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)


class PadBlock(nn.Module):
    """Two 3x3 convolutions; a changed size is met by subsampling and zero channels on both sides."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = _conv3x3(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.before = (outputs - inputs) // 2
        self.after = outputs - inputs - self.before

    def forward(self, x: Tensor) -> Tensor:
        """Shape (n, inputs, h, w) to (n, outputs, h / stride, w / stride)."""
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.stride != 1 or self.before or self.after:
            x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))
        return functional.relu(y + x)


class PadResNet(nn.Module):
    """Stages ``layer1`` to ``layer3`` of `PadBlock`."""

    def __init__(self, blocks: tuple[int, ...], widths: tuple[int, int, int], classes: int, channels: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(channels, widths[0])
        self.bn1 = nn.BatchNorm2d(widths[0])
        inputs = [widths[0]]
        for count, outputs in zip(blocks, widths, strict=True):
            inputs.append(outputs if count else inputs[-1])
        self.layer1 = self._stage(blocks[0], inputs[0], inputs[1], 1)
        self.layer2 = self._stage(blocks[1], inputs[1], inputs[2], 2)
        self.layer3 = self._stage(blocks[2], inputs[2], inputs[3], 2)
        self.linear = nn.Linear(inputs[3], classes)
        _initialize(self)

    @staticmethod
    def _stage(blocks: int, inputs: int, outputs: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            *(PadBlock(outputs if i else inputs, outputs, 1 if i else stride) for i in range(blocks)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Shape (n, channels, h, w) to (n, classes)."""
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


class ProjectionBlock(nn.Module):
    """Two 3x3 convolutions; a changed size is met by a 1x1 convolution with its own normalization."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.c1 = _conv3x3(inputs, outputs, stride)
        self.b1 = nn.BatchNorm2d(outputs)
        self.c2 = _conv3x3(outputs, outputs)
        self.b2 = nn.BatchNorm2d(outputs)
        self.sc: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.sc = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Shape (n, inputs, h, w) to (n, outputs, h / stride, w / stride)."""
        y = functional.relu(self.b1(self.c1(x)))
        return functional.relu(self.b2(self.c2(y)) + self.sc(x))


class ProjectionResNet(nn.Module):
    """A ``stem`` and one ``body`` of `ProjectionBlock`."""

    def __init__(self, blocks: tuple[int, ...], widths: tuple[int, int, int], classes: int, channels: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv3x3(channels, widths[0]), nn.BatchNorm2d(widths[0]), nn.ReLU())
        body: list[nn.Module] = []
        inputs = widths[0]
        for stage, outputs in enumerate(widths):
            for i in range(blocks[stage]):
                body.append(ProjectionBlock(inputs, outputs, 2 if stage and i == 0 else 1))
                inputs = outputs
        self.body = nn.Sequential(*body)
        self.fc = nn.Linear(inputs, classes)
        _initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (n, channels, h, w) to (n, classes)."""
        x = self.body(self.stem(x))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


@torch.no_grad()
def _initialize(module: nn.Module) -> None:
    """He et al., 2015: normal weights of variance 2 / fan-in."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(part.weight)
