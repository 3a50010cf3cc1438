"""This project's search, whole and without one of its parts: a study from its profile to the end of its time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime, timedelta
from typing import Any

from recorder import Recorder
from runs import MEMBERS, Candidate, checkpoints

from autocompress.cluster.session import ray_session
from autocompress.errors import NoCandidateError, SearchError
from autocompress.files import write_bytes
from autocompress.pipeline.choice import choose
from autocompress.pipeline.prepare import Workbench
from autocompress.pipeline.profile import profile
from autocompress.pipeline.search import search_candidates
from autocompress.pipeline.trials import load_trials
from autocompress.records import Estimate, TrialRecord

#: Candidates that no study here gets to, so that time ends it.
MANY = 600
#: What the search of each variant leaves out; the last one's plans are cut as a script's are.
VARIANTS: dict[str, dict[str, Any]] = {
    "ours": {},
    "ours-no-seeds": {"seeds": {"budgets": 0, "uniform": False}},
    "ours-no-rungs": {"rungs": ()},
    "ours-no-surrogate": {"sampler": {"kind": "nsga2"}},
    "ours-no-reconstruction": {},
}


def settings(arm: str, minutes: float) -> dict[str, Any]:
    """Of the study."""
    plain = arm == "ours-no-reconstruction"
    return {"plain": plain, "search": {"trials": MANY, "time_s": 60.0 * minutes, **VARIANTS[arm]}}


def own(bench: Workbench, recorder: Recorder) -> None:
    """Profile and search; the profile, the start of Ray and everything else is in the time.

    What would be returned at a moment is what the product itself chooses, from the ledger as it was then.

    Args:
        bench: the prepared study.
        recorder: takes down what the ledger holds in the end.
    """
    # The study may take all of its time for the search: what is left of it after the profile is all that it gets.
    known = profile(bench)
    left = bench.study.search.model_copy(update={"time_s": max(1.0, recorder.left_s)})
    bench = Workbench(bench.study.model_copy(update={"search": left}), bench.folder, bench.prepared)
    write_bytes(bench.folder.study, bench.study.model_dump_json(indent=1).encode(), mode=0o600)
    with ExitStack() as stack:

        def start_ray() -> None:
            recorder.preparation_s = recorder.seconds  # the seeds are in the ledger
            stack.enter_context(ray_session(1))

        try:
            trials = search_candidates(bench, known, start_ray)
        except SearchError as error:  # such as no time left for any candidate: what there is counts
            recorder.notes.append(str(error)[:300])
            trials = load_trials(bench.study)
    note(bench, recorder, trials)


def note(bench: Workbench, recorder: Recorder, trials: Sequence[TrialRecord]) -> None:
    """Take down every judgement of a ledger, and the front at every checkpoint."""
    dense_ms = bench.prepared.baseline.latency_ms

    def seconds(when: datetime) -> float:
        return (when - recorder.began).total_seconds()

    for trial in trials:
        if trial.plan is None:
            continue
        for rung in trial.rungs:
            if rung.judged is not None:
                error, ratio = _point(rung.values, dense_ms)
                recorder.tell(
                    Candidate(plan=trial.plan),
                    error,
                    ratio,
                    rung.fidelity.epochs,
                    seconds=seconds(rung.judged),
                    predicted="latency_ms" in rung.predicted,
                )
        if trial.measurement is not None and trial.finished is not None:
            error, ratio = _point(trial.measurement.values, dense_ms)
            epochs = trial.measurement.fidelity.epochs
            recorder.tell(Candidate(plan=trial.plan), error, ratio, epochs, seconds=seconds(trial.finished))
    for minutes in checkpoints(recorder.minutes):
        if 60.0 * minutes < recorder.preparation_s:
            recorder.fronts[minutes] = ()
            continue
        front = returned(bench, as_of(trials, recorder.began + timedelta(minutes=minutes)))
        for candidate in front:
            recorder.knows(candidate)  # seeds among them that nothing was judged of
        recorder.fronts[minutes] = tuple(candidate.key for candidate in front)
    recorder.notes += [f"trial {t.number}: {t.reason}"[:300] for t in trials if t.state == "failed"][:20]


def _point(values: Mapping[str, Estimate], dense_ms: float) -> tuple[float, float]:
    return 1.0 - values["accuracy"].value, values["latency_ms"].value / dense_ms


def as_of(trials: Sequence[TrialRecord], then: datetime) -> tuple[TrialRecord, ...]:
    """A ledger as it was at a moment: trials with what they had been judged, and all seeds that waited."""
    found = []
    for trial in trials:
        waits = trial.started is None or trial.started > then
        if waits and not trial.origin.startswith("seed:"):
            continue
        if trial.finished is not None and trial.finished <= then:
            found.append(trial)
            continue
        rungs = tuple(rung for rung in trial.rungs if rung.judged is not None and rung.judged <= then)
        known = {"rungs": rungs, "measurement": None, "finished": None, "reason": "", "violations": {}}
        state = "waiting" if waits else "paused" if rungs else "running"
        found.append(trial.model_copy(update={**known, "state": state}))
    return tuple(found)


def returned(bench: Workbench, trials: Sequence[TrialRecord]) -> tuple[Candidate, ...]:
    """What the product would recover in full, if it were stopped here; nothing before the seeds are known."""
    try:
        found = choose(bench, trials)
    except (SearchError, NoCandidateError):
        return ()
    return tuple(Candidate(plan=trial.plan) for trial in found if trial.plan is not None)[:MEMBERS]
