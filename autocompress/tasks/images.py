"""Image classification from arrays: a dataset held as bytes, and a task that reads an ``.npz`` file."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from autocompress.errors import TaskError
from autocompress.models.resnet import resnet_cifar
from autocompress.models.scaling import scaled_arguments
from autocompress.models.weights import load_weights
from autocompress.references import load_object
from autocompress.task import Recipe, Task
from autocompress.tasks.fresh import initial_weights, is_dense
from autocompress.tasks.shared import shared_arrays

_KEYS = ("x_train", "y_train", "x_test", "y_test")


class ImageTensors(Dataset[tuple[Tensor, Tensor]]):
    """Images in memory as bytes, normalized when they are fetched: (pixel / scale - mean) / std.

    Attributes:
        targets: shape (n,), class indices, int64.
    """

    def __init__(
        self,
        images: Tensor,
        targets: Tensor,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        scale: float = 255.0,
        crop: int = 0,
        flip: bool = False,
    ) -> None:
        """Keep references to the tensors.

        Args:
            images: shape (n, channels, height, width), uint8.
            targets: shape (n,), class indices.
            mean: one per channel, after division by `scale`.
            std: one per channel.
            scale: what the largest pixel value stands for.
            crop: pad by so many pixels, then crop at random; 0 is off.
            flip: mirror half of the images. Both draw from torch's global generator.

        Raises:
            TaskError: shapes or kinds of number disagree, or a std is not positive.
        """
        if images.ndim != 4 or images.dtype != torch.uint8:
            raise TaskError(
                "images: expected uint8 of shape (n, channels, height, width), "
                f"got {images.dtype} of shape {tuple(images.shape)}"
            )
        if targets.shape != images.shape[:1] or targets.is_floating_point():
            raise TaskError(
                f"targets: expected {len(images)} integers, got {targets.dtype} of shape {tuple(targets.shape)}"
            )
        if len(mean) != images.shape[1] or len(std) != images.shape[1]:
            raise TaskError(f"mean and std: expected {images.shape[1]} values each, got {list(mean)} and {list(std)}")
        if min(std) <= 0.0 or scale <= 0.0:
            raise TaskError(f"std and scale: expected positive values, got {list(std)} and {scale}")
        if crop < 0:
            raise TaskError(f"crop: expected a number of pixels >= 0, got {crop}")
        self._held = images
        self._rows: Tensor | None = None
        self.targets = targets.to(torch.int64)
        self._shift = torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1) * scale
        self._factor = 1.0 / (torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1) * scale)
        self._crop = crop
        self._flip = flip

    @property
    def images(self) -> Tensor:
        """All of them, shape (n, channels, height, width), uint8; a copy where `take` chose some."""
        return self._held if self._rows is None else self._held[self._rows]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """One image of shape (channels, height, width), float32, and its class."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"expected an index below {len(self)}, got {index}")
        inputs, targets = self.batch(torch.tensor([index % len(self)]))
        return inputs[0], targets[0]

    def plain(self) -> ImageTensors:
        """The same images without augmentation, sharing their memory."""
        same = copy.copy(self)
        same._crop, same._flip = 0, False
        return same

    def take(self, rows: Tensor) -> ImageTensors:
        """The images at `rows`, shape (m,), as a dataset of their own that shares their memory."""
        some = copy.copy(self)
        some._rows = rows if self._rows is None else self._rows[rows]
        some.targets = self.targets[rows]
        return some

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images of shape (n, channels, height, width), float32, and classes of shape (n,)."""
        held = indices if self._rows is None else self._rows[indices]
        inputs = (self._held[held].float() - self._shift) * self._factor
        if self._crop:
            inputs = _random_crop(inputs, self._crop)
        if self._flip:
            inputs = torch.where(torch.rand(len(inputs), 1, 1, 1) < 0.5, inputs.flip(3), inputs)
        return inputs, self.targets[indices]


def _random_crop(inputs: Tensor, padding: int) -> Tensor:
    """Shift every image by up to `padding` pixels each way; what comes in from outside is zero."""
    n, _, height, width = inputs.shape
    padded = functional.pad(inputs, (padding,) * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (n, channels, rows, columns, height, width)
    rows, columns = torch.randint(2 * padding + 1, (2, n))
    return windows[torch.arange(n), :, rows, columns]


def images(
    data: str,
    network: Mapping[str, Any],
    mean: Sequence[float],
    std: Sequence[float],
    weights: str | None = None,
    split_seed: int = 0,
    holdout: int = 5000,
    augment: bool = True,
    flip: bool = True,
    epochs: int = 24,
    learning_rate: float = 0.2,
    batch_size: int = 128,
    recovery_learning_rate: float = 0.02,
    seed: int = 0,
) -> Task:
    """A residual network on images from an ``.npz`` file.

    The training images are permuted by ``torch.randperm`` with `split_seed`; all but the last `holdout` are *train*,
    the first half of those is *validation*, the second *selection*. The file's own test images are *test*.

    Args:
        data: path of a file with ``x_train``, ``y_train``, ``x_test``, ``y_test``; images are uint8 of shape
            (n, height, width) or (n, height, width, channels) with 1 or 3 channels.
        network: arguments of `resnet_cifar`; or of the function that the key ``kind`` names, such as
            ``{"kind": "autocompress.models.vgg:vgg", ...}`` or ``{"kind": "path/file.py:function", ...}``. In another
            size it is built with these arguments scaled, see `autocompress.models.scaling.scaled_arguments`.
        mean: one per channel, of pixels in [0, 1].
        std: one per channel.
        weights: a safetensors file for the network; without it the network is trained by `epochs` and its companions.
        split_seed: of the permutation; must be the one that the weights were trained with.
        holdout: images kept from training.
        augment: shift training images by up to 4 pixels, and mirror them if `flip`.
        flip: off for images that mean something else when mirrored, such as digits.
        epochs: of training without weights.
        learning_rate: its peak.
        batch_size: of training and recovery.
        recovery_learning_rate: its peak.
        seed: of the initial weights.

    Raises:
        TaskError: a file is missing, holds something else, or does not fit the network.
    """
    arrays = shared_arrays(data, keys=_KEYS, make=_channels_first, form="images, channels first")
    x_train, y_train, x_test, y_test = (torch.from_numpy(arrays[key]) for key in _KEYS)
    if not 2 <= holdout < len(x_train):
        raise TaskError(
            f"holdout: expected at least 2 and fewer than the {len(x_train)} training images, got {holdout}"
        )
    order = torch.randperm(len(x_train), generator=torch.Generator().manual_seed(split_seed))
    train, rest = order[: len(order) - holdout], order[len(order) - holdout :]
    validation, selection = rest[: holdout // 2], rest[holdout // 2 :]

    def build(width: float = 1.0, depth: float = 1.0) -> nn.Module:
        dense = is_dense(width, depth)
        with initial_weights(seed, dense=dense):
            module = _build(network, width, depth)
        return load_weights(module, Path(weights).expanduser()) if weights is not None and dense else module

    known = ImageTensors(x_train, y_train, mean=mean, std=std, crop=4 if augment else 0, flip=augment and flip)
    return Task(
        name="images",
        model=build,
        train=known.take(train),
        validation=known.plain().take(validation),
        selection=known.plain().take(selection),
        test=ImageTensors(x_test, y_test, mean=mean, std=std),
        trained=weights is not None,
        recipe=Recipe(epochs=epochs, learning_rate=learning_rate, batch_size=batch_size),
        recovery_learning_rate=recovery_learning_rate,
    )


def _build(network: Mapping[str, Any], width: float, depth: float) -> nn.Module:
    """The network by its own function, `resnet_cifar` unless ``kind`` names another, in some size."""
    arguments = dict(network)
    kind = arguments.pop("kind", None)
    if kind is None:
        return resnet_cifar(**scaled_arguments(resnet_cifar, arguments, width=width, depth=depth))
    try:
        function = load_object(kind)
    except (ValueError, ImportError, AttributeError) as error:
        raise TaskError(f"network.kind: expected a function that builds a network, got {kind!r}: {error}") from error
    if not is_dense(width, depth):
        arguments = scaled_arguments(function, arguments, width=width, depth=depth)
    module = function(**arguments)
    if not isinstance(module, nn.Module):
        raise TaskError(f"network.kind: expected {kind!r} to return a torch.nn.Module, got {type(module).__name__}")
    return module


def _channels_first(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Images of shape (n, channels, height, width), and classes as int64 of shape (n,)."""
    for key in ("x_train", "x_test"):
        if arrays[key].dtype != np.uint8 or arrays[key].ndim not in (3, 4):
            raise TaskError(
                f"data: {key}: expected uint8 of shape (n, height, width[, channels]), "
                f"got {arrays[key].dtype} of shape {arrays[key].shape}"
            )
    images = {
        key: np.moveaxis(array, -1, 1) if array.ndim == 4 else array[:, None]
        for key, array in arrays.items()
        if key in ("x_train", "x_test")
    }
    classes = {key: arrays[key].astype(np.int64).reshape(-1) for key in ("y_train", "y_test")}
    return {key: np.ascontiguousarray(array) for key, array in {**images, **classes}.items()}
