"""Passes that remove: whole channels, and single weights held at zero. No pass changes the module it is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autocompress.compress.coupling import ChannelGraph
from autocompress.compress.criteria import channel_criterion, weight_scores
from autocompress.compress.masks import Masks, masked_weight
from autocompress.compress.statistics import Statistics
from autocompress.compress.structure import evaluate, layer_calls
from autocompress.errors import CompressionError, InfeasibleError
from autocompress.records import ChannelCut, Plan, Structure, WeightMask
from autocompress.rng import derive_seed

__all__ = ["Masks", "Origin", "cut_channels", "make_masks", "origin", "zeros_asked"]

#: Where a cut module keeps its `Origin`; a plain attribute, so it is neither saved nor exported, but copied along.
_ORIGIN = "_autocompress_origin"


@dataclass(frozen=True)
class Origin:
    """Which of the dense network's weights a cut module's weights are.

    Attributes:
        positions: parameter name -> flat positions in the dense parameter, in the cut parameter's shape; only for
            parameters that lost something.
    """

    positions: Mapping[str, Tensor]

    def follow(self, name: str, dense: Tensor) -> Tensor:
        """The entries of `dense`, shaped as the dense parameter `name`, that belong to surviving weights."""
        positions = self.positions.get(name)
        return dense if positions is None else dense.flatten()[positions]


def origin(module: nn.Module) -> Origin:
    """Where a module's weights come from; for a module that was never cut, every weight from itself."""
    found = vars(module).get(_ORIGIN)
    return found if isinstance(found, Origin) else Origin({})


def cut_channels(
    module: nn.Module, plan: Plan, structure: Structure, statistics: Statistics, *, example: Tensor, seed: int
) -> nn.Module:
    """Remove channels so that every group of `plan.cuts` is left with exactly the width that is asked.

    Which channels go is decided once, on the dense module, by each cut's criterion; equal scores keep the lower index.

    Args:
        module: the dense network; left alone.
        plan: only its cuts are used.
        structure: of the same network.
        statistics: of the same network; used by the taylor criterion.
        example: one input batch.
        seed: of the random criterion.

    Returns:
        A new module that remembers its `Origin`; modes and `requires_grad` as in `module`.

    Raises:
        InfeasibleError: a cut names an unknown group, or asks for more channels than there are.
        CompressionError: the cut network does not run, or a layer does not have the width that was asked.
    """
    widths = {group.name: group for group in structure.groups}
    for cut in plan.cuts:
        if cut.group not in widths:
            raise InfeasibleError(
                f"plan.cuts: expected a group of the network, got {cut.group!r}; it has {list(widths)}"
            )
        if cut.keep > widths[cut.group].width:
            raise InfeasibleError(
                f"plan.cuts: {cut.group!r} has {widths[cut.group].width} channels, expected at most as many to keep, "
                f"got {cut.keep}"
            )
    removed = {cut.group: _removed(module, cut, structure, statistics, seed) for cut in plan.cuts}
    graph = ChannelGraph(module, example, [layer.name for layer in structure.layers])
    _number_weights(graph.module)
    try:
        for group, indices in removed.items():
            if indices:
                graph.remove(group, indices)
    except Exception as error:
        raise CompressionError(f"cutting {group!r} failed: {type(error).__name__}: {error}") from error
    result = graph.finish()
    vars(result)[_ORIGIN] = Origin(_take_weights(result, module))
    _verify(result, module, plan, structure, example)
    return result


def _removed(module: nn.Module, cut: ChannelCut, structure: Structure, statistics: Statistics, seed: int) -> list[int]:
    """Channels that go, in rising order."""
    group = structure.group(cut.group)
    generator = torch.Generator().manual_seed(derive_seed(seed, "cut", cut.group))
    scores = channel_criterion(cut.criterion)(module, group, statistics, generator)
    if scores.shape != (group.width,) or not torch.isfinite(scores).all():
        raise CompressionError(
            f"criterion {cut.criterion!r} on {cut.group!r}: expected {group.width} finite scores, "
            f"got shape {tuple(scores.shape)}"
        )
    ranked = torch.argsort(scores, descending=True, stable=True)
    return sorted(ranked[cut.keep :].tolist())


@torch.no_grad()
def _number_weights(module: nn.Module) -> None:
    """Replace every weight by its own flat position, so that whatever is cut, the survivors say who they are."""
    for parameter in module.parameters():
        # Double holds every integer up to 2**53.
        parameter.data = torch.arange(parameter.numel(), dtype=torch.float64).view(parameter.shape)


@torch.no_grad()
def _take_weights(cut: nn.Module, dense: nn.Module) -> dict[str, Tensor]:
    """Turn positions back into the dense module's weights; the positions of parameters that lost something."""
    sources = dict(dense.named_parameters())
    positions: dict[str, Tensor] = {}
    for name, parameter in cut.named_parameters():
        source = sources[name].detach()
        index = parameter.detach().to(torch.int64)
        parameter.data = source.flatten()[index.flatten()].view(parameter.shape).clone()
        if parameter.shape != source.shape:
            positions[name] = index
    return positions


def _verify(cut: nn.Module, dense: nn.Module, plan: Plan, structure: Structure, example: Tensor) -> None:
    for wanted in plan.cuts:
        for name in structure.group(wanted.group).layers:
            got = len(cut.get_submodule(name).get_parameter("weight"))
            if got != wanted.keep:
                raise CompressionError(f"{name}: expected {wanted.keep} channels after the cut, got {got}")
    try:
        expected, got_shape = evaluate(dense, example).shape, evaluate(cut, example).shape
    except Exception as error:
        raise CompressionError(f"the cut network does not run: {type(error).__name__}: {error}") from error
    if got_shape != expected:
        raise CompressionError(
            f"the cut network: expected an output of shape {tuple(expected)}, got {tuple(got_shape)}"
        )
    shrinks = any(c.keep < structure.group(c.group).width for c in plan.cuts)
    if shrinks and sum(layer_calls(cut, example).values()) >= sum(layer_calls(dense, example).values()):
        raise CompressionError(f"the cuts of plan {plan.key} save no multiply-adds")


def zeros_asked(mask: WeightMask, weights: int) -> int:
    """How many of a layer's `weights` (after any cut) a mask sets to zero."""
    return round(mask.sparsity * weights)


def make_masks(module: nn.Module, plan: Plan, statistics: Statistics, *, seed: int) -> Masks:
    """Choose the weights with the lowest score in every layer of `plan.masks`.

    In a layer of n weights, exactly ``round(sparsity * n)`` are chosen; equal scores keep the lower position.
    Statistics are those of the dense network: for a module made by `cut_channels` they are followed to the surviving
    weights through its `Origin`.

    Args:
        module: the dense or the cut network; left alone.
        plan: only its masks are used.
        statistics: of the dense network; used by the taylor criterion.
        seed: of the random criterion.

    Raises:
        InfeasibleError: a mask names an unknown layer.
        CompressionError: the statistics do not belong to this network.
    """
    came_from = origin(module)
    kept: dict[str, Tensor] = {}
    for mask in plan.masks:
        weight = masked_weight(module, mask.layer)
        name = f"{mask.layer}.weight"
        gradient = came_from.follow(name, statistics.gradient(name)) if mask.criterion == "taylor" else None
        generator = torch.Generator().manual_seed(derive_seed(seed, "mask", mask.layer))
        try:
            scores = weight_scores(mask.criterion, weight, gradient, generator)
        except ValueError as error:
            raise CompressionError(f"mask of {mask.layer!r}: {error}") from error
        ranked = torch.argsort(scores.flatten(), descending=True, stable=True)
        keep = torch.ones(weight.numel(), dtype=torch.bool)
        keep[ranked[weight.numel() - zeros_asked(mask, weight.numel()) :]] = False
        kept[mask.layer] = keep.view(weight.shape)
    return Masks(kept)
