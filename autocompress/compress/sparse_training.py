"""Training that is sparse from its first step to its last: masks move, the number of zeros does not.

RigL lets the weights with the largest gradients grow, among those that were inactive; unlike the paper's, an update
does not take the place of an optimizer step, and what was just dropped cannot come back at once.

How many zeros each layer has (uniform, ERK) is the plan's say; see `allocate.allocate_masks`.

References:
    Mocanu et al., 2018, "Scalable training of artificial neural networks with adaptive sparse connectivity inspired by
    network science" (SET); Evci et al., 2020, "Rigging the Lottery: Making All Tickets Winners" (RigL).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from autocompress.compress.masks import FixedMasks, Masks, masked_weight
from autocompress.records import SparseTraining
from autocompress.rng import derive_seed


def replaced(schedule: SparseTraining, update: int, active: int, inactive: int) -> int:
    r"""How many of a layer's weights an update replaces: :math:`\frac{f}{2}(1 + \cos(\pi k / n))` of the active ones.

    Args:
        schedule: f is its fraction, n its number of updates.
        update: k, from 0 to n - 1.
        active: weights that are not masked.
        inactive: weights that are; no more can grow.
    """
    share = 0.5 * schedule.fraction * (1.0 + math.cos(math.pi * update / schedule.updates))
    return min(round(share * active), inactive)


def update_steps(schedule: SparseTraining, steps: int) -> dict[int, int]:
    """Step -> number of the update that happens in it, spread evenly from the share `begin` of all steps to `until`.

    With fewer steps than updates, the first of those that fall together happens.
    """
    found: dict[int, int] = {}
    for update in range(schedule.updates):
        share = schedule.begin + (update + 1) / schedule.updates * (schedule.until - schedule.begin)
        step = round(share * steps)
        found.setdefault(min(step, steps - 1), update)
    return found


def rewired(
    kept: Tensor, weight: Tensor, gradient: Tensor | None, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """One layer's mask after an update: the `count` smallest active weights go, as many inactive ones come.

    Args:
        kept: the mask now, True is active.
        weight: of the layer, same shape.
        gradient: of the loss, same shape; those with the largest magnitude come. None: random ones do.
        count: how many; at most the number of active, and of inactive, weights.
        generator: of the random growth.

    Returns:
        The new mask, with as many active weights as before, and where weights have grown.
    """
    flat = kept.flatten()
    smallness = weight.detach().abs().flatten().masked_fill(~flat, float("inf"))
    gone = torch.argsort(smallness, stable=True)[:count]
    wish = torch.rand(flat.shape, generator=generator) if gradient is None else gradient.abs().flatten().cpu()
    grown = torch.argsort(wish.masked_fill(flat, -1.0), descending=True, stable=True)[:count]
    new = flat.clone()
    new[gone] = False
    new[grown] = True
    fresh = torch.zeros_like(flat)
    fresh[grown] = True
    return new.view(kept.shape), fresh.view(kept.shape)


class Rewiring:
    """Moves masks while a network trains, as a hook; the number of zeros in every layer stays the same.

    Updates happen between the backward pass and the step, where gradients of inactive weights are there as well. A
    grown weight starts at 0 with no momentum and takes part in the step at once.

    Attributes:
        masks: as they are now.
    """

    def __init__(self, masks: Masks, schedule: SparseTraining, *, seed: int) -> None:
        self.masks = masks
        self.schedule = schedule
        self._generator = torch.Generator().manual_seed(derive_seed(seed, "grow"))
        self._optimizer: torch.optim.Optimizer | None = None
        self._updates: dict[int, int] = {}

    def begin(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Remember whose momentum is to be cleared."""
        self._optimizer = optimizer

    def before_forward(self, module: nn.Module, step: int, steps: int) -> None:
        """Start with the zeros."""
        if step == 0:
            self.masks.apply(module)
            static = self.schedule.method == "static"
            self._updates = {} if static else update_steps(self.schedule, steps)

    @torch.no_grad()
    def before_update(self, module: nn.Module, step: int, steps: int) -> None:
        """Move the masks if it is time."""
        if step in self._updates:
            self.masks = Masks({n: self._moved(module, n, k, self._updates[step]) for n, k in self.masks.kept.items()})
            self.masks.apply(module)
        FixedMasks(self.masks).before_update(module, step, steps)

    def after_update(self, module: nn.Module, step: int, steps: int) -> None:
        """Momentum and weight decay may have moved inactive weights."""
        self.masks.apply(module)

    def finish(self, module: nn.Module) -> None:
        """Leave the zeros."""
        self.masks.apply(module)
        self._optimizer = None

    def _moved(self, module: nn.Module, name: str, kept: Tensor, update: int) -> Tensor:
        weight = masked_weight(module, name)
        active = int(kept.sum())
        count = replaced(self.schedule, update, active, kept.numel() - active)
        gradient = None
        if self.schedule.method == "rigl":
            gradient = weight.grad if weight.grad is not None else torch.zeros_like(weight)
        new, grown = rewired(kept, weight, gradient, count, self._generator)
        weight.masked_fill_(grown, 0.0)
        if self._optimizer is not None:
            for state in self._optimizer.state.get(weight, {}).values():
                if isinstance(state, Tensor) and state.shape == weight.shape:
                    state.masked_fill_(grown, 0.0)
        return new
