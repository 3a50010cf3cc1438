"""What works on this machine: versions, runtimes, the default target tried for real, the registry's store."""

from __future__ import annotations

import importlib.metadata
import platform
import sys

from autocompress.measure.doctor import Runtime, runtimes
from autocompress.measure.host import fingerprint
from autocompress.measure.onnxruntime_cpu import OnnxRuntimeCpu
from autocompress.pipeline.identity import VERSIONED
from autocompress.records import Host, Record


class Examination(Record):
    """What `autocompress doctor` found.

    Attributes:
        versions: library -> installed version, "missing" if it is not there.
        runtimes: each tried, with what works or why not.
        host: fingerprint of this machine with the default target.
        target: what the default target can do, in words.
        healthy: everything that a study needs works.
    """

    python: str
    system: str
    versions: dict[str, str]
    runtimes: tuple[Runtime, ...]
    host: Host
    target: str
    healthy: bool


def examine() -> Examination:
    """Look at this machine. Takes seconds, starts no server, writes nothing."""
    versions: dict[str, str] = {}
    for name in (*VERSIONED, "fastapi", "moocore", "plotly", "scikit-learn", "safetensors"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "missing"
    target = OnnxRuntimeCpu()
    found = runtimes()
    needed = {"onnxruntime", "torch"}
    runtime = target.build().runtime if any(r.name == "onnxruntime" and r.works for r in found) else "none"
    return Examination(
        python=sys.version.split()[0],
        system=platform.platform(),
        versions=versions,
        runtimes=found,
        host=fingerprint(runtime, target.threads),
        target=(
            f"{target.kind}: computes in {_listed(target.computes)} bits, weights alone in "
            f"{_listed(target.weights_only_bits)}; stores and runs {_listed(target.bits)}; "
            f"channels in multiples of {target.round_to}; "
            "batch size and threads by configuration"
        ),
        healthy="missing" not in versions.values() and all(r.works for r in found if r.name in needed),
    )


def _listed(bits: tuple[int, ...]) -> str:
    return ", ".join(map(str, bits))
