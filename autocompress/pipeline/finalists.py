"""Finalists: the front's members recovered in full, measured afresh, judged on data that the search never saw."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pydantic import Field

from autocompress.cluster.pool import Outcome, run_jobs
from autocompress.errors import SearchError, StudyChangedError
from autocompress.measure.latency import rate
from autocompress.measure.quality import predict
from autocompress.pipeline.choice import choose
from autocompress.pipeline.controls import control_plan
from autocompress.pipeline.costs import Costs, costs_of
from autocompress.pipeline.evaluate import evaluator_of, scaled
from autocompress.pipeline.final_front import final_front
from autocompress.pipeline.folder import read_record, write_record
from autocompress.pipeline.graphs import graph_of, with_graphs
from autocompress.pipeline.identity import code_digest, dataset_digest
from autocompress.pipeline.prepare import Workbench, latency_inputs
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
)
from autocompress.rng import derive_seed

#: The rung of finalists: recovery in full.
FULL = -1
#: Sittings in which their latency is read: it is what is told of them from then on.
_SITTINGS = 3


class Finals(Record):
    """The outcome of the finalists' stage.

    Attributes:
        key: what it was made from: plans, recovery, data. Another key makes the stage run again.
        baseline: the dense model with its accuracy on selection and test as well.
        data_sha256: role -> hash, of all four roles.
        code_sha256: of autocompress and the task function's module, when this was made.
        failed: trial number -> reason, of finalists that could not be recovered or measured.
        failed_controls: "<trial number> <control>" -> reason.
        limits: seconds and GiB that each might take.
    """

    key: str
    finalists: tuple[Finalist, ...]
    baseline: Baseline
    data_sha256: dict[str, str]
    code_sha256: str
    failed: dict[int, str] = Field(default_factory=dict)
    failed_controls: dict[str, str] = Field(default_factory=dict)
    limits: tuple[float, float] = (0.0, 0.0)

    @property
    def front(self) -> tuple[Finalist, ...]:
        """The final front."""
        return tuple(f for f in self.finalists if f.on_front)


class OpenedTest(Record):
    """Test accuracy, and the study's metrics, by artifact: measured once, never again.

    Attributes:
        data_sha256: of the test split that all of them were measured on.
    """

    data_sha256: str = ""
    accuracy: dict[str, Estimate] = Field(default_factory=dict)
    metrics: dict[str, dict[str, Estimate]] = Field(default_factory=dict)


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
    chosen = choose(bench, trials)
    fidelity = Fidelity(epochs=study.finalists.recovery_epochs, rung=FULL)
    selection = dataset_digest(bench.task.selection)
    key = _key(bench, chosen, fidelity, selection)
    earlier = read_record(folder.finalists, Finals)
    limits = study.finalists.timeout_s, study.search.memory_gb
    incomplete = earlier is not None and bool(earlier.failed or earlier.failed_controls)
    # What failed within other limits is tried again; the others are answered from the cache.
    if earlier is not None and earlier.key == key and (earlier.limits == limits or not incomplete):
        report.stage("finalists", f"{len(earlier.finalists)} finalists are there already")
        return earlier

    each = f"{fidelity.epochs:g} epoch{'' if fidelity.epochs == 1 else 's'} each"
    report.stage("finalists", f"recovering {len(chosen)} finalists, {each}{_unseen_words(chosen)}")
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
    fresh, dense_memory = _measure_together(bench, [m for _, m in measured])
    fresh = with_graphs(bench, fresh)
    front, tied = final_front(bench, fresh)
    baseline = bench.prepared.baseline
    quality = bench.judge.values(*predict(bench.dense_session, bench.task.selection), "selection")
    opened = _open_test(bench, baseline.artifact.sha256)
    baseline = baseline.model_copy(
        update={
            "latency_ms": fresh[0].latency.baseline_ms,
            "graph": graph_of(bench, baseline.artifact),
            "peak_memory_bytes": dense_memory,
            "energy_mj": fresh[0].energy.baseline_mj if fresh[0].energy is not None else None,
            "accuracy": {
                **baseline.accuracy,
                "selection": quality.pop("accuracy"),
                "test": opened.pop("accuracy"),
            },
            "metrics": {**baseline.metrics, "selection": quality, "test": opened} if quality else {},
        }
    )
    members = [t for (t, _), on_front in zip(measured, front, strict=True) if on_front]
    controls, failed_controls = _controls(bench, members, fidelity)
    tests = [_open_test(bench, m.artifact.sha256) if good else {} for m, good in zip(fresh, front, strict=True)]
    numbers = [t.number for t, _ in measured]
    result = Finals(
        key=key,
        finalists=tuple(
            Finalist(
                number=trial.number,
                plan=trial.plan,
                search=trial.measurement,
                final=final,
                test=test.pop("accuracy", None),
                test_metrics=test,
                on_front=on_front,
                tied_with=tuple(numbers[j] for j in alike),
                controls=controls.get(trial.number, {}),
            )
            for (trial, _), final, on_front, alike, test in zip(measured, fresh, front, tied, tests, strict=True)
            if trial.plan is not None
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
        limits=limits,
    )
    write_record(folder.finalists, result)
    return result


def _key(bench: Workbench, chosen: Sequence[TrialRecord], fidelity: Fidelity, selection: str) -> str:
    """Of everything that the stage's outcome is made from but the limits of time and memory."""
    study = bench.study
    return digest(
        {
            "plans": [t.plan.key for t in chosen if t.plan],
            "fidelity": fidelity.model_dump(mode="json"),
            "model": bench.prepared.model_sha256,
            "data": {**bench.prepared.data_sha256, "selection": selection},
            "bounds": [b.name for b in study.bounds],
            "host": bench.host.key,
            "batch_sizes": study.measure.batch_sizes,
            **({"controls": study.finalists.controls} if study.finalists.controls else {}),
        }
    )


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


def _unseen_words(chosen: Sequence[TrialRecord]) -> str:
    count = sum(trial.is_unseen_seed for trial in chosen)
    return f"; the search did not come to {count} of them, which are seeds" if count else ""


def _measure_together(bench: Workbench, measured: Sequence[Measurement]) -> tuple[list[Measurement], Estimate | None]:
    """The finalists' latency and throughput, all interleaved with the dense baseline while nothing trains.

    The latency is of several sittings, see `autocompress.measure.latency.together`. What was noisy is read again,
    beside another reading of the baseline: so ratios are compared, in milliseconds by the one baseline that the study
    reports. Peak memory and energy follow, as far as they can be measured or are asked for.

    Returns:
        The finalists with their new readings; the dense model's peak memory.
    """
    own, sizes = bench.target.batch_size, sorted(bench.study.measure.batch_sizes)
    taken = take_readings(
        bench.study,
        bench.folder,
        bench.target,
        [m.artifact.sha256 for m in measured],
        bench.prepared.baseline.artifact.sha256,
        bench.inputs,
        seed=derive_seed(bench.study.seed, "latency", "finalists"),
        baseline=bench.host,
        batches=[latency_inputs(bench.task, size) for size in sizes if size != own],
        sittings=_SITTINGS,
    )
    baseline_ms = taken.readings[0].baseline_ms
    costs = _costs(bench, measured)
    found = []
    for m, r, cost in zip(measured, taken.readings, costs, strict=False):
        # At the target's own batch size the latency says it already.
        rates = (*r.throughput, *([rate(r, baseline_ms)] if own in sizes else []))
        found.append(
            m.model_copy(
                update={
                    "latency": r.model_copy(update={"throughput": tuple(sorted(rates, key=lambda t: t.batch_size))}),
                    "energy": cost.energy,
                    "host": taken.host,
                    "node_id": taken.node_id,
                    "values": {**m.values, "latency_ms": scaled(r.ratio, baseline_ms), **cost.values},
                }
            )
        )
    return found, costs[-1].values.get("peak_memory_bytes")


def _costs(bench: Workbench, measured: Sequence[Measurement]) -> list[Costs]:
    """Peak memory and energy of the finalists, and in the end of the dense model."""
    shas = [*(m.artifact.sha256 for m in measured), bench.prepared.baseline.artifact.sha256]
    models = [bench.folder.read_artifact(sha) for sha in shas]
    return costs_of(
        bench.study,
        bench.folder,
        bench.target,
        models,
        bench.dense_session,
        bench.inputs,
        seed=derive_seed(bench.study.seed, "costs", "finalists"),
        finalists=True,
    )


def _open_test(bench: Workbench, sha256: str) -> dict[str, Estimate]:
    """Accuracy and metrics on the test split: measured once for an artifact, written down, never measured again."""
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
        found = bench.judge.values(*predict(session, bench.task.test), role)
        opened = OpenedTest(
            data_sha256=data,
            accuracy={**opened.accuracy, sha256: found.pop("accuracy")},
            metrics={**opened.metrics, sha256: found} if found else opened.metrics,
        )
        write_record(bench.folder.opened, opened)
    return {"accuracy": opened.accuracy[sha256], **opened.metrics.get(sha256, {})}
