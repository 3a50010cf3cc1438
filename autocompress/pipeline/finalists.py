"""Finalists: the front's members recovered in full, measured afresh, judged on data that the search never saw."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pydantic import Field

from autocompress.cluster.pool import Outcome, run_jobs
from autocompress.errors import NoCandidateError, SearchError, StudyChangedError
from autocompress.front.dominance import non_dominated
from autocompress.front.finalists import choose_finalists
from autocompress.front.indicators import counts
from autocompress.front.selection import Point, nearest
from autocompress.pipeline.controls import control_plan
from autocompress.pipeline.evaluate import evaluator_of, scaled
from autocompress.pipeline.folder import read_record, write_record
from autocompress.pipeline.identity import code_digest, dataset_digest
from autocompress.pipeline.prepare import Workbench, judge
from autocompress.pipeline.probe import take_readings
from autocompress.pipeline.progress import reporter
from autocompress.records import (
    Baseline,
    Estimate,
    Fidelity,
    Finalist,
    Measurement,
    Plan,
    Record,
    Role,
    TrialRecord,
    digest,
    minimized,
)
from autocompress.rng import derive_seed

#: The rung of finalists: recovery in full.
FULL = -1


class Finals(Record):
    """The outcome of the finalists' stage.

    Attributes:
        key: what it was made from: plans, recovery, data. Another key makes the stage run again.
        baseline: the dense model with its accuracy on selection and test as well.
        data_sha256: role -> hash, of all four roles.
        code_sha256: of autocompress and the task function's module, when this was made.
        failed: trial number -> reason, of finalists that could not be recovered or measured.
        failed_controls: "<trial number> <control>" -> reason.
    """

    key: str
    finalists: tuple[Finalist, ...]
    baseline: Baseline
    data_sha256: dict[str, str]
    code_sha256: str
    failed: dict[int, str] = Field(default_factory=dict)
    failed_controls: dict[str, str] = Field(default_factory=dict)

    @property
    def front(self) -> tuple[Finalist, ...]:
        """The final front."""
        return tuple(f for f in self.finalists if f.on_front)


class OpenedTest(Record):
    """Test accuracy by artifact: measured once, never again.

    Attributes:
        data_sha256: of the test split that all of them were measured on.
    """

    data_sha256: str = ""
    accuracy: dict[str, Estimate] = Field(default_factory=dict)


def finalists(bench: Workbench, trials: Sequence[TrialRecord], start_ray: Callable[[], None]) -> Finals:
    """Recover the front's members in full, measure them together, and open the test split for the final front.

    Args:
        bench: the prepared study.
        trials: the ledger's.
        start_ray: called if there is anything to run.

    Raises:
        NoCandidateError: no finalist meets the constraints; the message names the nearest ones.
        SearchError: every trial or finalist failed; the message has the first cause.
        StudyChangedError: the test split is not the one that was opened before.
    """
    study, folder, report = bench.study, bench.folder, reporter()
    chosen = _choose(bench, trials)
    fidelity = Fidelity(epochs=study.finalists.recovery_epochs, rung=FULL)
    selection = dataset_digest(bench.task.selection)
    key = digest(
        {
            "plans": [t.plan.key for t in chosen if t.plan],
            "fidelity": fidelity.model_dump(mode="json"),
            "model": bench.prepared.model_sha256,
            "data": {**bench.prepared.data_sha256, "selection": selection},
            "bounds": [b.name for b in study.bounds],
            "host": bench.host.key,
            **({"controls": study.finalists.controls} if study.finalists.controls else {}),
        }
    )
    earlier = read_record(folder.finalists, Finals)
    if earlier is not None and earlier.key == key:
        report.stage("finalists", f"{len(earlier.finalists)} finalists are there already")
        return earlier

    each = f"{fidelity.epochs:g} epoch{'' if fidelity.epochs == 1 else 's'} each"
    report.stage("finalists", f"recovering {len(chosen)} finalists, {each}")
    start_ray()
    outcomes = _recover(bench, [t.plan for t in chosen if t.plan is not None], fidelity, f"recovered {{}}, {each}")
    failed = {t.number: str(o) for t, o in zip(chosen, outcomes, strict=True) if isinstance(o, Exception)}
    measured = [
        (t, Measurement.model_validate(outcome))
        for t, outcome in zip(chosen, outcomes, strict=True)
        if not isinstance(outcome, Exception)
    ]
    if not measured:
        raise SearchError(f"all {len(chosen)} finalists failed; the first: {next(iter(failed.values()))}")

    report.stage("finalists", f"measuring {len(measured)} finalists afresh, side by side")
    fresh = _measure_together(bench, [m for _, m in measured])
    front = _front(bench, fresh)
    baseline = bench.prepared.baseline
    baseline = baseline.model_copy(
        update={
            "latency_ms": fresh[0].latency.baseline_ms,
            "accuracy": {
                **baseline.accuracy,
                "selection": judge(bench.dense_session, bench.task, "selection", study.seed),
                "test": _open_test(bench, baseline.artifact.sha256),
            },
        }
    )
    members = [t for (t, _), on_front in zip(measured, front, strict=True) if on_front]
    controls, failed_controls = _controls(bench, members, fidelity)
    result = Finals(
        key=key,
        finalists=tuple(
            Finalist(
                number=trial.number,
                plan=trial.plan,
                search=trial.measurement,
                final=final,
                test=_open_test(bench, final.artifact.sha256) if on_front else None,
                on_front=on_front,
                controls=controls.get(trial.number, {}),
            )
            for (trial, _), final, on_front in zip(measured, fresh, front, strict=True)
            if trial.plan is not None and trial.measurement is not None
        ),
        baseline=baseline,
        data_sha256={
            **bench.prepared.data_sha256,
            "selection": selection,
            # Of the split as it was when it was opened: the values above are from there.
            "test": (read_record(folder.opened, OpenedTest) or OpenedTest()).data_sha256,
        },
        code_sha256=code_digest(study.task.factory),
        failed=failed,
        failed_controls=failed_controls,
    )
    write_record(folder.finalists, result)
    return result


def as_point(identifier: str, measurement: Measurement) -> Point:
    """A measurement's values alone."""
    return Point(id=identifier, values={name: e.value for name, e in measurement.values.items()})


def _recover(bench: Workbench, plans: Sequence[Plan], fidelity: Fidelity, words: str) -> list[Outcome]:
    """Measurements, as JSON, of plans recovered in full and judged on the selection split; or why there is none.

    Args:
        bench: the prepared study.
        plans: what to build.
        fidelity: how long each recovers.
        words: told after each, ``{}`` standing for how many there are already.
    """
    study, ended = bench.study, 0

    def told(index: int, outcome: object) -> None:
        nonlocal ended
        ended += 1
        reporter().stage("finalists", words.format(f"{ended} of {len(plans)}"))

    return run_jobs(
        evaluator_of(bench),
        [
            {"plan": p.model_dump(mode="json"), "fidelity": fidelity.model_dump(mode="json"), "role": "selection"}
            for p in plans
        ],
        workers=study.search.workers,
        timeout_s=study.finalists.timeout_s,
        memory_gb=study.search.memory_gb,
        logs=bench.folder.logs,
        on_result=told,
    )


def _controls(
    bench: Workbench, members: Sequence[TrialRecord], fidelity: Fidelity
) -> tuple[dict[int, dict[str, Estimate]], dict[str, str]]:
    """Trial number -> control -> accuracy on the selection split; and why those that failed did."""
    asked = [
        (trial.number, name, plan)
        for trial in members
        for name in bench.study.finalists.controls
        if trial.plan is not None and (plan := control_plan(trial.plan, name)) is not None
    ]
    found: dict[int, dict[str, Estimate]] = {}
    failed: dict[str, str] = {}
    outcomes = _recover(bench, [plan for _, _, plan in asked], fidelity, "trained {} controls")
    for (number, name, _), outcome in zip(asked, outcomes, strict=True):
        if isinstance(outcome, Exception):
            failed[f"{number} {name}"] = str(outcome)
        else:
            found.setdefault(number, {})[name] = Measurement.model_validate(outcome).values["accuracy"]
    return found, failed


def _choose(bench: Workbench, trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Feasible trials, one per physical candidate, by non-dominated rank, spread out.

    Trials whose latency stayed noisy cannot be ranked beside the others: they only fill the places that are left.
    """
    complete = {t.plan.key: t for t in reversed(trials) if t.state == "complete" and t.plan is not None}
    if not complete:
        first = next((t.reason for t in trials if t.state == "failed"), "no reason known")
        raise SearchError(f"all {len(trials)} trials of study {bench.study.name!r} failed; the first: {first}")
    feasible = [t for t in complete.values() if t.feasible]
    if not feasible:
        found = [as_point(f"trial {t.number}", t.measurement) for t in complete.values() if t.measurement]
        raise NoCandidateError(
            f"no candidate of study {bench.study.name!r} meets its constraints.\n" + nearest(found, bench.study.bounds)
        )
    objectives, chosen = bench.study.objectives, list[TrialRecord]()
    for trusted in (True, False):
        some = [t for t in feasible if counts(t, objectives) == trusted]
        points = minimized([t.measurement.values for t in some if t.measurement], objectives)
        chosen += [some[i] for i in choose_finalists(points, bench.study.finalists.count - len(chosen))]
    return chosen


def _measure_together(bench: Workbench, measured: Sequence[Measurement]) -> list[Measurement]:
    """The finalists' latency, all interleaved with the dense baseline in one reading while nothing trains.

    What was noisy is read again, beside another reading of the baseline: so ratios are compared, in milliseconds by
    the one baseline that the study reports.
    """
    taken = take_readings(
        bench.study,
        bench.folder,
        bench.target,
        [m.artifact.sha256 for m in measured],
        bench.prepared.baseline.artifact.sha256,
        bench.inputs,
        seed=derive_seed(bench.study.seed, "latency", "finalists"),
        baseline=bench.host,
    )
    baseline_ms = taken.readings[0].baseline_ms
    return [
        m.model_copy(
            update={
                "latency": r,
                "host": taken.host,
                "node_id": taken.node_id,
                "values": {**m.values, "latency_ms": scaled(r.ratio, baseline_ms)},
            }
        )
        for m, r in zip(measured, taken.readings, strict=True)
    ]


def _front(bench: Workbench, measured: Sequence[Measurement]) -> list[bool]:
    """Which finalists are feasible and dominated by no other feasible one, on the selection split.

    A latency that stayed noisy after all repeats says so on the card; it is not a reason to drop a model that was
    recovered in full.
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
    best = non_dominated(minimized([measured[i].values for i in kept], bench.study.objectives))
    members = {i for i, good in zip(kept, best, strict=True) if good}
    return [i in members for i in range(len(measured))]


def _open_test(bench: Workbench, sha256: str) -> Estimate:
    """Accuracy on the test split: measured once for an artifact, written down, never measured again."""
    role: Role = "test"
    opened = read_record(bench.folder.opened, OpenedTest) or OpenedTest()
    if sha256 not in opened.accuracy:
        data = dataset_digest(bench.task.test)
        if opened.accuracy and opened.data_sha256 != data:
            raise StudyChangedError(
                f"study {bench.study.name!r}: the test split has changed since it was opened: "
                f"{opened.data_sha256[:12] or 'unknown'} -> {data[:12]}. Give the changed study another name, or put "
                "it back."
            )
        session = bench.target.prepare(bench.folder.read_artifact(sha256))
        estimate = judge(session, bench.task, role, bench.study.seed)
        opened = OpenedTest(data_sha256=data, accuracy={**opened.accuracy, sha256: estimate})
        write_record(bench.folder.opened, opened)
    return opened.accuracy[sha256]
