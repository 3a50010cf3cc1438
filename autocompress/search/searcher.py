"""Ray Tune's view of the ledger: what Tune runs next, and what becomes of what it ran."""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from ray.tune.search import Searcher

from autocompress.errors import SearchError
from autocompress.records import TrialRecord
from autocompress.search.ledger import Candidate, Ledger, SearchSpace
from autocompress.search.settings import SearchSettings

#: A search is not given up before this many trials of the run have ended.
_FAIR_TRIALS = 5


class LedgerSearcher(Searcher):
    """Hands out candidates of the ledger, and tells it their outcomes.

    Tune swallows or wraps what is raised in here, so nothing is: `error` holds it, and no further candidate is handed
    out. Tune's own state is never saved.

    Args:
        ledger: with the sampler in use and the seeds queued.
        space: that candidates are asked of.
        settings: how many, how many at once, and when to give up.
        workers: candidates at once.
        on_trial: told each change of a trial's state.
    """

    def __init__(
        self,
        ledger: Ledger,
        space: SearchSpace,
        settings: SearchSettings,
        workers: int,
        on_trial: Callable[[TrialRecord], None],
    ) -> None:
        super().__init__()
        self.error: BaseException | None = None
        self.why_lost: Callable[[str], str] = lambda trial_id: "its Ray actor was lost"
        self._ledger = ledger
        self._space = space
        self._settings = settings
        self._workers = workers
        self._on_trial = on_trial
        self._live: dict[str, Candidate] = {}
        self._again = deque(ledger.unfinished())
        self._losses: Counter[int] = Counter()
        self._begun = ledger.count("running", "complete", "failed")
        self._ended = 0
        self._failures: list[TrialRecord] = []

    def __getstate__(self) -> dict[str, object]:
        """Nothing: Tune pickles what it is given when it starts, and is never asked to restore it."""
        return {}

    @property
    def left(self) -> bool:
        """Whether there is a candidate to run, or running."""
        return bool(self._live or self._again or self._begun < self._settings.trials)

    # --- Tune's calls -------------------------------------------------------------------------------------------

    def suggest(self, trial_id: str) -> Any:
        """The next candidate's request; None while as many as may be are running; FINISHED at the end."""
        if self.error is not None:
            return str(self.FINISHED)
        if len(self._live) >= self._workers:
            return None
        try:
            candidate = self._next()
        except Exception as error:  # noqa: BLE001 - kept, and raised by the executor
            self.error = error
        else:
            if candidate is not None:
                self._live[trial_id] = candidate
                return {"candidate": self._request(candidate)}
        return None if self._live and self.error is None else str(self.FINISHED)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the ledger; a candidate whose actor was lost is run again, a limited number of times."""
        candidate = self._live.pop(trial_id, None)
        if candidate is None or self.error is not None:
            return  # after a stop: it stays open in the ledger, for the next run to take up
        try:
            if error or result is None:
                self._lost(candidate, self.why_lost(trial_id))
            else:
                self._close(candidate, json.loads(result["outcome"]))
        except Exception as raised:  # noqa: BLE001 - kept, and raised by the executor
            self.error = raised

    def lost_to_memory(self, trial_id: str, message: str) -> None:
        """Ray's memory monitor killed the trial's actor: that is its end, it is not tried again."""
        candidate = self._live.pop(trial_id, None)
        if candidate is not None:
            self._failed(candidate.number, f"oom: {message}")

    def abandon(self) -> None:
        """Tune gave up its trials: run again those that were out."""
        for trial_id in list(self._live):
            self._lost(self._live.pop(trial_id), self.why_lost(trial_id))

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger is the only truth."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the ledger is the only truth."""

    # --- the ledger ---------------------------------------------------------------------------------------------

    def _next(self) -> Candidate | None:
        while self._again or self._begun < self._settings.trials:
            number = self._again.popleft() if self._again else None
            if number is None:
                self._begun += 1
            asked = self._ledger.ask(self._space) if number is None else self._ledger.take_up(number, self._space)
            if isinstance(asked, Candidate):
                self._on_trial(self._ledger.record(asked.number))
                return asked
            self._note(asked)  # the space refused it
            if self.error is not None:
                return None
        return None

    def _request(self, candidate: Candidate) -> str:
        request = {
            "plan": candidate.plan.model_dump(mode="json"),
            "fidelity": self._settings.fidelity.model_dump(mode="json"),
            "role": "validation",
        }
        return json.dumps({"number": candidate.number, "attempts": candidate.attempts, "request": request})

    def _close(self, candidate: Candidate, outcome: dict[str, Any]) -> None:
        if outcome["attempts"] != candidate.attempts:
            self._ledger.attempted(candidate.number, outcome["attempts"])
        if "error" in outcome:
            self._failed(candidate.number, outcome["error"])
        else:
            self._note(self._ledger.tell(candidate.number, outcome["reply"]))

    def _lost(self, candidate: Candidate, why: str) -> None:
        self._losses[candidate.number] += 1
        if self._losses[candidate.number] > self._settings.retries:
            self._failed(candidate.number, f"died: {why}, {self._losses[candidate.number]} times")
        else:
            self._again.append(candidate.number)

    def _failed(self, number: int, reason: str) -> None:
        self._note(self._ledger.fail(number, reason))

    def _note(self, trial: TrialRecord) -> None:
        self._ended += 1
        if trial.state == "failed":
            self._failures.append(trial)
        self._on_trial(trial)
        share = len(self._failures) / self._ended
        if self._ended >= _FAIR_TRIALS and share > self._settings.max_failures:
            first = self._failures[0]
            self.error = SearchError(
                f"{len(self._failures)} of {self._ended} trials failed, over the limit of "
                f"{self._settings.max_failures:.0%} (search.max_failures); the first, trial {first.number}: "
                f"{first.reason}"
            )
