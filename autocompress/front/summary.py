"""A search in numbers: its candidates by what became of them, its rungs, its trace, and where its time went."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence

from pydantic import Field

from autocompress.front.effort import Parts
from autocompress.front.indicators import TracePoint, baseline_values, trace
from autocompress.records import (
    Baseline,
    Fidelity,
    Measurement,
    Metric,
    Record,
    RungResult,
    SearchLog,
    TrialRecord,
)
from autocompress.search.problem import Problem
from autocompress.search.rungs import rank_agreement


class RungSummary(Record):
    """What happened at one rung.

    Attributes:
        rung: its index, 0 for the first.
        epochs: of recovery that a value rests on there.
        judged: candidates that got a value there.
        promoted: of them, those that went on, or are on their way.
        waiting: those that may still go on.
        stopped: those that ended there.
        seconds: median time of a candidate at this rung alone; None if none was built there.
        tau: Kendall's tau of this rung's order with that of full recovery, among pairs of like latency; None without a
            pair, and at the last rung. See `autocompress.search.rungs.rank_agreement`.
        pairs: that `tau` rests on.
        last: whether a candidate is complete that was judged there.
    """

    rung: int
    epochs: float
    judged: int
    promoted: int = 0
    waiting: int = 0
    stopped: int = 0
    seconds: float | None = None
    tau: float | None = None
    pairs: int = 0
    last: bool = False


class SearchSummary(Record):
    """How a search went, or how it goes.

    Attributes:
        total: candidates asked for.
        begun: candidates begun.
        counts: state -> candidates, of those that were begun.
        stops: why -> candidates, of those that were stopped: ``"rung"``, not among the best there; ``"time"``, the
            budget was over; and of what was not even built, ``"hopeless"`` and ``"repeat"``.
        cached: candidates that an earlier trial's measurement answered.
        seeds: kind of seed, such as ``"uniform"`` -> candidates.
        hypervolume: of the front so far, normalised, in [0, 1].
        seconds: that the search took, without its pauses.
        time_s: that it may take; None for as long as its candidates do.
        parts: worker-seconds by part.
        shares: part -> share of them; they sum to 1.
        rungs: the first to the highest at which a candidate was judged.
        log: what the search decided by itself.
        trace: hypervolume and time whenever a candidate was judged or ended.
    """

    total: int
    begun: int
    counts: dict[str, int] = Field(default_factory=dict)
    stops: dict[str, int] = Field(default_factory=dict)
    cached: int = 0
    seeds: dict[str, int] = Field(default_factory=dict)
    hypervolume: float = 0.0
    seconds: float = 0.0
    time_s: float | None = None
    parts: Parts = Parts()
    shares: dict[str, float] = Field(default_factory=dict)
    rungs: tuple[RungSummary, ...] = ()
    log: SearchLog = SearchLog()
    trace: tuple[TracePoint, ...] = ()

    @property
    def unbuilt(self) -> int:
        """Candidates that were not built: hopeless by prediction, the same network as an earlier one, or its answer."""
        return self.stops.get("hopeless", 0) + self.stops.get("repeat", 0) + self.cached


def summarize(
    trials: Sequence[TrialRecord],
    baseline: Baseline,
    objectives: Sequence[str],
    metrics: Sequence[Metric] = (),
    *,
    total: int | None = None,
    workers: int = 1,
    time_s: float | None = None,
    log: SearchLog | None = None,
) -> SearchSummary:
    """Sum up the rows of a ledger.

    Args:
        trials: of one study, in any order.
        baseline: the dense model, evaluated on the validation split.
        objectives: names of the search's objectives.
        metrics: those of the study among `objectives`.
        total: candidates asked for; as many as were begun if None.
        workers: candidates at once.
        time_s: budget of time.
        log: what the search wrote down; None where it did not.

    Raises:
        ValueError: see `autocompress.front.indicators.trace`.
    """
    begun = [t for t in trials if t.state != "waiting"]
    points = trace(begun, baseline, objectives, metrics, workers)
    parts = points[-1].parts if points else Parts()
    return SearchSummary(
        total=len(begun) if total is None else total,
        begun=len(begun),
        counts=dict(Counter(t.state for t in begun)),
        stops=dict(Counter(t.reason.split(":")[0] for t in begun if t.state == "stopped")),
        cached=sum(t.measurement is not None and t.measurement.cached for t in begun),
        seeds=dict(Counter(seed_kind(t.origin) for t in begun if t.origin.startswith("seed:"))),
        hypervolume=points[-1].hypervolume if points else 0.0,
        seconds=points[-1].seconds if points else 0.0,
        time_s=time_s,
        parts=parts,
        shares=parts.shares,
        rungs=_rungs(begun, baseline, objectives, metrics),
        log=log or SearchLog(),
        trace=tuple(points),
    )


def seed_kind(origin: str) -> str:
    """The kind of seed that an origin names: ``"uniform"`` of ``"seed:uniform-0.50-8bit"``."""
    name = origin.removeprefix("seed:")
    return name.split("-")[0].split(":")[0] or name


def _rungs(
    trials: Sequence[TrialRecord], baseline: Baseline, objectives: Sequence[str], metrics: Sequence[Metric]
) -> tuple[RungSummary, ...]:
    fidelities: dict[int, Fidelity] = {}
    for trial in trials:
        results = [r.fidelity for r in trial.rungs]
        results += [trial.measurement.fidelity] if trial.measurement is not None else []
        for fidelity in results:
            fidelities.setdefault(fidelity.rung, fidelity)
    if not fidelities:
        return ()
    dense = {n: v for n, v in baseline_values(baseline, "validation").items() if n in objectives}
    rungs = tuple(fidelities[i] for i in sorted(fidelities))
    problem = Problem(tuple(objectives), dense, tuple(metrics))
    return tuple(_rung(trials, fidelity, problem) for fidelity in rungs)


def _rung(trials: Sequence[TrialRecord], fidelity: Fidelity, problem: Problem) -> RungSummary:
    below = [(t, r) for t in trials for r in t.rungs if r.fidelity.rung == fidelity.rung]
    last = [t.measurement for t in trials if t.measurement is not None and t.measurement.fidelity.rung == fidelity.rung]
    results: list[RungResult | Measurement] = [*(r for _, r in below), *last]
    seconds = [sum(r.seconds.values()) for r in results if not r.cached and r.seconds]
    ended = [t for t, r in below if t.rungs[-1] is r and t.measurement is None]
    waiting = sum(t.state == "paused" for t in ended)
    stopped = sum(t.state == "stopped" for t in ended)
    tau, pairs = rank_agreement(trials, fidelity.rung, problem) if below else (0.0, 0)
    return RungSummary(
        rung=fidelity.rung,
        epochs=fidelity.epochs,
        judged=len(below) + len(last),
        promoted=len(below) - waiting - stopped,
        waiting=waiting,
        stopped=stopped,
        seconds=statistics.median(seconds) if seconds else None,
        tau=tau if pairs else None,
        pairs=pairs,
        last=bool(last),
    )
