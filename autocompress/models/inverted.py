"""The block that MobileNets and EfficientNets are made of: expand, filter each channel, project.

References:
    Sandler et al., 2018, "MobileNetV2: Inverted Residuals and Linear Bottlenecks".
    Hu et al., 2018, "Squeeze-and-Excitation Networks".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

Activation = Callable[[], nn.Module]


@dataclass(frozen=True)
class Bottleneck:
    """Sizes of one `InvertedResidual`.

    Attributes:
        inputs: channels that come in.
        expanded: channels that are filtered; without expansion equal to `inputs`, and no layer expands.
        outputs: channels that go out.
        kernel: side of the filters.
        stride: of the filters.
        squeezed: channels inside the squeeze-and-excitation; 0 for none.
    """

    inputs: int
    expanded: int
    outputs: int
    kernel: int
    stride: int
    squeezed: int = 0


class SqueezeExcitation(nn.Module):
    """Scale each channel by a gate that a small network computes from the means of all channels."""

    def __init__(self, channels: int, squeezed: int, activation: Activation, gate: Activation) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.activation = activation()
        self.expand = nn.Conv2d(squeezed, channels, 1)
        self.gate = gate()

    def forward(self, x: Tensor) -> Tensor:
        """Shape (n, channels, h, w), kept."""
        means = functional.adaptive_avg_pool2d(x, 1)
        scaled: Tensor = x * self.gate(self.expand(self.activation(self.reduce(means))))
        return scaled


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, squeeze-and-excitation, linear 1x1 projection, and a shortcut."""

    def __init__(
        self,
        sizes: Bottleneck,
        activation: Activation,
        normalize: Callable[[int], nn.Module] = nn.BatchNorm2d,
        squeeze_activation: Activation = nn.ReLU,
        gate: Activation = nn.Hardsigmoid,
    ) -> None:
        super().__init__()
        self.has_shortcut = sizes.stride == 1 and sizes.inputs == sizes.outputs
        expanded = sizes.expanded
        self.expand: nn.Module = nn.Identity()
        if expanded != sizes.inputs:
            self.expand = convolution(sizes.inputs, expanded, 1, 1, activation, normalize)
        self.filter = convolution(expanded, expanded, sizes.kernel, sizes.stride, activation, normalize, expanded)
        self.squeeze: nn.Module = nn.Identity()
        if sizes.squeezed:
            self.squeeze = SqueezeExcitation(expanded, sizes.squeezed, squeeze_activation, gate)
        self.project = nn.Sequential(nn.Conv2d(expanded, sizes.outputs, 1, bias=False), normalize(sizes.outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Shape (n, inputs, h, w) to (n, outputs, h / stride, w / stride)."""
        y: Tensor = self.project(self.squeeze(self.filter(self.expand(x))))
        return x + y if self.has_shortcut else y


def convolution(
    inputs: int,
    outputs: int,
    kernel: int,
    stride: int,
    activation: Activation,
    normalize: Callable[[int], nn.Module] = nn.BatchNorm2d,
    groups: int = 1,
) -> nn.Sequential:
    """A convolution without bias that keeps the size up to its stride, a normalization, an activation."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, normalize(outputs), activation())


class MobileClassifier(nn.Module):
    """``stem``, ``blocks``, ``last`` and, on the mean of the map, ``head``."""

    def __init__(self, stem: nn.Module, blocks: nn.Module, last: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.stem = stem
        self.blocks = blocks
        self.last = last
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """Shape (n, channels, h, w) to (n, classes)."""
        x = self.last(self.blocks(self.stem(x)))
        logits: Tensor = self.head(functional.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits
