"""Plans and values in words, with their units."""

from __future__ import annotations

from collections.abc import Iterable

from autocompress.records import Estimate, Plan, Structure

#: Objective name -> what a reader calls it, with the unit that `cost` uses.
LABELS = {
    "accuracy": "accuracy (%)",
    "latency_ms": "latency (ms)",
    "size_bytes": "size (bytes)",
    "macs": "multiply-adds",
    "parameters": "parameters",
}


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


def percent(value: float, digits: int = 2) -> str:
    """A share in [0, 1] as percent."""
    return f"{100 * value:.{digits}f}%"


def percent_interval(estimate: Estimate, digits: int = 1) -> str:
    """A 95% interval of a share, such as ``"[91.2, 92.8]"``; empty if the value is exact."""
    if estimate.low == estimate.high:
        return ""
    return f"[{100 * estimate.low:.{digits}f}, {100 * estimate.high:.{digits}f}]"


def milliseconds(value: float) -> str:
    """Three significant digits, such as ``"0.412 ms"``."""
    return f"{significant(value)} ms"


def significant(value: float) -> str:
    """Three significant digits without exponent."""
    if value == 0:
        return "0"
    digits = 2
    magnitude = abs(value)
    while magnitude < 1 and digits < 9:
        magnitude, digits = magnitude * 10, digits + 1
    while magnitude >= 10 and digits > 0:
        magnitude, digits = magnitude / 10, digits - 1
    return f"{value:,.{digits}f}"


def times(ratio: float) -> str:
    """A ratio to the dense model, such as ``"0.31×"``."""
    return f"{ratio:.2f}×"


def size(count: float) -> str:
    """Bytes in decimal units, such as ``"1.08 MB"``."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{significant(count / scale)} {unit}"
    return f"{count:.0f} B"


def many(count: float) -> str:
    """A large count, such as ``"40.6 M"``."""
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= scale:
            return f"{significant(count / scale)} {unit}"
    return f"{count:.0f}"


def cost(objective: str, value: float) -> str:
    """A cost in the unit that a reader expects."""
    if objective == "latency_ms":
        return milliseconds(value)
    return size(value) if objective == "size_bytes" else many(value)


def duration(seconds: float) -> str:
    """Wall time, such as ``"42 s"``, ``"3 min 12 s"`` or ``"1 h 04 min"``."""
    if 0 < seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def plural(count: int, noun: str) -> str:
    """Such as ``"1 trial"`` and ``"2 trials"``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _short(plan: Plan) -> str:
    counted = (
        (f"{plural(len(plan.cuts), 'group')} cut", plan.cuts),
        (f"{plural(len(plan.masks), 'layer')} masked", plan.masks),
        (f"{plural(len(plan.bits), 'layer')} int8", plan.bits),
    )
    return ", ".join(words for words, entries in counted if entries) or "dense"


def _count(some: int, total: int, noun: str) -> str:
    return f"all {total} {noun}s" if some == total > 1 else f"{some} of {plural(total, noun)}"


def _span(shares: list[float]) -> str:
    low, high = f"{100 * min(shares):.0f}", f"{100 * max(shares):.0f}"
    return f"{low}%" if low == high else f"{low}–{high}%"


def _names(names: Iterable[str]) -> str:
    return ", ".join(sorted(set(names)))
