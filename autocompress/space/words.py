"""Plans in words."""

from __future__ import annotations

from collections.abc import Iterable

from autocompress.records import Plan, Structure


def plan_words(plan: Plan, structure: Structure | None = None) -> str:
    """A plan in one short sentence.

    Args:
        plan: what is asked of the network.
        structure: says how many groups and layers there are, and how wide; without it only counts are told.

    Returns:
        Such as ``"10 of 12 groups cut to 25–88% of channels (taylor); 20 of 22 layers at 8 bits"``; ``"dense"`` if
        nothing is asked for.
    """
    parts = []
    if plan.cuts:
        widths = {g.name: g.width for g in structure.groups} if structure else {}
        kept = [cut.keep / widths[cut.group] for cut in plan.cuts if cut.group in widths]
        told = f" to {_span(kept)} of channels" if kept else ""
        count = _count(len(plan.cuts), len(structure.groups) if structure else None, "group")
        parts.append(f"{count} cut{told} ({_names(c.criterion for c in plan.cuts)})")
    if plan.masks:
        count = _count(len(plan.masks), len(structure.layers) if structure else None, "layer")
        parts.append(
            f"{count} with {_span([m.sparsity for m in plan.masks])} zeros ({_names(m.criterion for m in plan.masks)})"
        )
    if plan.bits:
        parts.append(f"{_count(len(plan.bits), len(structure.layers) if structure else None, 'layer')} at 8 bits")
    return "; ".join(parts) or "dense"


def _count(some: int, total: int | None, noun: str) -> str:
    if total is None:
        return f"{some} {noun}{'' if some == 1 else 's'}"
    return f"all {total} {noun}s" if some == total > 1 else f"{some} of {total} {noun}{'' if total == 1 else 's'}"


def _span(shares: list[float]) -> str:
    low, high = f"{100 * min(shares):.0f}", f"{100 * max(shares):.0f}"
    return f"{low}%" if low == high else f"{low}–{high}%"


def _names(names: Iterable[str]) -> str:
    return ", ".join(sorted(set(names)))
