"""The final front: which finalists are kept, under the noise of their measurement."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autocompress.errors import NoCandidateError
from autocompress.front.noise import NoisyFront, noisy_front
from autocompress.front.selection import Point, nearest
from autocompress.measure.quality import predict
from autocompress.pipeline.prepare import Workbench
from autocompress.records import Estimate, Measurement


def as_point(identifier: str, measurement: Measurement) -> Point:
    """A measurement's values alone."""
    return Point(id=identifier, values={name: e.value for name, e in measurement.values.items()})


def final_front(bench: Workbench, measured: Sequence[Measurement]) -> tuple[list[bool], list[tuple[int, ...]]]:
    """Which finalists are the final front, and which ones noise does not let tell apart from each.

    Feasible ones that no other feasible one dominates beyond noise, on the selection split, one of those that are tied
    (`autocompress.front.noise`). A latency that stayed noisy after all repeats says so on the card; it is not a reason
    to drop a model that was recovered in full.

    Args:
        bench: the prepared study.
        measured: finalists, on the selection split.

    Returns:
        For each finalist whether it is a member, and the indices of the feasible ones that it is tied with.

    Raises:
        NoCandidateError: no finalist meets the constraints; the message names the nearest ones.
    """
    bounds = bench.study.bounds
    feasible = [all(b.violation(m.values[b.objective].value) <= 0 for b in bounds) for m in measured]
    if not any(feasible):
        points = [as_point(m.plan_key, m) for m in measured]
        raise NoCandidateError(
            f"no finalist of study {bench.study.name!r} meets its constraints after full recovery.\n"
            + nearest(points, bounds)
        )
    kept = [i for i, good in enumerate(feasible) if good]
    found = _compared(bench, [measured[i] for i in kept])
    members = {i for i, good in zip(kept, found.members, strict=True) if good}
    tied = {i: tuple(kept[j] for j in np.flatnonzero(row)) for i, row in zip(kept, found.tied, strict=True)}
    return [i in members for i in range(len(measured))], [tied.get(i, ()) for i in range(len(measured))]


def _compared(bench: Workbench, measured: Sequence[Measurement]) -> NoisyFront:
    """Values of outputs compared on the same examples of the selection split, all others by their own intervals."""
    study, paired = bench.study, dict[str, dict[tuple[int, int], Estimate]]()
    judged = [name for name in study.objectives if bench.judge.judges(name)]
    if judged and len(measured) > 1:
        sessions = [bench.target.prepare(bench.folder.read_artifact(m.artifact.sha256)) for m in measured]
        split = [predict(session, bench.task.selection) for session in sessions]
        for name in judged:
            paired[name] = bench.judge.differences(name, [out for out, _ in split], split[0][1], "selection")
    return noisy_front([m.values for m in measured], study.objectives, study.metrics, paired=paired)
