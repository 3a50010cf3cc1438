"""What works on this machine: versions, host, and every target tried for real."""

from __future__ import annotations

import importlib.metadata
import platform
import sys

from autocompress.measure.doctor import TargetReport, targets
from autocompress.measure.host import fingerprint
from autocompress.measure.onnxruntime_cpu import OnnxRuntimeCpu
from autocompress.pipeline.identity import VERSIONED
from autocompress.records import Host, Record


class Examination(Record):
    """What `autocompress doctor` found.

    Attributes:
        versions: library -> installed version, "missing" if it is not there.
        targets: each tried, with what it can do, and what works or why not.
        host: fingerprint of this machine with the default target.
        healthy: everything that a study needs works.
    """

    python: str
    system: str
    versions: dict[str, str]
    targets: tuple[TargetReport, ...]
    host: Host
    healthy: bool


def examine() -> Examination:
    """Look at this machine. Takes seconds, starts no server, writes nothing."""
    versions: dict[str, str] = {}
    for name in (*VERSIONED, "fastapi", "moocore", "plotly", "scikit-learn", "safetensors"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "missing"
    default, found = OnnxRuntimeCpu(), targets()
    works = {report.name for report in found if report.works}
    runtime = default.build().runtime if default.kind in works else "none"
    return Examination(
        python=sys.version.split()[0],
        system=platform.platform(),
        versions=versions,
        targets=found,
        host=fingerprint(runtime, default.threads),
        healthy="missing" not in versions.values() and default.kind in works,
    )
