"""Peak memory of an artifact's session, measured in a fresh process.

    peak_memory_bytes = VmHWM(model loaded and run) - VmRSS(runtime loaded, no model)

Both are read from ``/proc/self/status`` of one child process, which does nothing else: it imports the runtime, reads
its resident memory, sets the kernel's high-water mark back to that, loads the model from its file, runs it, and reads
the mark. So the model's bytes count while they are being loaded, as they do in any program that loads a file, and the
interpreter and the runtime's code do not. Pages that are shared with other processes count as resident.
"""

from __future__ import annotations

import gc
import importlib
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autocompress.errors import MeasurementError
from autocompress.measure.probe import pack_arrays, unpack_arrays
from autocompress.records import Estimate

if TYPE_CHECKING:
    # Lazy: it brings torch.
    from autocompress.inputs import Arrays
    from autocompress.measure.target import TargetSettings

#: Child processes of one reading.
CHILDREN = 3
#: Inferences in each: the first allocates what later ones reuse.
RUNS = 3
_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def check_memory(settings: TargetSettings) -> None:
    """Refuse what `peak_memory` cannot measure, before anything is computed.

    Raises:
        MeasurementError: the system has no /proc, or the target measures on another machine.
    """
    if not _CLEAR.exists():
        raise MeasurementError(
            f"peak_memory_bytes: expected a system with {_STATUS} and {_CLEAR} (Linux), got {platform.system()} "
            "without them; leave peak_memory_bytes out of objectives and constraints"
        )
    if settings.node:
        raise MeasurementError(
            f"peak_memory_bytes: expected a target on this machine, got one on a node with labels {settings.node}; "
            "leave peak_memory_bytes out of objectives and constraints"
        )


def peak_memory(
    settings: TargetSettings, model: bytes, inputs: Arrays, *, children: int = CHILDREN, timeout_s: float = 120.0
) -> Estimate:
    """Most memory that loading and running an artifact takes beyond its runtime: see the module's formula.

    Args:
        settings: of the target; their class has to be importable by name.
        model: the artifact's bytes.
        inputs: what one inference works on, as for `Session.run`.
        children: processes that measure, one after the other.
        timeout_s: wall time of each, in seconds.

    Returns:
        Median of the children, in bytes; the interval is from the smallest to the largest.

    Raises:
        MeasurementError: as `check_memory`; or a child failed, was killed or took too long.
    """
    check_memory(settings)
    kind = type(settings)
    request = {"module": kind.__module__, "name": kind.__qualname__, "values": settings.model_dump(mode="json")}
    with tempfile.TemporaryDirectory(prefix="autocompress-memory-") as name:
        folder = Path(name)
        (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
        (folder / "model").write_bytes(model)
        (folder / "inputs").write_bytes(pack_arrays(inputs))
        peaks = [_in_child(folder, settings.name, timeout_s) for _ in range(children)]
    return Estimate(value=float(statistics.median(peaks)), low=float(min(peaks)), high=float(max(peaks)))


def _in_child(folder: Path, target: str, timeout_s: float) -> int:
    """Bytes that one child found."""
    result = folder / "result.json"
    result.unlink(missing_ok=True)
    command = [sys.executable, "-m", "autocompress.measure.memory", str(folder)]
    what = f"peak_memory_bytes: expected the artifact to load and run in a process with target {target!r}"
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise MeasurementError(f"{what} within {timeout_s:g} s, it was killed after that") from error
    reply = json.loads(result.read_text(encoding="utf-8")) if result.is_file() else {}
    if "error" in reply:
        raise MeasurementError(f"{what}, got: {reply['error']}")
    if done.returncode != 0 or "bytes" not in reply:
        ended = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise MeasurementError(f"{what}, it ended with {ended}: {last}")
    found = int(reply["bytes"])
    if found <= 0:
        raise MeasurementError(f"{what} and to take memory, /proc says {found} bytes")
    return found


def _measure(folder: Path) -> int:
    """In the child: bytes by the module's formula."""
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    kind: Any = importlib.import_module(request["module"])
    for part in request["name"].split("."):
        kind = getattr(kind, part)
    target = kind.model_validate_json(json.dumps(request["values"])).build()
    inputs = unpack_arrays((folder / "inputs").read_bytes())
    gc.collect()
    _CLEAR.write_text("5", encoding="ascii")  # the kernel's word for: high-water mark = what is resident now
    before = _kilobytes("VmRSS")
    session = target.prepare((folder / "model").read_bytes())
    for _ in range(RUNS):
        session.run(inputs)
    return 1024 * (_kilobytes("VmHWM") - before)


def _kilobytes(key: str) -> int:
    for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0])
    raise MeasurementError(f"{_STATUS}: expected a line {key!r}, got none")


def _main(folder: Path) -> None:
    try:
        reply: dict[str, Any] = {"bytes": _measure(folder)}
    # Told in one line where a traceback would be cut off.
    except Exception as error:  # noqa: BLE001
        reply = {"error": f"{type(error).__name__}: {error}" if not isinstance(error, MeasurementError) else str(error)}
    (folder / "result.json").write_text(json.dumps(reply), encoding="utf-8")


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
