"""A small residual network and a small transformer with what a profile would find, and every packaged space on them."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn

from autocompress.compress.sensitivity import BlockSensitivity, GroupSensitivity, LayerSensitivity, Sensitivity
from autocompress.compress.statistics import Statistics
from autocompress.compress.structure import find_structure
from autocompress.inputs import Inputs
from autocompress.models.resnet import resnet_cifar
from autocompress.models.vit import vit
from autocompress.pipeline.allocations import allocation_tables
from autocompress.records import Structure
from autocompress.space.config import SpaceConfig, load_space
from autocompress.space.space import Space, resolve

BITS = (32, 16, 8, 7, 6, 5, 4, 3, 2)
KINDS = ("convolutional", "transformer")


@cache
def network(kind: str) -> tuple[nn.Module, Inputs]:
    torch.manual_seed(0)
    if kind == "convolutional":
        return resnet_cifar(14, widths=(16, 32, 48), shortcut="projection").eval(), torch.randn(1, 3, 16, 16)
    return vit(image=16, patch=4, width=32, depth=3, heads=4, hidden=64, classes=4, channels=3).eval(), torch.randn(
        1, 3, 16, 16
    )


@cache
def structure(kind: str) -> Structure:
    return find_structure(*network(kind))


@cache
def space(kind: str, name: str) -> Space:
    return space_of(kind, load_space(name))


def space_of(kind: str, config: SpaceConfig | dict[str, Any]) -> Space:
    if isinstance(config, dict):
        config = SpaceConfig.model_validate(config)
    module, example = network(kind)
    found = structure(kind)
    # Taylor needs gradients of training; magnitudes give widths as well.
    statistics = Statistics({})
    if config.allocation is not None:
        config = config.model_copy(
            update={"allocation": config.allocation.model_copy(update={"criterion": ("magnitude",)})}
        )
    tables = allocation_tables(config, module, found, statistics, example=example, round_to=8, seed=0)
    return resolve(config, found, round_to=8, bits=BITS, allocations=tables)


@cache
def sensitivity(kind: str) -> Sensitivity:
    """Each group, layer and block has a price of its own."""
    found = structure(kind)
    return Sensitivity(
        loss=0.3,
        groups=tuple(
            GroupSensitivity(group=g.name, width=g.width, keep=keep, loss=price, kl=price)
            for i, g in enumerate(found.groups)
            for share in (0.75, 0.5, 0.25)
            for keep in (round(share * g.width),)
            for price in ((0.02 + 0.01 * (i * 7 % 5)) * ((1.0 - share) / 0.25) ** 1.7,)
        ),
        layers=tuple(
            LayerSensitivity(layer=layer.name, bits=bits, loss=price, kl=price)
            for i, layer in enumerate(found.layers)
            for bits in (8, 4)
            for price in (1e-5 * (1 + i % 4) * 4.0 ** (8 - bits),)
        ),
        blocks=tuple(
            BlockSensitivity(block=b.name, loss=0.1 + 0.05 * i, kl=0.1 + 0.05 * i) for i, b in enumerate(found.blocks)
        ),
    )
