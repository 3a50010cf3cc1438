"""How a study's search went, in numbers."""

from __future__ import annotations

from collections.abc import Sequence

from autocompress.config import Study
from autocompress.front.summary import SearchSummary, summarize
from autocompress.pipeline.folder import StudyFolder, read_record
from autocompress.records import Baseline, SearchLog, TrialRecord


def search_summary(study: Study, baseline: Baseline, trials: Sequence[TrialRecord]) -> SearchSummary:
    """Sum up a study's ledger, with what its search wrote down beside it.

    Args:
        study: how many trials it wants, how many at once, and in what time.
        baseline: fixes the hypervolume's box.
        trials: the ledger's.
    """
    return summarize(
        trials,
        baseline,
        study.objectives,
        study.metrics,
        total=study.search.trials,
        workers=study.search.workers,
        time_s=study.search.time_s,
        log=read_record(StudyFolder(study.folder).search_log, SearchLog),
    )
