"""Plain convolutional networks whose classifier reads a flattened map.

References:
    Simonyan and Zisserman, 2015, "Very Deep Convolutional Networks for Large-Scale Image Recognition", table 1.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from autocompress.models.arguments import at_least, multiple_of, one_of
from autocompress.models.initial import he_normal

#: Depth -> convolutions of each stage.
_DEPTHS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


def vgg(
    depth: int = 16,
    width: int = 64,
    classes: int = 1000,
    channels: int = 3,
    image: int = 224,
    hidden: int = 4096,
    norm: Literal["none", "batch"] = "none",
) -> nn.Module:
    """Five stages of 3x3 convolutions with pooling, then three linear layers on the flattened map.

    Args:
        depth: layers with weights: 11, 13, 16 or 19.
        width: channels of the first stage; they double up to eight times that.
        classes: size of the output.
        channels: of the input.
        image: side of the input, a multiple of 32.
        hidden: neurons of the first two linear layers.
        norm: ``"batch"`` puts a BatchNorm behind every convolution.

    Returns:
        A module from inputs of shape (n, channels, image, image) to outputs of shape (n, classes).

    Raises:
        TaskError: an argument is out of range.
    """
    one_of("vgg", _DEPTHS, depth=depth)
    one_of("vgg", ("none", "batch"), norm=norm)
    at_least("vgg", 1, width=width, classes=classes, channels=channels, image=image, hidden=hidden)
    multiple_of("vgg", 32, image=image)
    return Vgg(_DEPTHS[depth], width, classes, channels, image // 32, hidden, norm == "batch")


class Vgg(nn.Module):
    """``features``, flattened, then ``classifier``."""

    def __init__(
        self,
        stages: tuple[int, ...],
        width: int,
        classes: int,
        channels: int,
        side: int,
        hidden: int,
        normalize: bool,
    ) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        inputs = channels
        for stage, count in enumerate(stages):
            outputs = width << min(stage, 3)
            for _ in range(count):
                parts.append(nn.Conv2d(inputs, outputs, 3, padding=1))
                if normalize:
                    parts.append(nn.BatchNorm2d(outputs))
                parts.append(nn.ReLU())
                inputs = outputs
            parts.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*parts)
        self.classifier = nn.Sequential(
            nn.Linear(inputs * side * side, hidden),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(hidden, classes),
        )
        he_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (n, channels, image, image) to (n, classes)."""
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits
