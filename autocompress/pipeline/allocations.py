"""The widths that every share of a space's allocation gives in one network."""

from __future__ import annotations

from torch import nn

from autocompress.compress.ranking import Ranking, rank_units
from autocompress.compress.statistics import Statistics
from autocompress.errors import ConfigError, InfeasibleError
from autocompress.inputs import Inputs
from autocompress.records import Allocation, Criterion, Structure
from autocompress.space.allocation import allocated_groups, requests
from autocompress.space.config import SpaceConfig


def allocation_tables(
    space: SpaceConfig,
    module: nn.Module,
    structure: Structure,
    statistics: Statistics,
    *,
    example: Inputs,
    round_to: int,
    seed: int,
) -> tuple[Allocation, ...]:
    """One table for each scope, criterion and share that the space asks for; none without `allocation` in it.

    Units are scored once for each criterion. A share that cannot be given has no table: the space names it.

    Args:
        space: the study's.
        module: the dense network; left alone.
        structure: of it. Groups that the space excludes take no part.
        statistics: of it.
        example: one input batch.
        round_to: the target's multiple for channel counts.
        seed: of the random criterion.

    Raises:
        ConfigError: no share at all can be given, no group takes part, or a criterion cannot score one.
        CompressionError: scores cannot be computed.
    """
    groups = allocated_groups(space, structure)
    asked = space.allocation
    if asked is None:
        return ()
    part = structure.model_copy(update={"groups": groups})
    rankings: dict[Criterion, Ranking] = {
        criterion: rank_units(
            module, part, statistics, example=example, criterion=criterion, reduction=asked.reduction, seed=seed
        )
        for criterion in asked.criterion
    }
    found: list[Allocation] = []
    reason = ""
    for scope, criterion, sparsity in requests(asked):
        try:
            keeps = rankings[criterion].keeps(sparsity=sparsity, scope=scope, round_to=round_to)
        except InfeasibleError as error:
            reason = str(error)
            continue
        found.append(
            Allocation(
                scope=scope,
                criterion=criterion,
                reduction=asked.reduction,
                sparsity=sparsity,
                keeps=tuple((group.name, keeps.get(group.name, group.width)) for group in groups),
            )
        )
    if not found:
        raise ConfigError(
            f"space: allocation.sparsity: expected a share that the network's groups can give, got none: {reason}"
        )
    return tuple(found)
