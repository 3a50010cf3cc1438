"""Judge one candidate, inside its own killable process: compress, recover, export, measure; or answer from cache."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from autocompress.compress.engine import Compressed, build
from autocompress.compress.patience import Patience
from autocompress.config import Study
from autocompress.errors import AutocompressError, InfeasibleError, MeasurementError
from autocompress.measure.agreement import agreement
from autocompress.measure.fairness import fairness, is_classification
from autocompress.measure.metrics import is_function
from autocompress.measure.quality import predict
from autocompress.pipeline.costs import Costs, costs_of
from autocompress.pipeline.folder import StudyFolder, read_record, write_record
from autocompress.pipeline.identity import code_digest, dataset_digest, task_code_digest
from autocompress.pipeline.judge import torch_outputs
from autocompress.pipeline.latency_model import LatencyPredictor, load_predictor
from autocompress.pipeline.prepare import Prepared, Workbench, data_identity
from autocompress.pipeline.probe import check_device, study_slot, take_readings
from autocompress.pipeline.profile import Profile
from autocompress.records import (
    Agreement,
    Estimate,
    EvaluatorReference,
    Fairness,
    Fidelity,
    Measurement,
    Plan,
    Role,
    RungResult,
    digest,
)
from autocompress.rng import derive_seed

if TYPE_CHECKING:
    from autocompress.measure.probe import Taken
    from autocompress.measure.target import Session


def evaluator_of(bench: Workbench) -> EvaluatorReference:
    """How another process builds the evaluator of this study. The ledger's address stays here."""
    return EvaluatorReference(
        factory="autocompress.pipeline.evaluate:build_evaluator",
        arguments={"folder": str(bench.folder.root)},
    )


def build_evaluator(folder: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The function that a candidate's process answers requests with.

    Args:
        folder: the study's folder, prepared.

    Returns:
        ``evaluate({"plan": ..., "fidelity": ..., "role": ..., "partial": ...}) -> measurement``, all in JSON; what a
        partial rung says is a `RungResult`.
    """
    torch.set_num_threads(1)
    place = StudyFolder(Path(folder))
    study = Study.model_validate_json(place.study.read_bytes())
    prepared = read_record(place.prepared, Prepared)
    if prepared is None:
        raise AutocompressError(f"{place.prepared} is missing: prepare the study first")
    evaluator = Evaluator(Workbench(study, place, prepared))

    def evaluate(request: dict[str, Any]) -> dict[str, Any]:
        plan, fidelity = Plan.model_validate(request["plan"]), Fidelity.model_validate(request["fidelity"])
        found = (
            evaluator.judge(plan, fidelity) if request.get("partial") else evaluator(plan, fidelity, request["role"])
        )
        return found.model_dump(mode="json")

    return evaluate


class Evaluator:
    """``(plan, fidelity, role) -> Measurement``; equal physical candidates are evaluated once."""

    def __init__(self, bench: Workbench) -> None:
        self._bench = bench
        self._slot = study_slot(bench.study, bench.folder)
        self._code = code_digest(bench.study.task.factory)
        self._metrics = [
            (metric.model_dump(mode="json"), task_code_digest(metric.source) if is_function(metric) else "")
            for metric in bench.study.metrics
        ]

    def __call__(self, plan: Plan, fidelity: Fidelity, role: Role) -> Measurement:
        """Measure the plan's artifact, or give the earlier measurement of the same physical candidate.

        Args:
            plan: what to build.
            fidelity: how long it recovers.
            role: ``"validation"`` in a search, ``"selection"`` for finalists.

        Raises:
            MeasurementError: another role, or another host than the baseline's.
        """
        if role not in ("validation", "selection"):
            raise MeasurementError(f"role: expected 'validation' or 'selection', got {role!r}")
        with self._known(plan, fidelity, role, "") as path:
            earlier = read_record(path, Measurement)
            if earlier is not None and self._bench.folder.artifact(earlier.artifact.sha256).is_file():
                return earlier.model_copy(update={"cached": True})
            measurement = self._evaluate(plan, fidelity, role)
            write_record(path, measurement)
            # It has been trained in full: nothing goes on from there.
            shutil.rmtree(self._bench.folder.checkpoint(plan, role), ignore_errors=True)
            return measurement

    def judge(self, plan: Plan, fidelity: Fidelity) -> RungResult:
        """What the plan's artifact is worth on the validation split, at a rung below the last.

        It is the file that would ship after as much training. Its latency is read only where no model tells it.

        Args:
            plan: what to build.
            fidelity: how long it recovers.

        Raises:
            MeasurementError: another host than the baseline's.
        """
        with self._known(plan, fidelity, "validation", "rung") as path:
            earlier = read_record(path, RungResult)
            if earlier is not None:
                return earlier.model_copy(update={"cached": True})
            result = self._judge(plan, fidelity)
            write_record(path, result)
            return result

    @contextlib.contextmanager
    def _known(self, plan: Plan, fidelity: Fidelity, role: Role, kind: str) -> Iterator[Path]:
        """Where the answer is kept; nobody else works on it inside the block."""
        bench = self._bench
        if bench.host.key != bench.prepared.baseline.host.key:
            raise MeasurementError(
                f"expected the host {bench.prepared.baseline.host.key}, on which the dense model was measured, got "
                f"{bench.host.key} ({bench.host.cpu}); latencies of two hosts cannot be compared"
            )
        key = digest(
            {
                "plan": plan.key,
                "model": bench.prepared.model_sha256,
                "data": data_identity(bench.prepared),
                "judged": dataset_digest(bench.task.selection) if role == "selection" else "",
                "code": self._code,
                "measure": bench.study.measure.model_dump(mode="json", exclude={"batch_sizes"}),
                "target": bench.study.target.model_dump(mode="json", exclude={"node_wait_s"}),
                "host": bench.host.key,
                "fidelity": fidelity.model_dump(mode="json"),
                "ladder": bench.study.search.ladder if role == "validation" else (),
                "early_stop": bench.study.search.early_stop,
                "role": role,
                "seed": bench.study.seed,
                **({"metrics": self._metrics} if self._metrics else {}),
                **({"kind": kind} if kind else {}),
            }
        )
        path = bench.folder.root / "cache" / f"{key}.json"
        with _alone(path.with_suffix(".lock")):
            yield path

    def _build(self, plan: Plan, fidelity: Fidelity, role: Role) -> Compressed:
        """The artifact; a candidate of the search goes on from what it was trained before."""
        bench = self._bench
        return build(
            bench.task,
            bench.dense,
            plan,
            bench.prepared.structure,
            bench.statistics,
            epochs=fidelity.epochs,
            seed=derive_seed(bench.study.seed, "compress", plan.key),
            guard=self._slot.training,
            packed=bench.study.wants_packed,
            checkpoint=bench.folder.checkpoint(plan, role),
            patience=Patience() if bench.study.search.early_stop else None,
        )

    def _judge(self, plan: Plan, fidelity: Fidelity) -> RungResult:
        bench = self._bench
        latency = self._predicted(plan)
        if latency is None:
            check_device(bench.study, bench.folder, bench.host)  # before minutes of training
        compressed = self._build(plan, fidelity, "validation")
        session = bench.target.prepare(compressed.model)
        started = time.monotonic()
        outputs, targets = predict(session, bench.task.validation, guard=self._slot.training)
        quality = bench.judge.values(outputs, targets, "validation")
        fair = self._fair(outputs, targets, "validation")
        judged = time.monotonic()
        predicted = ("latency_ms",) if latency is not None else ()
        noisy = False
        seconds: dict[str, float] = {}
        if latency is None:
            with bench.folder.lent_artifact(compressed.model) as sha256:
                taken = self._read(plan, sha256, session)
            latency = scaled(taken.readings[0].ratio, bench.prepared.baseline.latency_ms)
            noisy = taken.readings[0].noisy
            seconds = {"wait": time.monotonic() - judged - taken.seconds, "latency": taken.seconds}
        costs = self._costs(plan, compressed)
        return RungResult(
            plan_key=plan.key,
            fidelity=fidelity,
            values={**values_of(compressed, quality, latency, fair), **costs.values},
            predicted=predicted,
            noisy=noisy,
            seconds={**compressed.seconds, "quality": judged - started, **seconds, **costs.seconds},
        )

    def _predicted(self, plan: Plan) -> Estimate | None:
        """Milliseconds as the study's latency model tells them; None without one, or if it does not know the plan."""
        try:
            return self._predictor.predict(plan) if self._predictor is not None else None
        except InfeasibleError:
            return None

    @cached_property
    def _predictor(self) -> LatencyPredictor | None:
        profile = read_record(self._bench.folder.profile, Profile)
        summary = profile.latency_model if profile is not None else None
        return load_predictor(self._bench, summary) if summary is not None and not summary.sketch else None

    def _fair(self, outputs: np.ndarray, targets: np.ndarray, role: Role) -> Fairness | None:
        if not is_classification(outputs, targets):
            return None
        seed = derive_seed(self._bench.study.seed, "bootstrap", role)
        return fairness(self._bench.dense_outputs(role), outputs, targets, seed=seed)

    def _read(self, plan: Plan, sha256: str, session: Session) -> Taken:
        bench = self._bench
        dense = bench.prepared.baseline.artifact.sha256
        return take_readings(
            bench.study,
            bench.folder,
            bench.target,
            [sha256],
            dense,
            bench.inputs,
            seed=derive_seed(bench.study.seed, "latency", plan.key),
            baseline=bench.host,
            loaded={sha256: session, dense: bench.dense_session},
        )

    def _costs(self, plan: Plan, compressed: Compressed) -> Costs:
        bench = self._bench
        (costs,) = costs_of(
            bench.study,
            bench.folder,
            bench.target,
            [compressed.model],
            bench.dense_session,
            bench.inputs,
            seed=derive_seed(bench.study.seed, "costs", plan.key),
            energy_mj=bench.prepared.baseline.energy_mj,
        )
        return costs

    def _evaluate(self, plan: Plan, fidelity: Fidelity, role: Role) -> Measurement:
        bench = self._bench
        check_device(bench.study, bench.folder, bench.host)  # before minutes of training
        compressed = self._build(plan, fidelity, role)
        session = bench.target.prepare(compressed.model)
        started = time.monotonic()
        outputs, targets = predict(session, getattr(bench.task, role), guard=self._slot.training)
        quality = bench.judge.values(outputs, targets, role)
        fair = self._fair(outputs, targets, role)
        alike: Agreement | None = None
        if fair is not None and role == "selection":
            alike = agreement(outputs, bench.dense_outputs(role), targets, self._torch(compressed, role))
        judged = time.monotonic()
        taken = self._read(plan, bench.folder.write_artifact(compressed.model), session)
        reading = taken.readings[0]
        read = time.monotonic()
        costs = self._costs(plan, compressed)
        return Measurement(
            plan_key=plan.key,
            fidelity=fidelity,
            role=role,
            # The ratio is what the interleaved reading knows well; times the study's one baseline, so that a host
            # that is faster now than an hour ago moves no candidate against another.
            values={
                **values_of(compressed, quality, scaled(reading.ratio, bench.prepared.baseline.latency_ms), fair),
                **costs.values,
            },
            artifact=compressed.artifact,
            latency=reading,
            energy=costs.energy,
            host=taken.host,
            node_id=taken.node_id,
            agreement=compressed.agreement,
            seconds={
                **compressed.seconds,
                "quality": judged - started,
                "wait": read - judged - taken.seconds,
                "latency": taken.seconds,
                **costs.seconds,
            },
            warnings=compressed.warnings,
            fairness=fair,
            predictions=alike,
        )

    def _torch(self, compressed: Compressed, role: Role) -> np.ndarray | None:
        """Outputs of the torch network that was exported; None if quantization made another one of it."""
        if any(layer.bits < 32 for layer in compressed.artifact.layers):
            return None
        return torch_outputs(compressed.module, getattr(self._bench.task, role), guard=self._slot.training)


def values_of(
    compressed: Compressed, quality: dict[str, Estimate], latency_ms: Estimate, fair: Fairness | None = None
) -> dict[str, Estimate]:
    """Every objective of an artifact, by name; packed bytes and the worst class where they are known.

    Args:
        compressed: the artifact.
        quality: accuracy and the study's metrics.
        latency_ms: as measured.
        fair: change per class.
    """
    artifact = compressed.artifact
    values = {
        **quality,
        "latency_ms": latency_ms,
        "size_bytes": Estimate.exact(artifact.size_bytes),
        "macs": Estimate.exact(artifact.macs),
        "parameters": Estimate.exact(artifact.parameters),
    }
    if artifact.packed_bytes:
        values["packed_bytes"] = Estimate.exact(artifact.packed_bytes)
    if fair is not None:
        values["worst_class_drop"] = fair.worst_class_drop
    return values


def scaled(estimate: Estimate, factor: float) -> Estimate:
    """An estimate times a positive factor."""
    return Estimate(value=factor * estimate.value, low=factor * estimate.low, high=factor * estimate.high)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time for a physical candidate: the second finds the first one's answer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
