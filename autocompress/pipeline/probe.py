"""Where a study's readings come from: this process, or the device node that the target names. Never one for the other.

With ``target.node`` every reading is taken by that node: the dense model's baseline, each candidate's, and that of the
finalists together. A driver asks the node itself; a candidate's process asks its parent, which is in the cluster.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from autocompress.cluster.cores import divide
from autocompress.cluster.device import DeviceAnswer, DeviceRequest, ask_device
from autocompress.cluster.parent import ask_parent, has_parent
from autocompress.cluster.slot import ExclusiveSlot
from autocompress.config import Study
from autocompress.errors import MeasurementError
from autocompress.files import write_bytes
from autocompress.inputs import Arrays
from autocompress.measure.host import host_of
from autocompress.measure.latency import Procedure, together
from autocompress.measure.layers import node_latencies
from autocompress.measure.probe import FACTORY, ReadingRequest, Taken, pack_arrays, take
from autocompress.measure.target import Session, Target
from autocompress.pipeline.folder import StudyFolder
from autocompress.pipeline.progress import reporter
from autocompress.records import EvaluatorReference, Host, NodeLatency
from autocompress.rng import derive_seed

#: Seconds that the readings of one model may take on a device.
_READING_S = 300.0
#: Seconds that they may wait there for the slot, before.
_SLOT_S = 600.0


def study_slot(study: Study, folder: StudyFolder) -> ExclusiveSlot:
    """The exclusive slot of the study on this machine.

    Raises:
        MeasurementError: training shall move off the cores that measure, and there are none to move to.
    """
    # What a device measures does not concern this machine's cores; its own slot says what it cannot.
    moves = study.measure.exclusive == "move" and not study.target.node
    return ExclusiveSlot(folder.slot, study.target.threads if moves else None)


def procedure_of(study: Study) -> Procedure:
    """How the study takes a latency."""
    settings = study.measure
    return Procedure(
        rounds=settings.rounds,
        block_s=settings.block_s,
        repeats=settings.repeats,
        dispersion=settings.dispersion,
        drift=settings.drift,
    )


def measuring_host(study: Study, folder: StudyFolder) -> Host:
    """Fingerprint of the machine that measures, as it sees itself.

    Raises:
        MeasurementError: the device is not there, or cannot run the target or the slot that the study asks for.
    """
    if not study.target.node:
        if study.measure.exclusive == "move":
            divide(study.target.threads)
        return host_of(study.target.build())
    return _ask(study, folder, ReadingRequest(**_common(study, folder), what="host"), {}).host


def check_device(study: Study, folder: StudyFolder, baseline: Host) -> None:
    """Nothing without a device node; with one, make sure that it is there and still the one of the baseline.

    Raises:
        MeasurementError: it is not there, or is another machine, or is set up in another way.
    """
    if study.target.node:
        _refuse_another(baseline, measuring_host(study, folder))


def take_readings(
    study: Study,
    folder: StudyFolder,
    target: Target,
    models: Sequence[str],
    dense: str,
    inputs: Arrays,
    *,
    seed: int,
    baseline: Host,
    batches: Sequence[Arrays] = (),
    loaded: Mapping[str, Session] | None = None,
    sittings: int = 1,
) -> Taken:
    """Readings of kept artifacts beside the dense one, by the machine that measures.

    Args:
        study: says which machine, and how.
        folder: has the artifacts.
        target: the built target, for a reading by this process.
        models: sha256 of each artifact.
        dense: sha256 of the dense one.
        inputs: what a latency is taken on.
        seed: of the order of networks and of the bootstrap.
        baseline: fingerprint of the host that the dense model's latency is from, or is to be from.
        batches: inputs at which the throughput is measured as well.
        loaded: sha256 -> session, of artifacts that this process has loaded already.
        sittings: how often all of it is done, each time with sessions of its own; see `together`.

    Raises:
        MeasurementError: the readings were taken on another host than `baseline`, or could not be taken.
    """
    if sittings > 1:
        found = [
            take_readings(
                study,
                folder,
                target,
                models,
                dense,
                inputs,
                seed=derive_seed(seed, "sitting", sitting),
                baseline=baseline,
                batches=() if sitting else batches,
            )
            for sitting in range(sittings)
        ]
        times = {name: sum(getattr(taken, name) for taken in found) for name in ("wait_s", "seconds")}
        readings = tuple(together(several) for several in zip(*(taken.readings for taken in found), strict=True))
        return found[-1].model_copy(update={"readings": readings, **times})
    if study.target.node:
        files = {f"model-{i}": folder.artifact(sha) for i, sha in enumerate(models)}
        files |= {"dense": folder.artifact(dense), "inputs": _kept(folder, "inputs", inputs)}
        files |= {f"batch-{i}": _kept(folder, f"batch-{i}", batch) for i, batch in enumerate(batches)}
        request = ReadingRequest(
            **_common(study, folder),
            seed=seed,
            procedure=procedure_of(study),
            models=len(models),
            batches=len(batches),
        )
        taken = _ask(study, folder, request, files)
    else:
        sessions = dict(loaded or {})
        for sha in (dense, *models):
            if sha not in sessions:
                sessions[sha] = target.prepare(folder.read_artifact(sha))
        taken = take(
            [study_slot(study, folder)],
            [sessions[sha] for sha in models],
            sessions[dense],
            inputs,
            host=host_of(target),
            seed=seed,
            procedure=procedure_of(study),
            batches=batches,
        )
    _refuse_another(baseline, taken.host)
    return taken


def take_nodes(
    study: Study,
    folder: StudyFolder,
    target: Target,
    dense: str,
    owners: Mapping[str, Collection[str]],
    inputs: Arrays,
    *,
    baseline: Host,
) -> tuple[NodeLatency, ...] | None:
    """Time of each node of the dense artifact, by the machine that measures.

    Args:
        study: says which machine.
        folder: has the artifact.
        target: the built target, for a reading by this process.
        dense: sha256 of the artifact.
        owners: layer -> names of the artifact's nodes that read its weights.
        inputs: what one inference works on.
        baseline: fingerprint of the host that the dense model's latency is from.

    Returns:
        Nodes in the order of execution; None if the target's runtime times no nodes.

    Raises:
        MeasurementError: it was taken on another host than `baseline`, or could not be taken.
    """
    if not study.target.node:
        found = node_latencies(target, [(folder.read_artifact(dense), owners)], inputs)
        return tuple(found[0]) if found is not None else None
    named = {layer: tuple(sorted(nodes)) for layer, nodes in owners.items()}
    request = ReadingRequest(**_common(study, folder), what="nodes", owners=named)
    files = {"dense": folder.artifact(dense), "inputs": _kept(folder, "example", inputs)}
    taken = _ask(study, folder, request, files)
    _refuse_another(baseline, taken.host)
    return taken.nodes


def host_difference(before: Host, after: Host) -> str:
    """What differs between two hosts, such as ``"governor powersave -> performance"``."""
    old, new = before.model_dump(), after.model_dump()
    return ", ".join(f"{key} {old[key]} -> {new[key]}" for key in old if old[key] != new[key]) or "nothing"


def _refuse_another(baseline: Host, found: Host) -> None:
    if found.key != baseline.key:
        raise MeasurementError(
            f"expected the host {baseline.key} ({baseline.cpu}), on which the dense model was measured, got "
            f"{found.key} ({found.cpu}): {host_difference(baseline, found)}; latencies of two hosts cannot be compared"
        )


def _common(study: Study, folder: StudyFolder) -> dict[str, object]:
    return {
        "target": study.target.model_dump(mode="json", exclude={"node", "node_wait_s"}),
        "exclusive": study.measure.exclusive,
        "slot": str(folder.slot.absolute()),
    }


def _kept(folder: StudyFolder, name: str, inputs: Arrays) -> Path:
    path = folder.root / "dense" / f"{name}.npy"
    data = pack_arrays(inputs)
    if not path.is_file() or path.read_bytes() != data:
        write_bytes(path, data)
    return path


def _ask(study: Study, folder: StudyFolder, request: ReadingRequest, files: dict[str, Path]) -> Taken:
    asked = DeviceRequest(
        labels=study.target.node,
        wait_s=study.target.node_wait_s,
        timeout_s=_SLOT_S + _READING_S * max(1, request.models),
        memory_gb=study.search.memory_gb,
        evaluator=EvaluatorReference(factory=FACTORY),
        request=request.model_dump(mode="json"),
        files={name: str(path) for name, path in files.items()},
    )
    if has_parent():
        answer = DeviceAnswer.model_validate(ask_parent(asked.model_dump(mode="json")))
    else:
        answer = ask_device(asked, lambda text: reporter().stage("device", text))
    return Taken.model_validate(answer.reply).model_copy(update={"node_id": answer.node_id})
