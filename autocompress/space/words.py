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
    if structure is None:
        return _short(plan)
    layers = len(structure.layers)
    parts = []
    if plan.cuts:
        kept = [cut.keep / structure.group(cut.group).width for cut in plan.cuts]
        count = _count(len(plan.cuts), len(structure.groups), "group")
        parts.append(f"{count} cut to {_span(kept)} of channels ({_names(c.criterion for c in plan.cuts)})")
    if plan.masks:
        zeros = _span([m.sparsity for m in plan.masks])
        count = _count(len(plan.masks), layers, "layer")
        parts.append(f"{count} with {zeros} zeros ({_names(m.criterion for m in plan.masks)})")
    if plan.bits:
        parts.append(f"{_count(len(plan.bits), layers, 'layer')} at 8 bits")
    return "; ".join(parts) or "dense"


def _short(plan: Plan) -> str:
    counted = (
        (f"{_plural(len(plan.cuts), 'group')} cut", plan.cuts),
        (f"{_plural(len(plan.masks), 'layer')} masked", plan.masks),
        (f"{_plural(len(plan.bits), 'layer')} int8", plan.bits),
    )
    return ", ".join(words for words, entries in counted if entries) or "dense"


def _count(some: int, total: int, noun: str) -> str:
    return f"all {total} {noun}s" if some == total > 1 else f"{some} of {_plural(total, noun)}"


def _span(shares: list[float]) -> str:
    low, high = f"{100 * min(shares):.0f}", f"{100 * max(shares):.0f}"
    return f"{low}%" if low == high else f"{low}–{high}%"


def _names(names: Iterable[str]) -> str:
    return ", ".join(sorted(set(names)))


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
