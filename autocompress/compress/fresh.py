"""Weights drawn anew: where training from scratch, sparse training and lottery tickets begin."""

from __future__ import annotations

import copy

import torch
from torch import nn

from autocompress.task import fixed_randomness


@torch.no_grad()
def redrawn(module: nn.Module, *, seed: int) -> nn.Module:
    """The same architecture with freshly drawn weights.

    Every part draws its own by its ``reset_parameters``, which also resets running statistics. A task's own function
    is not asked: it may bring trained weights. A parameter that no part resets (a class token, a scale) keeps its
    values in random order, so that nothing learned is left but their size.

    Args:
        module: left alone.
        seed: of the draw.

    Returns:
        A new module; modes, `requires_grad`, and what a cut module remembers of its origin, as in `module`.
    """
    result = copy.deepcopy(module)
    with fixed_randomness(seed):
        covered: set[int] = set()
        for part in reversed(list(result.modules())):  # inner parts first
            reset = getattr(part, "reset_parameters", None) or getattr(part, "_reset_parameters", None)
            if callable(reset):
                reset()
                covered.update(id(parameter) for parameter in part.parameters())
        for parameter in result.parameters():
            if id(parameter) not in covered:
                order = torch.randperm(parameter.numel())
                parameter.copy_(parameter.flatten()[order].view(parameter.shape))
    return result
