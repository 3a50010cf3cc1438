"""Profile: where the dense model's time goes, and what each group is worth."""

from __future__ import annotations

from autocompress.compress.sensitivity import GroupSensitivity, group_sensitivity
from autocompress.inputs import arrays
from autocompress.measure.layers import NodeLatency, node_latencies
from autocompress.pipeline.folder import read_record, write_record
from autocompress.pipeline.prepare import Workbench
from autocompress.pipeline.progress import reporter
from autocompress.records import Record, Structure
from autocompress.rng import derive_seed


class Profile(Record):
    """What can be compressed, and what it would save and cost.

    Attributes:
        structure: groups, layers, and what is left dense and why.
        space: the size of the search space, in words.
        latency: the dense artifact's nodes with their time.
        sensitivity: per group, the effect of halving it alone.
    """

    structure: Structure
    space: str
    latency: tuple[NodeLatency, ...]
    sensitivity: tuple[GroupSensitivity, ...]


def profile(bench: Workbench) -> Profile:
    """Profile the dense model, or read the profile that an earlier run made."""
    report = reporter()
    earlier = read_record(bench.folder.profile, Profile)
    if earlier is not None:
        report.stage("profile", "taking up the earlier profile")
        return earlier
    report.stage("profile", f"{len(bench.prepared.structure.groups)} groups: latency per layer, sensitivity per group")
    found = Profile(
        structure=bench.prepared.structure,
        space=bench.space.describe(),
        latency=tuple(
            node_latencies(
                bench.folder.read_artifact(bench.prepared.baseline.artifact.sha256),
                arrays(bench.task.example_input()),
                [layer.name for layer in bench.prepared.structure.layers],
                threads=bench.target.threads,
            )
        ),
        sensitivity=tuple(
            group_sensitivity(
                bench.task,
                bench.dense,
                bench.prepared.structure,
                bench.statistics,
                round_to=bench.target.round_to,
                seed=derive_seed(bench.study.seed, "sensitivity"),
            )
        ),
    )
    write_record(bench.folder.profile, found)
    return found
