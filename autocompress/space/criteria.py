"""Which criteria suit what is pruned, and when the way their scores are reduced makes a difference."""

from __future__ import annotations

from collections.abc import Sequence

from autocompress.records import CHANNEL_CRITERIA, WEIGHT_CRITERIA, Criterion, Group, Reduction, Strategy

_SCORED: dict[str, frozenset[str]] = {"structured": CHANNEL_CRITERIA, "unstructured": WEIGHT_CRITERIA}
#: Criteria that score each coupled layer itself, whether normalizations follow or not.
_OF_LAYERS = frozenset({"magnitude", "l1", "fpgm", "f_statistic"})


def check_criteria(strategies: Sequence[Strategy], criteria: Sequence[Criterion], group: Group | None = None) -> None:
    """Refuse a criterion that cannot score what one of the strategies prunes.

    Args:
        strategies: that are open.
        criteria: likewise.
        group: what is pruned; ``bn_scale`` needs normalizations in it. None: any.

    Raises:
        ValueError: naming the criterion and the possible ones.
    """
    pruning = [strategy for strategy in strategies if strategy != "none"]
    if not pruning:
        return
    possible = set(frozenset.intersection(*(_SCORED[s] for s in pruning)))
    wanted = f"score what {' and '.join(pruning)} pruning removes"
    if group is not None and not group.norms and "bn_scale" in possible and "bn_scale" in criteria:
        possible.discard("bn_scale")
        wanted = "need no normalization, which does not follow here"
    for criterion in criteria:
        if criterion not in possible:
            raise ValueError(f"expected criteria that {wanted} ({', '.join(sorted(possible))}), got {criterion!r}")


def effective_reduction(group: Group, criterion: Criterion, reduction: Reduction) -> Reduction:
    """The reduction that ranks a group's units alike and is named first.

    A sum ranks as a mean does. With a single scored layer or normalization there is nothing to reduce; ``obs`` and
    random scores are of the whole group at once.
    """
    if criterion in ("obs", "random") or reduction == "sum":
        return "mean"
    if criterion in _OF_LAYERS:
        parts = len(group.layers)
    elif criterion == "bn_scale":
        parts = len(group.norms)
    else:  # of scaled normalizations, or else of layers; here it is not known which ones have a scale
        parts = max(len(group.layers), len(group.norms))
    return reduction if parts > 1 else "mean"
