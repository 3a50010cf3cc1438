"""What the models of the front are held against: the same plan made otherwise."""

from __future__ import annotations

from collections.abc import Sequence

from autocompress.records import Estimate
from autocompress.report.data import FrontRow
from autocompress.report.markup import Html, tag
from autocompress.report.words import percent, percent_interval

#: Control -> how it is called on the page.
NAMES = {
    "magnitude": "chosen by magnitude",
    "random": "chosen at random",
    "from-scratch": "its shape from scratch",
}


def control_section(rows: Sequence[FrontRow]) -> Html | None:
    """Accuracy of each model beside its controls; None if none were asked for.

    Args:
        rows: the models of the front.
    """
    shown = [name for name in NAMES if any(name in row.controls for row in rows)]
    if not shown:
        return None
    note = (
        "Accuracy on the selection split of the same widths, zeros and bits, made otherwise with as much training: "
        "what goes chosen by magnitude or at random, and the compressed shape trained from freshly drawn weights "
        "without the dense model's help. Below, points against the model, and the 95% interval; – where there is no "
        "such control, as nothing was cut, or where it failed."
    )
    head = tag(
        "tr",
        tag("th", "model", scope="col"),
        tag("th", "accuracy", class_="num", scope="col"),
        *(tag("th", NAMES[name], class_="num", scope="col") for name in shown),
    )
    body = [
        tag(
            "tr",
            tag("th", row.version or row.name, scope="row"),
            tag("td", percent(row.accuracy.value), _interval(row.accuracy), class_="num"),
            *(_cell(row.controls.get(name), row.accuracy) for name in shown),
        )
        for row in rows
    ]
    table = tag("table", tag("thead", head), tag("tbody", *body), class_="tight")
    return tag(
        "section",
        tag("h2", "Against its controls"),
        tag("p", note, class_="note"),
        tag("div", table, class_="scroll", tabindex="0", role="region", aria_label="controls"),
    )


def _cell(control: Estimate | None, reference: Estimate) -> Html:
    if control is None:
        return tag("td", "–", class_="num")
    points = f"{100 * (control.value - reference.value):+.2f} {percent_interval(control)}".rstrip()
    return tag("td", percent(control.value), tag("span", points, class_="sub"), class_="num")


def _interval(estimate: Estimate) -> Html | None:
    text = percent_interval(estimate)
    return tag("span", text, class_="sub") if text else None
