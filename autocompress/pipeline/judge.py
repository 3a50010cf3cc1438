"""What a study judges outputs by: the task's own metric, known as accuracy, and the study's metrics."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from autocompress.errors import MeasurementError, TaskError
from autocompress.inputs import forward
from autocompress.measure.fairness import is_classification
from autocompress.measure.quality import accuracy, differences, score
from autocompress.measure.scoring import MetricFunction
from autocompress.records import Estimate, Metric, Role
from autocompress.rng import derive_seed
from autocompress.task import Task, fetch, size

if TYPE_CHECKING:
    from torch.utils.data import Dataset


def check_classes(task: Task, module: nn.Module) -> None:
    """Refuse ``worst_class_drop`` where there are no classes, before anything is trained.

    Args:
        task: its first validation examples are looked at.
        module: with any weights; left alone.

    Raises:
        MeasurementError: with both shapes.
    """
    inputs, targets = fetch(task.validation, torch.arange(min(2, size(task.validation))))
    with torch.no_grad():
        outputs = forward(copy.deepcopy(module).eval(), inputs).numpy()
    if not is_classification(outputs, targets.numpy()):
        raise MeasurementError(
            "worst_class_drop: expected a classification, outputs of shape (n, classes) with at least two classes and "
            f"targets of shape (n,) with a class index each, got outputs {outputs.shape} and {targets.dtype} targets "
            f"{tuple(targets.shape)}; leave it out of objectives and constraints"
        )


class Judge:
    """Values of outputs, by name, each with its interval; the same examples are resampled for every candidate."""

    def __init__(self, task: Task, metrics: Sequence[Metric], seed: int) -> None:
        """Import what the metrics need.

        Args:
            task: brings its own metric.
            metrics: the study's.
            seed: of the study.

        Raises:
            TaskError: a metric's function cannot be imported.
        """
        self._task = task
        self._seed = seed
        try:
            self._functions = {metric.name: MetricFunction(metric) for metric in metrics}
        except MeasurementError as error:
            raise TaskError(str(error)) from error

    def values(self, outputs: np.ndarray, targets: np.ndarray, role: Role) -> dict[str, Estimate]:
        """``"accuracy"``, and each metric of the study.

        Args:
            outputs: shape (n, ...).
            targets: shape (n, ...).
            role: the split that they are of.

        Raises:
            MeasurementError: a metric raised, or its value is not finite; accuracy is not in [0, 1].
        """
        seed = derive_seed(self._seed, "bootstrap", role)
        found = {"accuracy": accuracy(outputs, targets, self._task.metric, seed=seed)}
        for name, function in self._functions.items():
            found[name] = score(function, outputs, targets, seed=seed)
        return found

    def judges(self, name: str) -> bool:
        """Whether the objective is a value of outputs, rather than a cost."""
        return name == "accuracy" or name in self._functions

    def differences(
        self, name: str, outputs: Sequence[np.ndarray], targets: np.ndarray, role: Role
    ) -> dict[tuple[int, int], Estimate]:
        """By how much candidates differ in one value, pair by pair, on the same examples.

        Args:
            name: one that `judges`.
            outputs: of each candidate, shape (n, ...).
            targets: shape (n, ...).
            role: the split that they are of.

        Returns:
            (i, j), i < j -> value of i - value of j, with its paired interval.

        Raises:
            MeasurementError: as `values`.
        """
        seed = derive_seed(self._seed, "difference", role)
        if name == "accuracy":
            return differences(self._task.metric, outputs, targets, seed=seed)
        return differences(self._functions[name], outputs, targets, seed=seed, bounded=False)


def torch_outputs(
    module: nn.Module,
    dataset: Dataset[Any],
    batch_size: int = 250,
    guard: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> np.ndarray:
    """A torch network's outputs on every example of a split, shape (n, ...), in the dataset's order."""
    module.eval()
    found, count = [], size(dataset)
    for start in range(0, count, batch_size):
        with guard(), torch.no_grad():
            inputs, _ = fetch(dataset, torch.arange(start, min(start + batch_size, count)))
            found.append(forward(module, inputs).cpu().numpy())
    return np.concatenate(found)
