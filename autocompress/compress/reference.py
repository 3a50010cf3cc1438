"""The dense network's answers on fixed examples, and how far another network's are from them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from math import isfinite

import torch
from torch import Tensor, nn
from torch.nn import functional

from autocompress.compress.fast import fast_layout, run
from autocompress.compress.recall import Recall
from autocompress.errors import CompressionError
from autocompress.inputs import Inputs, apply, batch_size, forward, output_of
from autocompress.task import Task, fetch, plain, size

Guard = Callable[[], AbstractContextManager[None]]


def divergence(dense: Tensor, other: Tensor, targets: Tensor) -> float | None:
    """Mean KL divergence in nats between two networks' class predictions.

    Args:
        dense: scores of shape (n, ..., classes), or (n, classes, ...) as cross entropy takes them.
        other: scores of the same shape.
        targets: class indices, shape (n, ...).

    Returns:
        At least 0 up to rounding; None if targets are no class indices for these scores, as in regression.
    """
    if targets.is_floating_point() or dense.ndim < 2:
        return None
    if tuple(targets.shape) == (*dense.shape[:1], *dense.shape[2:]):
        axis = 1
    elif tuple(targets.shape) == tuple(dense.shape[:-1]):
        axis = -1
    else:
        return None
    if dense.shape[axis] < 2:
        return None
    p, q = (functional.log_softmax(scores.double(), dim=axis) for scores in (dense, other))
    total = functional.kl_div(q, p, log_target=True, reduction="sum")
    return float(total) / targets.numel()


class Reference:
    """The dense model's answers on the examples that everything is compared on.

    Attributes:
        loss: of the dense model, in units of the task's loss.
    """

    def __init__(self, task: Task, dense: nn.Module, examples: int, guard: Guard, *, fast: bool = False) -> None:
        """Compute them.

        Args:
            task: its validation split and its loss.
            dense: left alone.
            examples: how many, at most, the first ones.
            guard: entered around each batch.
            fast: as of `autocompress.compress.sensitivity.measure_sensitivity`.

        Raises:
            CompressionError: the loss is not finite.
        """
        self._task, self._guard, self._fast = task, guard, fast
        chosen = torch.arange(min(examples, size(task.validation)))
        self._inputs, self._targets = fetch(plain(task.validation), chosen)
        self._recall: Recall | None = None
        self._outputs = self._answers(copy.deepcopy(dense))
        self.loss = self._loss(self._outputs)
        if not isfinite(self.loss):
            raise CompressionError(
                f"sensitivity: expected a finite validation loss of the dense model, got {self.loss}; "
                "look at its weights and at the task's loss"
            )

    def change(self, module: nn.Module) -> tuple[float, float | None]:
        """Increase of the loss, and divergence; a fast one leaves the module with other statistics and layout."""
        outputs = self._answers(module)
        return self._loss(outputs) - self.loss, divergence(self._outputs, outputs, self._targets)

    def _loss(self, outputs: Tensor) -> float:
        return float(self._task.loss(outputs, self._targets))

    def _answers(self, module: nn.Module) -> Tensor:
        """The network's outputs in evaluation mode; every part's mode is put back."""
        modes = [(part, part.training) for part in module.modules()]
        module.eval()
        if self._fast:
            fast_layout(module)
            for part in module.modules():
                if isinstance(part, nn.modules.batchnorm._BatchNorm):
                    part.train()
        parts = []
        try:
            # The first is the dense network.
            learns, recall = self._recall is None, self._recall or Recall(module)
            self._recall = recall
            with (
                torch.no_grad(),
                torch.random.fork_rng(devices=[]),
                recall.learn() if learns else recall.use(module),
            ):
                for batch, rows in enumerate(_batches(self._inputs)):
                    recall.batch = batch
                    with self._guard():
                        parts.append(output_of(run(module, rows)) if self._fast else forward(module, rows))
        finally:
            for part, training in modes:
                part.training = training
        return torch.cat(parts)


def _batches(inputs: Inputs) -> Iterator[Inputs]:
    """At most 128 examples at once; as many in each, so that none has poor statistics."""
    count = batch_size(inputs)
    parts = -(-count // 128)
    for part in range(parts):
        yield _rows(inputs, part * count // parts, (part + 1) * count // parts)


def _rows(inputs: Inputs, start: int, end: int) -> Inputs:
    return apply(lambda tensor: tensor[start:end], inputs)
