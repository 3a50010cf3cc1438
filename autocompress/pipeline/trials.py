"""A study's ledger as others read it: its trials, and the front of its search."""

from __future__ import annotations

from autocompress.config import Study
from autocompress.front.dominance import non_dominated
from autocompress.front.indicators import counts
from autocompress.pipeline.folder import StudyFolder
from autocompress.records import Metric, TrialRecord, minimized
from autocompress.search.ledger import Ledger


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
