"""The page's section about the search: how its front grew, where the time went, and what became of the candidates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from autocompress.front.summary import RungSummary, SearchSummary
from autocompress.records import TrialRecord
from autocompress.records.box import ERROR_MARGIN
from autocompress.report.figures import Figure
from autocompress.report.markup import Html, join, tag
from autocompress.report.search_figures import hypervolume_figure, parts_figure
from autocompress.report.search_words import sampler_words, seed_words, state_words, time_words
from autocompress.report.tables import facts
from autocompress.report.words import duration, plural


def search_figures(summary: SearchSummary) -> dict[str, Figure]:
    """Figures of the section, by the id of their element; the time is left out where none is accounted for."""
    found = {"hypervolume": hypervolume_figure(summary.trace)}
    if _accounted(summary):
        found["parts"] = parts_figure(summary.trace)
    return found


def search_section(summary: SearchSummary, trials: Sequence[TrialRecord]) -> Html:
    """The section.

    Args:
        summary: of the search.
        trials: the ledger's rows, for what failed.
    """
    box = (
        f"Share of the box between the ideal (no error, no cost) and the reference (dense error plus "
        f"{100 * ERROR_MARGIN:.0f} points, dense cost) that the search's front dominates, on the validation split. "
        "Only what passed the last rung counts. Pauses between an interruption and its resumption are left out."
    )
    time = None
    if _accounted(summary):
        note = (
            "Of all workers together. Measuring is quality, latency and waiting for the measuring slot; "
            "orchestration is whatever else passed: processes that start, handing over, idle workers, candidates that "
            "failed."
        )
        time = join(
            tag("h3", "Where the time of the search went"),
            tag("p", note, class_="note"),
            tag("div", id="parts", class_="plot low", role="img", aria_label=f"Time by part; {time_words(summary)}"),
        )
    return tag(
        "section",
        tag("h2", "Search"),
        facts(_told(summary)),
        tag("h3", "The front's hypervolume over time"),
        tag("p", box, class_="note"),
        tag("div", id="hypervolume", class_="plot low", role="img", aria_label="Hypervolume over time"),
        time,
        _rungs(summary.rungs) if any(not rung.last for rung in summary.rungs) else None,
        _messages(summary.log.messages),
        _failures(trials),
    )


def _told(summary: SearchSummary) -> list[tuple[str, str]]:
    unbuilt = (
        (summary.stops.get("repeat", 0), "as the same network as an earlier one"),
        (summary.stops.get("hopeless", 0), "as predicted to lie far behind the front"),
        (summary.cached, "as an earlier measurement answered"),
    )
    found = (
        ("candidates", f"{summary.begun} of {summary.total}: {state_words(summary.counts, summary.stops)}"),
        ("not built", ", ".join(f"{count} {words}" for count, words in unbuilt if count)),
        ("begun with", seed_words(summary) if summary.seeds else ""),
        ("sampler", sampler_words(summary)),
        ("time", time_words(summary)),
        ("hypervolume", f"{summary.hypervolume:.4f}"),
    )
    return [(name, words) for name, words in found if words]


def _rungs(rungs: Sequence[RungSummary]) -> Html:
    heads = ("rung", "epochs", "judged", "went on", "stopped", "waiting", "median time", "Kendall τ with full recovery")
    rows = [
        tag(
            "tr",
            tag("th", "last" if rung.last else str(rung.rung), scope="row"),
            tag("td", f"{rung.epochs:g}", class_="num"),
            tag("td", str(rung.judged), class_="num"),
            *(
                tag("td", "" if rung.last else str(n), class_="num")
                for n in (rung.promoted, rung.stopped, rung.waiting)
            ),
            tag("td", duration(rung.seconds) if rung.seconds is not None else "", class_="num"),
            tag(
                "td",
                f"{rung.tau:.2f}" if rung.tau is not None else "" if rung.last else "not known",
                tag("span", f"{rung.pairs} pairs of like latency", class_="sub") if rung.tau is not None else None,
                class_="num",
            ),
        )
        for rung in rungs
    ]
    head = tag(
        "thead", tag("tr", *(tag("th", h, class_="num" if i else None, scope="col") for i, h in enumerate(heads)))
    )
    table = tag("table", head, tag("tbody", *rows), class_="tight")
    note = (
        "A candidate is judged after the epochs of each rung in turn; among those of like latency the best go on. A "
        "value below the last rung is compared at its rung alone. Kendall's τ says how well a rung orders candidates "
        "of like latency as full recovery does: 1 alike, 0 as chance does."
    )
    return join(
        tag("h3", "Rungs"),
        tag("p", note, class_="note"),
        tag("div", table, class_="scroll", tabindex="0", role="region", aria_label="rungs"),
    )


def _messages(messages: Sequence[str]) -> Html | None:
    return join(tag("h3", "What the search had to say"), *(tag("p", text) for text in messages)) if messages else None


def _failures(trials: Sequence[TrialRecord]) -> Html | None:
    failed = [t for t in trials if t.state == "failed"]
    if not failed:
        return None
    counted = Counter(t.reason.split(":")[0] or "unknown" for t in failed)
    first = {t.reason.split(":")[0] or "unknown": t for t in reversed(failed)}
    lines = facts(
        (f"{count} × {kind}", f"first in trial {first[kind].number}: {first[kind].reason}")
        for kind, count in counted.most_common()
    )
    return tag("details", tag("summary", f"{plural(len(failed), 'trial')} failed"), lines)


def _accounted(summary: SearchSummary) -> bool:
    return any(share > 0.0 for part, share in summary.shares.items() if part != "orchestration")
