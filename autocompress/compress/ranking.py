"""Which units of a network are worth least, among all groups or among those of equal topology.

References:
    Fang et al., 2024, "Isomorphic Pruning for Vision Models" (isomorphic).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import ceil

import torch
from torch import Tensor, nn

from autocompress.compress.coupling import Units, find_units
from autocompress.compress.criteria import channel_scores
from autocompress.compress.statistics import Statistics
from autocompress.errors import CompressionError, InfeasibleError
from autocompress.inputs import Inputs
from autocompress.records import Criterion, CutScope, Group, Reduction, Structure
from autocompress.rng import derive_seed
from autocompress.space.grid import allowed_widths

#: Kinds of layers whose outputs lie along axis 1 of the weight.
_INPUT_FIRST = frozenset({"conv_transpose2d", "embedding"})


@dataclass(frozen=True)
class Ranking:
    """Scores of all units of a network, computed once for any number of shares; made by `rank_units`.

    Attributes:
        module, structure, statistics, criterion, reduction, seed: as given to `rank_units`.
        units: group -> positions of its units in the module as it is.
    """

    module: nn.Module
    structure: Structure
    statistics: Statistics
    criterion: Criterion
    reduction: Reduction
    seed: int
    units: Mapping[str, Units]

    @property
    def groups(self) -> tuple[Group, ...]:
        """Groups of the structure that the module has; their `width` is the dense one."""
        return tuple(group for group in self.structure.groups if group.name in self.units)

    @property
    def widths(self) -> dict[str, int]:
        """Group -> units now."""
        return {group.name: self.units[group.name].group.width for group in self.groups}

    @cached_property
    def scores(self) -> dict[str, Tensor]:
        """Group -> shape (width,).

        Raises:
            CompressionError: the criterion lacks something, or a score is not finite.
        """
        return {
            name: channel_scores(
                self.criterion,
                self.reduction,
                self.module,
                self.units[name],
                self.statistics,
                torch.Generator().manual_seed(derive_seed(self.seed, "allocate", name)),
            )
            for name in self.widths
        }

    def keeps(
        self, *, sparsity: float, scope: CutScope, round_to: int = 8, max_sparsity: float = 0.9
    ) -> dict[str, int]:
        """Units that every group keeps, whole groups included; arguments and errors as of `allocate_cuts`."""
        if not 0.0 <= sparsity < 1.0:
            raise InfeasibleError(
                f"allocate: sparsity: expected a share in [0, 1), got {sparsity:g}; at 1 nothing would be left"
            )
        if not (0.0 < max_sparsity <= 1.0 and sparsity <= max_sparsity):
            raise InfeasibleError(
                f"allocate: max_sparsity: expected a share in (0, 1], at least sparsity {sparsity:g}, got "
                f"{max_sparsity:g}"
            )
        widths = self.widths
        options: dict[str, list[int]] = {}
        for group in self.groups:
            width = widths[group.name]
            floor = ceil((1.0 - max_sparsity) * width - 1e-9)
            options[group.name] = [k for k in allowed_widths(width, group.multiple(round_to)) if k >= floor]
        removed: dict[str, float] = {}
        if scope == "uniform":
            removed = {name: sparsity * width for name, width in widths.items()}
        else:
            classes: dict[object, list[str]] = {}
            for group in self.groups:
                key = topology(self.structure, group) if scope == "isomorphic" else None
                classes.setdefault(key, []).append(group.name)
            for names in classes.values():
                most = {name: widths[name] - options[name][0] for name in names}
                wanted = round(sparsity * sum(widths[name] for name in names))
                if wanted > sum(most.values()) and scope == "global":
                    reachable = sum(most.values()) / sum(widths.values())
                    raise InfeasibleError(
                        f"allocate: sparsity: expected at most {reachable:.4f}, which these groups can give with "
                        f"round_to {round_to} and max_sparsity {max_sparsity:g}, got {sparsity:g}"
                    )
                removed |= lowest({name: self.scores[name] for name in names}, most, wanted)
        return {
            name: min(options[name], key=lambda keep: (abs(keep - (widths[name] - removed[name])), -keep))
            for name in widths
        }


def rank_units(
    module: nn.Module,
    structure: Structure,
    statistics: Statistics,
    *,
    example: Inputs,
    criterion: Criterion,
    reduction: Reduction = "mean",
    seed: int,
) -> Ranking:
    """Find the units of a network as it is now; arguments as of `allocate_cuts`.

    Raises:
        CompressionError: the module has none of the structure's groups.
    """
    units = find_units(module, example)
    if structure.groups and not any(group.name in units for group in structure.groups):
        raise CompressionError(
            f"allocate: expected a network with groups {[group.name for group in structure.groups]}, got one with "
            f"{list(units)}"
        )
    return Ranking(module, structure, statistics, criterion, reduction, seed, units)


def lowest(scores: dict[str, Tensor], most: dict[str, int], wanted: int) -> dict[str, float]:
    """How many units each group gives if those with the lowest scores go, one by one.

    Equal scores: the earlier group's go first. A group that has given its most is passed over.

    Args:
        scores: group -> shape (width,).
        most: group -> units that it may give.
        wanted: units in all; fewer are given if the groups have no more.
    """
    names = list(scores)
    owner = torch.cat([torch.full((len(scores[name]),), i) for i, name in enumerate(names)])
    given: Counter[str] = Counter(dict.fromkeys(names, 0))
    for index in owner[torch.cat(list(scores.values())).argsort(stable=True)].tolist():
        if given.total() >= wanted:
            break
        if given[names[index]] < most[names[index]]:
            given[names[index]] += 1
    return dict(given)


def topology(structure: Structure, group: Group) -> tuple[tuple[str, int, str], ...]:
    """What a group looks like: (kind, axis, role) of the group, then of each weight and normalization that shrinks.

    Groups of equal topology, such as the inner channels of every residual block, have comparable scores.
    """
    layers = {layer.parameter: layer for layer in structure.layers}
    found = [("norm", 0, "norm") for _ in group.norms]
    for use in group.uses:
        layer = layers.get(use.parameter)
        if layer is not None:
            is_output = layer.name in group.layers and (
                layer.name not in group.consumers or use.axis == (1 if layer.kind in _INPUT_FIRST else 0)
            )
            found.append((layer.kind, use.axis, "output" if is_output else "input"))
    return (("group", 0, group.kind), *sorted(found))
