"""Handwritten digits, 8x8 grey: 1 797 images that ship with scikit-learn, trained in seconds."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from autocompress.models.resnet import resnet_cifar
from autocompress.models.scaling import scaled_arguments
from autocompress.rng import derive_seed
from autocompress.task import Recipe, Task
from autocompress.tasks.fresh import initial_weights, is_dense
from autocompress.tasks.images import ImageTensors

_NETWORK = {"depth": 8, "widths": (32, 64, 128), "channels": 1, "shortcut": "projection"}
_SIZES = {"test": 297, "selection": 250, "validation": 250}


def digits(seed: int = 0) -> Task:
    """A small residual network (8 layers, widths 32-64-128) on scikit-learn's digits.

    Splits of 1000, 250, 250 and 297 images, each with the classes in equal shares. The network can be built at another
    `width`, and at a `depth` of 2/3 and 1/3, where its first stages have no block.

    Args:
        seed: of the split and of the initial weights.

    References:
        Alpaydin and Kaynak, 1998, "Optical Recognition of Handwritten Digits", UCI.
    """
    data = load_digits()
    pixels: np.ndarray = data.images.astype(np.uint8)
    classes: np.ndarray = data.target.astype(np.int64)
    rest = np.arange(len(classes))
    parts: dict[str, np.ndarray] = {}
    for role, size in _SIZES.items():
        rest, parts[role] = train_test_split(
            rest, test_size=size, stratify=classes[rest], random_state=derive_seed(seed, "split", role)
        )
    parts["train"] = rest

    def part(role: str) -> ImageTensors:
        x: Tensor = torch.from_numpy(pixels[parts[role]]).unsqueeze(1)
        y: Tensor = torch.from_numpy(classes[parts[role]])
        # Pixels run from 0 to 16.
        return ImageTensors(x, y, mean=(0.305,), std=(0.376,), scale=16.0, crop=1 if role == "train" else 0)

    def build(width: float = 1.0, depth: float = 1.0) -> nn.Module:
        with initial_weights(seed, dense=is_dense(width, depth)):
            return resnet_cifar(**scaled_arguments(resnet_cifar, _NETWORK, width=width, depth=depth))

    return Task(
        name="digits",
        model=build,
        train=part("train"),
        validation=part("validation"),
        selection=part("selection"),
        test=part("test"),
        recipe=Recipe(epochs=20, learning_rate=0.1, batch_size=64),
        recovery_learning_rate=0.03,
    )
