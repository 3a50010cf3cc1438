"""The clock of a run, and what was judged when."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from runs import Candidate, Run, Step, checkpoints, chosen

from autocompress.pipeline.prepare import Workbench


class TimeIsUpError(BaseException):
    """The run's time is over; no `Exception`, so that nothing on the way takes it for a failed candidate."""


class Recorder:
    """Takes down judgements; the clock begins when it is made.

    Attributes:
        began: when, by the wall clock, in local time.
        fronts: checkpoint in minutes -> keys, where the arm has a rule of its own for what it returns; filled by it.
        preparation_s: set by the arm.
        notes: added to by the arm.
    """

    def __init__(self, minutes: float) -> None:
        self.minutes = minutes
        self.began = datetime.now()  # as the ledger tells its times
        self.fronts: dict[float, tuple[str, ...]] = {}
        self.preparation_s = 0.0
        self.notes: list[str] = []
        self.steps: list[Step] = []
        self._candidates: dict[str, Candidate] = {}
        self._start = time.monotonic()
        self._load = _load()

    @property
    def seconds(self) -> float:
        """Since the clock began."""
        return time.monotonic() - self._start

    @property
    def left_s(self) -> float:
        """Until the time is up."""
        return 60.0 * self.minutes - self.seconds

    @contextlib.contextmanager
    def limited(self) -> Iterator[None]:
        """Ends the block when the time is up, in the middle of a trial if it must be: that trial is lost."""

        def stop(*_: Any) -> None:
            raise TimeIsUpError

        before = signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, max(0.001, self.left_s))
        try:
            yield
        except TimeIsUpError:
            pass
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            signal.signal(signal.SIGALRM, before)

    def knows(self, candidate: Candidate) -> None:
        """Keep what a key stands for."""
        self._candidates[candidate.key] = candidate

    def tell(self, candidate: Candidate, error: float, ratio: float, epochs: float, **more: Any) -> None:
        """A judgement, made just now unless `seconds` says when."""
        self.knows(candidate)
        values = {"seconds": self.seconds, "error": error, "ratio": ratio, **more}
        values |= {name: round(values[name], 5) for name in ("seconds", "error", "ratio")}
        self.steps.append(Step(key=candidate.key, epochs=epochs, **values))

    def run(self, work: str, arm: str, seed: int, bench: Workbench, commit: str) -> Run:
        """The record of what happened."""
        steps = sorted(self.steps, key=lambda step: step.seconds)
        fronts = {m: self.fronts.get(m, chosen(steps, 60.0 * m)) for m in checkpoints(self.minutes)}
        returned = {key for front in fronts.values() for key in front}
        return Run(
            work=work,
            arm=arm,
            seed=seed,
            minutes=self.minutes,
            dense_sha256=bench.prepared.model_sha256,
            commit=commit,
            load=(self._load, _load()),
            preparation_s=round(self.preparation_s, 2),
            steps=tuple(step for step in steps if step.seconds <= 60.0 * self.minutes),
            fronts={f"{m:g}": keys for m, keys in fronts.items()},
            candidates={key: self._candidates[key] for key in sorted(returned)},
            notes=tuple(self.notes),
        )


def _load() -> float:
    return round(os.getloadavg()[0] / (os.cpu_count() or 1), 2)
