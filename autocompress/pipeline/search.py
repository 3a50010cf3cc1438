"""The search stage: the study's ledger, and the trials that are left."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence

from autocompress.config import Study
from autocompress.front.indicators import baseline_values, hypervolume, trace
from autocompress.pipeline.earlier import WARM, not_tried
from autocompress.pipeline.evaluate import evaluator_of
from autocompress.pipeline.folder import StudyFolder, read_record, write_record
from autocompress.pipeline.guide import PlanGuide, study_guide
from autocompress.pipeline.prepare import Workbench
from autocompress.pipeline.profile import Profile
from autocompress.pipeline.progress import SearchState, reporter
from autocompress.pipeline.seeds import seed_points
from autocompress.pipeline.trials import open_ledger, search_front
from autocompress.records import Baseline, ParamValue, SearchLog, TrialRecord
from autocompress.rng import derive_seed
from autocompress.search.choose import Choice
from autocompress.search.executor import search
from autocompress.search.ledger import ENDED, OWN, Ledger
from autocompress.search.problem import Problem
from autocompress.search.rungs import fidelities
from autocompress.search.searcher import close_open
from autocompress.search.settings import SearchSettings

#: Seeds at most, but for those that were asked for: after so many, what was learnt from them finds better ones.
_SEEDS = 16


def search_state(study: Study, baseline: Baseline, trials: tuple[TrialRecord, ...], elapsed_s: float) -> SearchState:
    """Where the search stands.

    Args:
        study: how many trials it wants.
        baseline: fixes the hypervolume's box.
        trials: the ledger's.
        elapsed_s: since this process began to search.
    """
    front = search_front(trials, study.objectives, study.metrics)
    values = [{k: e.value for k, e in t.measurement.values.items()} for t in front if t.measurement]
    return SearchState(
        done=sum(t.state in ENDED or t.state == "paused" for t in trials),
        total=study.search.trials,
        failed=sum(t.state == "failed" for t in trials),
        complete=sum(t.state == "complete" for t in trials),
        open=sum(t.state in ("running", "paused") for t in trials),
        front_size=len(front),
        hypervolume=hypervolume(values, baseline_values(baseline, "validation"), study.objectives, study.metrics),
        elapsed_s=elapsed_s,
        left_s=None,
    )


def search_candidates(bench: Workbench, profile: Profile, start_ray: Callable[[], None]) -> tuple[TrialRecord, ...]:
    """Run the trials that are left, and tell how it goes.

    Args:
        bench: the prepared study.
        profile: of it.
        start_ray: called if there is anything to run.

    Raises:
        InterruptedStudyError: the user stopped it; the ledger is whole.
        SearchError: too many trials failed; the message has the first cause.
        ConfigError: a plan file that the search shall begin with is none of the space.
    """
    study, report = bench.study, reporter()
    ledger = open_ledger(study)
    already = ledger.count(*ENDED)
    log = _Log(bench.folder)
    spent_s = max(log.seconds("search"), _busy_s(bench, ledger))
    late = study.search.time_s is not None and spent_s >= study.search.time_s
    if already >= study.search.trials or (late and already):
        over = f"its {study.search.time_s:g} s are over" if late else "all are there"
        report.stage("search", f"{already} trials are done; {over}")
        close_open(ledger, over_s=study.search.time_s if late else None)
        if not late:
            _say_without_room(log, not_tried(bench, ledger.trials()))
        _forget_checkpoints(bench)
        return ledger.trials()
    size = bench.space.describe().splitlines()[0]
    report.stage("search", f"{study.search.trials - already} of {study.search.trials} trials; {size}")
    began = time.monotonic()
    guide = study_guide(bench, profile)
    # Before Ray starts, which takes seconds: from here on a study that is stopped has a front to recover.
    _say_without_room(log, ledger.enqueue(_seeds(bench, profile, guide, ledger), study.search.trials))
    log.spend("seeds", time.monotonic() - began)
    start_ray()
    began, judged = time.monotonic(), ledger.count(*ENDED, "paused")

    def told(_: TrialRecord) -> None:
        state = search_state(study, bench.prepared.baseline, ledger.trials(), time.monotonic() - began)
        report.searched(state.model_copy(update={"left_s": _left_s(study, state, judged, spent_s)}))

    try:
        search(
            bench.space,
            evaluator_of(bench),
            SearchSettings(
                trials=study.search.trials,
                folder=bench.folder.root,
                workers=study.search.workers,
                sampler=study.search.sampler,
                seed=derive_seed(study.seed, "search"),
                rungs=fidelities(study.search.ladder),
                reduction=study.search.reduction,
                bands=study.search.bands,
                time_s=study.search.time_s,
                spent_s=spent_s,
                timeout_s=study.search.timeout_s,
                memory_gb=study.search.memory_gb,
                max_failures=study.search.max_failures,
            ),
            ledger,
            told,
            problem=Problem(
                objectives=study.objectives,
                dense=baseline_values(bench.prepared.baseline, "validation"),
                metrics=study.metrics,
                bounds=study.bounds,
                guide=guide,
            ),
            seeds=(),
            on_message=log.say,
            on_choice=log.choose,
        )
    finally:
        log.spend("search", time.monotonic() - began)
    _forget_checkpoints(bench)
    return ledger.trials()


def _forget_checkpoints(bench: Workbench) -> None:
    """What was not promoted is never trained further; finalists begin anew."""
    shutil.rmtree(bench.folder.root / "checkpoints", ignore_errors=True)


def _say_without_room(log: _Log, names: Sequence[str]) -> None:
    """Of seeds that were asked for; others are as many as there is room for."""
    asked = [name for name in names if name.startswith((OWN, WARM))]
    if asked:
        log.say(
            f"search.seeds: expected room for all of plans and warm_start, got none left for {', '.join(asked)}, which "
            "are not tried; raise search.trials"
        )


def _seeds(
    bench: Workbench, profile: Profile, guide: PlanGuide, ledger: Ledger
) -> list[tuple[str, dict[str, ParamValue]]]:
    """All of a person's plans and of an earlier study's; with others up to half of the trials.

    No others once trials were proposed.
    """
    search = bench.study.search
    proposed = any(t.origin == "sampler" for t in ledger.trials())
    if proposed and not (search.seeds.plans or search.seeds.warm_start):
        return []
    most = 0 if proposed else min(_SEEDS, (search.trials + 1) // 2)
    points = seed_points(bench, profile, guide)
    left = most - sum(name.startswith((OWN, WARM)) for name, _ in points)
    found = []
    for name, params in points:
        asked = name.startswith((OWN, WARM))
        if asked or left > 0:
            found.append((name, params))
        left -= not asked
    return found


def _busy_s(bench: Workbench, ledger: Ledger) -> float:
    """Seconds of earlier runs in which a trial ran: all that is known of a run whose driver was killed."""
    study = bench.study
    points = trace(ledger.trials(), bench.prepared.baseline, study.objectives, study.metrics)
    return points[-1].seconds if points else 0.0


def _left_s(study: Study, state: SearchState, judged: int, spent_s: float) -> float | None:
    """Seconds until the trials are done at this pace, or the time is over; None before one is done.

    `judged` were done, as `state` counts them, when this process began.
    """
    fresh = state.done - judged
    left = (state.total - state.done) * state.elapsed_s / fresh if fresh > 0 else None
    if study.search.time_s is None:
        return left
    budget = max(0.0, study.search.time_s - spent_s - state.elapsed_s)
    return budget if left is None else min(left, budget)


class _Log:
    """What the search decides by itself: told, and kept."""

    def __init__(self, folder: StudyFolder) -> None:
        self._path = folder.search_log
        self._log = read_record(self._path, SearchLog) or SearchLog()

    def say(self, message: str) -> None:
        """A sentence for people."""
        reporter().stage("search", message)
        self._keep(messages=tuple(dict.fromkeys((*self._log.messages, message))))

    def choose(self, choice: Choice) -> None:
        """Which sampler, and why."""
        reporter().stage("search", choice.why)
        self._keep(sampler=choice.config.kind, why=choice.why)

    def seconds(self, part: str) -> float:
        """Wall time of a part over all runs so far."""
        return self._log.seconds.get(part, 0.0)

    def spend(self, part: str, seconds: float) -> None:
        """Wall time of this run, of a part."""
        self._keep(seconds={**self._log.seconds, part: self.seconds(part) + seconds})

    def _keep(self, **changes: object) -> None:
        self._log = self._log.model_copy(update=changes)
        write_record(self._path, self._log)
