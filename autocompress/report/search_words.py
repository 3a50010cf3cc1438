"""A search in words: the lines of the terminal, of an artifact and of the page."""

from __future__ import annotations

from collections.abc import Mapping

from autocompress.front.summary import SearchSummary
from autocompress.report.words import duration, plural

#: State of a trial, or why it was stopped -> what became of the candidate, in the order in which it is told.
STATES = {
    "complete": "complete",
    "rung": "stopped early at a rung",
    "time": "stopped by the budget of time",
    "hopeless": "not built as hopeless",
    "repeat": "not built as repeats",
    "stopped": "stopped otherwise",
    "paused": "paused",
    "running": "running",
    "interrupted": "interrupted",
    "failed": "failed",
}
#: Part of a candidate's time -> what is being done.
DOING = {
    "propose": "proposing",
    "compress": "compressing",
    "recover": "recovering",
    "export": "exporting",
    "measure": "measuring",
    "orchestration": "orchestration",
}


def state_words(counts: Mapping[str, int], stops: Mapping[str, int]) -> str:
    """Such as ``"12 complete, 21 stopped early at a rung, 3 paused, 1 failed"``; ``"none yet"``.

    Args:
        counts: state -> candidates.
        stops: why -> candidates, of the stopped ones.
    """
    known = {why: n for why, n in stops.items() if why in STATES}
    seen = {**counts, **known, "stopped": counts.get("stopped", 0) - sum(known.values())}
    return ", ".join(f"{seen[name]} {words}" for name, words in STATES.items() if seen.get(name, 0) > 0) or "none yet"


def candidates_words(summary: SearchSummary) -> str:
    """Such as ``"37 of 60 candidates: 12 complete, 21 stopped early at a rung, 3 paused, 1 failed"``."""
    return f"{summary.begun} of {plural(summary.total, 'candidate')}: {state_words(summary.counts, summary.stops)}"


def share_words(shares: Mapping[str, float]) -> str:
    """Such as ``"recovering 61%, exporting 14%, measuring 12%"``, the largest first, the rest of the time last.

    Empty before any time passed.
    """
    named = sorted((n for n in DOING if n != "orchestration"), key=lambda n: -shares.get(n, 0.0))
    told = [f"{DOING[n]} {share_percent(shares[n])}" for n in (*named, "orchestration") if shares.get(n, 0.0) > 0.0]
    return ", ".join(told)


def time_words(summary: SearchSummary) -> str:
    """Such as ``"6 min 12 s of 10 min 00 s: recovering 61%, exporting 14%"``; empty before any time passed."""
    if summary.seconds <= 0.0:
        return ""
    budget = f" of {duration(summary.time_s)}" if summary.time_s is not None else ""
    return f"{duration(summary.seconds)}{budget}: {share_words(summary.shares)}"


def sampler_words(summary: SearchSummary) -> str:
    """Such as ``"surrogate (40 trials of about 6 s are few enough)"``; empty where it was not written down."""
    log = summary.log
    why = log.why.removeprefix(f"sampler {log.sampler}: ")
    return f"{log.sampler} ({why})" if log.sampler and why else log.sampler


def seed_words(summary: SearchSummary) -> str:
    """Such as ``"23 seeds: 12 knapsack, 10 uniform, 1 dense"``; ``"no seeds"``."""
    kinds = sorted(summary.seeds.items(), key=lambda item: (-item[1], item[0]))
    count = sum(summary.seeds.values())
    return f"{plural(count, 'seed')}: {', '.join(f'{n} {kind}' for kind, n in kinds)}" if count else "no seeds"


def search_line(summary: SearchSummary) -> str:
    """All of it in one line, the trace's last point."""
    shares, sampler = share_words(summary.shares), sampler_words(summary)
    return "; ".join(
        [
            candidates_words(summary),
            f"hypervolume {summary.hypervolume:.3f}",
            *([f"{duration(summary.seconds)}: {shares}"] if shares else []),
            *([f"sampler {sampler}"] if sampler else []),
        ]
    )


def share_percent(share: float) -> str:
    """A share without digits; what is there is never 0%."""
    return f"{100 * share:.0f}%" if share >= 0.005 else "under 1%"
