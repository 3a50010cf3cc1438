"""Gradients of the dense network, taken once and used by every candidate that asks for the Taylor criterion."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from autocompress.compress.state import load_tensors, save_tensors
from autocompress.compress.train import batches as iterate
from autocompress.errors import CompressionError
from autocompress.rng import derive_seed

if TYPE_CHECKING:
    from autocompress.task import Task


@dataclass(frozen=True)
class Statistics:
    """What was learned from training data about the dense network.

    Attributes:
        gradients: parameter name -> mean over batches of the loss's gradient, in the parameter's shape.
    """

    gradients: Mapping[str, Tensor]

    def gradient(self, name: str) -> Tensor:
        """Gradient of the parameter `name`.

        Raises:
            CompressionError: none was collected.
        """
        if name not in self.gradients:
            raise CompressionError(
                f"statistics: expected a gradient of {name!r}, got {len(self.gradients)} others; "
                "collect them from the module that is compressed"
            )
        return self.gradients[name]

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, whole or not at all."""
        save_tensors(self.gradients, path)

    @classmethod
    def load(cls, path: str | Path) -> Statistics:
        """Read what `save` wrote.

        Raises:
            CompressionError: the file is missing or damaged.
        """
        return cls(load_tensors(path))


def collect_statistics(
    module: nn.Module, task: Task, *, batches: int = 16, batch_size: int = 64, seed: int
) -> Statistics:
    """Mean gradient of the task's loss on the training split, at the module's weights, in evaluation mode.

    Args:
        module: the trained dense network; left alone.
        task: gives the training split and the loss.
        batches: how many batches; fewer if the split is smaller.
        batch_size: examples per batch.
        seed: of the choice of examples.

    Raises:
        CompressionError: a gradient is not finite, or no parameter got one.
    """
    if batches < 1 or batch_size < 1:
        raise CompressionError(f"statistics: expected batches and batch_size >= 1, got {batches} and {batch_size}")
    # Evaluation mode: the question is what removing a weight does to the network as it ships.
    probe = copy.deepcopy(module).requires_grad_(True).eval()
    probe.zero_grad(set_to_none=True)
    count = 0
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(derive_seed(seed, "statistics", "augment"))
        order = derive_seed(seed, "statistics", "order")
        for inputs, targets in islice(iterate(task.train, batch_size, shuffle=True, seed=order), batches):
            torch.autograd.backward(task.loss(probe(inputs), targets))
            count += 1
    gradients = {name: p.grad / count for name, p in probe.named_parameters() if p.grad is not None}
    if not gradients:
        raise CompressionError(f"statistics: the loss of {task.name!r} reaches no parameter of {type(module).__name__}")
    for name, gradient in gradients.items():
        if not torch.isfinite(gradient).all():
            raise CompressionError(f"statistics: expected finite gradients, got NaN or infinity in {name!r}")
    return Statistics(gradients)
