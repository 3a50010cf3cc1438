"""Ray Tune's view of the ledger: what Tune runs next, and what becomes of what it ran."""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from typing import Any

from ray.tune.search import Searcher

from autocompress.errors import SearchError
from autocompress.records import Plan, TrialRecord
from autocompress.search.ledger import Candidate, Ledger, SearchSpace
from autocompress.search.problem import Proposer
from autocompress.search.rungs import Ladder
from autocompress.search.settings import SearchSettings

#: A search is not given up before this many trials of the run have ended.
_FAIR_TRIALS = 5
#: The ledger's notes of the first rung in use, and of those that are trained in full to check it.
_FIRST_RUNG, _PROBES = "first_rung", "probes"


def close_open(ledger: Ledger, *, over_s: float | None) -> list[TrialRecord]:
    """Stop candidates that nothing will run any longer.

    Args:
        ledger: of a search that nothing runs.
        over_s: the seconds that the search might take, if they are over; None where its trials have ended: then what
            runs is left alone.

    Returns:
        Those that were stopped.
    """
    closed = []
    for trial in ledger.trials():
        if trial.state == "paused":
            epochs = trial.rungs[-1].fidelity.epochs
            why = f"rung: not among the best of like latency after {epochs:g} epochs"
            if over_s is not None:
                why = f"rung: waited after {epochs:g} epochs when the time of the search was over"
        elif trial.state == "running" and over_s is not None:
            why = f"time: the {over_s:g} s of the search were over"
        else:
            continue
        closed.append(ledger.stop(trial.number, why))
    return closed


class LedgerSearcher(Searcher):
    """Hands out candidates of the ledger, and tells it their outcomes.

    Tune swallows or wraps what is raised in here, so nothing is: `error` holds it, and no further candidate is handed
    out. Tune's own state is never saved.

    Args:
        ledger: with the sampler in use and the seeds queued.
        space: that candidates are asked of.
        settings: how many, how many at once, and when to give up.
        ladder: the rungs.
        workers: candidates at once.
        proposer: of candidates beyond the seeds; None leaves them to the ledger's sampler.
        on_trial: told each change of a trial's state.
        on_message: told what a person should know, in a sentence.
    """

    def __init__(
        self,
        ledger: Ledger,
        space: SearchSpace,
        settings: SearchSettings,
        ladder: Ladder,
        workers: int,
        proposer: Proposer | None,
        on_trial: Callable[[TrialRecord], None],
        on_message: Callable[[str], None],
    ) -> None:
        super().__init__()
        self.error: BaseException | None = None
        self.why_lost: Callable[[str], str] = lambda trial_id: "its Ray actor was lost"
        self.stopping: Callable[[], bool] = lambda: False
        self._ledger = ledger
        self._space = space
        self._settings = settings
        self._ladder = ladder
        self._workers = workers
        self._proposer = proposer
        self._on_trial = on_trial
        self._on_message = on_message
        self._live: dict[str, Candidate] = {}
        self._again = deque(ledger.unfinished())
        self._losses: Counter[int] = Counter()
        self._begun = ledger.count("running", "paused", "complete", "stopped", "failed")
        # By how many rungs the candidate had passed: many that pass the first do not excuse failures at the last.
        self._passes: Counter[int] = Counter()
        self._failures: defaultdict[int, list[TrialRecord]] = defaultdict(list)
        self._proposed_s: dict[int, float] = {}
        self._ends = None if settings.time_s is None else time.monotonic() + settings.time_s - settings.spent_s
        self._begin = int(ledger.noted(_FIRST_RUNG) or 0)
        self._checked = ledger.noted(_FIRST_RUNG) is not None
        self._probes: list[int] = json.loads(ledger.noted(_PROBES) or "[]")

    def __getstate__(self) -> dict[str, object]:
        """Nothing: Tune pickles what it is given when it starts, and is never asked to restore it."""
        return {}

    @property
    def left(self) -> bool:
        """Whether there is a candidate to run, or running."""
        return not self.late and bool(self._live or self._again or self._begun < self._settings.trials or self._ready())

    @property
    def late(self) -> bool:
        """Whether the time that the search may take is over."""
        return self._ends is not None and time.monotonic() >= self._ends

    def close(self) -> None:
        """Close what nothing will run any longer: candidates that were not promoted, or that time ran out for."""
        if not self._checked and (words := self._ladder.unchecked(self._ledger.trials(), self._begin)):
            self._on_message(words)
        closed = close_open(self._ledger, over_s=self._settings.time_s if self.late else None)
        if closed:
            self._on_trial(closed[-1])

    # --- Tune's calls -------------------------------------------------------------------------------------------

    def suggest(self, trial_id: str) -> Any:
        """The next candidate's requests; None while as many as may be are running; FINISHED at the end."""
        if self.error is not None or self.late:
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

    def judged(self, trial_id: str, outcome: str) -> bool:
        """Tell the ledger what a candidate is worth at a rung below the last; whether it goes on at once."""
        candidate = self._live.get(trial_id)
        if candidate is None or self.error is not None:
            return False
        try:
            found = json.loads(outcome)
            self._attempts(candidate, found)
            trial = self._ledger.judge(candidate.number, self._timed(candidate.number, found["reply"]))
            if trial.state == "paused":
                self._passes[len(trial.rungs) - 1] += 1
                self._on_trial(trial)
                self._check()
                if not self.late and self._following() == trial.number:
                    self._ledger.promote(trial.number)
                    return True
            else:
                self._note(trial)
        except Exception as raised:  # noqa: BLE001 - kept, and raised by the executor
            self.error = raised
        del self._live[trial_id]
        return False

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
        """What was lost comes first, then who may go on, then who is new."""
        while self.error is None and not self.late and not self.stopping():
            asked: Candidate | TrialRecord | None
            if self._again:
                asked = self._ledger.take_up(self._again.popleft(), self._space)
            elif (number := self._following()) is not None:
                self._ledger.promote(number)
                asked = self._ledger.take_up(number, self._space, lost=False)
            elif self._begun < self._settings.trials:
                asked = self._new()
            else:
                return None
            if isinstance(asked, Candidate):
                self._on_trial(self._ledger.record(asked.number))
                return asked
            if asked is not None:
                self._note(asked)
        return None

    def _new(self) -> Candidate | TrialRecord | None:
        """A new candidate, or a trial that ended unbuilt: refused by the space, or answered by an earlier trial.

        None stands for one that was stopped, since it repeats another one or is known to be hopeless.
        """
        self._begun += 1
        began = time.perf_counter()
        asked = self._ledger.ask(self._space, self._proposer)
        if not isinstance(asked, Candidate):
            return asked
        twin = self._ledger.twin(asked)
        why = None
        if twin is not None and twin.measurement is not None:
            took = {"propose": time.perf_counter() - began}
            known = twin.measurement.model_copy(update={"cached": True, "seconds": took})
            return self._ledger.tell(asked.number, known.model_dump(mode="json"))
        if twin is not None:
            why = f"repeat: the same network as trial {twin.number}"
        elif self._proposer is not None and not asked.own:
            why = self._hopeless(asked.plan)
        self._proposed_s[asked.number] = time.perf_counter() - began
        if why is None:
            return asked
        self._on_trial(self._ledger.stop(asked.number, why))
        return None

    def _following(self) -> int | None:
        """The paused trial that goes on next; those of no use are closed on the way."""
        while ready := self._ready():
            trial = self._ledger.record(ready[0])
            # What checks the first rung is trained in full whatever it is worth: without the bad ones all ranks agree.
            needed = not self._checked and trial.number in self._probes
            why = self._hopeless(trial.plan) if trial.plan is not None and not needed else None
            if why is None:
                return trial.number
            self._on_trial(self._ledger.stop(trial.number, why))
        return None

    def _hopeless(self, plan: Plan) -> str | None:
        """Why a plan is stopped though it could go on, as far as the proposer knows."""
        why = self._proposer.hopeless(plan, self._ledger.trials()) if self._proposer is not None else None
        return None if why is None else f"hopeless: {why}"

    def _ready(self) -> list[int]:
        """Paused trials that may go on, the most useful first; those that check the first rung come last."""
        if self._ladder.last == 0:
            return []
        trials = self._ledger.trials()
        final = self._begun >= self._settings.trials and not self._again
        if not self._checked and not self._probes:
            self._probes = self._ladder.probes(trials, begin=self._begin)
            if self._probes:
                self._ledger.note(_PROBES, json.dumps(self._probes))
        ready = self._ladder.promotable(trials, begin=self._begin, final=final, probes=self._probes)
        if not self._checked:
            ready += [n for n in self._probes if n not in ready and trials[n].state == "paused"]
        return ready

    def _check(self) -> None:
        """Lengthen the first rung if it does not rank."""
        if self._checked or self._ladder.last == 0:
            return
        begin, words = self._ladder.checked(self._ledger.trials(), self._begin)
        if words:
            self._begin, self._checked = begin, True
            self._ledger.note(_FIRST_RUNG, begin)
            self._on_message(words)

    def _attempts(self, candidate: Candidate, outcome: dict[str, Any]) -> None:
        if outcome["attempts"] != self._ledger.record(candidate.number).attempts:
            self._ledger.attempted(candidate.number, outcome["attempts"])

    def _timed(self, number: int, reply: Any) -> Any:
        """The reply with the time that it took to propose the candidate, once."""
        if isinstance(reply, dict) and isinstance(reply.get("seconds"), dict) and number in self._proposed_s:
            return {**reply, "seconds": {**reply["seconds"], "propose": self._proposed_s.pop(number)}}
        return reply

    def _request(self, candidate: Candidate) -> str:
        """One request for each rung that is left."""
        rungs = self._ladder.rungs
        first = max(candidate.begin, self._ladder.first(candidate.plan, self._begin))
        requests = [
            {
                "plan": candidate.plan.model_dump(mode="json"),
                "fidelity": rungs[rung].model_dump(mode="json"),
                "role": "validation",
                "partial": rung < self._ladder.last,
            }
            for rung in range(min(first, self._ladder.last), len(rungs))
        ]
        return json.dumps({"number": candidate.number, "attempts": candidate.attempts, "requests": requests})

    def _close(self, candidate: Candidate, outcome: dict[str, Any]) -> None:
        self._attempts(candidate, outcome)
        if "error" in outcome:
            self._failed(candidate.number, outcome["error"])
        else:
            self._note(self._ledger.tell(candidate.number, self._timed(candidate.number, outcome["reply"])))

    def _lost(self, candidate: Candidate, why: str) -> None:
        self._losses[candidate.number] += 1
        if self._losses[candidate.number] > self._settings.retries:
            self._failed(candidate.number, f"died: {why}, {self._losses[candidate.number]} times")
        else:
            self._again.append(candidate.number)

    def _failed(self, number: int, reason: str) -> None:
        self._note(self._ledger.fail(number, reason))

    def _note(self, trial: TrialRecord) -> None:
        """A trial ended; give the search up if too many failed."""
        passed = len(trial.rungs)
        if trial.state == "failed":
            self._failures[passed].append(trial)
        else:
            self._passes[passed] += 1
        self._on_trial(trial)
        self._check()
        failures = self._failures[passed]
        ended = self._passes[passed] + len(failures)
        if ended >= _FAIR_TRIALS and len(failures) > self._settings.max_failures * ended:
            first = failures[0]
            where = f" after {passed} rung{'s' * (passed > 1)}" if passed else ""
            self.error = SearchError(
                f"{len(failures)} of {ended} trials failed{where}, over the limit of "
                f"{self._settings.max_failures:.0%} (search.max_failures); mend the cause, then the same command goes "
                f"on; the first, trial {first.number}: {first.reason}"
            )
