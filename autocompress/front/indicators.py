"""How good a set of candidates is, as one number, and how that number grew."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import moocore
import numpy as np

from autocompress.front.dominance import non_dominated
from autocompress.front.effort import Clock, Parts, steps
from autocompress.records import Baseline, Fidelity, Metric, Record, Role, TrialRecord
from autocompress.records.box import in_box


class TracePoint(Record):
    """The state of a search when its ledger was told of a candidate.

    Attributes:
        seconds: time since the search began, without its pauses; see `autocompress.front.effort.Clock`.
        hypervolume: normalised, in [0, 1].
        trials: candidates that were judged at a rung, or had ended, failed ones as well.
        parts: where the time went so far.
    """

    seconds: float
    hypervolume: float
    trials: int
    parts: Parts = Parts()


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
    trials: Sequence[TrialRecord],
    baseline: Baseline,
    objectives: Sequence[str],
    metrics: Sequence[Metric] = (),
    workers: int = 1,
) -> list[TracePoint]:
    """Hypervolume of the search's front whenever a candidate was judged or ended, in that order, and the time so far.

    A trial counts for its value if it is complete, violates no constraint and, where latency is an objective, was not
    read under noise. What was judged at a rung below the last adds time and a candidate, but no hypervolume. Time in
    which no trial was running, as between an interruption and its resumption, is left out.

    Args:
        trials: the ledger's rows, in any order; those that were not judged yet are passed over.
        baseline: the dense model, evaluated on the validation split.
        objectives: names of the search's objectives.
        metrics: those of the study among `objectives`.
        workers: candidates at once.

    Returns:
        One point for every result of a rung and every trial that ended otherwise.

    Raises:
        ValueError: trials of unlike fidelity, which must not be compared, or a value that is missing or not finite.
    """
    dense = baseline_values(baseline, "validation")
    found = {t.number: t for t in trials}
    _same_fidelity(found.values())
    done = steps(found.values())
    clock = Clock(done, workers)
    points = np.empty((0, len(objectives)))
    result: list[TracePoint] = []
    volume = 0.0
    seen: set[int] = set()
    for step, parts in zip(done, clock.parts([s.end for s in done]), strict=True):
        trial = found[step.number]
        seen.add(step.number)
        if step.end == trial.finished and counts(trial, objectives) and trial.measurement is not None:
            values = {name: estimate.value for name, estimate in trial.measurement.values.items()}
            points = np.concatenate([points, in_box([values], dense, objectives, metrics)])
            points = points[non_dominated(points)]
            volume = max(volume, float(moocore.hypervolume(points, ref=np.ones(len(objectives)))))
        result.append(
            TracePoint(seconds=clock.seconds(step.end), hypervolume=min(1.0, volume), trials=len(seen), parts=parts)
        )
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
