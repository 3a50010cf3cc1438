"""The two LeNets of the compression literature, and a small CNN for images of that size.

References:
    LeCun et al., 1998, "Gradient-based learning applied to document recognition".
    Han et al., 2016, "Deep Compression", tables 2 and 3: LeNet-300-100 (267 thousand parameters) and the LeNet-5 that
    Caffe made common, with 20 and 50 filters and 500 neurons (431 thousand).
"""

from __future__ import annotations

from torch import Tensor, nn

from autocompress.models.arguments import at_least
from autocompress.models.initial import he_normal


def lenet_300_100(classes: int = 10, image: int = 28, channels: int = 1) -> nn.Module:
    """Three linear layers on the flattened image: 300 and 100 neurons, then the output.

    Args:
        classes: size of the output.
        image: side of the input.
        channels: of the input.

    Returns:
        A module from inputs of shape (n, channels, image, image) to outputs of shape (n, classes).

    Raises:
        TaskError: an argument is out of range.
    """
    at_least("lenet_300_100", 1, classes=classes, image=image, channels=channels)
    return LeNet300(channels * image * image, classes)


def lenet5(classes: int = 10, image: int = 28, channels: int = 1) -> nn.Module:
    """Two 5x5 convolutions of 20 and 50 filters, each max-pooled, then 500 neurons and the output.

    Args:
        classes: size of the output.
        image: side of the input, at least 16.
        channels: of the input.

    Returns:
        A module from inputs of shape (n, channels, image, image) to outputs of shape (n, classes).

    Raises:
        TaskError: an argument is out of range.
    """
    at_least("lenet5", 1, classes=classes, channels=channels)
    at_least("lenet5", 16, image=image)
    return LeNet5(classes, image, channels)


def simple_cnn(width: int = 32, depth: int = 2, classes: int = 10, image: int = 28, channels: int = 1) -> nn.Module:
    """A plain CNN: every stage doubles the channels and halves the map, then one hidden layer and the output.

    Args:
        width: channels of the first stage; the hidden layer has four times those of the last.
        depth: stages, each a 3x3 convolution with BatchNorm, ReLU and pooling.
        classes: size of the output.
        image: side of the input, at least 2 to the power of `depth`.
        channels: of the input.

    Returns:
        A module from inputs of shape (n, channels, image, image) to outputs of shape (n, classes).

    Raises:
        TaskError: an argument is out of range.
    """
    at_least("simple_cnn", 1, width=width, depth=depth, classes=classes, channels=channels)
    at_least("simple_cnn", 1 << depth, image=image)
    return SimpleCnn(width, depth, classes, image, channels)


class LeNet300(nn.Module):
    """``fc1``, ``fc2`` and ``fc3``."""

    def __init__(self, pixels: int, classes: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(pixels, 300)
        self.fc2 = nn.Linear(300, 100)
        self.fc3 = nn.Linear(100, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (n, channels, h, w) to (n, classes)."""
        logits: Tensor = self.fc3(self.fc2(self.fc1(x.flatten(1)).relu()).relu())
        return logits


class LeNet5(nn.Module):
    """``conv1``, ``conv2``, ``fc1`` and ``fc2``."""

    def __init__(self, classes: int, image: int, channels: int) -> None:
        super().__init__()
        side = ((image - 4) // 2 - 4) // 2
        self.conv1 = nn.Conv2d(channels, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(50 * side * side, 500)
        self.fc2 = nn.Linear(500, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (n, channels, h, w) to (n, classes)."""
        x = self.pool(self.conv2(self.pool(self.conv1(x))))
        logits: Tensor = self.fc2(self.fc1(x.flatten(1)).relu())
        return logits


class SimpleCnn(nn.Module):
    """``features``, flattened, then ``hidden`` and ``head``."""

    def __init__(self, width: int, depth: int, classes: int, image: int, channels: int) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        inputs = channels
        for stage in range(depth):
            outputs = width << stage
            parts += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)]
            parts += [nn.ReLU(), nn.MaxPool2d(2)]
            inputs = outputs
        self.features = nn.Sequential(*parts)
        side = image >> depth
        self.hidden = nn.Linear(inputs * side * side, 4 * inputs)
        self.head = nn.Linear(4 * inputs, classes)
        he_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (n, channels, image, image) to (n, classes)."""
        logits: Tensor = self.head(self.hidden(self.features(x).flatten(1)).relu())
        return logits
