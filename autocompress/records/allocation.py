"""How one share is divided among the groups of a network."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from autocompress.records.base import Record
from autocompress.records.plan import CHANNEL_CRITERIA, Criterion, Reduction

CutScope = Literal["uniform", "global", "isomorphic"]


class Allocation(Record):
    """Widths of all groups that one share of their units gives, by a ranking of the dense network's units.

    Attributes:
        scope: which units are ranked together: those of one group, of all, or of the groups of equal topology.
        criterion: how units are scored.
        reduction: of the scores of coupled layers.
        sparsity: share of all units that was asked for.
        keeps: pairs of a group and the units that stay, of every group that takes part, whole ones included.
    """

    scope: CutScope
    criterion: Criterion
    reduction: Reduction = "mean"
    sparsity: Annotated[float, Field(ge=0.0, lt=1.0)]
    keeps: tuple[tuple[str, Annotated[int, Field(ge=1)]], ...]

    @field_validator("criterion")
    @classmethod
    def _scores_channels(cls, value: Criterion) -> Criterion:
        if value not in CHANNEL_CRITERIA:
            raise ValueError(f"expected a criterion for channels ({', '.join(sorted(CHANNEL_CRITERIA))}), got {value}")
        return value

    @property
    def kind(self) -> str:
        """``"<scope>/<criterion>"``."""
        return f"{self.scope}/{self.criterion}"
