"""Costs that are measured only where they are asked for: peak memory and energy.

In a search each is measured if it is an objective or bounded. Of finalists and of the dense model the peak memory is
measured in any case, as far as the system can.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from pydantic import Field

from autocompress.config import Study
from autocompress.errors import MeasurementError
from autocompress.inputs import Arrays
from autocompress.measure.energy import counters, energy
from autocompress.measure.memory import check_memory, peak_memory
from autocompress.measure.target import Session, Target
from autocompress.pipeline.folder import StudyFolder
from autocompress.pipeline.probe import study_slot
from autocompress.pipeline.progress import reporter
from autocompress.records import EnergyReading, Estimate, Record


def asks_for(study: Study, name: str) -> bool:
    """The study searches for this objective, or bounds it."""
    return name in (*study.objectives, *study.constraints)


def check_costs(study: Study) -> None:
    """Refuse objectives that cannot be measured here, before anything is trained.

    Raises:
        MeasurementError: naming what was looked for, and what to do.
    """
    if asks_for(study, "peak_memory_bytes"):
        check_memory(study.target)
    if asks_for(study, "energy_mj"):
        if study.target.node:
            raise MeasurementError(
                f"energy_mj: expected a target on this machine, got one on a node with labels {study.target.node}; "
                "leave energy_mj out of objectives and constraints"
            )
        if study.measure.exclusive != "wait":
            raise MeasurementError(
                "energy_mj: expected measure.exclusive 'wait', as the counters are of the whole host and would count "
                f"what trains beside the reading, got {study.measure.exclusive!r}"
            )
        counters(gpus=_on_gpu(study))


class Costs(Record):
    """What was measured beside latency, of one artifact or of the dense one.

    Attributes:
        values: objective name -> estimate.
        energy: the reading behind ``values["energy_mj"]``.
        seconds: part name -> wall time, waiting included.
    """

    values: dict[str, Estimate] = Field(default_factory=dict)
    energy: EnergyReading | None = None
    seconds: dict[str, float] = Field(default_factory=dict)


def costs_of(
    study: Study,
    folder: StudyFolder,
    target: Target,
    models: Sequence[bytes],
    dense: Session,
    inputs: Arrays,
    *,
    seed: int,
    finalists: bool = False,
    energy_mj: float | None = None,
) -> list[Costs]:
    """Peak memory and energy of artifacts, as far as the study asks for them.

    Args:
        study: says what is asked for.
        folder: has the slot.
        target: the built target.
        models: the artifacts' bytes.
        dense: session of the dense artifact; energy is compared with its own.
        inputs: what one inference works on.
        seed: of the order of windows and of the bootstrap.
        finalists: measure the peak memory also if the study does not ask for it; where that fails it is told, and left
            out.
        energy_mj: the dense artifact's energy that the study compares by; what is measured now if None.

    Raises:
        MeasurementError: see `check_costs`; or a process that measured memory failed.
    """
    found = [Costs() for _ in models]
    asked = asks_for(study, "peak_memory_bytes")
    for i, model in enumerate(models if asked or finalists else ()):
        started = time.monotonic()
        try:
            # It is no timing: others may train meanwhile.
            with study_slot(study, folder).training():
                peak = peak_memory(study.target, model, inputs)
        except MeasurementError as error:
            if asked:
                raise
            reporter().stage("finalists", f"left out: {error}")
            break
        found[i] = Costs(values={"peak_memory_bytes": peak}, seconds={"memory": time.monotonic() - started})
    if asks_for(study, "energy_mj"):
        started = time.monotonic()
        sessions = [target.prepare(model) for model in models]
        found_counters = counters(gpus=_on_gpu(study))
        with study_slot(study, folder).measuring():
            readings = energy(sessions, dense, inputs, seed=seed, counters=found_counters)
        each = (time.monotonic() - started) / max(1, len(models))
        for i, reading in enumerate(readings):
            factor, ratio = energy_mj or readings[0].baseline_mj, reading.ratio
            value = Estimate(value=factor * ratio.value, low=factor * ratio.low, high=factor * ratio.high)
            found[i] = Costs(
                values={**found[i].values, "energy_mj": value},
                energy=reading,
                seconds={**found[i].seconds, "energy": each},
            )
    return found


def _on_gpu(study: Study) -> bool:
    return study.target.needs_gpu
