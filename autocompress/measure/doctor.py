"""What this machine can run and measure, said without raising."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import numpy as np

from autocompress.errors import MeasurementError
from autocompress.measure.host import fingerprint
from autocompress.measure.target import TargetSettings
from autocompress.measure.targets import ALL
from autocompress.records import Record

#: Processor flags with which 8-bit integers are multiplied and summed in one instruction.
INT8_FLAGS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"})

#: x + x with a free batch axis, 3 columns: the smallest network that shows that the runtime works.
_TINY_MODEL = bytes.fromhex(
    "08083a3f0a0e0a01780a017812017922034164641201675a140a0178120f0a0d080112090a0312016e0a02080362140a0179"
    "120f0a0d080112090a0312016e0a02080342040a00100d"
)


class TargetReport(Record):
    """One target on this machine, and what it can do. Every target takes any batch size and number of threads.

    Attributes:
        name: its kind, with what else was chosen in brackets.
        package: what it needs, as pip names it.
        version: of that package; None if it is absent.
        works: it was tried on a small network, and computes it right.
        detail: what works, or why not.
        install: the command that installs what is missing; None where nothing is, or no package would help.
        bits: bit widths that weights may be stored in.
        computes: those with kernels of their own.
        weights_only_bits: those with kernels beside float activations.
        round_to: multiple of channels that runs fast.
        patterns: N:M patterns with kernels of their own.
    """

    name: str
    package: str
    version: str | None
    works: bool
    detail: str
    install: str | None
    bits: tuple[int, ...]
    computes: tuple[int, ...]
    weights_only_bits: tuple[int, ...]
    round_to: int
    patterns: tuple[str, ...]


def targets(settings: Sequence[TargetSettings] = ALL) -> tuple[TargetReport, ...]:
    """Every target, tried; those on a GPU only where there is one. Takes seconds for each. Never raises."""
    return tuple(_report(one) for one in settings)


def _report(settings: TargetSettings) -> TargetReport:
    version = _version(settings.package)
    install = None if version else settings.install
    if settings.needs_gpu and not boards():
        works, detail, install = False, "skipped: no NVIDIA GPU on this machine", None
    else:
        works, detail = _tried(settings)
    options = ", ".join(settings.options.values())
    return TargetReport(
        name=f"{settings.kind} ({options})" if options else settings.kind,
        package=settings.package,
        version=version,
        works=works,
        detail=detail,
        install=None if works else install,
        bits=settings.bits,
        computes=settings.computes,
        weights_only_bits=settings.weights_only_bits,
        round_to=settings.round_to,
        patterns=settings.patterns,
    )


def _tried(settings: TargetSettings) -> tuple[bool, str]:
    try:
        # A network, not the list of what the runtime offers: a wheel for another processor lists it all the same.
        target = settings.build()
        session = target.prepare(_TINY_MODEL)
        (shape,) = session.input_shapes(2).values()
        result = session.run(np.ones(shape, dtype=np.float32))
    except MeasurementError as error:
        return False, str(error)
    if not (result == 2.0).all():
        return False, f"computed 1 + 1 = {result.flat[0]}"
    if settings.needs_gpu:
        return True, ", ".join(boards())
    if 8 not in settings.computes:
        return True, "floats; integers are storage only"
    found = sorted(INT8_FLAGS.intersection(fingerprint("", 1).flags))
    int8 = f"fast 8-bit integers ({', '.join(found)})" if found else "no fast 8-bit integers (no VNNI): measure first"
    return True, int8


def boards() -> list[str]:
    """Names of the NVIDIA GPUs that this machine's driver lists."""
    try:
        return _nvidia_boards(Path("/proc/driver/nvidia/gpus"))
    except OSError:
        return []


def _nvidia_boards(folder: Path) -> list[str]:
    """Names of the boards that the driver lists; empty without a driver."""
    lines = [line for path in sorted(folder.glob("*/information")) for line in path.read_text().splitlines()]
    return [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
