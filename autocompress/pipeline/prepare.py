"""Prepare: load the task, train or load the dense model, export and measure it, hash what everything rests on."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from autocompress.compress.architecture import check_builder
from autocompress.compress.artifact import describe
from autocompress.compress.export import export_onnx
from autocompress.compress.pack import pack
from autocompress.compress.state import load_module, module_digest, save_module
from autocompress.compress.statistics import Statistics, collect_statistics
from autocompress.compress.structure import find_structure
from autocompress.compress.train import train_base
from autocompress.config import Study, diff, read_identity
from autocompress.errors import CompressionError, StudyChangedError
from autocompress.files import write_bytes
from autocompress.inputs import Arrays, arrays
from autocompress.measure.host import host_of
from autocompress.measure.quality import predict
from autocompress.pipeline.allocations import allocation_tables
from autocompress.pipeline.costs import asks_for, check_costs, costs_of
from autocompress.pipeline.folder import StudyFolder, read_record, write_record
from autocompress.pipeline.identity import dataset_digest, task_code_digest
from autocompress.pipeline.judge import Judge, check_classes
from autocompress.pipeline.probe import host_difference, measuring_host, take_readings
from autocompress.pipeline.progress import reporter
from autocompress.records import Allocation, Artifact, Baseline, Host, Record, Role, Structure, digest
from autocompress.rng import derive_seed
from autocompress.space.space import Space, resolve
from autocompress.task import Task, fetch, fixed_randomness, load_task, plain, size

if TYPE_CHECKING:
    from autocompress.measure.target import Session, Target


class Prepared(Record):
    """What preparation found.

    Attributes:
        data_sha256: role -> hash of its examples; train and validation only, the other two stay untouched.
        task_code_sha256: source of the task function's module.
        allocations: widths for the shares of the space's `allocation`, if it has one.
    """

    task: str
    model_sha256: str
    data_sha256: dict[str, str]
    task_code_sha256: str
    structure: Structure
    baseline: Baseline
    allocations: tuple[Allocation, ...] = ()


@dataclass(frozen=True)
class Workbench:
    """The live objects that a prepared study works with, each made on first use.

    The test split is reached through `autocompress.pipeline.finalists` alone.
    """

    study: Study
    folder: StudyFolder
    prepared: Prepared

    @cached_property
    def task(self) -> Task:
        """The user's task."""
        return load_task(self.study.task.factory, self.study.task.arguments)

    @cached_property
    def judge(self) -> Judge:
        """The task's metric and the study's."""
        return Judge(self.task, self.study.metrics, self.study.seed)

    @cached_property
    def dense(self) -> nn.Module:
        """The dense model with the weights that preparation kept."""
        module = load_module(self.task.build(), self.folder.model)
        found = module_digest(module)
        if found != self.prepared.model_sha256:
            raise StudyChangedError(
                f"{self.folder.model}: expected weights {self.prepared.model_sha256[:12]}, got {found[:12]}: "
                "the file was changed after preparation; use another study name or output folder"
            )
        return module

    @cached_property
    def statistics(self) -> Statistics:
        """What was learned from training data about the dense model."""
        return Statistics.load(self.folder.statistics)

    @cached_property
    def target(self) -> Target:
        """The target that artifacts are measured on."""
        return self.study.target.build()

    @cached_property
    def dense_session(self) -> Session:
        """The dense artifact on the target."""
        return self.target.prepare(self.folder.read_artifact(self.prepared.baseline.artifact.sha256))

    @cached_property
    def host(self) -> Host:
        """Fingerprint that every reading must have: this machine's, or that of the device that took the baseline's."""
        return self.prepared.baseline.host if self.study.target.node else host_of(self.target)

    @cached_property
    def inputs(self) -> Arrays:
        """What one timed inference works on, shape (batch size, ...): training examples."""
        return latency_inputs(self.task, self.target.batch_size)

    def dense_outputs(self, role: Role) -> np.ndarray:
        """The dense artifact's outputs on one split, shape (n, ...): computed once, then read from the folder."""
        path = self.folder.root / "dense" / f"{role}.npy"
        if not path.is_file():
            outputs, _ = predict(self.dense_session, getattr(self.task, role))
            buffer = io.BytesIO()
            np.save(buffer, outputs, allow_pickle=False)
            write_bytes(path, buffer.getvalue())
        found: np.ndarray = np.load(path, allow_pickle=False)
        return found

    @cached_property
    def space(self) -> Space:
        """The search space, resolved against the groups found in the model."""
        return resolve(
            self.study.space,
            self.prepared.structure,
            round_to=self.target.round_to,
            bits=self.target.bits,
            allocations=self.prepared.allocations,
        )


def latency_inputs(task: Task, batch_size: int) -> Arrays:
    """The first training examples as one batch, arrays of shape (batch size, ...)."""
    with fixed_randomness(0):
        return arrays(fetch(plain(task.train), torch.arange(batch_size) % size(task.train))[0])


def check_task(study: Study) -> None:
    """Load task, metrics and target once, so that what is wrong is refused before anything is created.

    Raises:
        TaskError: its function is missing, raised, or returned no task; or a metric's function is missing.
        MeasurementError: what the target needs is not installed or not on this machine.
    """
    study.target.build()
    Judge(load_task(study.task.factory, study.task.arguments), study.metrics, study.seed)


def open_folder(study: Study) -> StudyFolder:
    """The study's folder, made if it is new, refused if it holds another study.

    Raises:
        StudyChangedError: the folder was made from another configuration; the message lists the differences.
    """
    folder = StudyFolder(study.folder)
    if folder.study.is_file():
        changed = diff(read_identity(folder.study), study.identity())
        if changed:
            raise StudyChangedError(
                f"study {study.name!r} in {folder.root} was started with another configuration:\n{changed}\n"
                "Values made under both cannot be compared. Give the changed study another name, or put it back."
            )
    write_bytes(folder.study, study.model_dump_json(indent=1).encode(), mode=0o600)
    return folder


def prepare(study: Study) -> Workbench:
    """Make the study's ground, or take up what an earlier run made.

    Raises:
        TaskError: the task function raised or returned no task, or its model function cannot build the smaller networks
            that the space offers.
        ExportError: the model cannot be written as ONNX with a free batch.
        CompressionError: nothing in the model can be compressed.
        ConfigError: the space asks for an allocation, of which the model can give no share.
        StudyChangedError: configuration, data, trained weights, task code or host differ from the earlier run's.
        MeasurementError: an objective cannot be measured here, the device that the target names is not there, or
            training cannot keep out of readings' way as the study asks; nothing is trained then.
    """
    report = reporter()
    report.stage("prepare", f"loading task {study.task.factory}")
    task = load_task(study.task.factory, study.task.arguments)
    check_costs(study)
    host = measuring_host(study, StudyFolder(study.folder))
    hashes = {role: dataset_digest(getattr(task, role)) for role in ("train", "validation")}
    folder = open_folder(study)
    earlier = read_record(folder.prepared, Prepared)
    if earlier is not None:
        _refuse_changes(study, earlier, hashes, module_digest(_build(study, task)) if task.trained else None, host)
        bench = Workbench(study, folder, earlier)
        report.stage("prepare", f"taking up {folder.root}: the dense model and its baseline are there")
        return bench

    module = _build(study, task)
    if asks_for(study, "worst_class_drop"):
        check_classes(task, module)
    example = task.example_input()
    structure = find_structure(module, example)
    if not structure.layers:
        raise CompressionError(
            f"task {study.task.factory!r}: the model has no layer that can be compressed; "
            + "; ".join(f"{x.name}: {x.reason}" for x in structure.left_dense)
        )
    if study.space.architecture is not None:
        offered = study.space.architecture
        check_builder(task, structure, widths=offered.width or (), depths=offered.depth or ())
    if not task.trained:
        report.stage("prepare", f"training the dense model, {task.recipe.epochs} epochs")
        module = train_base(
            task,
            module,
            seed=derive_seed(study.seed, "base"),
            on_epoch=lambda epoch, loss: report.stage(
                "prepare", f"training the dense model, epoch {epoch} of {task.recipe.epochs}, loss {loss:.3f}"
            ),
        )
    folder.model.parent.mkdir(parents=True, exist_ok=True)
    save_module(module, folder.model)
    statistics = collect_statistics(module, task, structure, seed=derive_seed(study.seed, "statistics"))
    statistics.save(folder.statistics)
    target = study.target.build()
    allocations = allocation_tables(
        study.space,
        module,
        structure,
        statistics,
        example=example,
        round_to=target.round_to,
        seed=derive_seed(study.seed, "allocations"),
    )

    report.stage("prepare", "exporting and measuring the dense model")
    exported = export_onnx(module, example)
    session = target.prepare(exported.model)
    quality = Judge(task, study.metrics, study.seed).values(*predict(session, task.validation), "validation")
    sha256 = folder.write_artifact(exported.model)
    taken = take_readings(
        study,
        folder,
        target,
        [sha256],
        sha256,
        latency_inputs(task, target.batch_size),
        seed=derive_seed(study.seed, "latency"),
        baseline=host,
        loaded={sha256: session},
    )
    (costs,) = costs_of(
        study,
        folder,
        target,
        [exported.model],
        session,
        latency_inputs(task, target.batch_size),
        seed=derive_seed(study.seed, "costs"),
    )
    prepared = Prepared(
        task=task.name,
        model_sha256=module_digest(module),
        data_sha256=hashes,
        task_code_sha256=task_code_digest(study.task.factory),
        structure=structure,
        baseline=Baseline(
            artifact=_described(exported.model, packed=study.wants_packed),
            accuracy={"validation": quality.pop("accuracy")},
            metrics={"validation": quality} if quality else {},
            latency_ms=taken.readings[0].baseline_ms,
            peak_memory_bytes=costs.values.get("peak_memory_bytes"),
            energy_mj=costs.energy.baseline_mj if costs.energy is not None else None,
            host=taken.host,
            agreement=exported.agreement,
        ),
        allocations=allocations,
    )
    write_record(folder.prepared, prepared)
    bench = Workbench(study, folder, prepared)
    bench.dense_outputs("validation")  # here, not in the first candidate's time
    return bench


def _described(model: bytes, *, packed: bool) -> Artifact:
    artifact = describe(model)
    return artifact.model_copy(update={"packed_bytes": len(pack(model))}) if packed else artifact


def _build(study: Study, task: Task) -> nn.Module:
    """The task's module; what it draws at random comes from the study's seed."""
    with fixed_randomness(derive_seed(study.seed, "model")):
        return task.build()


def _refuse_changes(study: Study, earlier: Prepared, hashes: dict[str, str], weights: str | None, host: Host) -> None:
    before = {"task code": earlier.task_code_sha256, **{f"data ({k})": v for k, v in earlier.data_sha256.items()}}
    now = {"task code": task_code_digest(study.task.factory), **{f"data ({k})": v for k, v in hashes.items()}}
    if weights is not None:
        before["weights"], now["weights"] = earlier.model_sha256, weights
    # Every latency is a ratio times the baseline's: a ratio of another machine must not meet it.
    before["host"], now["host"] = earlier.baseline.host.key, host.key
    changed = [f"  {key}: {before[key][:12]} -> {now[key][:12]}" for key in before if before[key] != now[key]]
    if before["host"] != now["host"]:
        changed[-1] += f" ({host_difference(earlier.baseline.host, host)})"
    if changed:
        raise StudyChangedError(
            f"study {study.name!r}: what its values rest on has changed since it was started:\n"
            + "\n".join(changed)
            + "\nGive the changed study another name, or put it back."
        )


def data_identity(prepared: Prepared) -> str:
    """One hash for the data that the search has seen."""
    return digest(prepared.data_sha256)
