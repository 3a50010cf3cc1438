"""What is open for each group of coupled channels, once the network is known."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from fractions import Fraction

from autocompress.errors import ConfigError
from autocompress.records import Criterion, Group, Layer, Reduction, Strategy, Structure
from autocompress.space.config import SpaceConfig
from autocompress.space.criteria import check_criteria, effective_reduction
from autocompress.space.grid import grid_of
from autocompress.space.names import selected
from autocompress.space.options import SparsityRange, needs_sparsity
from autocompress.space.patterns import fits, fixed_sparsity


@dataclass(frozen=True)
class GroupChoice:
    """The choices of one group.

    Attributes:
        group: its channels.
        layers: those of its layers that have weights, the ones a mask falls on.
        strategy, criterion, reduction: what may be chosen, never empty.
        pattern: patterns of zeros that divide at least one of the layers, never empty.
        sparsity: the range behind `grid`; None if the group is never pruned by a share of its own.
    """

    group: Group
    layers: tuple[Layer, ...]
    strategy: tuple[Strategy, ...]
    criterion: tuple[Criterion, ...]
    sparsity: SparsityRange | None
    reduction: tuple[Reduction, ...] = ("mean",)
    pattern: tuple[str, ...] = ("element",)

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
        found = int("none" in self.strategy)
        if "structured" in self.strategy:
            found += sum(len(self.reductions(c)) for c in self.criterion) * len(self.grid)
        if "unstructured" in self.strategy:
            free = sum(fixed_sparsity(pattern) is None for pattern in self.pattern)
            found += len(self.criterion) * (free * len(self.grid) + len(self.pattern) - free)
        return found

    def reductions(self, criterion: Criterion) -> tuple[Reduction, ...]:
        """Those that are open and rank the group's units differently: the first of each kind."""
        found: dict[Reduction, Reduction] = {}
        for reduction in self.reduction:
            found.setdefault(effective_reduction(self.group, criterion, reduction), reduction)
        return tuple(found.values())

    def reduction_for(self, criterion: Criterion, effective: Reduction) -> Reduction | None:
        """The open one that ranks as `effective` does; None if there is none."""
        offered = self.reductions(criterion)
        return next((r for r in offered if effective_reduction(self.group, criterion, r) == effective), None)


def group_choices(config: SpaceConfig, structure: Structure) -> tuple[GroupChoice, ...]:
    """The groups that are searched, in the structure's order.

    Raises:
        ConfigError: an override leaves a pruning strategy without a range of sparsity, with a criterion that cannot
            score what it prunes, or with no pattern that divides a layer.
    """
    found = []
    for group in structure.groups:
        if not selected(config, group.name):
            continue
        chosen = config.groups.model_dump(include={"strategy", "criterion", "reduction", "pattern"})
        sparsity = config.groups.sparsity
        for override in config.overrides:
            if fnmatchcase(group.name, override.match):
                chosen = {key: getattr(override, key) or value for key, value in chosen.items()}
                sparsity = override.sparsity or sparsity
        strategy, criterion = chosen["strategy"], chosen["criterion"]
        layers = tuple(layer for layer in structure.layers if layer.name in group.layers)
        patterns = _patterns(group, layers, chosen["pattern"]) if "unstructured" in strategy else ("element",)
        try:
            check_criteria(strategy, criterion, group)
        except ValueError as error:
            raise ConfigError(f"space: group {group.name!r}: {error}") from error
        if needs_sparsity(strategy, patterns) and sparsity is None:
            raise ConfigError(
                f"space: group {group.name!r}: expected groups.sparsity or an override's sparsity for the strategies "
                f"{list(strategy)}, got none"
            )
        prunes = any(s != "none" for s in strategy)
        if prunes or config.width is not None:
            found.append(
                GroupChoice(
                    group=group,
                    layers=layers,
                    strategy=strategy,
                    criterion=criterion,
                    sparsity=sparsity if needs_sparsity(strategy, patterns) else None,
                    reduction=chosen["reduction"] if "structured" in strategy else ("mean",),
                    pattern=patterns,
                )
            )
    return tuple(found)


def _patterns(group: Group, layers: tuple[Layer, ...], offered: tuple[str, ...]) -> tuple[str, ...]:
    possible = tuple(p for p in offered if any(fits(p, layer.shape, layer.kind) for layer in layers) or p == "element")
    if not possible:
        shapes = ", ".join(f"{layer.name} {layer.shape}" for layer in layers) or "no layer with weights"
        raise ConfigError(
            f"space: group {group.name!r}: expected a pattern that divides the weights of one of its layers "
            f"({shapes}), got {list(offered)}; offer element there by an override, or exclude the group"
        )
    return possible
