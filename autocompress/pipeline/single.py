"""One plan, outside any search: built, measured beside the dense model, and written to a folder."""

from __future__ import annotations

from pathlib import Path

from autocompress.compress.factorize import rank_for_energy
from autocompress.compress.pack import pack, unpack
from autocompress.config import Study
from autocompress.errors import ConfigError
from autocompress.files import write_bytes
from autocompress.pipeline.evaluate import Evaluator
from autocompress.pipeline.folder import write_record
from autocompress.pipeline.graphs import with_graphs
from autocompress.pipeline.prepare import Workbench
from autocompress.pipeline.progress import reporter
from autocompress.records import Baseline, Fidelity, Measurement, Plan, Record
from autocompress.space.plan_file import load_plan
from autocompress.space.words import plan_words

#: Ending of packed files.
PACKED = ".packed"


class Built(Record):
    """What one plan gave.

    Attributes:
        summary: the plan in words.
        measurement: of its artifact, accuracy on the validation split.
        dense: the dense model, measured likewise.
        model, packed, card: the files that were written.
    """

    study: str
    plan: Plan
    summary: str
    measurement: Measurement
    dense: Baseline
    model: str
    packed: str
    card: str


def compress_one(bench: Workbench, plan_file: Path, folder: Path, *, epochs: float) -> Built:
    """Build the plan in a file, measure it on the validation split, and write model, packed form and card.

    Args:
        bench: a prepared study: task, dense model, target.
        plan_file: the plan in YAML, see `autocompress.space.plan_file`.
        folder: where the files go; made if missing. They are called like the plan's file.
        epochs: passes over the training split.

    Raises:
        ConfigError: the plan's file is wrong, or asks for what the network or the target lacks; nothing is written.
        CompressionError: a pass failed, or the file is not what the plan asked for.
    """
    plan, measurement = built_plan(bench, plan_file, epochs)
    measurement = with_graphs(bench, [measurement])[0]
    summary = plan_words(plan, bench.prepared.structure)
    model = bench.folder.read_artifact(measurement.artifact.sha256)
    packed = pack(model)
    stem = plan_file.stem
    paths = {kind: folder / f"{stem}{kind}" for kind in (".onnx", PACKED, ".json")}
    built = Built(
        study=bench.study.name,
        plan=plan,
        summary=summary,
        measurement=measurement.model_copy(
            update={"artifact": measurement.artifact.model_copy(update={"packed_bytes": len(packed)})}
        ),
        dense=bench.prepared.baseline,
        model=str(paths[".onnx"]),
        packed=str(paths[PACKED]),
        card=str(paths[".json"]),
    )
    write_bytes(paths[".onnx"], model)
    write_bytes(paths[PACKED], packed)
    write_record(paths[".json"], built)
    return built


def built_plan(bench: Workbench, plan_file: Path, epochs: float) -> tuple[Plan, Measurement]:
    """The plan in a file, and what it makes of the study's model, measured on the validation split.

    Raises:
        ConfigError: the plan's file is wrong, or asks for what the network or the target lacks.
        CompressionError: a pass failed, or the file is not what the plan asked for.
    """
    structure = bench.prepared.structure
    plan = load_plan(
        plan_file,
        structure,
        bits=bench.target.bits,
        energies=lambda layer, energy: rank_for_energy(bench.dense, layer, energy),
    )
    summary = plan_words(plan, structure)
    reporter().stage("compress", f"{summary}; {epochs:g} epoch{'' if epochs == 1 else 's'} of recovery")
    return plan, Evaluator(bench)(plan, Fidelity(epochs=epochs, rung=-1), "validation")


def pack_file(source: Path, destination: Path) -> tuple[int, int]:
    """Write the packed form of an ONNX file; returns both sizes in bytes.

    Raises:
        ConfigError: there is no such file.
        CompressionError: it is no ONNX model.
    """
    data = _read(source)
    packed = pack(data)
    write_bytes(destination, packed)
    return len(data), len(packed)


def unpack_file(source: Path, destination: Path) -> tuple[int, int]:
    """Write the ONNX file that a packed one holds, byte for byte; returns both sizes in bytes.

    Raises:
        ConfigError: there is no such file.
        CompressionError: it is no packed file, or damaged.
    """
    data = _read(source)
    model = unpack(data)
    write_bytes(destination, model)
    return len(data), len(model)


def default_epochs(study: Study) -> float:
    """As many as a finalist of the study gets."""
    return study.finalists.recovery_epochs


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise ConfigError(f"expected a file, got {path}, which does not exist")
    return path.read_bytes()
