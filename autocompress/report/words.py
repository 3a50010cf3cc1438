"""Values in words, with their units."""

from __future__ import annotations

from autocompress.records import Estimate

#: Objective name -> what a reader calls it, with the unit that `cost` uses.
LABELS = {
    "accuracy": "accuracy (%)",
    "latency_ms": "latency (ms)",
    "size_bytes": "file size (bytes)",
    "packed_bytes": "packed size (bytes)",
    "macs": "multiply-adds",
    "parameters": "parameters",
    "worst_class_drop": "largest drop of a class (points)",
    "peak_memory_bytes": "peak memory of a session (bytes)",
    "energy_mj": "energy of an inference (mJ)",
}


def percent(value: float, digits: int = 2) -> str:
    """A share in [0, 1] as percent."""
    return f"{100 * value:.{digits}f}%"


def percent_interval(estimate: Estimate, digits: int = 1) -> str:
    """A 95% interval of a share, such as ``"[91.2, 92.8]"``; empty if the value is exact."""
    if estimate.low == estimate.high:
        return ""
    return f"[{100 * estimate.low:.{digits}f}, {100 * estimate.high:.{digits}f}]"


def label(objective: str) -> str:
    """What a reader calls an objective; a metric of the study is called by its name."""
    return LABELS.get(objective, objective)


def number(value: float) -> str:
    """Four significant digits, such as ``"0.8712"``, ``"-1.204"`` or ``"1.2e-05"``."""
    return f"{value:.4g}"


def number_interval(estimate: Estimate) -> str:
    """A 95% interval, such as ``"[0.85, 0.89]"``; empty if the value is exact."""
    return "" if estimate.low == estimate.high else f"[{estimate.low:.3g}, {estimate.high:.3g}]"


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
    if objective == "worst_class_drop":
        return f"{100 * value:.2f} points"
    if objective == "energy_mj":
        return f"{significant(value)} mJ"
    return size(value) if objective.endswith("_bytes") else many(value)


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
