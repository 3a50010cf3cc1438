"""Which candidates of a search are recovered in full."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from autocompress.errors import NoCandidateError, SearchError
from autocompress.front.dominance import non_dominated
from autocompress.front.finalists import choose_finalists
from autocompress.front.indicators import counts
from autocompress.front.selection import nearest
from autocompress.pipeline.final_front import as_point
from autocompress.pipeline.prepare import Workbench
from autocompress.records import TrialRecord, meets, minimized
from autocompress.search.problem import cost_bounds
from autocompress.space.space import Space


def choose(bench: Workbench, trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The candidates that are recovered in full: one per physical candidate, by non-dominated rank, spread out.

    Feasible complete trials come first. One whose latency stayed noisy cannot be ranked beside the others, but will be
    read afresh: those that would be on the front get up to a quarter of the places, all of them what the others leave.
    Further places go to the best of those that were judged at a lower rung only, the highest rung first,
    but for those that break a bound which training does not change, or were found to be hopeless; then to seeds that
    were not reached, in their order, which spreads them over latency. So a search that is stopped early still gives the
    best that it knows. The dense network stands beside every front anyway: it takes no place unless there is nothing
    else.

    Args:
        bench: the prepared study.
        trials: the ledger's, those of an unfinished search as well.

    Raises:
        SearchError: every trial failed; the message has the first cause.
        NoCandidateError: no trial meets the constraints; the message names the nearest ones.
    """
    study = bench.study
    known = {t.plan.key: t for t in reversed(trials) if t.state == "complete" and t.plan is not None}
    early = {
        t.plan.key: t
        for t in reversed(trials)
        if t.state in ("running", "paused", "stopped") and t.rungs and t.plan is not None and t.plan.key not in known
    }
    unseen = _unseen(bench.space, trials)
    if not known and not early and not unseen:
        first = next((t.reason for t in trials if t.state == "failed"), "no reason known")
        raise SearchError(f"all {len(trials)} trials of study {study.name!r} failed; the first: {first}")
    feasible = [t for t in known.values() if t.feasible]
    if not feasible and not early and not unseen:
        found = [as_point(f"trial {t.number}", t.measurement) for t in known.values() if t.measurement]
        raise NoCandidateError(
            f"no candidate of study {study.name!r} meets its constraints.\n" + nearest(found, study.bounds)
        )
    chosen = list[TrialRecord]()

    def smaller(some: Iterable[TrialRecord]) -> list[TrialRecord]:
        return [t for t in some if t.plan is not None and not t.plan.is_dense]

    def add(some: Sequence[TrialRecord], most: int = study.finalists.count) -> None:
        values = [(t.measurement or t.rungs[-1]).values for t in some]
        points = minimized(values, study.objectives, study.metrics)
        chosen.extend(some[i] for i in choose_finalists(points, min(most, study.finalists.count - len(chosen))))

    complete = smaller(feasible)
    trusted = [counts(t, study.objectives) for t in complete]
    if not all(trusted):
        values = [t.measurement.values for t in complete if t.measurement]
        best = non_dominated(minimized(values, study.objectives, study.metrics))
        front = [t for t, on_front, sure in zip(complete, best, trusted, strict=True) if on_front and not sure]
        add(front, most=study.finalists.count // 4)
    add([t for t, sure in zip(complete, trusted, strict=True) if sure])
    there = {t.number for t in chosen}
    add([t for t, sure in zip(complete, trusted, strict=True) if not sure and t.number not in there])
    costs = cost_bounds(study.bounds, study.metrics)
    promising = [
        t for t in smaller(early.values()) if meets(t.rungs[-1], costs) and not t.reason.startswith("hopeless:")
    ]
    for rung in reversed(range(len(study.search.ladder) - 1)):
        add([t for t in promising if t.rungs[-1].fidelity.rung == rung])
    chosen += smaller(unseen)[: study.finalists.count - len(chosen)]
    return chosen or feasible[:1] or [*early.values(), *unseen][:1]


def _unseen(space: Space, trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Seeds of which nothing was judged: distinct ones, with their plans."""
    seen = {t.plan.key for t in trials if t.plan is not None and (t.measurement is not None or t.rungs)}
    found: dict[str, TrialRecord] = {}
    for trial in trials:
        if not trial.is_unseen_seed:
            continue
        plan = trial.plan or space.plan(trial.params)
        if plan.key not in seen:
            found.setdefault(plan.key, trial.model_copy(update={"plan": plan}))
    return list(found.values())
