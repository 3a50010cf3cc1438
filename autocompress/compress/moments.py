"""Means and covariances of what flows into a network's layers: how those that stay can stand in for others.

They are taken along with the other statistics, from a sample of positions, so that they cost little beside a pass.
"""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from autocompress.compress.hooked import hooked
from autocompress.records import Structure
from autocompress.rng import derive_seed

#: Positions that moments rest on, for each input of the layer, and for any layer.
_PER_INPUT, _LEAST = 4, 4096
#: Inputs beyond which a layer has none, and numbers in all of them together: more would be larger than most networks.
MOST_INPUTS, _MOST_NUMBERS = 4096, 1 << 28


@dataclass(frozen=True)
class Moment:
    """What is known of a layer's inputs, of one position each.

    Attributes:
        mean: shape (inputs,).
        covariance: shape (inputs, inputs).
        positions: how many both rest on.
        axis: of the layer's weight along which its inputs lie.
        normalized: whatever the layer returned went into a batch normalization at once.
    """

    mean: Tensor
    covariance: Tensor
    positions: int
    axis: int
    normalized: bool

    def among(self, left: Tensor) -> Moment:
        """Of the inputs of these indices."""
        return replace(self, mean=self.mean[left], covariance=self.covariance[left][:, left])


def input_axis(module: nn.Module, parameter: str) -> int | None:
    """Axis of a layer's weight along which the channels of its input lie, each for itself; None if there is none.

    Args:
        module: the network, or the layer itself.
        parameter: name of the weight in it.

    Examples:
        >>> input_axis(nn.Conv2d(4, 8, 3), "weight"), input_axis(nn.ConvTranspose2d(4, 8, 3), "weight")
        (1, 0)
        >>> input_axis(nn.Conv2d(8, 8, 3, groups=8), "weight") is None
        True
    """
    layer, _, own = parameter.rpartition(".")
    part = module.get_submodule(layer)
    if isinstance(part, nn.modules.conv._ConvNd):
        transposed = isinstance(part, nn.modules.conv._ConvTransposeNd)
        return int(not transposed) if own == "weight" and part.groups == 1 else None
    if isinstance(part, nn.Linear):
        return 1 if own == "weight" else None
    # Of stacked recurrent layers only the lowest sees the module's input.
    return 1 if isinstance(part, nn.RNNBase) and own.startswith("weight_ih_l0") else None


class InputMoments:
    """Hooks at the layers whose inputs a structure can cut: the `Moment` of each.

    A layer whose weight another one shares has none, nor one with more than 4096 inputs; and of what would be more than
    1 GiB together the largest have none.

    Args:
        module: gets hooks while it is watched only.
        structure: whose groups are cut.
        batches: in how many the examples come.
        seed: of the sample of positions of all batches together, 4 for each input of a layer and at least 4096, or
            all that there are. Of few positions `autocompress.compress.reconstruct` makes the less.
    """

    def __init__(self, module: nn.Module, structure: Structure, batches: int, seed: int) -> None:
        names = [name for name, _ in module.named_parameters(remove_duplicate=False)]
        owners = Counter(id(module.get_parameter(name)) for name in names)
        uses = dict.fromkeys((u.parameter, u.axis) for g in structure.groups for u in g.uses)
        read = [
            (module.get_parameter(parameter).shape[axis], parameter, axis)
            for parameter, axis in uses
            if input_axis(module, parameter) == axis and owners[id(module.get_parameter(parameter))] == 1
        ]
        self._module = module
        self._axes: dict[str, dict[str, int]] = {}
        left = _MOST_NUMBERS
        for inputs, parameter, axis in sorted(read):
            left -= inputs**2
            if inputs <= MOST_INPUTS and left >= 0:
                self._axes.setdefault(parameter.rpartition(".")[0], {})[parameter] = axis
        self._batches = batches
        self._generator = torch.Generator().manual_seed(derive_seed(seed, "moments"))
        self._sums: dict[str, _Sums] = {}
        # What each layer returned last, and how often that had been written to.
        self._returned: dict[str, tuple[weakref.ref[Tensor], int]] = {}
        self._calls: Counter[str] = Counter()
        self._normalized: Counter[str] = Counter()

    def watching(self) -> AbstractContextManager[None]:
        """Batches run inside."""
        return hooked(self._hooks())

    def by_parameter(self) -> dict[str, Moment]:
        """Name of a weight -> the moment of its inputs, in single precision."""
        found = {}
        for layer, sums in self._sums.items():
            first = sums.first / sums.positions
            mean, covariance = sums.shift + first, sums.second / sums.positions - torch.outer(first, first)
            normalized = self._normalized[layer] == self._calls[layer]
            for parameter, axis in self._axes[layer].items():
                found[parameter] = Moment(mean.float(), covariance.float(), sums.positions, axis, normalized)
        return found

    def _hooks(self) -> Iterator[RemovableHandle]:
        for name in self._axes:
            part = self._module.get_submodule(name)
            yield part.register_forward_pre_hook(self._watch(name), with_kwargs=True)
            yield part.register_forward_hook(self._remember(name))
        for part in self._module.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                yield part.register_forward_pre_hook(self._recognize)

    def _watch(self, name: str) -> Any:
        def hook(part: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            values = _positions(part, [*args, *kwargs.values()])
            if values is None:
                return
            wanted = math.ceil(max(_PER_INPUT * values.shape[1], _LEAST) / self._batches)
            if len(values) > wanted:
                chosen = torch.randint(len(values), (wanted,), generator=self._generator)
                values = values[chosen.to(values.device)]
            if len(values):
                self._sums.setdefault(name, _Sums(values.mean(dim=0))).add(values)

        return hook

    def _remember(self, name: str) -> Any:
        def hook(part: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._calls[name] += 1
            if isinstance(output, Tensor):
                self._returned[name] = weakref.ref(output), output._version

        return hook

    def _recognize(self, part: nn.Module, args: tuple[Any, ...]) -> None:
        for name, (reference, version) in self._returned.items():
            returned = reference()
            if returned is not None and args and args[0] is returned and returned._version == version:
                self._normalized[name] += 1


class _Sums:
    """Of x - s and of their products, s near the mean: so what hardly varies keeps its digits."""

    def __init__(self, shift: Tensor) -> None:
        self.shift = shift.double()
        self.first = torch.zeros_like(self.shift)
        self.second = self.first.new_zeros(len(shift), len(shift))
        self.positions = 0

    def add(self, values: Tensor) -> None:
        """Of shape (positions, inputs)."""
        values = values - self.shift.float()
        self.first += values.sum(dim=0).double()
        self.second += (values.T @ values).double()
        self.positions += len(values)


def _positions(part: nn.Module, given: Iterable[Any]) -> Tensor | None:
    """A layer's input in shape (positions, channels); None if it is no tensor."""
    first = next((leaf for leaf in tree_leaves(list(given)) if isinstance(leaf, Tensor | PackedSequence)), None)
    values = first.data if isinstance(first, PackedSequence) else first
    if values is None or not values.is_floating_point():
        return None
    values = values.detach()
    if isinstance(part, nn.modules.conv._ConvNd):
        values = values.movedim(-1 - len(part.kernel_size), -1)
    return values.reshape(-1, values.shape[-1]).float()
