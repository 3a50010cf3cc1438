"""Ray Tune's view of the rungs: after each, a candidate goes on in its process, or leaves it to another one."""

from __future__ import annotations

from typing import Any

from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from autocompress.search.searcher import LedgerSearcher


class RungScheduler(FIFOScheduler):
    """Decides by the ledger, at once: nobody waits for a rung to fill.

    A candidate that stops here is not lost. It waits in the ledger, and the searcher hands it out again, to go on from
    its checkpoint, as soon as it is among the best of its rung.

    Args:
        searcher: knows the ledger.
    """

    def __init__(self, searcher: LedgerSearcher) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._searcher = searcher

    def __getstate__(self) -> dict[str, object]:
        """Nothing: Tune pickles what it is given when it starts, and is never asked to restore it."""
        return {}

    def on_trial_result(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> str:
        """Told of a rung below the last."""
        goes_on = self._searcher.judged(trial.trial_id, result["outcome"])
        return str(TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP)
