"""Where the time of a search went: propose, compress, recover, export, measure, and what is left over."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

import numpy as np

from autocompress.records import Measurement, Record, RungResult, TrialRecord

#: What evaluators and the search call a part of a candidate's time -> the part that it is told as. What is not here is
#: left over, and so counts as orchestration.
PART_OF = {
    "propose": "propose",
    "compress": "compress",
    "recover": "recover",
    "recalibrate": "recover",
    "export": "export",
    "quantize": "export",
    "pack": "export",
    "quality": "measure",
    "wait": "measure",
    "latency": "measure",
    "memory": "measure",
    "energy": "measure",
}
#: A gap between two trials that is longer is a pause of the search, in seconds; a shorter one is time that it took.
PAUSE_S = 30.0


class Parts(Record):
    """Worker-seconds of a search by part: with two workers, a second of the clock is two of these.

    Attributes:
        propose: asking the sampler.
        compress: dropping, cutting, factorizing, masking, folding.
        recover: training, and recalibrating batch normalisation.
        export: writing the ONNX file, quantizing and packing it.
        measure: quality, latency, and waiting for the measuring slot.
        orchestration: whatever else passed while the search ran: starting processes, handing over, idle workers, and
            candidates that failed.
    """

    propose: float = 0.0
    compress: float = 0.0
    recover: float = 0.0
    export: float = 0.0
    measure: float = 0.0
    orchestration: float = 0.0

    @property
    def total(self) -> float:
        """Worker-seconds."""
        return float(sum(getattr(self, name) for name in PARTS))

    @property
    def shares(self) -> dict[str, float]:
        """Part -> share of the total, in the order of a candidate's life. They sum to 1, or are 0 before any time."""
        total = self.total
        return {name: getattr(self, name) / total if total > 0.0 else 0.0 for name in PARTS}


PARTS: tuple[str, ...] = tuple(Parts.model_fields)


class Step(NamedTuple):
    """A candidate's stay at one rung, from when it was begun to when the ledger was told.

    Attributes:
        number: of the trial.
        begin, end: what the clock said.
        seconds: part, as of `PART_OF` -> seconds accounted for.
    """

    number: int
    begin: datetime
    end: datetime
    seconds: Mapping[str, float]


def steps(trials: Iterable[TrialRecord]) -> list[Step]:
    """Every stay of every candidate at a rung that is over, in the order in which the ledger was told.

    A trial that went on right away begins its next stay with the end of the last. One that waited in between, or that
    was taken up again after an interruption, begins it as long before the end as its seconds say; or if it has none, as
    when it failed, with the moment that it was taken up. What was answered from the cache took no time but that of
    proposing it.
    """
    found: list[Step] = []
    for trial in trials:
        mark = trial.started
        for end, seconds in _told(trial):
            parts = seconds or {}
            begin = end - timedelta(seconds=sum(parts.values()))
            # Where nothing is accounted for, as of a candidate that failed, only the clock says how long it took.
            if seconds is None and mark is not None and trial.taken_up is not None:
                mark = max(mark, min(trial.taken_up, end))
            if mark is not None and (seconds is None or begin - mark <= timedelta(seconds=PAUSE_S)):
                begin = min(mark, begin)
            found.append(Step(trial.number, begin, end, parts))
            mark = end
    return sorted(found, key=lambda step: (step.end, step.number))


def _told(trial: TrialRecord) -> Iterator[tuple[datetime, Mapping[str, float] | None]]:
    """When the ledger was told of the trial, and what of the time before is accounted for; None if nothing can be."""
    results: list[tuple[datetime | None, RungResult | Measurement | None]] = [(r.judged, r) for r in trial.rungs]
    # Stopped while it waited at a rung, it did nothing since; stopped at the end of the time, it was running.
    waited = trial.state == "stopped" and trial.rungs and not trial.reason.startswith("time")
    if trial.state in ("complete", "failed", "stopped") and not waited:
        results.append((trial.finished, trial.measurement))
    for end, result in results:
        if end is None:
            continue
        if result is None:
            yield end, None
            continue
        parts: dict[str, float] = {}
        for name, taken in result.seconds.items():
            if name in PART_OF and (not result.cached or name == "propose"):
                parts[PART_OF[name]] = parts.get(PART_OF[name], 0.0) + taken
        yield end, parts if parts or result.cached else None


class Clock:
    """Busy time of a search: the seconds in which its candidates ran, gaps of up to `PAUSE_S` included.

    Args:
        done: of the search, as `steps` gives them.
        workers: candidates at once.
    """

    def __init__(self, done: Sequence[Step], workers: int = 1) -> None:
        if workers < 1:
            raise ValueError(f"workers: expected at least 1, got {workers}")
        self._workers = workers
        self._zero = min((s.begin for s in done), default=None)
        spans: list[list[float]] = []
        for begin, end in sorted((self._at(s.begin), self._at(s.end)) for s in done):
            if spans and begin <= spans[-1][1] + PAUSE_S:
                spans[-1][1] = max(spans[-1][1], end)
            else:
                spans.append([begin, end])
        # Corners of the busy time over the clock's: it rises within a span, and rests between two.
        self._x = np.array([x for span in spans for x in span])
        lengths = np.diff(self._x, prepend=self._x[:1])
        self._busy = np.cumsum(np.where(np.arange(len(lengths)) % 2 == 1, lengths, 0.0))
        self._known = {name: _Ramps() for name in PARTS}
        for step in done:
            total = sum(step.seconds.values())
            for name, taken in step.seconds.items():
                self._known[name].add(self._at(step.end) - total, self._at(step.end), taken)

    def _at(self, moment: datetime) -> float:
        return (moment - self._zero).total_seconds() if self._zero is not None else 0.0

    def seconds(self, moment: datetime) -> float:
        """Busy seconds before `moment`."""
        return float(np.interp(self._at(moment), self._x, self._busy)) if self._zero is not None else 0.0

    def parts(self, moments: Sequence[datetime]) -> list[Parts]:
        """Worker-seconds by part before each of `moments`; a stay that is not over yet counts as far as it got.

        Orchestration is workers x busy seconds less all that is accounted for, and never less than before.
        """
        if self._zero is None:
            return [Parts() for _ in moments]
        at = np.array([self._at(m) for m in moments])
        busy = self._workers * np.interp(at, self._x, self._busy)
        known = {name: ramps.until(at) for name, ramps in self._known.items()}
        rest = np.maximum.accumulate(np.maximum(0.0, busy - sum(known.values())))
        known["orchestration"] = rest
        return [Parts(**{name: float(values[i]) for name, values in known.items()}) for i in range(len(moments))]


def parts(trials: Iterable[TrialRecord], workers: int = 1) -> Parts:
    """Worker-seconds of a search by part, so far.

    Args:
        trials: the ledger's rows, in any order.
        workers: candidates at once; an idle worker's time counts as orchestration.

    Returns:
        All 0 before the first candidate was judged.

    Raises:
        ValueError: `workers` is below 1.
    """
    done = steps(trials)
    clock = Clock(done, workers)
    return clock.parts([done[-1].end])[0] if done else Parts()


class _Ramps:
    """A sum of amounts, each growing evenly from a time to another."""

    def __init__(self) -> None:
        self._turns: list[tuple[float, float]] = []

    def add(self, begin: float, end: float, amount: float) -> None:
        if end > begin and amount > 0.0:
            rate = amount / (end - begin)
            self._turns += [(begin, rate), (end, -rate)]

    def until(self, at: np.ndarray) -> np.ndarray:
        """The sum at each of `at`, shape (n,), rising."""
        if not self._turns:
            return np.zeros(len(at))
        turns = np.array(sorted(self._turns))
        height = np.concatenate([[0.0], np.cumsum(np.cumsum(turns[:-1, 1]) * np.diff(turns[:, 0]))])
        return np.asarray(np.interp(at, turns[:, 0], height))
