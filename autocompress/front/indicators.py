"""How good a set of candidates is, as one number, and how that number grew."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

import moocore
import numpy as np

from autocompress.front.dominance import non_dominated
from autocompress.records import Baseline, Fidelity, Metric, Role, TrialRecord
from autocompress.records.box import in_box


class TracePoint(NamedTuple):
    """The state of a search when a trial ended.

    Attributes:
        seconds: time since the search began, in which at least one trial was running.
        hypervolume: normalised, in [0, 1].
        trials: trials that had ended, failed ones as well.
    """

    seconds: float
    hypervolume: float
    trials: int


def baseline_values(baseline: Baseline, role: Role) -> dict[str, float]:
    """The dense model's value of every objective, its accuracy and metrics on the split `role`.

    Raises:
        ValueError: the baseline was not evaluated on that split.
    """
    if role not in baseline.accuracy:
        raise ValueError(f"baseline.accuracy: expected the split {role!r}, got {sorted(baseline.accuracy)}")
    artifact = baseline.artifact
    return {
        "accuracy": baseline.accuracy[role].value,
        "latency_ms": baseline.latency_ms,
        "size_bytes": float(artifact.size_bytes),
        "macs": float(artifact.macs),
        "parameters": float(artifact.parameters),
        "worst_class_drop": 0.0,
        **({"packed_bytes": float(artifact.packed_bytes)} if artifact.packed_bytes else {}),
        **({"peak_memory_bytes": memory.value} if (memory := baseline.peak_memory_bytes) is not None else {}),
        **({"energy_mj": baseline.energy_mj} if baseline.energy_mj is not None else {}),
        **{name: estimate.value for name, estimate in baseline.metrics.get(role, {}).items()},
    }


def hypervolume(
    values: Sequence[Mapping[str, float]],
    dense: Mapping[str, float],
    objectives: Sequence[str],
    metrics: Sequence[Metric] = (),
) -> float:
    """Share of the box between the ideal and the reference point that the set dominates.

    The box is fixed by the dense model, so that values are comparable between searches on the same model, data and
    host: error = 1 - accuracy spans [0, dense error + 0.10], the worst class's drop [0, 0.20] (a gain counts as 0),
    every cost [0, dense cost], and a metric's distance to its best value [0, dense distance + margin], see `in_box`.
    Adding a point never lowers the value. A point beyond the box in any objective adds nothing; so neither does the
    dense model.

    Args:
        values: n points; each has a finite value for every objective.
        dense: the dense model's value for every objective, in the same units.
        objectives: m distinct names.
        metrics: those of the study among `objectives`.

    Returns:
        In [0, 1]; 0 for no points.

    Raises:
        ValueError: an objective is missing, a value is not finite, or a dense cost is not above 0.

    References:
        Zitzler and Thiele, 1998, "Multiobjective optimization using evolutionary algorithms"; computed by moocore.
    """
    points = in_box(values, dense, objectives, metrics)
    if len(points) == 0:
        return 0.0
    return float(min(1.0, max(0.0, moocore.hypervolume(points, ref=np.ones(len(objectives))))))


def trace(
    trials: Sequence[TrialRecord], baseline: Baseline, objectives: Sequence[str], metrics: Sequence[Metric] = ()
) -> list[TracePoint]:
    """Hypervolume of the search's front after each trial that ended, in the order in which they ended.

    A trial counts for its value if it is complete, violates no constraint and, where latency is an objective, was not
    read under noise. Time in which no trial was running, as between an interruption and its resumption, is left out.

    Args:
        trials: the ledger's rows, in any order; those that have not ended are passed over.
        baseline: the dense model, evaluated on the validation split.
        objectives: names of the search's objectives.
        metrics: those of the study among `objectives`.

    Returns:
        One point per ended trial.

    Raises:
        ValueError: trials of unlike fidelity, which must not be compared, or a value that is missing or not finite.
    """
    dense = baseline_values(baseline, "validation")
    ended = sorted(
        ((t.finished, t.number, t) for t in trials if t.state in ("complete", "failed") and t.finished is not None),
        key=lambda item: item[:2],
    )
    _same_fidelity(t for _, _, t in ended)
    clock = _BusyClock((t.started or finished, finished) for finished, _, t in ended)
    points = np.empty((0, len(objectives)))
    result: list[TracePoint] = []
    volume = 0.0
    for count, (finished, _, trial) in enumerate(ended, start=1):
        if counts(trial, objectives) and trial.measurement is not None:
            values = {name: estimate.value for name, estimate in trial.measurement.values.items()}
            points = np.concatenate([points, in_box([values], dense, objectives, metrics)])
            points = points[non_dominated(points)]
            volume = max(volume, float(moocore.hypervolume(points, ref=np.ones(len(objectives)))))
        result.append(TracePoint(clock.seconds(finished), min(1.0, volume), count))
    return result


def counts(trial: TrialRecord, objectives: Sequence[str]) -> bool:
    """Whether a trial's values may enter a front: complete, feasible, no noisy latency that matters."""
    if not trial.feasible or trial.measurement is None:
        return False
    # A constraint's name begins with its objective: a noisy latency must not decide what is feasible either.
    matters = "latency_ms" in objectives or any(name.startswith("latency_ms") for name in trial.violations)
    return not (trial.measurement.latency.noisy and matters)


def _same_fidelity(trials: Iterable[TrialRecord]) -> None:
    """Refuse trials that were not trained alike. The dense plan is not trained at all, and fits any."""
    seen: dict[Fidelity, int] = {}
    for trial in trials:
        if trial.measurement is not None and not (trial.plan is not None and trial.plan.is_dense):
            seen.setdefault(trial.measurement.fidelity, trial.number)
    if len(seen) > 1:
        told = ", ".join(f"trial {number} at {f.epochs:g} epochs, rung {f.rung}" for f, number in seen.items())
        raise ValueError(f"trials: expected one fidelity, since others are not comparable, got {told}")


class _BusyClock:
    """Seconds that are covered by at least one of the given intervals."""

    def __init__(self, spans: Iterable[tuple[datetime, datetime]]) -> None:
        self._merged: list[list[datetime]] = []
        for start, end in sorted(spans):
            if self._merged and start <= self._merged[-1][1]:
                self._merged[-1][1] = max(self._merged[-1][1], end)
            else:
                self._merged.append([start, max(start, end)])

    def seconds(self, until: datetime) -> float:
        """Covered seconds before `until`."""
        return sum((min(end, until) - start).total_seconds() for start, end in self._merged if start < until)
