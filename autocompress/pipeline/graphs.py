"""What the target's runtime makes of a study's files, put beside what the files say."""

from __future__ import annotations

from collections.abc import Sequence

from autocompress.compress.artifact import layer_nodes
from autocompress.measure.graph import differences, runtime_graph
from autocompress.pipeline.prepare import Workbench
from autocompress.records import Artifact, Measurement, RuntimeGraph


def graph_of(bench: Workbench, artifact: Artifact) -> RuntimeGraph | None:
    """The runtime's graph of a kept file.

    None if the target's runtime does not show it, or runs on another machine: what a runtime makes of a file depends
    on the processor.

    Raises:
        AutocompressError: the file is gone or was changed.
    """
    if bench.study.target.node:
        return None
    model = bench.folder.read_artifact(artifact.sha256)
    return runtime_graph(bench.target, model, artifact, layer_nodes(model))


def with_graphs(bench: Workbench, measured: Sequence[Measurement]) -> list[Measurement]:
    """Measurements with the runtime's graph of each artifact, and a warning for whatever it does otherwise.

    Args:
        bench: the prepared study.
        measured: of artifacts that are kept.
    """
    found = []
    for measurement in measured:
        graph = graph_of(bench, measurement.artifact)
        told = differences(graph, measurement.artifact) if graph is not None else ()
        warnings = tuple(dict.fromkeys((*measurement.warnings, *told)))
        found.append(measurement.model_copy(update={"graph": graph, "warnings": warnings}))
    return found
