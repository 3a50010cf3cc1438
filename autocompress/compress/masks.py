"""Single weights that are held at zero through training and into the artifact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autocompress.compress.criteria import weight_scores
from autocompress.compress.patterns import check_fits, select
from autocompress.compress.prune import origin
from autocompress.compress.statistics import Statistics
from autocompress.errors import CompressionError, InfeasibleError
from autocompress.records import Layer, Structure, WeightMask
from autocompress.rng import derive_seed


@dataclass(frozen=True)
class Masks:
    """Weights that are held at zero.

    Masks are no part of the network: its saved state has the zeros themselves, and they stay zero after it is loaded,
    copied or exported. `check` proves it.

    Attributes:
        kept: layer name -> booleans in the shape of its weight; False is held at zero.
    """

    kept: Mapping[str, Tensor]

    @torch.no_grad()
    def apply(self, module: nn.Module) -> None:
        """Set the masked weights of `module` to zero, in place; called after every optimizer step.

        Raises:
            CompressionError: a layer is missing or has another shape.
        """
        for name, kept in self.kept.items():
            # Not a product: 0 * inf would be NaN, and 0 * -1 a negative zero.
            _fitting(module, name, kept).masked_fill_(~kept, 0.0)

    def check(self, module: nn.Module) -> None:
        """Refuse a module in which a masked weight is not zero.

        Raises:
            CompressionError: naming the layer and the number of such weights.
        """
        for name, kept in self.kept.items():
            alive = int((_fitting(module, name, kept).detach()[~kept] != 0).sum())
            if alive:
                raise CompressionError(
                    f"mask of {name!r}: expected {int((~kept).sum())} weights to be zero, got {alive} that are not"
                )

    def counts(self) -> dict[str, int]:
        """Layer name -> number of weights that are held at zero."""
        return {name: int((~kept).sum()) for name, kept in self.kept.items()}

    def __bool__(self) -> bool:
        """True if anything is masked."""
        return bool(self.kept)


@dataclass(frozen=True)
class FixedMasks:
    """Holds masks through a training, as a hook of it.

    Masked weights get no gradient either, so that they count neither for the clipping of gradients nor for momentum.
    """

    masks: Masks

    def before_forward(self, module: nn.Module, step: int, steps: int) -> None:
        """Make sure that the first step sees the zeros."""
        if step == 0:
            self.masks.apply(module)

    def before_update(self, module: nn.Module, step: int, steps: int) -> None:
        """Clear the gradients of masked weights."""
        for name, kept in self.masks.kept.items():
            gradient = masked_weight(module, name).grad
            if gradient is not None:
                gradient.masked_fill_(~kept, 0.0)

    def after_update(self, module: nn.Module, step: int, steps: int) -> None:
        """Momentum and weight decay may have moved them."""
        self.masks.apply(module)

    def finish(self, module: nn.Module) -> None:
        """Also where there was no step."""
        self.masks.apply(module)


def masked_weight(module: nn.Module, layer: str) -> Tensor:
    """The weight of `layer`, a module's name, or the name of a parameter itself (a matrix of a recurrent layer).

    Raises:
        InfeasibleError: there is no such layer, or it has no weight.
    """
    for parameter in (f"{layer}.weight", layer):
        try:
            return module.get_parameter(parameter)
        except AttributeError:
            continue
    raise InfeasibleError(f"plan.masks: expected a layer of the network, got {layer!r}")


def known_layer(structure: Structure, name: str) -> Layer:
    """The record of a layer that is to be masked.

    Raises:
        InfeasibleError: the network has no such layer.
    """
    layers = {layer.name: layer for layer in structure.layers}
    if name not in layers:
        raise InfeasibleError(
            f"plan.masks: expected a layer of the network, got {name!r}; it has {', '.join(sorted(layers))}"
        )
    return layers[name]


def make_masks(
    module: nn.Module, masks: Sequence[WeightMask], structure: Structure, statistics: Statistics, *, seed: int
) -> Masks:
    """Choose the weights with the lowest scores in every layer of `masks`.

    How many is exact, see `patterns.zeros_asked`; equal scores keep the lower position. A weight that is zero already
    scores lowest under every criterion, so masks that are chosen again for more zeros keep those that they have.

    Args:
        module: the dense or a cut network; left alone.
        masks: what is asked.
        structure: of the dense network.
        statistics: of the dense network, whose entries are followed to the weights that survive in `module`; or of
            `module` itself.
        seed: of the random criterion.

    Raises:
        InfeasibleError: a mask names an unknown layer, or one that its pattern does not fit.
        CompressionError: the statistics do not belong to this network; a weight or a score is not finite.
    """
    kept: dict[str, Tensor] = {}
    for mask in masks:
        weight = masked_weight(module, mask.layer).detach()
        layer = known_layer(structure, mask.layer)
        check_fits(mask, layer, tuple(weight.shape))
        scores = _scores(module, mask, layer, weight, statistics, seed)
        kept[mask.layer] = select(scores.masked_fill(weight == 0, 0.0), mask, layer.kind)
    return Masks(kept)


def _scores(
    module: nn.Module, mask: WeightMask, layer: Layer, weight: Tensor, statistics: Statistics, seed: int
) -> Tensor:
    """Score of every weight of a layer, none negative."""
    name = layer.parameter

    def own(dense: Tensor) -> Tensor:
        if dense.shape == weight.shape:
            return dense
        try:
            return origin(module).follow(name, dense)
        except IndexError as error:
            raise CompressionError(
                f"mask of {mask.layer!r}: expected statistics of the network that was cut, got others for {name!r} "
                f"({error})"
            ) from error

    return weight_scores(
        mask.criterion,
        weight,
        gradient=own(statistics.gradient(name)) if mask.criterion == "taylor" else None,
        fisher=own(statistics.fisher(name)) if mask.criterion == "hessian" else None,
        generator=torch.Generator().manual_seed(derive_seed(seed, "mask", mask.layer)),
        name=name,
    )


def _fitting(module: nn.Module, name: str, kept: Tensor) -> Tensor:
    weight = masked_weight(module, name)
    if weight.shape != kept.shape:
        raise CompressionError(
            f"mask of {name!r}: expected a weight of shape {tuple(kept.shape)}, got {tuple(weight.shape)}"
        )
    return weight
