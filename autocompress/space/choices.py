"""What is open for each group and for each set of layers that share a bit width, once the network is known."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fnmatch import fnmatchcase
from fractions import Fraction

from autocompress.errors import ConfigError
from autocompress.records import Criterion, Group, Layer, Strategy, Structure
from autocompress.space.config import Override, SpaceConfig, SparsityRange
from autocompress.space.explain import nearest
from autocompress.space.grid import grid_of


@dataclass(frozen=True)
class GroupChoice:
    """The choices of one group.

    Attributes:
        group: its channels.
        layers: those of its layers that have weights, the ones a mask falls on.
        strategy, criterion: what may be chosen, never empty.
        sparsity: the range behind `grid`; None if the group is never pruned on its own.
    """

    group: Group
    layers: tuple[Layer, ...]
    strategy: tuple[Strategy, ...]
    criterion: tuple[Criterion, ...]
    sparsity: SparsityRange | None

    @property
    def name(self) -> str:
        """Name of the group."""
        return self.group.name

    @property
    def grid(self) -> tuple[Fraction, ...]:
        """Shares that may be removed, ascending."""
        return () if self.sparsity is None else grid_of(self.sparsity.low, self.sparsity.high, self.sparsity.step)

    @property
    def pruning(self) -> tuple[Strategy, ...]:
        """The strategies that remove something."""
        return tuple(strategy for strategy in self.strategy if strategy != "none")

    @property
    def count(self) -> int:
        """Number of configurations."""
        return ("none" in self.strategy) + len(self.pruning) * len(self.criterion) * len(self.grid)


@dataclass(frozen=True)
class BitsUnit:
    """Layers that share one choice of bits.

    Attributes:
        key: the parameter, ``"bits/<name>"`` or ``"bits"``.
        layers: their names.
        choices: bit widths, never empty.
    """

    key: str
    layers: tuple[str, ...]
    choices: tuple[int, ...]


def group_choices(config: SpaceConfig, structure: Structure) -> tuple[GroupChoice, ...]:
    """The groups that are searched, in the structure's order.

    Raises:
        ConfigError: an override leaves a pruning strategy without a range of sparsity.
    """
    found = []
    for group in structure.groups:
        if not _selected(config, group.name):
            continue
        strategy, criterion, sparsity = config.groups.strategy, config.groups.criterion, config.groups.sparsity
        for override in config.overrides:
            if fnmatchcase(group.name, override.match):
                strategy = override.strategy or strategy
                criterion = override.criterion or criterion
                sparsity = override.sparsity or sparsity
        prunes = any(s != "none" for s in strategy)
        if prunes and sparsity is None:
            raise ConfigError(
                f"space: group {group.name!r}: expected groups.sparsity or an override's sparsity for the strategies "
                f"{list(strategy)}, got none"
            )
        if prunes or config.width is not None:
            layers = tuple(layer for layer in structure.layers if layer.name in group.layers)
            found.append(GroupChoice(group, layers, strategy, criterion, sparsity if prunes else None))
    return tuple(found)


def bits_units(config: SpaceConfig, structure: Structure, supported: tuple[int, ...]) -> tuple[BitsUnit, ...]:
    """The sets of layers whose bits are searched or fixed below 32, in the structure's order.

    Args:
        config: the space.
        structure: the network.
        supported: bit widths of the target.

    Raises:
        ConfigError: a bit width that the target lacks.
    """
    bits = config.layers.bits
    per: str = bits.per if bits else "layer"
    default: tuple[int, ...] = bits.choices if bits else (32,)
    members: dict[str, list[str]] = {}
    choices: dict[str, tuple[int, ...]] = {}
    for layer in structure.layers:
        if not _selected(config, layer.name):
            continue
        name = layer.group or layer.name if per == "group" else layer.name
        offered, overridden = default, False
        for override in config.overrides:
            if override.bits is not None and fnmatchcase(name, override.match):
                offered, overridden = override.bits, True
        key = "bits" if per == "model" and not overridden else f"bits/{name}"
        members.setdefault(key, []).append(layer.name)
        choices[key] = offered
    for key, offered in choices.items():
        lacking = [b for b in offered if b not in supported]
        if lacking:
            raise ConfigError(f"space: {key}: expected bits out of {list(supported)}, got {lacking[0]}")
    return tuple(BitsUnit(key, tuple(members[key]), choices[key]) for key in members if choices[key] != (32,))


def check_patterns(config: SpaceConfig, structure: Structure) -> None:
    """Refuse a pattern that matches nothing: most likely it is misspelt.

    Raises:
        ConfigError: naming the pattern, and the nearest name.
    """
    groups = [group.name for group in structure.groups]
    layers = [layer.name for layer in structure.layers]
    names = list(dict.fromkeys([*groups, *layers]))
    per_group = config.layers.bits is not None and config.layers.bits.per == "group"
    quantizable = list(dict.fromkeys(x.group or x.name for x in structure.layers)) if per_group else layers
    checks = [(f"include[{i}]", p, names, "group or layer") for i, p in enumerate(config.include)]
    checks += [(f"exclude[{i}]", p, names, "group or layer") for i, p in enumerate(config.exclude)]
    for i, override in enumerate(config.overrides):
        checks += [(f"overrides[{i}].match", override.match, *_names(override, groups, quantizable))]
    for key, pattern, known, what in checks:
        if not any(fnmatchcase(name, pattern) for name in known):
            shown = ", ".join(known[:8]) + (", ..." if len(known) > 8 else "")
            raise ConfigError(
                f"space: {key}: expected a pattern that matches a {what} of the network ({shown or 'it has none'}), "
                f"got {pattern!r}{nearest(pattern, known)}"
            )


def _names(override: Override, groups: list[str], quantizable: list[str]) -> tuple[list[str], str]:
    if override.bits is None:
        return groups, "group"
    if not override.changes_groups:
        return quantizable, "layer"
    return list(dict.fromkeys([*groups, *quantizable])), "group or layer"


def _selected(config: SpaceConfig, name: str) -> bool:
    def matches(patterns: tuple[str, ...]) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in patterns)

    return matches(config.include) and not matches(config.exclude)


def log10_size(widths: int, groups: tuple[GroupChoice, ...], units: tuple[BitsUnit, ...]) -> float:
    """log10 of the number of configurations."""
    counts = [widths, *(choice.count for choice in groups), *(len(unit.choices) for unit in units)]
    return sum(math.log10(count) for count in counts)
