"""Single weights that are held at zero through training and into the artifact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autocompress.errors import CompressionError, InfeasibleError


@dataclass(frozen=True)
class Masks:
    """Weights that are held at zero.

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
            weight = masked_weight(module, name)
            if weight.shape != kept.shape:
                raise CompressionError(
                    f"mask of {name!r}: expected a weight of shape {tuple(kept.shape)}, got {tuple(weight.shape)}"
                )
            # Not a product: 0 * inf would be NaN, and 0 * -1 a negative zero.
            weight.masked_fill_(~kept, 0.0)

    def counts(self) -> dict[str, int]:
        """Layer name -> number of weights that are held at zero."""
        return {name: int((~kept).sum()) for name, kept in self.kept.items()}

    def __bool__(self) -> bool:
        """True if anything is masked."""
        return bool(self.kept)


def masked_weight(module: nn.Module, layer: str) -> Tensor:
    """The weight of `layer`.

    Raises:
        InfeasibleError: there is no such layer, or it has no weight.
    """
    try:
        return module.get_submodule(layer).get_parameter("weight")
    except AttributeError as error:
        raise InfeasibleError(f"plan.masks: expected a layer of the network, got {layer!r}") from error
