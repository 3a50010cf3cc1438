"""Small networks, inputs that depend on each other as those in trained ones do, and the moments of what flows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from autocompress.compress.moments import InputMoments, Moment
from autocompress.records import Structure


def correlated(n: int, *shape: int, seed: int = 0, rank: int = 4) -> Tensor:
    """Inputs of few sources, as those of a trained network: shape (n, *shape), channels first."""
    g = torch.Generator().manual_seed(seed)
    mixing = torch.randn(shape[0], rank, generator=g)
    sources = torch.randn(n, rank, *shape[1:], generator=g)
    noise = torch.randn(n, *shape, generator=g)
    return torch.einsum("cr,nr...->nc...", mixing, sources) + 0.1 * noise + 1.0


def moments_of(module: nn.Module, structure: Structure, *inputs: Tensor) -> dict[str, Moment]:
    found = InputMoments(module, structure, len(inputs), seed=0)
    with found.watching(), torch.no_grad():
        for some in inputs:
            module(some)
    return found.by_parameter()


def mlp(hidden: int = 12, *, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, hidden), nn.ReLU(), nn.Linear(hidden, 3, bias=bias)).eval()


class Joined(nn.Module):
    """Two groups side by side in front of one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.last = nn.Conv2d(6, 12, 3, padding=1), nn.Conv2d(6, 8, 1), nn.Conv2d(20, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(torch.cat([self.a(x), self.b(x)], dim=1))).mean(dim=(2, 3))
