r"""Training that is sparse from its first step to its last: masks move, the number of zeros does not.

An update takes each layer's active weights :math:`A` to :math:`K \cup G`, with :math:`k` from `replaced`:

.. math::
    K = \mathrm{TopK}_{i \in A}(|w_i|, |A| - k), \qquad
    G = \mathrm{TopK}_{i \notin K}\Big(\Big|\frac{1}{B} \sum_{b=1}^{B} \frac{\partial L_b}{\partial w_i}\Big|, k\Big)

for RigL; for SET, G is drawn at random. What K leaves out may return in G, and then keeps its value; other weights of G
start at 0. The authors of RigL take :math:`B = 1`, a batch of 128 to 4096 examples; with the 64 of a small network the
gradients of a single batch are mostly noise, so they are averaged over the steps before the update. Also unlike theirs,
an update does not take the place of an optimizer step.

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


def replaced(schedule: SparseTraining, update: int, active: int) -> int:
    r"""How many of a layer's weights an update replaces: :math:`\frac{f}{2}(1 + \cos(\pi k / n))` of the active ones.

    Args:
        schedule: f is its fraction, n its number of updates.
        update: k, from 0 to n - 1.
        active: weights that are not masked.
    """
    share = 0.5 * schedule.fraction * (1.0 + math.cos(math.pi * update / schedule.updates))
    return round(share * active)


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
    """One layer's mask after an update: the `count` smallest active weights go, as many come.

    Those that come are inactive ones, or some of those that would have gone.

    Args:
        kept: the mask now, True is active.
        weight: of the layer, same shape.
        gradient: of the loss, same shape; those with the largest magnitude come. None: random ones do.
        count: how many; at most the number of active weights.
        generator: of the random growth.

    Returns:
        The new mask, with as many active weights as before, and where weights are active that were not.
    """
    flat = kept.flatten()
    smallness = weight.detach().abs().flatten().masked_fill(~flat, float("inf"))
    gone = torch.argsort(smallness, stable=True)[:count]
    wish = torch.rand(flat.shape, generator=generator) if gradient is None else gradient.abs().flatten().cpu()
    new = flat.clone()
    new[gone] = False
    grown = torch.argsort(wish.masked_fill(new, -1.0), descending=True, stable=True)[:count]
    new[grown] = True
    return new.view(kept.shape), (new & ~flat).view(kept.shape)


class Rewiring:
    """Moves masks while a network trains, as a hook; the number of zeros in every layer stays the same.

    Updates happen between the backward pass and the step, where gradients of inactive weights are there as well. RigL
    adds them up over the schedule's `batches`, of which the last is the update's own, but never across an update. A
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
        self._watched: set[int] = set()
        self._gradients: dict[str, Tensor] = {}

    def begin(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Remember whose momentum is to be cleared."""
        self._optimizer = optimizer

    def before_forward(self, module: nn.Module, step: int, steps: int) -> None:
        """Start with the zeros."""
        if step == 0:
            self.masks.apply(module)
            static = self.schedule.method == "static"
            self._updates = {} if static else update_steps(self.schedule, steps)
            self._gradients = {}
            window = range(self.schedule.batches if self.schedule.method == "rigl" else 0)
            self._watched = {update - earlier for update in self._updates for earlier in window}

    @torch.no_grad()
    def before_update(self, module: nn.Module, step: int, steps: int) -> None:
        """Move the masks if it is time."""
        if step in self._watched:
            self._add_up(module)
        if step in self._updates:
            self.masks = Masks({n: self._moved(module, n, k, self._updates[step]) for n, k in self.masks.kept.items()})
            self.masks.apply(module)
            self._gradients = {}
        FixedMasks(self.masks).before_update(module, step, steps)

    def after_update(self, module: nn.Module, step: int, steps: int) -> None:
        """Momentum and weight decay may have moved inactive weights."""
        self.masks.apply(module)

    def finish(self, module: nn.Module) -> None:
        """Leave the zeros."""
        self.masks.apply(module)
        self._optimizer = None

    def _add_up(self, module: nn.Module) -> None:
        for name in self.masks.kept:
            gradient = masked_weight(module, name).grad
            if gradient is not None:
                known = self._gradients.get(name)
                self._gradients[name] = gradient.clone() if known is None else known.add_(gradient)

    def _moved(self, module: nn.Module, name: str, kept: Tensor, update: int) -> Tensor:
        weight = masked_weight(module, name)
        active = int(kept.sum())
        count = replaced(self.schedule, update, active)
        gradient = None
        if self.schedule.method == "rigl":
            gradient = self._gradients.get(name, torch.zeros_like(weight))
        new, grown = rewired(kept, weight, gradient, count, self._generator)
        weight.masked_fill_(grown, 0.0)
        if self._optimizer is not None:
            for state in self._optimizer.state.get(weight, {}).values():
                if isinstance(state, Tensor) and state.shape == weight.shape:
                    state.masked_fill_(grown, 0.0)
        return new
