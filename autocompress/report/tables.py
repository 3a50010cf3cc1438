"""Tables and lists of the page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from autocompress.records import Estimate, Host, Lineage
from autocompress.report.data import FrontRow, champion_first
from autocompress.report.markup import Html, join, tag
from autocompress.report.words import duration, percent, percent_interval, significant, size, times


def front_table(rows: Sequence[FrontRow]) -> Html:
    """One model a row: accuracy with interval, test accuracy, latency, size, plan, version and hash."""
    heads = (
        ("model", None),
        ("accuracy", "num"),
        ("test accuracy", "num"),
        ("latency", "num"),
        ("to dense", "num"),
        ("size", "num"),
        ("plan", None),
        ("version", None),
    )
    head = tag("thead", tag("tr", *(tag("th", name, class_=kind, scope="col") for name, kind in heads)))
    table = tag("table", head, tag("tbody", *(_front_row(row) for row in rows)), class_="front")
    return tag("div", table, class_="scroll", tabindex="0", role="region", aria_label="models")


def _front_row(row: FrontRow) -> Html:
    noisy = tag("span", "noisy", class_="sub bad") if row.noisy else None
    tied = tag("span", f"tied with {', '.join(row.tied_with)}", class_="sub") if row.tied_with else None
    chips = (tag("span", a, class_="chip champion" if a == "champion" else "chip") for a in champion_first(row.aliases))
    return tag(
        "tr",
        tag("th", row.name, tag("div", *chips, class_="chips") if row.aliases else None, tied, scope="row"),
        tag("td", percent(row.accuracy.value), _sub(percent_interval(row.accuracy)), class_="num"),
        tag(
            "td",
            percent(row.test.value) if row.test else "not opened",
            _sub(percent_interval(row.test)) if row.test else None,
            class_="num",
        ),
        tag("td", f"{significant(row.latency_ms.value)} ms", _sub(_interval(row.latency_ms)), noisy, class_="num"),
        tag("td", times(row.ratio.value), _sub(_interval(row.ratio)), class_="num"),
        tag("td", size(row.artifact.size_bytes), _sub(times(row.size_ratio)), class_="num"),
        tag("td", row.plan, class_="words"),
        tag(
            "td",
            row.version or ("baseline" if row.name == "dense" else "not registered"),
            tag("span", tag("code", row.artifact.sha256[:12], title=row.artifact.sha256), class_="sub"),
        ),
        class_="dense" if row.name == "dense" else None,
    )


def facts(pairs: Iterable[tuple[str, str]]) -> Html:
    """Names and what there is to say about them."""
    return tag("dl", *(join(tag("dt", name), tag("dd", text)) for name, text in pairs), class_="facts")


def host_facts(host: Host) -> Html:
    """Where the latencies were taken, and are valid."""
    return facts(
        (
            ("CPU", host.cpu),
            ("cores, memory", f"{host.cores}, {host.memory_gb} GB"),
            ("instructions", ", ".join(host.flags) or "none of note"),
            ("system", host.system),
            ("setup", host.setup),
            ("runtime", f"{host.runtime}, threads: {host.threads}"),
        )
    )


def lineage_facts(lineage: Lineage) -> Html:
    """What the models came from."""
    hashes = (
        ("model", lineage.model_sha256),
        ("data", lineage.data_sha256),
        ("code", lineage.code_sha256),
        ("space", lineage.space_sha256),
        ("dense artifact", lineage.dense_sha256),
    )
    return facts(
        (
            ("task", tag("code", lineage.task)),
            *((name, tag("code", value[:16], title=value)) for name, value in hashes),
            ("versions", ", ".join(f"{name} {version}" for name, version in sorted(lineage.versions.items()))),
        )
    )


def spans(seconds: Mapping[str, float]) -> Html:
    """Wall time by part, as bars."""
    longest = max(seconds.values(), default=0.0) or 1.0
    cells: list[Html] = []
    for part, taken in seconds.items():
        cells += [
            tag("span", part),
            tag("div", tag("div", class_="length", style=f"width: {100 * taken / longest:.1f}%")),
            tag("span", duration(taken), class_="num"),
        ]
    return tag("div", *cells, class_="spans")


def _sub(text: str) -> Html | None:
    return tag("span", text, class_="sub") if text else None


def _interval(estimate: Estimate) -> str:
    if estimate.low == estimate.high:
        return ""
    return f"[{significant(estimate.low)}, {significant(estimate.high)}]"
