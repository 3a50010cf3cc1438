"""A dataset that is held as tensors, of any form of input."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch.utils.data import Dataset

from autocompress.errors import TaskError
from autocompress.inputs import Inputs, apply, batch_size


class InputTensors(Dataset[tuple[Inputs, Tensor]]):
    """Inputs and targets in memory, fetched as they are.

    Attributes:
        targets: shape (n, ...).
    """

    def __init__(self, inputs: Inputs, targets: Tensor) -> None:
        """Keep references to the tensors.

        Raises:
            TaskError: they disagree in the number of examples.
        """
        count = batch_size(inputs)
        if targets.ndim == 0 or len(targets) != count:
            raise TaskError(f"targets: expected one for each of {count} inputs, got shape {tuple(targets.shape)}")
        self._held, self.targets = inputs, targets
        self._rows: Tensor | None = None

    @property
    def inputs(self) -> Inputs:
        """A tensor, a tuple or a dict of tensors, each of shape (n, ...); copies where `take` chose some."""
        return self._held if self._rows is None else self._at(self._rows)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Inputs, Tensor]:
        """One example: tensors without the batch axis."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"expected an index below {len(self)}, got {index}")
        held = index if self._rows is None else int(self._rows[index])
        return apply(lambda tensor: tensor[held], self._held), self.targets[index]

    def batch(self, indices: Tensor) -> tuple[Inputs, Tensor]:
        """Tensors of shape (n, ...) at `indices`, shape (n,)."""
        return self._at(indices if self._rows is None else self._rows[indices]), self.targets[indices]

    def take(self, rows: Tensor) -> InputTensors:
        """The examples at `rows`, shape (m,), as a dataset of their own that shares the inputs' memory."""
        some = copy.copy(self)
        some._rows = rows if self._rows is None else self._rows[rows]
        some.targets = self.targets[rows]
        return some

    def _at(self, held: Tensor) -> Inputs:
        return apply(lambda tensor: tensor[held], self._held)


def permuted(data: InputTensors, sizes: dict[str, int], seed: int) -> dict[str, InputTensors]:
    """Disjoint parts of a dataset, drawn at random.

    Args:
        data: the examples.
        sizes: name of each part -> its number of examples.
        seed: of the permutation.

    Raises:
        TaskError: there are fewer examples than the parts need.
    """
    if sum(sizes.values()) > len(data):
        raise TaskError(f"expected at least {sum(sizes.values())} examples for {sizes}, got {len(data)}")
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    parts = torch.split(order[: sum(sizes.values())], list(sizes.values()))
    return {name: data.take(rows) for name, rows in zip(sizes, parts, strict=True)}
