"""Profile: where the dense model's time goes, and what each group is worth."""

from __future__ import annotations

from pydantic import Field

from autocompress.compress.artifact import layer_nodes
from autocompress.compress.sensitivity import LEVELS, Sensitivity, measure_sensitivity
from autocompress.inputs import arrays
from autocompress.pipeline.folder import read_record, write_record
from autocompress.pipeline.latency_knobs import ineffective, ineffective_words
from autocompress.pipeline.latency_model import LatencyModelSummary, load_outlines, study_latency_model
from autocompress.pipeline.prepare import Workbench
from autocompress.pipeline.probe import take_nodes
from autocompress.pipeline.progress import reporter
from autocompress.records import Criterion, NodeLatency, Reconstruction, Record, Structure
from autocompress.rng import derive_seed
from autocompress.space.draft import DENSE
from autocompress.space.space import Space

#: Validation examples of every single change, at least and at most: enough to order them.
_EXAMPLES = (128, 384)
#: Multiply-adds of all changes together, from which on examples are saved.
_MACS = 3.2e12


class Profile(Record):
    """What can be compressed, and what it would save and cost.

    Attributes:
        structure: groups, layers, and what is left dense and why.
        space: the size of the search space, in words.
        latency: the dense artifact's nodes with their time; empty if the target's runtime times no nodes.
        sensitivity: what each single cut, rounding, left out block, or two neighbours of these, costs in loss and
            divergence.
        latency_model: what became of the model, or sketch, of the target's latency; None if the study wants none.
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
    model = study_latency_model(bench) if bench.study.measure.latency_model != "off" else None
    if model is not None:
        report.stage("profile", model.words())
    found = Profile(
        structure=structure,
        space=bench.space.describe(),
        latency=latency or (),
        sensitivity=_sensitivity(bench),
        latency_model=model,
        ineffective=without_effect(bench, model),
    )
    write_record(bench.folder.profile, found)
    for words in ineffective_words(found.ineffective):
        report.stage("profile", words)
    return found


def _sensitivity(bench: Workbench) -> Sensitivity:
    """Of what the space may do: groups that it may cut, bits that it offers, blocks that may go."""
    space, report = bench.space, reporter()
    layers: dict[str, set[int]] = {}
    for unit in space.units:
        for layer in unit.layers:
            layers.setdefault(layer, set()).update(bits for bits in unit.choices if bits < 32)
    groups, blocks = cuttable(space), space.depth.droppable
    changes = len(LEVELS) * len(groups) + 2 * len(blocks)
    return measure_sensitivity(
        bench.task,
        bench.dense,
        bench.prepared.structure,
        bench.statistics,
        round_to=bench.target.round_to,
        groups=groups,
        bits={layer: sorted(bits, reverse=True) for layer, bits in layers.items()},
        blocks=blocks,
        pairs=True,
        criterion=usual_criterion(space),
        reconstruction=usual_reconstruction(space),
        examples=enough_examples(changes, bench.prepared.baseline.artifact.macs),
        fast=True,
        seed=derive_seed(bench.study.seed, "sensitivity"),
        on_done=lambda done, total: report.stage("profile", f"sensitivity, {done} of {total} changes"),
    )


def enough_examples(changes: int, macs: int) -> int:
    """How many tell what each change costs: fewer of large networks, and of those with many groups.

    Args:
        changes: that are measured.
        macs: multiply-adds of the dense network on one example.
    """
    least, most = _EXAMPLES
    return round(min(max(_MACS / max(1, changes * macs), least), most))


def cuttable(space: Space) -> frozenset[str]:
    """Names of the groups that a space may cut."""
    own = (choice.name for choice in space.groups if "structured" in choice.strategy or space.pruning.widths)
    return frozenset([*own, *(group.name for group in space.allocation.groups)])


def usual_criterion(space: Space) -> Criterion:
    """The criterion that the space names first for most groups; chance is none."""
    offered: list[Criterion] = [
        c for choice in space.groups if "structured" in choice.strategy for c in choice.criterion
    ]
    offered += [row.criterion for row in space.allocation.rows]
    known = [criterion for criterion in dict.fromkeys(offered) if criterion != "random"]
    # Of equally many the one that is named first.
    return max(known, key=offered.count, default="magnitude")


def usual_reconstruction(space: Space) -> Reconstruction:
    """The first that the space names, or what is done where it names none."""
    named: list[Reconstruction] = [knob.settings[0] for knob in space.settings if knob.field == "reconstruction"]
    return named[0] if named else DENSE.reconstruction


def without_effect(bench: Workbench, model: LatencyModelSummary | None) -> dict[str, tuple[str, ...]]:
    """Objective -> kinds of parameters that cannot change it; the latency only where the operations are known."""
    return ineffective(
        bench.space,
        bench.study.objectives,
        load_outlines(bench, model) if model is not None else None,
        seed=derive_seed(bench.study.seed, "ineffective"),
    )
