"""Where the time of an inference goes: the dense model's file and compressed ones, node by node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

from autocompress.compress.artifact import layer_nodes
from autocompress.config import Study
from autocompress.errors import AutocompressError, ConfigError, MeasurementError
from autocompress.inputs import Arrays
from autocompress.measure.host import host_of
from autocompress.measure.layers import ProfilesNodes
from autocompress.measure.onnxruntime_cpu import OnnxRuntimeCpu
from autocompress.measure.onnxruntime_graph import named
from autocompress.measure.target import Target
from autocompress.measure.together import INFERENCES, profile_together
from autocompress.pipeline.finalists import Finals
from autocompress.pipeline.folder import StudyFolder, read_record, write_record
from autocompress.pipeline.prepare import Prepared, Workbench
from autocompress.pipeline.probe import procedure_of, study_slot
from autocompress.pipeline.progress import reporter
from autocompress.pipeline.publish import Registered
from autocompress.pipeline.single import built_plan
from autocompress.pipeline.trials import load_trials
from autocompress.records import Record, TimeProfile
from autocompress.registry.store import Store
from autocompress.report.time_section import write_time_page
from autocompress.report.times import Change, by_kind, by_layer
from autocompress.rng import derive_seed

#: What the first file is called where it is a study's dense model.
DENSE = "dense"
#: How the picture's file is called.
PAGE = "profile.html"


class Comparison(Record):
    """One file held against the first.

    Attributes:
        name: of the file.
        layers: every layer, and at the end what is no layer's.
        kinds: every kind of operation.
    """

    name: str
    layers: tuple[Change, ...]
    kinds: tuple[Change, ...]


class Profiled(Record):
    """What `autocompress profile` found.

    Attributes:
        title: the study, or the first file.
        times: every node of every file, as the profiler timed it, and the measured latencies.
        comparisons: of every file but the first; times there add up to the latency.
        page: path of the picture.
    """

    title: str
    times: TimeProfile
    comparisons: tuple[Comparison, ...]
    page: str


def prepared_bench(study: Study) -> Workbench:
    """A study that was prepared before, for reading.

    Raises:
        AutocompressError: it was not.
    """
    folder = StudyFolder(study.folder)
    prepared = read_record(folder.prepared, Prepared)
    if prepared is None:
        raise AutocompressError(
            f"study {study.name!r}: expected a prepared study in {folder.root}, found none; 'autocompress run' makes "
            "one, 'autocompress profile STUDY --plan plan.yaml' too, without a search"
        )
    return Workbench(study, folder, prepared)


def front_files(bench: Workbench) -> dict[str, bytes]:
    """Name -> file of every member of the final front, fastest first; called like its version, once it has one.

    Raises:
        AutocompressError: the study has no final front yet.
    """
    finals = read_record(bench.folder.finalists, Finals)
    if finals is None or not finals.front:
        raise AutocompressError(
            f"study {bench.study.name!r} has no finalists yet: continue it with 'autocompress run', or name a trial of "
            "its search with --trial, a plan with --plan, or a file"
        )
    versions = {v.sha256: v for v in (read_record(bench.folder.registered, Registered) or Registered()).versions}
    found = {}
    for member in sorted(finals.front, key=lambda f: f.final.values["latency_ms"].value):
        sha256 = member.final.artifact.sha256
        version = versions.get(sha256)
        name = f"{version.model} v{version.version}" if version else f"trial {member.number}"
        found[name] = bench.folder.read_artifact(sha256)
    return found


def trial_file(bench: Workbench, number: int) -> tuple[str, bytes]:
    """Name and file of a trial: recovered in full if it became a finalist, else as the search left it.

    Raises:
        ConfigError: there is no such trial, or it has no file; the message has the numbers of those that do, or why.
    """
    finals = read_record(bench.folder.finalists, Finals)
    for member in finals.finalists if finals is not None else ():
        if member.number == number:
            return f"trial {number}", bench.folder.read_artifact(member.final.artifact.sha256)
    trials = {t.number: t for t in load_trials(bench.study)}
    if number not in trials:
        known = f"0 to {max(trials)}" if trials else "none yet"
        raise ConfigError(f"--trial: expected a trial of study {bench.study.name!r} ({known}), got {number}")
    trial = trials[number]
    if trial.measurement is None:
        why = trial.reason or f"it is {trial.state}"
        raise ConfigError(f"--trial: expected a trial that was measured, got {number}, which has no file: {why}")
    return f"trial {number}, search", bench.folder.read_artifact(trial.measurement.artifact.sha256)


def version_file(study: Study, uri: str) -> tuple[str, bytes]:
    """Name and file of a registered version.

    Raises:
        RegistryError: there is no such version.
    """
    model, _ = Store(None, Path(study.output).absolute()).fetch(uri)
    return uri.removeprefix("models:/").replace("/", " v"), model


def plan_file(bench: Workbench, path: Path, epochs: float) -> tuple[str, bytes]:
    """Name and file of what a plan makes of the study's model; built unless it was before.

    Raises:
        ConfigError: the plan's file is wrong.
        CompressionError: a pass failed.
    """
    _, measurement = built_plan(bench, path, epochs)
    return path.name, bench.folder.read_artifact(measurement.artifact.sha256)


def profile_study(bench: Workbench, files: Mapping[str, bytes], folder: Path) -> Profiled:
    """Profile files beside the study's dense model, on its target and its first training examples.

    Args:
        bench: the prepared study.
        files: name -> file.
        folder: where the picture goes; made if missing.

    Raises:
        MeasurementError: the target's runtime times no nodes or runs on another machine, or cannot load a file.
    """
    study = bench.study
    if study.target.node:
        raise MeasurementError(
            f"study {study.name!r}: target.node names another machine, {study.target.node}; nodes are profiled on this "
            "one alone: run 'autocompress profile' on that machine with two files"
        )
    models = {DENSE: bench.folder.read_artifact(bench.prepared.baseline.artifact.sha256), **files}
    reporter().stage("profile", f"{len(models)} files, {INFERENCES} inferences each, in turns")
    layers = [layer.name for layer in bench.prepared.structure.layers]
    with study_slot(study, bench.folder).measuring():
        times = _times(bench.target, models, bench.inputs, layers, study)
    return _profiled(study.name, times, folder)


def profile_files(paths: Sequence[Path], folder: Path, *, threads: int, batch_size: int) -> Profiled:
    """Profile ONNX files beside the first of them, without a study, on random inputs.

    Args:
        paths: of the files; at least two.
        folder: where the picture goes; made if missing.
        threads: that share one inference.
        batch_size: examples of one inference.

    Raises:
        ConfigError: fewer than two files, or one is missing or no ONNX file.
        MeasurementError: ONNX Runtime cannot load a file, or its inputs have sizes that only an example would tell.
    """
    if len(paths) < 2:
        raise ConfigError(f"expected a study, or at least two ONNX files to hold against each other, got {paths[0]}")
    target = OnnxRuntimeCpu(threads=threads, batch_size=batch_size).build()
    models = {_label(path, paths): read_onnx(path) for path in paths}
    for name, model in models.items():
        try:
            target.prepare(model)
        except MeasurementError as error:
            raise MeasurementError(f"{name}: {error}") from error
    reporter().stage("profile", f"{len(models)} files, {INFERENCES} inferences each, in turns")
    first = next(iter(models.values()))
    times = _times(target, models, _random(first, batch_size), list(layer_nodes(first)), None)
    return _profiled(next(iter(models)), times, folder)


def front_times(bench: Workbench) -> TimeProfile | None:
    """Where the time of the dense model and of the final front goes; measured once, then read from the folder.

    None if the target's runtime times no nodes, or runs on another machine.
    """
    if bench.study.target.node or not isinstance(bench.target, ProfilesNodes):
        return None
    models = {DENSE: bench.folder.read_artifact(bench.prepared.baseline.artifact.sha256), **front_files(bench)}
    path = bench.folder.root / "times.json"
    earlier = read_record(path, TimeProfile)
    if earlier is not None and [m.name for m in earlier.models] == list(models) and earlier.host == bench.host.key:
        return earlier
    reporter().stage("report", f"where the time goes in {len(models)} files")
    layers = [layer.name for layer in bench.prepared.structure.layers]
    with study_slot(bench.study, bench.folder).measuring():
        times = _times(bench.target, models, bench.inputs, layers, bench.study)
    write_record(path, times)
    return times


def read_onnx(path: Path) -> bytes:
    """An ONNX file, its nodes named, each once.

    Raises:
        ConfigError: there is no such file, or it is none.
    """
    if not path.is_file():
        raise ConfigError(f"expected an ONNX file, got {path}, which does not exist")
    data = path.read_bytes()
    try:
        proto = onnx.load_model_from_string(data)
    except Exception as error:
        raise ConfigError(f"{path}: expected an ONNX file, got {len(data)} bytes that are none") from error
    if not proto.graph.node:
        raise ConfigError(f"{path}: expected an ONNX file, got one without a graph")
    names = named(proto.graph)
    if names == [node.name for node in proto.graph.node]:
        return data
    for node, name in zip(proto.graph.node, names, strict=True):
        node.name = name
    return bytes(proto.SerializeToString())


def _times(
    target: Target, models: Mapping[str, bytes], inputs: Arrays, layers: Sequence[str], study: Study | None
) -> TimeProfile:
    return profile_together(
        target,
        {name: (model, layer_nodes(model)) for name, model in models.items()},
        inputs,
        host=host_of(target).key,
        layers=layers,
        seed=derive_seed(study.seed if study is not None else 0, "times"),
        procedure=procedure_of(study) if study is not None else None,
    )


def _profiled(title: str, times: TimeProfile, folder: Path) -> Profiled:
    folder.mkdir(parents=True, exist_ok=True)
    page = write_time_page(folder / PAGE, title, times)
    return Profiled(
        title=title,
        times=times,
        comparisons=tuple(
            Comparison(name=model.name, layers=tuple(by_layer(times, index)), kinds=tuple(by_kind(times, index)))
            for index, model in enumerate(times.models)
            if index
        ),
        page=str(page),
    )


def _label(path: Path, paths: Sequence[Path]) -> str:
    return path.name if sum(p.name == path.name for p in paths) == 1 else str(path)


def _random(model: bytes, batch_size: int) -> Arrays:
    """Inputs for a file: floats from a normal distribution, integers all 1."""
    rng, found = np.random.default_rng(0), {}
    graph = onnx.load_model_from_string(model).graph
    constants = {tensor.name for tensor in graph.initializer}
    for value in (v for v in graph.input if v.name not in constants):
        sizes = [dim.dim_value for dim in value.type.tensor_type.shape.dim][1:]
        if 0 in sizes:
            raise MeasurementError(
                f"input {value.name!r}: expected fixed sizes behind the batch axis, got a free one; profile the file "
                "beside a study, 'autocompress profile STUDY FILE.onnx', whose task brings examples"
            )
        kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        shape = (batch_size, *sizes)
        found[value.name] = (rng.standard_normal(shape) if kind.kind == "f" else np.ones(shape)).astype(kind)
    return found
