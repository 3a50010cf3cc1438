"""What a network takes and returns: one tensor, several in a tuple, or several by name.

A tuple becomes positional arguments, a mapping keyword arguments. Of what a network returns, the first tensor is its
output: the one that metrics judge and distillation compares.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from autocompress.errors import TaskError

Inputs: TypeAlias = Tensor | tuple[Tensor, ...] | dict[str, Tensor]
#: The same for a runtime: one array, or arrays by the names of the model's inputs.
Arrays: TypeAlias = np.ndarray | dict[str, np.ndarray]


def call(module: nn.Module, inputs: Inputs) -> Any:
    """``module(x)``, ``module(*xs)`` or ``module(**xs)``, whatever it returns."""
    if isinstance(inputs, Tensor):
        return module(inputs)
    return module(**inputs) if isinstance(inputs, Mapping) else module(*inputs)


def output_of(returned: Any) -> Tensor:
    """The first tensor of what a network returned.

    Raises:
        TaskError: there is none.
    """
    if isinstance(returned, Tensor):
        return returned
    found = next((leaf for leaf in tree_leaves(returned) if isinstance(leaf, Tensor)), None)
    if found is None:
        raise TaskError(f"expected a network that returns a tensor, or several, got {type(returned).__name__}")
    return found


def forward(module: nn.Module, inputs: Inputs) -> Tensor:
    """The network's output on `inputs`: the first tensor that it returns, shape (n, ...)."""
    return output_of(call(module, inputs))


def named(inputs: Inputs) -> dict[str, Tensor]:
    """The tensors by the names that they have in an artifact: ``"input"``; ``"input_0"``, ...; or their own."""
    if isinstance(inputs, Tensor):
        return {"input": inputs}
    if isinstance(inputs, Mapping):
        return dict(inputs)
    return {f"input_{position}": tensor for position, tensor in enumerate(inputs)}


def apply(function: Callable[[Tensor], Tensor], inputs: Inputs) -> Inputs:
    """`function` of every tensor, in the same form."""
    if isinstance(inputs, Tensor):
        return function(inputs)
    if isinstance(inputs, Mapping):
        return {name: function(tensor) for name, tensor in inputs.items()}
    return tuple(function(tensor) for tensor in inputs)


def batch_size(inputs: Inputs) -> int:
    """Number of examples, the size of every tensor's first axis.

    Raises:
        TaskError: there are no tensors, or their first axes disagree.
    """
    sizes = {name: (len(tensor) if tensor.ndim else 0) for name, tensor in named(inputs).items()}
    if len(set(sizes.values())) != 1:
        raise TaskError(f"inputs: expected tensors with the same number of examples, got {sizes}")
    return next(iter(sizes.values()))


def stack(items: Sequence[Inputs]) -> Inputs:
    """Single examples as one batch, in the same form; tensors get a new first axis."""
    return _joined(torch.stack, items)


def concatenate(batches: Sequence[Inputs]) -> Inputs:
    """Batches one after another, in the same form."""
    return _joined(torch.cat, batches)


def _joined(join: Callable[[list[Tensor]], Tensor], parts: Sequence[Any]) -> Inputs:
    """What `join` makes of the tensors at the same place in every part."""
    first = parts[0]
    if isinstance(first, Tensor):
        return join(list(parts))
    if isinstance(first, Mapping):
        return {name: join([part[name] for part in parts]) for name in first}
    return tuple(join([part[place] for part in parts]) for place in range(len(first)))


def arrays(inputs: Inputs) -> Arrays:
    """The tensors as numpy arrays: one, or several by their names in an artifact."""
    if isinstance(inputs, Tensor):
        return _array(inputs)
    return {name: _array(tensor) for name, tensor in named(inputs).items()}


def _array(tensor: Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().cpu().numpy())
