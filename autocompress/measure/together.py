"""Several files in one session of readings: how long each takes, and where in each the time went."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from autocompress.errors import MeasurementError
from autocompress.measure.latency import Procedure, measure
from autocompress.measure.layers import Owners, node_latencies
from autocompress.measure.target import Target
from autocompress.records import ProfiledModel, TimeProfile

if TYPE_CHECKING:
    # Lazy: it brings torch.
    from autocompress.inputs import Arrays

#: Inferences of each file that are profiled, if nothing else is asked for.
INFERENCES = 100


def profile_together(
    target: Target,
    models: Mapping[str, tuple[bytes, Owners]],
    inputs: Arrays,
    *,
    host: str,
    layers: Sequence[str],
    seed: int,
    procedure: Procedure | None = None,
    inferences: int = INFERENCES,
) -> TimeProfile:
    """Profile files in turns, with the target's own settings, and measure each without the profiler.

    Args:
        target: where.
        models: name -> file, and layer -> names of its nodes that read the layer's weights. The first is what the
            others are held against.
        inputs: what every inference works on: one array of shape (n, ...), or several by the names of the inputs.
        host: key of the machine's fingerprint.
        layers: names, in the order of computation.
        seed: of the order in which files take turns.
        procedure: how latencies are measured.
        inferences: how many of each file are profiled.

    Raises:
        MeasurementError: the runtime cannot load a file, or times no nodes.
    """
    names = list(models)
    sessions = [target.prepare(model) for model, _ in models.values()]
    found = node_latencies(target, list(models.values()), inputs, seed=seed, inferences=inferences)
    if found is None:
        raise MeasurementError(
            f"target {target.name!r}: {target.runtime} times no single nodes, so that there is nothing to profile; "
            "profile with target onnxruntime-cpu"
        )
    readings = measure(sessions, sessions[0], inputs, seed=seed, procedure=procedure)
    return TimeProfile(
        runtime=target.runtime,
        host=host,
        inferences=inferences,
        layers=tuple(layers),
        models=tuple(
            ProfiledModel(
                name=name, sha256=hashlib.sha256(models[name][0]).hexdigest(), latency=reading, nodes=tuple(nodes)
            )
            for name, reading, nodes in zip(names, readings, found, strict=True)
        ),
    )
