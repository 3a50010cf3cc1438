r"""How much a unit (channel, neuron, head, hidden unit) or a single weight is worth: larger scores are kept.

Every criterion scores a group's units in each of the coupled layers by itself. `channel_scores` makes one score of
these: each layer's scores are divided by their mean, so that no layer speaks louder for the size of its weights, then
reduced over the layers.

Conventions: scores are finite and >= 0. Weights of zero score 0. Equal units have equal scores; whoever ranks them
decides between them (`cut_channels` and `make_masks` keep the lower index). Only `obs` tells them apart: it ranks sets.
A weight that is NaN or infinite raises.

References:
    Li et al., 2017, "Pruning Filters for Efficient ConvNets" (l1, magnitude);
    Liu et al., 2017, "Learning Efficient Convolutional Networks through Network Slimming" (bn_scale);
    He et al., 2019, "Filter Pruning via Geometric Median" (fpgm);
    Molchanov et al., 2019, "Importance Estimation for Neural Network Pruning" (taylor);
    Molchanov et al., 2017, "Pruning Convolutional Neural Networks for Resource Efficient Inference"
        (taylor_activation);
    LeCun et al., 1990, "Optimal Brain Damage" (hessian);
    Hassibi and Stork, 1993, "Optimal Brain Surgeon" (obs);
    Lee et al., 2021, "Layer-adaptive Sparsity for the Magnitude-based Pruning" (lamp);
    Fang et al., 2023, "DepGraph: Towards Any Structural Pruning" (coupled layers).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from autocompress.compress.elimination import elimination_scores
from autocompress.compress.statistics import Statistics
from autocompress.compress.unit_weights import like, outputs_of, removable, scaled_norms, slices, take
from autocompress.errors import CompressionError, InfeasibleError
from autocompress.records import Criterion, Reduction
from autocompress.records.plan import CHANNEL_CRITERIA, WEIGHT_CRITERIA

if TYPE_CHECKING:
    from autocompress.compress.coupling import Units


class ChannelCriterion(Protocol):
    """Scores the units of a group."""

    def __call__(self, module: nn.Module, units: Units, statistics: Statistics, generator: torch.Generator) -> Tensor:
        """Scores of shape (width,), finite and >= 0, without unit; larger = keep."""
        ...


#: The coupled layers' own scores: layer name -> shape (width,).
_LayerScores = Callable[[nn.Module, "Units", Statistics, torch.Generator], dict[str, Tensor]]


def magnitude(module: nn.Module, units: Units, statistics: Statistics, generator: torch.Generator) -> dict[str, Tensor]:
    r"""Per layer :math:`\lVert w_u \rVert_2`, over all weights of a unit; shape (width,), in the weights' unit."""
    return {name: weights.norm(dim=1) for name, weights in slices(module, units).items()}


def l1(module: nn.Module, units: Units, statistics: Statistics, generator: torch.Generator) -> dict[str, Tensor]:
    r"""Per layer :math:`\lVert w_u \rVert_1`, over all weights of a unit; shape (width,), in the weights' unit."""
    return {name: weights.abs().sum(dim=1) for name, weights in slices(module, units).items()}


def fpgm(module: nn.Module, units: Units, statistics: Statistics, generator: torch.Generator) -> dict[str, Tensor]:
    r"""Per layer :math:`\sum_j \lVert w_u - w_j \rVert_2`: a unit near the geometric median can be replaced by others.

    Shape (width,), in the weights' unit. A group of a single unit, or of equal ones, scores 0 (in layers of
    over 2^27 differences up to rounding).
    """
    found = {}
    for name, weights in slices(module, units).items():
        # Matrix products are ten times as fast, but leave equal units with small distances, so that they may not tie.
        exact = weights.numel() * len(weights) < 2**27
        mode = "donot_use_mm_for_euclid_dist" if exact else "use_mm_for_euclid_dist"
        wide = weights if exact else weights.double()
        found[name] = torch.cdist(wide, wide, compute_mode=mode).fill_diagonal_(0.0).sum(dim=1).to(weights.dtype)
    return found


def bn_scale(module: nn.Module, units: Units, statistics: Statistics, generator: torch.Generator) -> dict[str, Tensor]:
    r"""Per normalization :math:`\sum |\gamma|` over the unit's channels; shape (width,), without unit.

    Raises:
        InfeasibleError: no normalization with a scale belongs to the group.
    """
    scales = scaled_norms(units)
    if not scales:
        others = ", ".join(sorted(CHANNEL_CRITERIA - {"bn_scale"}))
        raise InfeasibleError(
            f"criterion bn_scale on {units.group.name!r}: expected a normalization with a scale for each channel "
            f"behind the group's layers, got none; possible are {others}"
        )
    return {name: take(module, units, f"{name}.weight", 0).abs().sum(dim=1) for name in scales}


def taylor(module: nn.Module, units: Units, statistics: Statistics, generator: torch.Generator) -> dict[str, Tensor]:
    r"""Squared first-order change of the loss when a unit is set to zero, :math:`(\sum_{i \in u} \bar g_i w_i)^2`.

    The gradient is the mean over the batches that statistics were taken from; the paper averages the square over
    batches instead, which adds their variance.

    Where normalizations with a scale follow the layers, the sum is over their scale and shift, because only setting
    those to zero silences the unit; otherwise it is over each layer's weights and biases.

    Returns:
        Shape (width,) each, in squared units of the loss.

    Raises:
        CompressionError: a gradient is missing, or does not fit its weight.
    """
    found = {}
    for name, part in removable(module, units).items():
        changes = [(w * like(module, units, p, axis, statistics.gradient(p))).sum(dim=1) for p, axis, w in part]
        found[name] = torch.stack(changes).sum(dim=0).square()
    return found


def hessian(module: nn.Module, units: Units, statistics: Statistics, generator: torch.Generator) -> dict[str, Tensor]:
    r"""Second-order change of the loss at a minimum, :math:`\frac 1 2 \sum_{i \in u} h_i w_i^2`; h is the Fisher's.

    The sum is over the same parameters as `taylor`'s.

    Returns:
        Shape (width,) each, in units of the loss.

    Raises:
        CompressionError: squared gradients are missing, or do not fit their weight.
    """
    found = {}
    for name, part in removable(module, units).items():
        changes = [(w.square() * like(module, units, p, axis, statistics.fisher(p))).sum(dim=1) for p, axis, w in part]
        found[name] = 0.5 * torch.stack(changes).sum(dim=0)
    return found


def taylor_activation(
    module: nn.Module, units: Units, statistics: Statistics, generator: torch.Generator
) -> dict[str, Tensor]:
    """First-order effect of the unit's activations, `Statistics.activation_taylor` summed over its channels.

    Activations are those behind the group's normalizations with a scale, as only their zero silences the unit; without
    such, at the layers' outputs.

    Returns:
        Shape (width,) each, without unit.

    Raises:
        CompressionError: no layer of the group has the statistic, or one does not fit.
    """
    names = scaled_norms(units) or units.group.layers
    return outputs_of(module, units, names, statistics.activation_taylors, statistics.activation_taylor)


def f_statistic(
    module: nn.Module, units: Units, statistics: Statistics, generator: torch.Generator
) -> dict[str, Tensor]:
    """How well a unit's activation tells classes apart, `Statistics.f_statistic` summed over its channels.

    Activations are those of the layers; an affine map per channel, as a normalization's, changes nothing.

    Returns:
        Shape (width,) each, without unit.

    Raises:
        CompressionError: no layer of the group has the statistic, or one does not fit.
    """
    return outputs_of(module, units, units.group.layers, statistics.f_statistics, statistics.f_statistic)


def obs(module: nn.Module, units: Units, statistics: Statistics, generator: torch.Generator) -> dict[str, Tensor]:
    """Share of the outputs behind the group that is lost once a unit goes, when all that go before it have gone.

    What is left takes over what goes, as `reconstruct` has it; see `elimination_scores`. One score for the whole group.
    A group of which no layer reads the units as channels of its own, as within torch's own attention, is scored by
    magnitude.

    Returns:
        Shape (width,), a share from 0 to about 1.
    """
    found = elimination_scores(module, units, statistics.moments)
    return magnitude(module, units, statistics, generator) if found is None else {units.group.name: found}


def random(module: nn.Module, units: Units, statistics: Statistics, generator: torch.Generator) -> dict[str, Tensor]:
    """Uniform scores in [0, 1), one for the whole group: the baseline that every criterion has to beat."""
    return {units.group.name: torch.rand(units.group.width, generator=generator)}


def layer_scores(criterion: Criterion) -> _LayerScores:
    """The function behind a plan's word, giving each coupled layer's own scores."""
    match criterion:
        case "magnitude":
            return magnitude
        case "l1":
            return l1
        case "bn_scale":
            return bn_scale
        case "fpgm":
            return fpgm
        case "taylor":
            return taylor
        case "taylor_activation":
            return taylor_activation
        case "hessian":
            return hessian
        case "f_statistic":
            return f_statistic
        case "obs":
            return obs
        case "random":
            return random
        case "lamp":
            possible = ", ".join(sorted(CHANNEL_CRITERIA))
            raise InfeasibleError(
                f"criterion: expected one for channels ({possible}), got 'lamp', which scores weights"
            )


def channel_criterion(name: Criterion) -> ChannelCriterion:
    """The criterion behind a plan's word, with the mean over coupled layers.

    Raises:
        InfeasibleError: it scores single weights only.
    """
    layer_scores(name)
    return partial(channel_scores, name, "mean")


def channel_scores(
    criterion: Criterion,
    reduction: Reduction,
    module: nn.Module,
    units: Units,
    statistics: Statistics,
    generator: torch.Generator,
) -> Tensor:
    """One score per unit of a group.

    Args:
        criterion: how a unit is scored in one layer.
        reduction: how the coupled layers' scores become one; each layer's are divided by their mean before. A layer
            whose scores are all 0 keeps them.
        module: the network as it is now.
        units: of the same network.
        statistics: of the same network, followed through any cut.
        generator: only ``"random"`` uses it.

    Returns:
        Shape (width,), finite and >= 0, without unit; larger = keep. With ``"mean"`` their mean is 1 (less if layers
        are all zero), so that groups compare.

    Raises:
        InfeasibleError: the criterion does not apply to this group.
        CompressionError: statistics are missing or do not fit, or a weight is NaN or infinite.
    """
    parts = layer_scores(criterion)(module, units, statistics, generator)
    for name, scores in parts.items():
        bad = int((~torch.isfinite(scores)).sum())
        if bad or scores.shape != (units.group.width,):
            raise CompressionError(
                f"criterion {criterion} on {units.group.name!r}: expected {units.group.width} finite scores in "
                f"{name!r}, got shape {tuple(scores.shape)} with {bad} NaN or infinite; look for such weights or "
                "statistics"
            )
    # In double precision: a product of many layers leaves the range of float32.
    scaled = torch.stack([scores.double() for scores in parts.values()])
    mean = scaled.mean(dim=1, keepdim=True)
    scaled = scaled / torch.where(mean > 0, mean, 1.0)
    match reduction:
        case "mean":
            reduced = scaled.mean(dim=0)
        case "sum":
            reduced = scaled.sum(dim=0)
        case "max":
            reduced = scaled.amax(dim=0)
        case "prod":
            reduced = scaled.prod(dim=0)
    return reduced.float()


def weight_scores(
    criterion: Criterion,
    weight: Tensor,
    *,
    gradient: Tensor | None = None,
    fisher: Tensor | None = None,
    generator: torch.Generator,
    name: str = "the weight",
) -> Tensor:
    r"""Score of every single weight of a layer.

    ``"magnitude"``: :math:`|w|`; ``"taylor"``: :math:`(g w)^2`; ``"hessian"``: :math:`\frac 1 2 h w^2`; ``"lamp"``:
    :math:`w_i^2 / \sum_{j: w_j^2 \ge w_i^2} w_j^2`, which ranks as magnitude within the layer and compares across
    layers (0 in a layer of zeros); ``"random"``: uniform in [0, 1).

    Args:
        criterion: one of those.
        weight: any shape.
        gradient: same shape; ``"taylor"`` needs it.
        fisher: same shape, mean squared gradients; ``"hessian"`` needs it.
        generator: only ``"random"`` uses it.
        name: of the layer, for messages.

    Returns:
        Same shape as `weight`; finite, >= 0, larger = keep. Equal weights have equal magnitude and LAMP scores.

    Raises:
        InfeasibleError: the criterion scores whole channels only.
        CompressionError: a weight is NaN or infinite, or the gradient or Fisher is missing, does not fit or is not
            finite.
    """
    weight = weight.detach()
    if criterion not in WEIGHT_CRITERIA:
        possible = ", ".join(sorted(WEIGHT_CRITERIA))
        raise InfeasibleError(f"criterion on {name!r}: expected one for weights ({possible}), got {criterion!r}")
    if not torch.isfinite(weight).all():
        raise CompressionError(
            f"criterion {criterion} on {name!r}: expected finite weights, got "
            f"{int((~torch.isfinite(weight)).sum())} that are NaN or infinite"
        )
    match criterion:
        case "taylor":
            scores = (weight * _fitting(gradient, weight, "taylor", "a gradient", name)).square()
        case "hessian":
            scores = 0.5 * weight.square() * _fitting(fisher, weight, "hessian", "squared gradients", name)
        case "lamp":
            scores = _lamp(weight)
        case "random":
            scores = torch.rand(weight.shape, generator=generator)
        case _:
            scores = weight.abs()
    if not torch.isfinite(scores).all():
        raise CompressionError(
            f"criterion {criterion} on {name!r}: expected finite scores; its statistics are not finite"
        )
    return scores


def _lamp(weight: Tensor) -> Tensor:
    squares = weight.flatten().double().square()
    ordered, order = squares.sort()
    not_smaller = ordered.flip(0).cumsum(0).flip(0)
    # Equal squares share the sum that starts at the first of them.
    first = torch.searchsorted(ordered, ordered)
    ratio = ordered / torch.where(not_smaller[first] > 0, not_smaller[first], 1.0)
    return torch.empty_like(ratio).scatter_(0, order, ratio).to(weight.dtype).view(weight.shape)


def _fitting(found: Tensor | None, weight: Tensor, criterion: str, what: str, name: str) -> Tensor:
    if found is None or found.shape != weight.shape:
        got = None if found is None else tuple(found.shape)
        raise CompressionError(
            f"criterion {criterion} on {name!r}: expected {what} of shape {tuple(weight.shape)}, got {got}"
        )
    return found.detach()
