"""What runs and final judgements come to: each run's fronts as points, and what is missing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from compare import reference, volume
from runs import Run

from autocompress.records.box import in_box

#: Keys under which the dense network and its 8-bit version are judged.
DENSE, EIGHT = "dense", "eight"
#: Ends the key of a candidate that was built with the longer recovery.
LONGER = "-longer"
#: Accuracy lost by what is built with it: from what a longer recovery is not needed for, to what it does not mend.
_BORDER = (0.005, 0.035)
_OBJECTIVES = ("accuracy", "latency_ms")


@dataclass(frozen=True)
class Outcome:
    """The runs of one work, seen through one judgement of every candidate.

    Attributes:
        runs: of all arms.
        finals: key -> accuracy by split and latency ratio, or why there is none.
    """

    runs: Sequence[Run]
    finals: dict[str, dict[str, Any]]

    @property
    def arms(self) -> tuple[str, ...]:
        """Names of arms that ran."""
        return tuple(dict.fromkeys(run.arm for run in self.runs))

    @property
    def minutes(self) -> float:
        """Of the longest runs. Arms of shorter ones are compared with the fronts that longer ones had by then."""
        return max(run.minutes for run in self.runs)

    def horizon(self, arm: str) -> float:
        """Minutes that each run of the arm was given; of the shortest, should they differ."""
        return min(run.minutes for run in self.of(arm))

    def of(self, arm: str) -> list[Run]:
        """Its runs, by seed."""
        return sorted((run for run in self.runs if run.arm == arm), key=lambda run: run.seed)

    def known(self, key: str, split: str = "selection") -> bool:
        """Whether it is judged, be it that it failed."""
        found = self.finals.get(key, {})
        return "failed" in found or (split in found and "ratio" in found)

    def points(self, keys: Sequence[str], split: str = "selection") -> np.ndarray | None:
        """Error and latency in the box's units, shape (n, 2), without those that failed; None if one is not judged."""
        if not all(self.known(key, split) for key in (DENSE, *keys)):
            return None
        good = [self.finals[key] for key in keys if "failed" not in self.finals[key]]
        dense = {"accuracy": self.finals[DENSE][split], "latency_ms": 1.0}
        if not good:
            return np.empty((0, 2))
        return in_box([{"accuracy": f[split], "latency_ms": f["ratio"]} for f in good], dense, _OBJECTIVES)

    def curve(self, run: Run) -> dict[float, float | None]:
        """Minutes -> hypervolume of what it would have returned; None where that is not judged in full."""
        found: dict[float, float | None] = {}
        for text, keys in run.fronts.items():
            points = self.points(keys)
            found[float(text)] = None if points is None else volume(points)
        return found

    def end(self, run: Run, split: str = "selection") -> np.ndarray | None:
        """Points of the front at the end of the run."""
        return self.points(run.front(run.minutes), split)

    def best(self) -> np.ndarray:
        """The reference set: what no other member of any front dominates."""
        keys = dict.fromkeys(key for run in self.runs for front in run.fronts.values() for key in front)
        points = self.points([key for key in keys if self.known(key)])
        return reference([] if points is None else [points])

    def complete_seeds(self, *arms: str) -> list[int]:
        """Seeds that all of these arms have run."""
        seeds = [{run.seed for run in self.of(arm)} for arm in arms]
        return sorted(set.intersection(*seeds)) if seeds else []

    def shipped(self, run: Run, loss: float = 0.01) -> str | None:
        """The fastest member of the last front that loses at most `loss` on the selection split, if any does."""
        if not self.known(DENSE):
            return None
        floor = self.finals[DENSE]["selection"] - loss - 1e-9
        good = [k for k in run.front(run.minutes) if self._ratio(k) < math.inf and self.finals[k]["selection"] >= floor]
        return min(good, key=self._ratio, default=None)

    def _ratio(self, key: str) -> float:
        found = self.finals.get(key, {})
        return float(found["ratio"]) if "ratio" in found and "selection" in found else math.inf


def border(outcome: Outcome) -> list[str]:
    """Members of the last fronts whose loss on the selection split a longer recovery may bring below the limit."""
    dense, ends = (
        outcome.finals.get(DENSE, {}),
        dict.fromkeys(k for run in outcome.runs for k in run.front(run.minutes)),
    )
    losses = {
        key: dense["selection"] - found["selection"]
        for key in ends
        if "selection" in (found := outcome.finals.get(key, {})) and "selection" in dense
    }
    return [key for key, loss in losses.items() if _BORDER[0] < loss <= _BORDER[1]]


def after_longer(outcome: Outcome) -> Outcome | None:
    """The same fronts of arms of which all of `border` is judged after the longer recovery; None if there is none."""
    finals = dict(outcome.finals)
    runs = list[Run]()
    for arm in outcome.arms:
        keys = border(Outcome(outcome.of(arm), outcome.finals))
        if keys and all(outcome.known(key + LONGER) for key in keys):
            finals |= {key: outcome.finals[key + LONGER] for key in keys}
            runs += outcome.of(arm)
    return Outcome(runs, finals) if runs else None


def wanted(runs: Sequence[Run]) -> list[str]:
    """Keys of all that has to be judged, the most telling first: ends of runs, then rounder moments.

    Dense and 8 bits come before all.
    """
    moments = dict.fromkeys(m for run in runs for m in sorted((float(t) for t in run.fronts), key=_telling))
    ends = [key for run in runs for key in run.front(run.minutes)]
    rest = [k for m in sorted(moments, key=_telling) for run in runs for k in run.fronts.get(f"{m:g}", ())]
    return list(dict.fromkeys([DENSE, EIGHT, *ends, *rest]))


def _telling(minutes: float) -> tuple[int, float]:
    order = (10.0, 2.0, 1.0, 0.75, 1.5, 3.0, 5.0, 0.5, 7.5, 20.0, 15.0)
    return (order.index(minutes) if minutes in order else len(order), minutes)
