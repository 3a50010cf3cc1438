"""The search stage: the study's ledger, and the trials that are left."""

from __future__ import annotations

import time
from collections.abc import Callable

from autocompress.config import Study
from autocompress.front.dominance import non_dominated
from autocompress.front.indicators import baseline_values, counts, hypervolume
from autocompress.pipeline.evaluate import evaluator_of
from autocompress.pipeline.folder import StudyFolder
from autocompress.pipeline.prepare import Workbench
from autocompress.pipeline.progress import SearchState, reporter
from autocompress.records import Baseline, Fidelity, Metric, TrialRecord, minimized
from autocompress.rng import derive_seed
from autocompress.search.executor import search
from autocompress.search.ledger import Ledger
from autocompress.search.settings import SearchSettings


def open_ledger(study: Study, *, create: bool = True) -> Ledger:
    """The study's ledger: a journal in its folder, or the database that it names."""
    storage = study.search.storage
    place = StudyFolder(study.folder).journal if storage is None else storage.get_secret_value()
    return Ledger.open(place, study.name, study.objectives, study.bounds, study.metrics, create=create)


def load_trials(study: Study) -> tuple[TrialRecord, ...]:
    """All trials of a study, without changing anything; none if its search has not begun."""
    folder = StudyFolder(study.folder)
    # A database may hold no such study yet; the profile is the last that is written before the search opens it.
    begun = folder.journal if study.search.storage is None else folder.profile
    if not begun.is_file():
        return ()
    return open_ledger(study, create=False).trials()


def search_front(
    trials: tuple[TrialRecord, ...], objectives: tuple[str, ...], metrics: tuple[Metric, ...] = ()
) -> tuple[TrialRecord, ...]:
    """The feasible, trusted trials that no other one dominates, one for each physical candidate, fastest first."""
    distinct = {t.plan.key: t for t in reversed(trials) if t.plan is not None and counts(t, objectives)}
    kept = [t for t in distinct.values() if t.measurement is not None]
    if not kept:
        return ()
    best = non_dominated(minimized([t.measurement.values for t in kept if t.measurement], objectives, metrics))
    members = [t for t, good in zip(kept, best, strict=True) if good]
    return tuple(sorted(members, key=lambda t: t.measurement.values["latency_ms"].value if t.measurement else 0.0))


def search_state(study: Study, baseline: Baseline, trials: tuple[TrialRecord, ...], elapsed_s: float) -> SearchState:
    """Where the search stands.

    Args:
        study: how many trials it wants.
        baseline: fixes the hypervolume's box.
        trials: the ledger's.
        elapsed_s: since this process began to search.
    """
    ended = [t for t in trials if t.state in ("complete", "failed")]
    front = search_front(trials, study.objectives, study.metrics)
    values = [{k: e.value for k, e in t.measurement.values.items()} for t in front if t.measurement]
    return SearchState(
        done=len(ended),
        total=study.search.trials,
        failed=sum(t.state == "failed" for t in ended),
        front_size=len(front),
        hypervolume=hypervolume(values, baseline_values(baseline, "validation"), study.objectives, study.metrics),
        elapsed_s=elapsed_s,
        left_s=None,
    )


def search_candidates(bench: Workbench, start_ray: Callable[[], None]) -> tuple[TrialRecord, ...]:
    """Run the trials that are left, and tell how it goes.

    Args:
        bench: the prepared study.
        start_ray: called if there is anything to run.

    Raises:
        InterruptedStudyError: the user stopped it; the ledger is whole.
        SearchError: too many trials failed; the message has the first cause.
    """
    study, report = bench.study, reporter()
    ledger = open_ledger(study)
    already = sum(t.state in ("complete", "failed") for t in ledger.trials())
    if already < study.search.trials:
        size = bench.space.describe().splitlines()[0]
        report.stage("search", f"{study.search.trials - already} of {study.search.trials} trials; {size}")
        start_ray()
        began = time.monotonic()

        def told(_: TrialRecord) -> None:
            state = search_state(study, bench.prepared.baseline, ledger.trials(), time.monotonic() - began)
            fresh = state.done - already
            left = (state.total - state.done) * state.elapsed_s / fresh if fresh > 0 else None
            report.searched(state.model_copy(update={"left_s": left}))

        settings = SearchSettings(
            trials=study.search.trials,
            folder=bench.folder.root,
            workers=study.search.workers,
            sampler=study.search.sampler,
            seed=derive_seed(study.seed, "search"),
            fidelity=Fidelity(epochs=study.search.recovery_epochs),
            timeout_s=study.search.timeout_s,
            memory_gb=study.search.memory_gb,
            max_failures=study.search.max_failures,
        )
        search(bench.space, evaluator_of(bench), settings, ledger, told)
    else:
        report.stage("search", f"all {already} trials are done")
    return ledger.trials()
