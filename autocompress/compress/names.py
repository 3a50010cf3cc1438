"""Whether a plan is for this network at all."""

from __future__ import annotations

from autocompress.errors import InfeasibleError
from autocompress.records import Plan, Structure


def check_names(plan: Plan, structure: Structure) -> None:
    """Refuse a plan for another network before anything is computed.

    Raises:
        InfeasibleError: naming the plan's key, the name, and those that the network has.
    """
    groups = {group.name for group in structure.groups}
    layers = {layer.name for layer in structure.layers}
    blocks = {block.name for block in structure.blocks}
    for key, asked, known in (
        ("drops", [drop.block for drop in plan.drops], blocks),
        ("cuts", [cut.group for cut in plan.cuts], groups),
        ("ranks", [rank.layer for rank in plan.ranks], layers),
        ("masks", [mask.layer for mask in plan.masks], layers),
        ("codebooks", [book.layer for book in plan.codebooks], layers),
        ("bits", [entry.layer for entry in plan.bits], layers),
    ):
        unknown = [name for name in asked if name not in known]
        if unknown:
            raise InfeasibleError(
                f"plan.{key}: expected names of the network, got {unknown[0]!r}; it has "
                f"{', '.join(sorted(known)) or 'none'}"
            )
    gone = {layer: drop.block for drop in plan.drops for layer in structure.block(drop.block).layers}
    for key, asked in (
        ("ranks", [rank.layer for rank in plan.ranks]),
        ("masks", [mask.layer for mask in plan.masks]),
        ("codebooks", [book.layer for book in plan.codebooks]),
        ("bits", [entry.layer for entry in plan.bits]),
    ):
        lost = [name for name in asked if name in gone]
        if lost:
            raise InfeasibleError(
                f"plan.{key}: expected layers that stay, got {lost[0]!r}, which goes with block {gone[lost[0]]!r}"
            )
