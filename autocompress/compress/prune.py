"""The pass that removes units: channels, neurons, attention heads, hidden units. It never changes what it is given."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from autocompress.compress.blocks import drop_blocks
from autocompress.compress.coupling import Coupled, Units, trace, two_or_more
from autocompress.compress.criteria import channel_scores
from autocompress.compress.layers import run_layers
from autocompress.compress.origin import Origin, origin, remember
from autocompress.compress.probe import inconsistent, reshaped
from autocompress.compress.reconstruct import reconstruct
from autocompress.compress.statistics import Statistics
from autocompress.compress.surgery import Removal, kept_indices, settle, shrink, tensor_of
from autocompress.errors import CompressionError, InfeasibleError, TaskError
from autocompress.inputs import Inputs
from autocompress.records import ChannelCut, Reconstruction, Structure
from autocompress.rng import derive_seed

__all__ = ["Origin", "cut_channels", "drop_blocks", "follow_statistics", "origin"]


def follow_statistics(statistics: Statistics, module: nn.Module) -> Statistics:
    """Statistics of the dense network for a module that was cut from it, by its `Origin`."""
    return statistics.follow(origin(module).positions)


def cut_channels(
    module: nn.Module,
    cuts: Sequence[ChannelCut],
    structure: Structure,
    statistics: Statistics,
    *,
    example: Inputs,
    seed: int,
    units: Mapping[str, Coupled] | None = None,
    reconstruction: Reconstruction = "least-squares",
) -> nn.Module:
    """Remove units so that every group of `cuts` is left with exactly the width that is asked.

    Which units go is decided by each cut's criterion on the module as it is given; equal scores keep the lower index.
    A group that already has the width is left as it is.

    Args:
        module: the dense network, or one that was cut or had blocks left out; left alone.
        cuts: at most one per group.
        structure: of the dense network.
        statistics: of the dense network.
        example: one input batch.
        seed: of the random criterion.
        units: those of the module, ``trace(module, example).groups``, where it is cut again and again.
        reconstruction: ``"least-squares"`` refits what stays behind the cut, as far as the statistics know what flows
            there; see `reconstruct`. ``"none"`` leaves it as it is.

    Returns:
        A new module that remembers its `Origin`; modes and `requires_grad` as in `module`.

    Raises:
        InfeasibleError: a cut names an unknown group, a group twice, or asks for more units than there are.
        CompressionError: a weight or score is not finite, or the cut network does not run, or its units are not those
            that were kept.
    """
    _check_names(cuts, structure)
    before = units if units is not None else trace(module, example).groups if cuts else {}
    asked = [cut for cut in cuts if cut.keep < _width(cut, before, origin(module))]
    followed = follow_statistics(statistics, module)
    removals = [
        Removal(before[cut.group], _kept(module, cut, before[cut.group].units, followed, seed)) for cut in asked
    ]
    result = copy.deepcopy(module)
    if not removals:
        return result
    inputs = two_or_more(example)
    expected, _ = run_layers(module, inputs)
    if reconstruction == "least-squares":
        reconstruct(result, kept_indices(result, removals), followed.moments)
    kept = shrink(result, removals)

    def refusal(candidate: nn.Module) -> str:
        try:
            got, layers = run_layers(candidate, inputs)
        except TaskError as error:
            return str(error)
        return reshaped(expected, got) or inconsistent(before, candidate, removals, inputs, layers)

    if reason := settle(result, removals, refusal):
        raise CompressionError(f"cutting {', '.join(repr(cut.group) for cut in asked)} failed: {reason}")
    remember(result, _origin_of(module, kept, asked))
    return result


def _check_names(cuts: Sequence[ChannelCut], structure: Structure) -> None:
    known = [group.name for group in structure.groups]
    seen: set[str] = set()
    for cut in cuts:
        if cut.group not in known:
            raise InfeasibleError(f"plan.cuts: expected a group of the network, got {cut.group!r}; it has {known}")
        if cut.group in seen:
            raise InfeasibleError(f"plan.cuts: expected each group once, got {cut.group!r} twice")
        seen.add(cut.group)


def _width(cut: ChannelCut, groups: Mapping[str, Coupled], came_from: Origin) -> int:
    """Units of the group now; at least as many as are asked."""
    if cut.group in came_from.widths:
        width = came_from.widths[cut.group]
    elif cut.group in groups:
        width = groups[cut.group].units.group.width
    else:
        raise InfeasibleError(
            f"plan.cuts: {cut.group!r} is no longer in the network, its layers were left out with a block; "
            f"it has {list(groups)}"
        )
    if cut.keep > width:
        raise InfeasibleError(
            f"plan.cuts: {cut.group!r} has {width} channels, expected at most as many to keep, got {cut.keep}"
        )
    return width


def _kept(module: nn.Module, cut: ChannelCut, units: Units, statistics: Statistics, seed: int) -> Tensor:
    """Units that stay, in rising order."""
    for name, _ in units.positions:
        if not bool(torch.isfinite(tensor_of(module, name)).all()):
            raise CompressionError(
                f"plan.cuts: {cut.group!r}: expected finite weights, got NaN or infinity in {name!r}; "
                "look at how the network was trained"
            )
    generator = torch.Generator().manual_seed(derive_seed(seed, "cut", cut.group))
    scores = channel_scores(cut.criterion, cut.reduction, module, units, statistics, generator)
    if scores.shape != (units.group.width,) or not bool(torch.isfinite(scores).all()):
        raise CompressionError(
            f"criterion {cut.criterion!r} on {cut.group!r}: expected {units.group.width} finite scores, "
            f"got shape {tuple(scores.shape)}"
        )
    ranked = torch.argsort(scores, descending=True, stable=True)
    return ranked[: cut.keep].sort().values


def _origin_of(module: nn.Module, kept: Mapping[tuple[str, int], Tensor], cuts: Sequence[ChannelCut]) -> Origin:
    """The origin of a module that was cut from `module`, in terms of the dense network."""
    earlier = origin(module)
    positions = dict(earlier.positions)
    same: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        same.setdefault(id(parameter), []).append(name)
    for (name, axis), stays in kept.items():
        tensor = tensor_of(module, name)
        if name not in positions:
            positions[name] = torch.arange(tensor.numel()).view(tensor.shape)
        positions[name] = positions[name].index_select(axis, stays)
        for alias in same.get(id(tensor), ()):
            positions[alias] = positions[name]
    return Origin(positions, {**earlier.widths, **{cut.group: cut.keep for cut in cuts}})
