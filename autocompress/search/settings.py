"""How a search is run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from autocompress.records import Fidelity, Record
from autocompress.search.samplers import NSGA2, SamplerConfig


class SearchSettings(Record):
    """How a search is run; what it searches and how a candidate is judged come beside it.

    Attributes:
        trials: number of trials that the study shall have in the end, failed ones and those of earlier runs included.
        folder: absolute; ``logs`` below it holds what the candidates' processes print, ``tune`` what Ray Tune writes
            while it runs.
        workers: candidates at once.
        sampler: proposes candidates once the seeds are used up.
        seed: of the sampler.
        rungs: fidelities with rising epochs; a candidate is complete once it was judged at the last.
        reduction: of so many candidates judged at a rung below the last, one goes on.
        bands: of latency within which they are compared, at most.
        time_s: wall time that the search may take, in seconds; None for as long as its trials take.
        spent_s: of it, by earlier runs of the same search.
        timeout_s: wall time of one candidate at one rung, in seconds.
        memory_gb: memory of one candidate's processes, in GiB.
        max_failures: share of a run's trials that had passed as many rungs, five at least, which may fail before the
            search is given up.
        retries: how often a candidate whose process or Ray actor died is tried again.
    """

    trials: Annotated[int, Field(ge=1)]
    folder: Path
    workers: Annotated[int, Field(ge=1)] = 1
    sampler: SamplerConfig = NSGA2()
    seed: int = 0
    rungs: Annotated[tuple[Fidelity, ...], Field(min_length=1)] = (Fidelity(epochs=0.0),)
    reduction: Annotated[int, Field(ge=2)] = 3
    bands: Annotated[int, Field(ge=1)] = 4
    time_s: Annotated[float, Field(gt=0.0)] | None = None
    spent_s: Annotated[float, Field(ge=0.0)] = 0.0
    timeout_s: Annotated[float, Field(gt=0.0)] = 300.0
    memory_gb: Annotated[float, Field(gt=0.0)] = 6.0
    max_failures: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    retries: Annotated[int, Field(ge=0)] = 2
