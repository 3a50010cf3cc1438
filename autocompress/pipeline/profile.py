"""Profile: where the dense model's time goes, and what each group is worth."""

from __future__ import annotations

from pydantic import Field

from autocompress.compress.artifact import layer_nodes
from autocompress.compress.sensitivity import Sensitivity, measure_sensitivity
from autocompress.inputs import arrays
from autocompress.pipeline.folder import read_record, write_record
from autocompress.pipeline.latency_knobs import ineffective, ineffective_words
from autocompress.pipeline.latency_model import LatencyModelSummary, load_outlines, study_latency_model
from autocompress.pipeline.prepare import Workbench
from autocompress.pipeline.probe import take_nodes
from autocompress.pipeline.progress import reporter
from autocompress.records import NodeLatency, Record, Structure
from autocompress.rng import derive_seed

#: Bits that every layer's weights are rounded to alone.
_BITS = (8, 4)
#: Validation examples, and training batches for recalibration, of every single change: enough to order them.
_EXAMPLES, _BATCHES = 384, 4


class Profile(Record):
    """What can be compressed, and what it would save and cost.

    Attributes:
        structure: groups, layers, and what is left dense and why.
        space: the size of the search space, in words.
        latency: the dense artifact's nodes with their time; empty if the target's runtime times no nodes.
        sensitivity: what each single cut, rounding or left out block costs in loss and divergence.
        latency_model: what became of the model of the target's latency; None if the study wants none.
        ineffective: objective -> kinds of parameters of the space that cannot change it here.
    """

    structure: Structure
    space: str
    latency: tuple[NodeLatency, ...]
    sensitivity: Sensitivity
    latency_model: LatencyModelSummary | None = None
    ineffective: dict[str, tuple[str, ...]] = Field(default_factory=dict)

    def remarks(self) -> tuple[str, ...]:
        """Sentences for a reader: what the latency model is worth, and what has no effect on an objective."""
        model = () if self.latency_model is None else (self.latency_model.words(),)
        return (*model, *ineffective_words(self.ineffective))


def profile(bench: Workbench) -> Profile:
    """Profile the dense model, or read the profile that an earlier run made."""
    report = reporter()
    earlier = read_record(bench.folder.profile, Profile)
    if earlier is not None:
        report.stage("profile", "taking up the earlier profile")
        return earlier
    structure = bench.prepared.structure
    report.stage("profile", "latency of every layer")
    sha256 = bench.prepared.baseline.artifact.sha256
    dense = bench.folder.read_artifact(sha256)
    latency = take_nodes(
        bench.study,
        bench.folder,
        bench.target,
        sha256,
        layer_nodes(dense),
        arrays(bench.task.example_input()),
        baseline=bench.host,
    )
    model = study_latency_model(bench) if bench.study.measure.latency_model == "auto" else None
    found = Profile(
        structure=structure,
        space=bench.space.describe(),
        latency=latency or (),
        sensitivity=measure_sensitivity(
            bench.task,
            bench.dense,
            structure,
            bench.statistics,
            round_to=bench.target.round_to,
            bits=_BITS,
            blocks=True,
            examples=_EXAMPLES,
            batches=_BATCHES,
            seed=derive_seed(bench.study.seed, "sensitivity"),
            on_done=lambda done, total: report.stage("profile", f"sensitivity, {done} of {total} single changes"),
        ),
        latency_model=model,
        ineffective=without_effect(bench, model),
    )
    write_record(bench.folder.profile, found)
    for words in ineffective_words(found.ineffective):
        report.stage("profile", words)
    return found


def without_effect(bench: Workbench, model: LatencyModelSummary | None) -> dict[str, tuple[str, ...]]:
    """Objective -> kinds of parameters that cannot change it; the latency only where the operations are known."""
    return ineffective(
        bench.space,
        bench.study.objectives,
        load_outlines(bench, model) if model is not None else None,
        seed=derive_seed(bench.study.seed, "ineffective"),
    )
