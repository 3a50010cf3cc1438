"""What compression did to single classes, for the models of the front."""

from __future__ import annotations

from collections.abc import Sequence

from autocompress.records import ClassChange, Estimate, Fairness
from autocompress.report.data import FrontRow
from autocompress.report.markup import Html, join, tag

#: Classes shown; of a task with more, those that lose most in any of the models.
SHOWN = 20


def class_section(rows: Sequence[FrontRow]) -> Html | None:
    """Change of recall per class, classes down, models across; None if nothing was measured per class.

    Args:
        rows: the models.
    """
    measured = [(row, row.fairness) for row in rows if row.fairness is not None]
    if not measured:
        return None
    classes = _order([found for _, found in measured])
    note = (
        "Points of recall that each model gained (+) or lost (-) beside the dense model, on the same examples of the "
        "selection split, with 95% intervals; the class that loses most is in bold. Classes with few examples have "
        "wide intervals, and among many classes some change by chance."
    )
    if len(classes) > SHOWN:
        note += f" The {SHOWN} classes of {len(classes)} that lose most in any model."
    head = tag(
        "tr",
        tag("th", "class", scope="col"),
        tag("th", "examples", class_="num", scope="col"),
        *(tag("th", row.version or row.name, class_="num", scope="col") for row, _ in measured),
    )
    every = tag(
        "tr",
        tag("th", "all", scope="row"),
        tag("td", f"{sum(c.examples for c in measured[0][1].classes):,}", class_="num"),
        *(_cell(found.overall) for _, found in measured),
    )
    body = [every, *(_class_row(target, [found for _, found in measured]) for target in classes[:SHOWN])]
    table = tag("table", tag("thead", head), tag("tbody", *body), class_="tight lines")
    exemplars = [f"{row.version or row.name}: {len(found.pies):,}" for row, found in measured if found.pies is not None]
    return tag(
        "section",
        tag("h2", "What became of every class"),
        tag("p", note, class_="note"),
        tag("div", table, class_="scroll", tabindex="0", role="region", aria_label="change per class"),
        tag("p", f"Examples that most compressed models see otherwise than most dense ones: {', '.join(exemplars)}.")
        if exemplars
        else None,
    )


def _order(measured: Sequence[Fairness]) -> list[int]:
    """Classes by the largest drop in any model, largest first, then by index."""
    least: dict[int, float] = {}
    for found in measured:
        for change in found.classes:
            least[change.target] = min(least.get(change.target, 1.0), change.change.value)
    return sorted(least, key=lambda target: (least[target], target))


def _class_row(target: int, measured: Sequence[Fairness]) -> Html:
    changes: list[ClassChange | None] = [
        next((change for change in found.classes if change.target == target), None) for found in measured
    ]
    examples = next(change.examples for change in changes if change is not None)
    cells = (
        tag("td", "", class_="num")
        if change is None
        else _cell(change.change, strong=found.worst_class == target and change.change.value < 0)
        for change, found in zip(changes, measured, strict=True)
    )
    return tag("tr", tag("th", str(target), scope="row"), tag("td", f"{examples:,}", class_="num"), *cells)


def _cell(change: Estimate, *, strong: bool = False) -> Html:
    value = f"{100 * change.value:+.1f}"
    interval = tag("span", f"[{100 * change.low:+.1f}, {100 * change.high:+.1f}]", class_="sub")
    return tag("td", tag("strong", value) if strong else join(value), interval, class_="num")
