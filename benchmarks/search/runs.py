"""What a run leaves: when it had judged what, and which front it would have returned when."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, field_serializer, model_validator

from autocompress.files import write_bytes
from autocompress.front.finalists import choose_finalists
from autocompress.pipeline.folder import read_record
from autocompress.records import Plan, Record

#: Minutes at which every arm is asked what it would return.
CHECKPOINTS = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0)
#: Members of a returned front at most.
MEMBERS = 8


class Candidate(Record):
    """What is to be built for the final comparison; exactly one of the two is given.

    Attributes:
        plan: in this project's format, rebuilt from the dense weights.
        ratio: of channels, as Torch-Pruning takes it; cut by it from the dense weights, then quantized to 8 bits.
        seed: of the batches that Torch-Pruning's ranking is from.
    """

    plan: Plan | None = None
    ratio: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    seed: int = 0

    @model_validator(mode="after")
    def _one(self) -> Candidate:
        if (self.plan is None) == (self.ratio is None):
            raise ValueError("candidate: expected either a plan or a ratio, got both or neither")
        return self

    @field_serializer("plan")
    def _short(self, plan: Plan | None) -> dict[str, Any] | None:
        if plan is None:
            return None
        own = [name for name, field in Plan.model_fields.items() if getattr(plan, name) != field.default]
        full, short = plan.model_dump(mode="json"), plan.model_dump(mode="json", exclude_defaults=True)
        # Of a setting such as the schedule, its kind is a default too, and cannot be left out.
        return {name: short[name] if isinstance(full[name], list) else full[name] for name in own}

    @property
    def key(self) -> str:
        """Equal for what is built alike."""
        return self.plan.key if self.plan is not None else f"torch-pruning-{self.ratio:g}-{self.seed}"


class Step(Record):
    """One judgement in a run, in the arm's own terms.

    Attributes:
        seconds: since the run's clock began.
        key: of the candidate.
        error: 1 - accuracy on the validation split.
        ratio: latency relative to the dense network; predicted by a model where `predicted`.
        epochs: of training that the judgement rests on.
    """

    seconds: float
    key: str
    error: float
    ratio: float
    epochs: float
    predicted: bool = False


class Run(Record):
    """One arm, one seed.

    Attributes:
        minutes: wall clock that it was given.
        dense_sha256: of the dense weights.
        commit: of this project, when it ran.
        load: of the machine when it began and ended, processes per core of the last minute.
        preparation_s: of what its clock counts before the first candidate.
        steps: in the order of time.
        fronts: minutes, as text -> keys of what it would have returned then, at most `MEMBERS`.
        candidates: key -> what it is, of all that is in `fronts`.
        notes: what a reader should know.
    """

    work: str
    arm: str
    seed: int
    minutes: float
    dense_sha256: str
    commit: str
    load: tuple[float, float]
    preparation_s: float = 0.0
    steps: tuple[Step, ...]
    fronts: dict[str, tuple[str, ...]]
    candidates: dict[str, Candidate]
    notes: tuple[str, ...] = ()

    def front(self, minutes: float) -> tuple[str, ...]:
        """Keys of what it would have returned."""
        return self.fronts[f"{minutes:g}"]


def checkpoints(minutes: float) -> tuple[float, ...]:
    """The moments within a run of so many minutes, its end included."""
    return (*(m for m in CHECKPOINTS if m < minutes), float(minutes))


def chosen(steps: Sequence[Step], seconds: float) -> tuple[str, ...]:
    """Keys of the front that is returned at a moment: `choose_finalists` on the arm's own values.

    Of a candidate that was judged several times the judgement after the longest training counts, then the last.
    """
    latest: dict[str, Step] = {}
    for step in sorted((s for s in steps if s.seconds <= seconds), key=lambda s: (s.epochs, s.seconds)):
        latest[step.key] = step
    found = list(latest.values())
    points = np.array([(s.error, s.ratio) for s in found], dtype=float).reshape(-1, 2)
    return tuple(found[i].key for i in choose_finalists(points, MEMBERS))


def path_of(folder: Path, work: str, arm: str, seed: int) -> Path:
    """Where a run's record lies."""
    return folder / work / f"{arm}-{seed}.json"


def read_runs(folder: Path, work: str) -> list[Run]:
    """All runs of a work, by arm and seed."""
    found = (read_record(path, Run) for path in sorted((folder / work).glob("*-[0-9]*.json")))
    return sorted((run for run in found if run is not None), key=lambda run: (run.arm, run.seed))


def write_run(folder: Path, run: Run) -> None:
    """Keep a run, without the values of plans that are defaults anyway."""
    path = path_of(folder, run.work, run.arm, run.seed)
    write_bytes(path, (run.model_dump_json(exclude_defaults=True) + "\n").encode())
