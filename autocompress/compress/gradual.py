"""Masks that are chosen again and again while a network trains, ever more of them.

References:
    Zhu and Gupta, 2017, "To prune, or not to prune: exploring the efficacy of pruning for model compression";
    Lin et al., 2020, "Dynamic Model Pruning with Feedback".
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from autocompress.compress.masks import Masks, masked_weight
from autocompress.records import Adaptive, Gradual


def cubic(initial: float, final: float, progress: float) -> float:
    r""":math:`s_f + (s_i - s_f)(1 - p)^3`: the share of zeros rises fast, then ever more slowly.

    Args:
        initial: s_i, share of zeros at progress 0; `final` where that is less.
        final: s_f, at progress 1.
        progress: p = (t - t0) / (n Δt), in [0, 1].
    """
    return final + (min(initial, final) - final) * (1.0 - progress) ** 3


def update_steps(schedule: Gradual | Adaptive, steps: int) -> dict[int, float]:
    """Step -> progress of the sparsity, in [0, 1], for every step in which masks are chosen again.

    A gradual schedule updates n + 1 times, evenly from ``begin`` to ``end`` (shares of `steps`); an adaptive one
    evenly from 0 to ``freeze``, with a progress that is 1 from ``end`` (or from ``freeze``, where that is earlier).
    Updates that fall into one step are one, the last; the last always happens.
    """
    if isinstance(schedule, Gradual):
        begin, last, risen = schedule.begin, schedule.end, schedule.end
    else:
        begin, last, risen = 0.0, schedule.freeze, min(schedule.end, schedule.freeze)
    found: dict[int, float] = {}
    for update in range(schedule.updates + 1):
        share = begin + (last - begin) * update / schedule.updates
        done = update == schedule.updates or share >= risen
        found[min(round(share * steps), steps - 1)] = 1.0 if done else (share - begin) / (risen - begin)
    return found


class MovingMasks:
    """Chooses masks during a training, as a hook of it, while masked weights keep a value to come back with.

    The forward pass sees the masked weights, the optimizer the dense ones. Without feedback, masked weights get no
    gradient and keep the value that they had when they were masked; they come back if others have become smaller.
    With feedback, the gradient at the masked network moves them as well.

    Attributes:
        masks: the latest; None before the first choice.
    """

    def __init__(
        self, choose: Callable[[nn.Module, float], Masks], schedule: Gradual | Adaptive, *, feedback: bool
    ) -> None:
        """Prepare the hook.

        Args:
            choose: (network with its dense weights, progress of the sparsity) -> masks.
            schedule: when.
            feedback: whether gradients reach masked weights.
        """
        self.masks: Masks | None = None
        self._choose, self._schedule, self._feedback = choose, schedule, feedback
        self._updates: dict[int, float] = {}
        self._progress = 0.0
        self._dense: dict[str, Tensor] = {}

    @torch.no_grad()
    def before_forward(self, module: nn.Module, step: int, steps: int) -> None:
        """Choose if it is time, put the dense weights aside, and mask."""
        if step == 0:
            self._updates = update_steps(self._schedule, steps)
        if step in self._updates:
            self._progress = self._updates[step]
            self.masks = self._choose(module, self._progress)
        if self.masks is not None:
            self._dense = {name: masked_weight(module, name).detach().clone() for name in self.masks.kept}
            self.masks.apply(module)

    @torch.no_grad()
    def before_update(self, module: nn.Module, step: int, steps: int) -> None:
        """Bring the dense weights back, which the step is for."""
        if self.masks is None:
            return
        for name, kept in self.masks.kept.items():
            weight = masked_weight(module, name)
            weight.copy_(self._dense[name])
            if not self._feedback and weight.grad is not None:
                weight.grad.masked_fill_(~kept, 0.0)

    @torch.no_grad()
    def after_update(self, module: nn.Module, step: int, steps: int) -> None:
        """Without feedback, undo what momentum and weight decay did to masked weights."""
        if self.masks is None or self._feedback:
            return
        for name, kept in self.masks.kept.items():
            weight = masked_weight(module, name)
            weight.copy_(torch.where(kept, weight, self._dense[name]))

    def finish(self, module: nn.Module) -> None:
        """Leave the zeros that are asked, also where there was no step."""
        if self.masks is None or self._progress < 1.0:
            self.masks = self._choose(module, 1.0)
        self.masks.apply(module)
        self._dense = {}
