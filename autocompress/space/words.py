"""Plans in words."""

from __future__ import annotations

from collections.abc import Iterable

from autocompress.records import Architecture, Plan, Structure
from autocompress.space.draft import DENSE
from autocompress.space.training import setting_words


def plan_words(plan: Plan, structure: Structure | None = None) -> str:
    """A plan in one short sentence.

    Args:
        plan: what is asked of the network.
        structure: says how many groups, layers and blocks there are, and how wide; without it only counts are told.

    Returns:
        Such as ``"10 of 12 groups cut to 25–88% of channels (taylor); 20 of 22 layers at 8 bits"``; ``"dense"`` if
        nothing is asked for. Settings of training are told where they are not the default.
    """
    if structure is None:
        return _short(plan)
    layers = len(structure.layers)
    parts = []
    if plan.architecture is not None:
        parts.append(_built(plan.architecture))
        if plan.architecture.bits < 32:
            only = ", weights only where linear" if plan.architecture.weights_only else ""
            parts.append(f"all layers at {plan.architecture.bits} bits{only}")
    if plan.drops:
        parts.append(f"{_count(len(plan.drops), len(structure.blocks), 'block')} left out")
    if plan.cuts:
        kept = [cut.keep / structure.group(cut.group).width for cut in plan.cuts]
        count = _count(len(plan.cuts), len(structure.groups), "group")
        how = [_names(c.criterion for c in plan.cuts), *sorted({c.reduction for c in plan.cuts} - {"mean"})]
        parts.append(f"{count} cut to {_span(kept)} of channels ({', '.join(how)})")
    if plan.ranks:
        lowest, highest = (pick(min(entry.ranks) for entry in plan.ranks) for pick in (min, max))
        ranks = f"rank {lowest}" if lowest == highest else f"ranks {lowest}–{highest}"
        parts.append(f"{_count(len(plan.ranks), layers, 'layer')} factorized to {ranks}")
    if plan.masks:
        zeros = _span([m.sparsity for m in plan.masks])
        patterns = sorted({m.pattern for m in plan.masks} - {"element"})
        shaped = f" in {', '.join(patterns)}" if patterns else ""
        count = _count(len(plan.masks), layers, "layer")
        parts.append(f"{count} with {zeros} zeros{shaped} ({_names(m.criterion for m in plan.masks)})")
    if plan.codebooks:
        clusters = "/".join(map(str, sorted({c.clusters for c in plan.codebooks})))
        parts.append(f"{_count(len(plan.codebooks), layers, 'layer')} with a codebook of {clusters}")
    parts += [f"{_count(count, layers, 'layer')} at {words}" for words, count in _bits(plan).items()]
    return "; ".join(parts + _settings(plan)) or "dense"


def _short(plan: Plan) -> str:
    widths = sorted({entry.bits for entry in plan.bits})
    number = f"int{widths[0]}" if widths and widths == [8] else f"at {'/'.join(map(str, widths))} bits"
    built = plan.architecture
    if built is not None:
        bits = "" if built.bits == 32 else " int8" if built.bits == 8 else f" at {built.bits} bits"
        return ", ".join([_built(built, short=True) + bits, *_settings(plan)])
    counted = (
        (f"{_plural(len(plan.drops), 'block')} left out", plan.drops),
        (f"{_plural(len(plan.cuts), 'group')} cut", plan.cuts),
        (f"{_plural(len(plan.ranks), 'layer')} factorized", plan.ranks),
        (f"{_plural(len(plan.masks), 'layer')} masked", plan.masks),
        (f"{_plural(len(plan.codebooks), 'layer')} with a codebook", plan.codebooks),
        (f"{_plural(len(plan.bits), 'layer')} {number}", plan.bits),
    )
    return ", ".join([words for words, entries in counted if entries] + _settings(plan)) or "dense"


def _built(architecture: Architecture, *, short: bool = False) -> str:
    sizes = ", ".join(f"{name} {size:g}" for name, size in architecture.sizes.items())
    return f"built at {sizes}" if short else f"another network, built at {sizes} and trained from fresh weights"


def _bits(plan: Plan) -> dict[str, int]:
    """``"4 bits, weights only"`` -> number of layers, most bits first."""
    found: dict[str, int] = {}
    for entry in sorted(plan.bits, key=lambda e: (-e.bits, e.weights_only)):
        words = f"{entry.bits} bits" + (", weights only" if entry.weights_only else "")
        found[words] = found.get(words, 0) + 1
    return found


def _settings(plan: Plan) -> list[str]:
    found = []
    if plan.order != DENSE.order:
        found.append("masks before cuts")
    if plan.reconstruction != DENSE.reconstruction:
        found.append("without reconstruction")
    if plan.schedule != DENSE.schedule:
        found.append(setting_words(plan.schedule))
    if plan.quantizer != DENSE.quantizer:
        found.append(f"{setting_words(plan.quantizer)} quantization")
    if plan.distillation != DENSE.distillation:
        found.append(f"{setting_words(plan.distillation)} distillation".replace("none distillation", "no distillation"))
    return found


def _count(some: int, total: int, noun: str) -> str:
    return f"all {total} {noun}s" if some == total > 1 else f"{some} of {_plural(total, noun)}"


def _span(shares: list[float]) -> str:
    low, high = f"{100 * min(shares):.0f}", f"{100 * max(shares):.0f}"
    return f"{low}%" if low == high else f"{low}–{high}%"


def _names(names: Iterable[str]) -> str:
    return ", ".join(sorted(set(names)))


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
