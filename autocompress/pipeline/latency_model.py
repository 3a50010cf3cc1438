"""The latency model of a study: learnt once, kept beside the studies, and used again by any study that it fits."""

from __future__ import annotations

import hashlib
import importlib
import math
import time
from collections.abc import Sequence
from pathlib import Path

from autocompress.compress.skeleton import learn_skeleton
from autocompress.errors import AutocompressError
from autocompress.measure.latency_model import LatencyModel, ModelAccuracy, ModelKind, refusal
from autocompress.pipeline.folder import StudyFolder, read_record, write_record
from autocompress.pipeline.latency_built import BuiltOutline, Files, PlanOutlines, built_files
from autocompress.pipeline.latency_learning import Networks, learn
from autocompress.pipeline.latency_outline import Outlines, learn_outlines
from autocompress.pipeline.latency_plans import spread_plans
from autocompress.pipeline.prepare import Workbench
from autocompress.pipeline.probe import study_slot, take_readings
from autocompress.pipeline.progress import reporter
from autocompress.records import Estimate, Plan, Record, digest
from autocompress.rng import derive_seed

#: The modules that decide what a model says.
_CODE = (
    "autocompress.compress.between",
    "autocompress.compress.qdq",
    "autocompress.compress.skeleton",
    "autocompress.measure.kernels",
    "autocompress.measure.latency_model",
    "autocompress.measure.latency_table",
    "autocompress.pipeline.latency_built",
    "autocompress.pipeline.latency_learning",
    "autocompress.pipeline.latency_outline",
    "autocompress.pipeline.latency_plans",
    "autocompress.records.outline",
)
#: A sketch is learnt from so few networks.
SKETCH = Networks(learning=16, unseen=4, pool=100, twice=False, rounds=8)
#: Median error, a share, up to which a sketch guides better than multiply-adds: where the cost of each operation rules
#: they may be off by a factor of six.
_SKETCH_ERROR = 0.25
#: The runtime whose own profile says how long each operation takes.
_PROFILED = "onnxruntime-cpu"


class LatencyModelSummary(Record):
    """What the profile says of the latency model.

    Attributes:
        key: hash of what the model rests on, the name of its file; empty if none was made.
        kind: of the model; None if none was made.
        networks: made to learn from, those that it was judged on included.
        seconds: that it took to build.
        accuracy: on unseen networks; None if none was made.
        accepted: whether a search may use it. If not, every candidate is measured.
        reason: why it was refused, with its figures; empty if it was not.
        notes: what else a reader should know.
        reused: taken from an earlier study.
        sketch: it tells the search where to look, and takes the place of no reading.
    """

    key: str = ""
    kind: ModelKind | None = None
    networks: int = 0
    seconds: float = 0.0
    accuracy: ModelAccuracy | None = None
    accepted: bool = False
    reason: str = ""
    notes: tuple[str, ...] = ()
    reused: bool = False
    sketch: bool = False

    def words(self) -> str:
        """One sentence for a reader."""
        source = (
            "of an earlier study" if self.reused else f"built in {self.seconds:.0f} s from {self.networks} networks"
        )
        a = self.accuracy
        if self.sketch:
            if a is None or not self.accepted:
                return f"No latency sketch: {self.reason}. Multiply-adds guide the search."
            return (
                f"Latency sketch ({source}), to guide the search: median error {a.median_error:.1%}, largest "
                f"{a.max_error:.1%}, on {a.networks} unseen networks. Every candidate is measured."
            )
        if a is None:
            return f"No latency model: {self.reason}. Every candidate is measured."
        figures = (
            f"median error {a.median_error:.1%}, largest {a.max_error:.1%}, Kendall tau {a.tau:.3f} where two "
            f"measurements agree to {a.ceiling:.3f}, on {a.networks} unseen networks"
        )
        if not self.accepted:
            return f"Latency model refused ({self.reason}); {figures}. Every candidate is measured."
        return f"Latency model ({self.kind}, {source}): {figures}."


class Kept(Record):
    """A model as it is kept for other studies.

    Attributes:
        model: predicts from operations.
        outlines: tell the operations of a plan.
        networks, seconds, notes: as of `LatencyModelSummary`.
        built: tell the operations of networks that the task builds instead of the dense one.
    """

    model: LatencyModel
    outlines: Outlines
    networks: int
    seconds: float
    notes: tuple[str, ...]
    built: tuple[BuiltOutline, ...] = ()

    @property
    def of_plans(self) -> PlanOutlines:
        """The operations of any plan."""
        return PlanOutlines(self.outlines, self.built)


class LatencyPredictor:
    """Predicts the latency of plans without making them, in about a millisecond each."""

    def __init__(self, kept: Kept) -> None:
        self.model, self._outlines = kept.model, kept.of_plans

    def predict(self, plan: Plan) -> Estimate:
        """Milliseconds of a plan's network. A prediction is never a measurement.

        Raises:
            InfeasibleError: the plan factorizes layers, of which the model knows nothing, builds a network of a size
                that it has not seen, or is of another network.
        """
        return self.model.predict(self._outlines.of(plan))

    def predict_many(self, plans: Sequence[Plan]) -> list[Estimate]:
        """The same for many plans."""
        return [self.predict(plan) for plan in plans]


def study_latency_model(bench: Workbench, networks: Networks | None = None) -> LatencyModelSummary:
    """Learn the study's latency model, or its sketch of one, or take up one that fits.

    Args:
        bench: the prepared study.
        networks: how many to learn from; as many as prove enough by default.

    Returns:
        What there is, and whether it is good enough. Nothing is raised for a network that no model can be made for.
    """
    settings = bench.study.measure
    sketch = settings.latency_model == "sketch"
    networks = networks or (SKETCH if sketch else Networks())
    key = model_key(bench, networks)
    path = model_path(bench, key)
    kept = read_record(path, Kept)
    reused = kept is not None
    if kept is None:
        try:
            kept = _learn(bench, networks)
        except AutocompressError as error:
            return LatencyModelSummary(reason=str(error), sketch=sketch)
        except Exception as error:
            if not sketch:
                raise
            # Nobody asked for a sketch by name: whatever is wrong with it stops no study.
            return LatencyModelSummary(reason=f"{type(error).__name__}: {error}"[:300], sketch=True)
        write_record(path, kept)
    accuracy = kept.model.accuracy
    assert accuracy is not None  # noqa: S101 - a model is judged before it is kept
    limit = max(_SKETCH_ERROR, settings.latency_model_error) if sketch else settings.latency_model_error
    # Of the few networks that a sketch is judged on, the order tells nothing.
    gap = math.inf if sketch else settings.latency_model_tau_gap
    reason = refusal(accuracy, error=limit, tau_gap=gap)
    return LatencyModelSummary(
        key=key,
        kind=kept.model.kind,
        networks=kept.networks,
        seconds=kept.seconds,
        accuracy=accuracy,
        accepted=not reason,
        reason=reason,
        notes=kept.notes,
        reused=reused,
        sketch=sketch,
    )


def load_predictor(bench: Workbench, summary: LatencyModelSummary) -> LatencyPredictor | None:
    """The study's predictor; None if there is no model, or it was refused.

    Raises:
        AutocompressError: the model's file is damaged or gone.
    """
    if not summary.accepted:
        return None
    kept = read_record(model_path(bench, summary.key), Kept)
    if kept is None:
        raise AutocompressError(
            f"{model_path(bench, summary.key)}: expected the study's latency model, got no file; remove "
            f"{bench.folder.profile} and run the study again"
        )
    return LatencyPredictor(kept)


def load_outlines(bench: Workbench, summary: LatencyModelSummary) -> PlanOutlines | None:
    """What tells the operations of the study's plans; None if no model was made. A refused model still has it."""
    kept = read_record(model_path(bench, summary.key), Kept) if summary.key else None
    return kept.of_plans if kept is not None else None


def model_path(bench: Workbench, key: str) -> Path:
    """Where a model is kept: beside the studies, so that another one finds it."""
    return bench.study.output / "latency-models" / f"{key}.json"


def model_key(bench: Workbench, networks: Networks) -> str:
    """Hash of what a model rests on: network, space, target, host, protocol and code; 16 hex digits."""
    code = hashlib.sha256()
    for name in _CODE:
        code.update(Path(importlib.import_module(name).__file__ or "").read_bytes())
    return digest(
        {
            "artifact": bench.prepared.baseline.artifact.sha256,
            "structure": bench.prepared.structure.model_dump(mode="json"),
            "space": bench.study.space.model_dump(mode="json"),
            "target": bench.study.target.model_dump(mode="json"),
            "host": bench.host.key,
            "protocol": bench.study.measure.model_dump(
                mode="json", include={"rounds", "block_s", "repeats", "dispersion", "drift"}
            ),
            "networks": networks.model_dump(mode="json"),
            **({"builder": bench.prepared.task_code_sha256} if bench.study.space.architecture is not None else {}),
            "code": code.hexdigest(),
        }
    )[:16]


def _learn(bench: Workbench, networks: Networks) -> Kept:
    report = reporter()
    began = time.monotonic()
    study, prepared, target = bench.study, bench.prepared, bench.target
    seed = derive_seed(study.seed, "latency model")
    dense = bench.folder.read_artifact(prepared.baseline.artifact.sha256)

    def told(done: str) -> None:
        report.stage("profile", f"latency model: {done}")

    told("how sizes follow cuts")
    skeleton = learn_skeleton(
        bench.dense,
        dense,
        prepared.structure,
        bench.statistics,
        bench.task.example_input(),
        round_to=target.round_to,
        seed=seed,
    )
    outlines = learn_outlines(skeleton, dense, bench.inputs, round_to=target.round_to, seed=seed)
    offered = bench.space.architecture.architectures
    files = Files(skeleton, built_files(bench.task, offered, bench.inputs, seed=seed, on_step=told))
    built = tuple(file.outline for file in files.built)
    pool = spread_plans(bench.space, PlanOutlines(outlines, built).of, networks.pool, seed=seed)
    place = StudyFolder(bench.folder.root / "latency-model")
    sha = place.write_artifact(dense)

    def read(models: Sequence[bytes]) -> list[float]:
        hashes = [place.write_artifact(model) for model in models]
        try:
            taken = take_readings(
                study,
                place,
                target,
                hashes,
                sha,
                bench.inputs,
                seed=seed,
                baseline=prepared.baseline.host,
                loaded={sha: bench.dense_session},
            )
        finally:
            for name in set(hashes) - {sha}:
                place.artifact(name).unlink(missing_ok=True)
        return [reading.ratio.value for reading in taken.readings]

    learnt = learn(
        files,
        dense,
        pool,
        bench.inputs,
        read,
        networks=networks,
        baseline_ms=prepared.baseline.latency_ms,
        block_ms=1e3 * study.measure.block_s,
        threads=target.threads,
        profiles=study.target.kind == _PROFILED and not study.target.node,
        alone=study_slot(study, bench.folder).measuring,
        on_step=told,
    )
    place.artifact(sha).unlink(missing_ok=True)
    return Kept(
        model=learnt.model,
        outlines=outlines,
        networks=min(len(pool), networks.learning + networks.unseen),
        seconds=time.monotonic() - began,
        notes=learnt.notes,
        built=built,
    )
