"""Second moments of what flows into a network's layers: from them follows how those that stay can stand in for others.

They are taken along with the other statistics, from a sample of positions, so that they cost little beside a pass.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_leaves

from autocompress.compress.hooked import Hooked
from autocompress.records import Structure
from autocompress.rng import derive_seed

#: Positions that moments rest on, for each input of the layer, and for any layer.
_PER_INPUT, _LEAST = 4, 4096
#: Inputs beyond which a layer has none: its matrix would be larger than most networks.
_MOST_INPUTS = 4096


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


class InputMoments(Hooked):
    r"""Hooks at the layers whose inputs a structure can cut: the mean of :math:`\tilde x \tilde x^T`.

    With :math:`\tilde x = (x, 1)` of the inputs x at one position: the 1 behind them gives their means, in the last row
    and column. A context manager: the hooks are there inside. A layer whose weight another one shares has none, nor
    one with more than 4096 inputs.

    Args:
        module: gets hooks inside the context only.
        structure: whose groups are cut.
        batches: in how many the examples come.
        seed: of the sample of positions, 4 for each input of a layer, at least 4096, of all batches together.
    """

    def __init__(self, module: nn.Module, structure: Structure, batches: int, seed: int) -> None:
        super().__init__()
        names = [name for name, _ in module.named_parameters(remove_duplicate=False)]
        owners = Counter(id(module.get_parameter(name)) for name in names)
        self._layers: dict[str, nn.Module] = {}
        self._parameters: dict[str, list[str]] = {}
        for parameter, axis in dict.fromkeys((u.parameter, u.axis) for g in structure.groups for u in g.uses):
            if input_axis(module, parameter) != axis or owners[id(module.get_parameter(parameter))] > 1:
                continue
            if module.get_parameter(parameter).shape[axis] <= _MOST_INPUTS:
                layer = parameter.rpartition(".")[0]
                self._layers[layer] = module.get_submodule(layer)
                self._parameters.setdefault(layer, []).append(parameter)
        self._batches = batches
        self._generator = torch.Generator().manual_seed(derive_seed(seed, "moments"))
        self._sums: dict[str, Tensor] = {}
        self._positions: Counter[str] = Counter()

    def __enter__(self) -> InputMoments:
        for name, part in self._layers.items():
            self.handles.append(part.register_forward_pre_hook(self._watch(name), with_kwargs=True))
        return self

    def by_parameter(self) -> dict[str, Tensor]:
        """Name of a weight -> mean over positions, shape (inputs + 1, inputs + 1), single precision."""
        means = {name: (total / self._positions[name]).float() for name, total in self._sums.items()}
        return {parameter: means[name] for name in means for parameter in self._parameters[name]}

    def _watch(self, name: str) -> Any:
        def hook(part: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            values = _positions(part, [*args, *kwargs.values()])
            if values is None:
                return
            wanted = math.ceil(max(_PER_INPUT * values.shape[1], _LEAST) / self._batches)
            if len(values) > wanted:
                chosen = torch.randint(len(values), (wanted,), generator=self._generator)
                values = values[chosen.to(values.device)]
            values = torch.nn.functional.pad(values, (0, 1), value=1.0)
            product = (values.T @ values).double()
            self._sums[name] = self._sums[name] + product if name in self._sums else product
            self._positions[name] += len(values)

        return hook


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
