"""The task of `spied`, with a model function that takes width and depth; or one that cannot do what it says."""

from dataclasses import replace

from spied import spied
from torch import nn

from autocompress import Task


def network(width: float = 1.0, depth: int = 1) -> nn.Module:
    channels = max(8, round(16 * width / 8) * 8)
    body = [nn.Conv2d(1, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
    for _ in range(depth):
        body += [nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels, 2))


def sized() -> Task:
    return replace(spied(), name="sized", model=network)


def stubborn() -> Task:
    """Takes a depth, and makes nothing of it."""
    return replace(spied(), name="stubborn", model=lambda width=1.0, depth=1.0: network(width))
