"""How much a channel or a weight is worth: larger scores are kept.

References:
    Molchanov et al., 2019, "Importance Estimation for Neural Network Pruning" (taylor);
    Li et al., 2017, "Pruning Filters for Efficient ConvNets" (magnitude);
    Fang et al., 2023, "DepGraph: Towards Any Structural Pruning" (coupled layers).
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from autocompress.compress.statistics import Statistics
from autocompress.records import Criterion, Group


class ChannelCriterion(Protocol):
    """Scores the channels of a group."""

    def __call__(self, module: nn.Module, group: Group, statistics: Statistics, generator: torch.Generator) -> Tensor:
        """Scores of shape (group.width,), finite; larger = keep."""
        ...


def magnitude(module: nn.Module, group: Group, statistics: Statistics, generator: torch.Generator) -> Tensor:
    r"""Mean over coupled layers of :math:`\lVert w_c \rVert_2`, each layer's norms divided by their mean.

    Args:
        module: the dense network.
        group: coupled channels.
        statistics: unused.
        generator: unused.

    Returns:
        Shape (group.width,), without unit; a group of zeros scores 0.
    """
    return _aggregate([_filters(module, name).norm(dim=1) for name in group.layers])


def taylor(module: nn.Module, group: Group, statistics: Statistics, generator: torch.Generator) -> Tensor:
    r"""Squared first-order change of the loss when a channel is removed, :math:`(\sum_{i \in c} g_i w_i)^2`.

    Where normalizations follow the layers, the sum is over their scale and shift, because only setting those to zero
    silences the channel; otherwise it is over the layers' weights and biases. Each part's scores are divided by their
    mean, then averaged.

    Args:
        module: the dense network.
        group: coupled channels.
        statistics: gradients of the same network.
        generator: unused.

    Returns:
        Shape (group.width,), without unit.

    Raises:
        CompressionError: a gradient is missing.
    """
    affine = [name for name in group.norms if isinstance(module.get_submodule(name).weight, nn.Parameter)]
    parts: list[Tensor] = []
    for name in affine or group.layers:
        layer = module.get_submodule(name)
        change = torch.zeros(group.width)
        for kind, parameter in layer.named_parameters(recurse=False):
            product = parameter.detach() * statistics.gradient(f"{name}.{kind}")
            change = change + product.reshape(group.width, -1).sum(dim=1)
        parts.append(change.square())
    return _aggregate(parts)


def random(module: nn.Module, group: Group, statistics: Statistics, generator: torch.Generator) -> Tensor:
    """Uniform scores in [0, 1): the baseline that every criterion has to beat.

    Args:
        module: unused.
        group: coupled channels.
        statistics: unused.
        generator: where the scores come from.

    Returns:
        Shape (group.width,), without unit.
    """
    return torch.rand(group.width, generator=generator)


def channel_criterion(name: Criterion) -> ChannelCriterion:
    """The function behind a plan's word."""
    match name:
        case "magnitude":
            return magnitude
        case "taylor":
            return taylor
        case "random":
            return random


def weight_scores(criterion: Criterion, weight: Tensor, gradient: Tensor | None, generator: torch.Generator) -> Tensor:
    r"""Score of every single weight: :math:`|w|`, :math:`(g w)^2`, or uniform in [0, 1).

    Args:
        criterion: which of the three.
        weight: any shape.
        gradient: same shape; only ``"taylor"`` needs it.
        generator: only ``"random"`` uses it.

    Returns:
        Same shape as `weight`; larger = keep.

    Raises:
        ValueError: ``"taylor"`` without a gradient of the same shape.
    """
    match criterion:
        case "magnitude":
            return weight.detach().abs()
        case "taylor":
            if gradient is None or gradient.shape != weight.shape:
                got = None if gradient is None else tuple(gradient.shape)
                raise ValueError(f"taylor: expected a gradient of shape {tuple(weight.shape)}, got {got}")
            return (weight.detach() * gradient).square()
        case "random":
            return torch.rand(weight.shape, generator=generator)


def _filters(module: nn.Module, name: str) -> Tensor:
    """Weights of a layer, shape (output channels, weights per channel)."""
    return module.get_submodule(name).get_parameter("weight").detach().flatten(1)


def _aggregate(parts: list[Tensor]) -> Tensor:
    """Mean of the parts' scores, each divided by its own mean so that no layer speaks louder; shape (width,)."""
    return torch.stack([part / part.mean().clamp_min(torch.finfo(part.dtype).tiny) for part in parts]).mean(dim=0)
