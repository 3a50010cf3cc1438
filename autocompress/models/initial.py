"""Initial weights, drawn from torch's global generator."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def he_normal(module: nn.Module) -> None:
    """Convolutions get normal weights of variance 2 / fan-out and no bias, in place; other parts stay as they are.

    References:
        He et al., 2015, "Delving Deep into Rectifiers".
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)


@torch.no_grad()
def truncated_normal(module: nn.Module, std: float = 0.02) -> None:
    """Linear layers, embeddings and free parameters get normal weights of deviation `std`, cut at 2; biases are 0.

    In place. Normalizations stay as they are.
    """
    for part in module.modules():
        if isinstance(part, nn.LayerNorm | nn.GroupNorm):
            continue
        for name, parameter in part.named_parameters(recurse=False):
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.trunc_normal_(parameter, std=std, a=-2 * std, b=2 * std)
