"""The study's own metrics on the page, and how often a model predicts what the dense one does."""

from __future__ import annotations

from collections.abc import Sequence

from autocompress.records import Estimate, Metric
from autocompress.report.data import FrontRow
from autocompress.report.markup import Html, tag
from autocompress.report.words import number, number_interval, percent, percent_interval


def metric_section(rows: Sequence[FrontRow], metrics: Sequence[Metric]) -> Html | None:
    """Each metric of each model, on the selection and the test split; None if the study has no metrics of its own.

    Args:
        rows: the models of the front, and the dense one.
        metrics: the study's.
    """
    if not metrics or not rows:
        return None
    note = (
        "Of the runtime's outputs of the very bytes, with 95% intervals over examples: on the selection split, below "
        "on the test split. Values are in their natural sign: "
        + ", ".join(f"{m.name} is better {'larger' if m.maximize else 'smaller'}" for m in metrics)
        + "."
    )
    head = tag("tr", tag("th", "model", scope="col"), *(tag("th", m.name, class_="num", scope="col") for m in metrics))
    body = [
        tag(
            "tr",
            tag("th", row.version or row.name, scope="row"),
            *(_cell(row.metrics.get(m.name), row.test_metrics.get(m.name)) for m in metrics),
        )
        for row in rows
    ]
    table = tag("table", tag("thead", head), tag("tbody", *body), class_="tight")
    sources = ", ".join(f"{m.name}: {m.source}" for m in metrics)
    return tag(
        "section",
        tag("h2", "More metrics"),
        tag("p", note, class_="note"),
        tag("div", table, class_="scroll", tabindex="0", role="region", aria_label="metrics"),
        tag("p", sources, class_="note"),
    )


def agreement_section(rows: Sequence[FrontRow]) -> Html | None:
    """How often each model predicts what the dense model and its own torch network do; None without classes.

    Args:
        rows: the models of the front.
    """
    shown = [(row, row.predictions) for row in rows if row.predictions is not None]
    if not shown:
        return None
    note = (
        "Share of the selection split's examples for which the model's prediction is the dense model's, whether right "
        "or wrong, with 95% intervals; the class in which they differ most often; and the share for which runtime and "
        "training framework agree, where the model is not quantized."
    )
    heads = ("as dense", "least in class", "runtime as framework")
    head = tag("tr", tag("th", "model", scope="col"), *(tag("th", h, class_="num", scope="col") for h in heads))
    body = []
    for row, found in shown:
        least = min(found.classes, key=lambda c: c.dense.value)
        where = f"class {least.target}" if least.dense.value < 1 else "every class"
        body.append(
            tag(
                "tr",
                tag("th", row.version or row.name, scope="row"),
                _share(found.dense),
                tag(
                    "td",
                    percent(least.dense.value),
                    tag("span", where, class_="sub"),
                    class_="num",
                ),
                _share(found.torch) if found.torch is not None else tag("td", "quantized", class_="num"),
            )
        )
    table = tag("table", tag("thead", head), tag("tbody", *body), class_="tight")
    return tag(
        "section",
        tag("h2", "Same predictions as before"),
        tag("p", note, class_="note"),
        tag("div", table, class_="scroll", tabindex="0", role="region", aria_label="agreement"),
    )


def _share(estimate: Estimate) -> Html:
    return tag("td", percent(estimate.value), tag("span", percent_interval(estimate), class_="sub"), class_="num")


def _cell(selection: Estimate | None, test: Estimate | None) -> Html:
    if selection is None:
        return tag("td", "not measured", class_="num")
    lines = [tag("span", number_interval(selection), class_="sub")]
    if test is not None:
        lines.append(tag("span", f"test {number(test.value)} {number_interval(test)}", class_="sub"))
    return tag("td", number(selection.value), *lines, class_="num")
