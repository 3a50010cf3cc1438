"""Which channels of a network hang together: torch-pruning's dependency graph behind a small, safe face."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn
from torch.nn.utils import parametrize

from autocompress.errors import CompressionError

#: Normalizations that treat every channel by itself: removing a channel leaves the others' values alone.
_PER_CHANNEL_NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
#: Modules that may follow a cut.
_FOLLOWERS = (*_PER_CHANNEL_NORMS, nn.LayerNorm, nn.GroupNorm, nn.PReLU)


@dataclass(frozen=True)
class Consumer:
    """Input channels of one layer that carry a group's channels."""

    layer: str
    indices: tuple[int, ...]


@dataclass(frozen=True)
class Coupling:
    """Channels that torch-pruning removes together.

    Attributes:
        name: the first layer, in the order of the forward pass, whose output channels belong to it.
        width: number of channels of that layer.
        layers: layers whose output channels belong to it, in the order of the forward pass.
        consumers: layers whose input channels shrink with it.
        norms: per-channel normalizations that shrink with it.
        mixes_channels: a normalization over all channels follows, so that removing is not the same as masking.
        problem: why it cannot be cut; empty if nothing speaks against trying.
    """

    name: str
    width: int
    layers: tuple[str, ...]
    consumers: tuple[Consumer, ...]
    norms: tuple[str, ...]
    mixes_channels: bool
    problem: str


class ChannelGraph:
    """A private copy of a module whose channels can be removed group by group.

    Attributes:
        module: the copy; in evaluation mode, with gradients enabled, until `finish` is called.
    """

    def __init__(self, module: nn.Module, example: Tensor, order: Sequence[str]) -> None:
        """Copy `module` and trace it.

        Args:
            module: left alone.
            example: one input batch.
            order: names of the layers in the order of the forward pass.

        Raises:
            CompressionError: the module cannot be copied or traced.
        """
        try:
            self.module = copy.deepcopy(module)
            # With all requires_grad=False, or under no_grad, torch-pruning finds nothing, silently.
            self.module.requires_grad_(True)
            with torch.enable_grad(), torch.random.fork_rng(devices=[]):
                self._graph: Any = torch_pruning.DependencyGraph().build_dependency(
                    self.module.eval(), (example,), verbose=False
                )
        except Exception as error:
            raise CompressionError(
                f"the channels of {type(module).__name__} could not be traced: {type(error).__name__}: {error}"
            ) from error
        self._original = module
        self._order = {name: i for i, name in enumerate(order)}
        self._names = {part: name for name, part in self.module.named_modules()}

    def couplings(self) -> Iterator[Coupling]:
        """Every coupling with a convolution or linear layer among its layers, each layer in at most one of them."""
        seen: set[str] = set()
        for name in self._order:
            if name in seen:
                continue
            part = self.module.get_submodule(name)
            if part not in self._graph.module2node:
                continue
            coupling = self._coupling(name)
            seen.update(coupling.layers)
            yield coupling

    def consumers(self, name: str, indices: Sequence[int]) -> tuple[Consumer, ...]:
        """The input channels that carry the output channels `indices` of the layer `name`."""
        return tuple(
            Consumer(self._names[part], tuple(int(i) for i in idxs))
            for part, is_output, idxs in self._items(name, indices)
            if not is_output and isinstance(part, nn.Conv2d | nn.Linear) and part in self._names
        )

    def remove(self, name: str, indices: Sequence[int]) -> None:
        """Remove the output channels `indices` of the layer `name` and everything coupled with them."""
        self._group(name, indices).prune()

    def finish(self) -> nn.Module:
        """The copy, with gradients and modes set as in the original."""
        grads = {name: p.requires_grad for name, p in self._original.named_parameters()}
        for name, parameter in self.module.named_parameters():
            parameter.requires_grad_(grads[name])
        modes = {name: part.training for name, part in self._original.named_modules()}
        for name, part in self.module.named_modules():
            part.training = modes[name]
        return self.module

    def _group(self, name: str, indices: Sequence[int]) -> Any:
        part = self.module.get_submodule(name)
        try:
            return self._graph.get_pruning_group(
                part, self._graph.get_pruner_of_module(part).prune_out_channels, list(indices)
            )
        except Exception as error:
            raise CompressionError(
                f"the channels of {name} could not be followed: {type(error).__name__}: {error}"
            ) from error

    def _items(self, name: str, indices: Sequence[int]) -> list[tuple[Any, bool, list[int]]]:
        """(module or parameter, its output channels are meant, channel indices) for everything that is coupled."""
        return [
            (dep.target.module, bool(self._graph.is_out_channel_pruning_fn(dep.handler)), list(idxs))
            for dep, idxs in self._group(name, indices)
        ]

    def _coupling(self, root: str) -> Coupling:
        width = _width(self.module.get_submodule(root))
        everything = list(range(width))
        layers: list[str] = []
        norms: list[str] = []
        consumers: list[Consumer] = []
        problems: list[str] = []
        mixes, one_to_one = False, True
        for part, is_output, idxs in self._items(root, everything):
            name = self._names.get(part) if isinstance(part, nn.Module) else None
            if name is None:
                continue
            if isinstance(part, nn.Conv2d | nn.Linear):
                if is_output:
                    layers.append(name)
                    one_to_one = one_to_one and _width(part) == width and sorted(idxs) == everything
                else:
                    consumers.append(Consumer(name, tuple(int(i) for i in idxs)))
                problems += _layer_problems(name, part)
            elif isinstance(part, _FOLLOWERS):
                mixes = mixes or isinstance(part, nn.LayerNorm | nn.GroupNorm)
                if isinstance(part, nn.GroupNorm) and part.num_groups > 1:
                    problems.append(f"{name} normalizes in {part.num_groups} groups of channels")
                if isinstance(part, _PER_CHANNEL_NORMS) and sorted(idxs) == everything == list(range(_width(part))):
                    norms.append(name)
            elif list(part.parameters(recurse=False)) or isinstance(part, nn.MultiheadAttention | nn.RNNBase):
                problems.append(f"it is coupled with {name}, and cutting {type(part).__name__} is not supported")
        if not one_to_one:
            widths = sorted({_width(self.module.get_submodule(name)) for name in layers})
            among = f"layers of {', '.join(map(str, widths))} channels" if len(widths) > 1 else "shifted channels"
            problems.insert(0, f"its channels are coupled, not one to one, with {among}")
        layers.sort(key=lambda name: self._order.get(name, len(self._order)))
        return Coupling(
            name=layers[0],
            width=width,
            layers=tuple(layers),
            consumers=tuple(sorted(consumers, key=lambda c: self._order.get(c.layer, len(self._order)))),
            norms=tuple(sorted(norms)),
            mixes_channels=mixes,
            problem=problems[0] if problems else "",
        )


def has_own_weight(layer: nn.Module) -> bool:
    """False if the weight is computed from other tensors, as by weight_norm."""
    return not parametrize.is_parametrized(layer) and isinstance(layer._parameters.get("weight"), nn.Parameter)


def _width(part: nn.Module) -> int:
    """Number of output channels."""
    for attribute in ("out_channels", "out_features", "num_features"):
        value = getattr(part, attribute, None)
        if isinstance(value, int):
            return value
    raise CompressionError(f"{type(part).__name__} has no number of channels")


def _layer_problems(name: str, layer: nn.Module) -> list[str]:
    if not has_own_weight(layer):
        return [f"the weight of {name} is computed from other tensors (a parametrization)"]
    if (
        isinstance(layer, nn.Conv2d)
        and layer.groups > 1
        and not layer.groups == layer.in_channels == layer.out_channels
    ):
        return [f"{name} is a convolution in {layer.groups} groups"]
    return []
