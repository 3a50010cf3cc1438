"""Where a latency was taken."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from autocompress.records import Host

if TYPE_CHECKING:
    from autocompress.measure.target import Target

#: Instruction sets by which runtimes choose their kernels, in the words of Linux' /proc/cpuinfo.
KERNEL_FLAGS = frozenset(
    {
        *("sse4_1", "avx", "avx2", "fma", "f16c", "avx_vnni"),
        *("avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
        *("amx_tile", "amx_int8", "amx_bf16"),
        *("asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve", "sve2"),
    }
)
#: What tells generations of processors apart, in the words of x86 and ARM.
_NUMBERS = ("cpu family", "model", "CPU implementer", "CPU part")


def fingerprint(runtime: str, threads: int, *, device: str | None = None, node: str | None = None) -> Host:
    """What decides a latency here: processor and how its clock is governed, memory, system, runtime and threads.

    Two machines of one make and setup have one fingerprint; no name or address of the machine is in it.

    Args:
        runtime: name and version, as ``target.runtime``.
        threads: threads that share one inference.
        device: name and driver of what computes beside the processor, such as a GPU.
        node: labels of the cluster's node that this is, as it found them itself.
    """
    info = _cpuinfo(Path("/proc/cpuinfo"))
    release = ".".join(platform.release().split(".")[:2])  # patches of a kernel are no other host
    flags = (info.get("flags") or info.get("Features") or "").split()
    name = info.get("model name") or _board() or platform.processor() or platform.machine() or "unknown"
    return Host(
        # Clouds hide the model's name ("AMD EPYC"): its numbers still tell generations apart.
        cpu=" ".join([name, *(f"{key} {info[key]}" for key in _NUMBERS if key in info)]),
        cores=os.cpu_count() or 1,
        flags=tuple(sorted(KERNEL_FLAGS.intersection(flags))),
        memory_gb=round(psutil.virtual_memory().total / 2**30),
        system=f"{platform.system()} {release} {platform.machine()}",
        runtime=runtime,
        threads=threads,
        governor=governor(),
        device=device,
        node=node,
    )


def host_of(target: Target, node: str | None = None) -> Host:
    """The fingerprint of this machine as a target computes on it.

    Args:
        target: may have a ``device``, in words, beside what the protocol asks for.
        node: labels of the cluster's node that this is.
    """
    return fingerprint(target.runtime, target.threads, device=getattr(target, "device", None), node=node)


def governor(folder: Path = Path("/sys/devices/system/cpu")) -> str | None:
    """How the system governs the processor's clock, such as ``"performance"``; None where it does not say.

    Several if cores differ, sorted and joined by commas.
    """
    found: set[str] = set()
    for path in folder.glob("cpu[0-9]*/cpufreq/scaling_governor"):
        try:
            found.add(path.read_text().strip())
        except OSError:
            continue  # a core that was taken off
    return ",".join(sorted(found)) or None


def load() -> float:
    """The host's 1-minute load average; 0.0 where the system has none."""
    try:
        return os.getloadavg()[0]
    except OSError:
        return 0.0


def _board(path: Path = Path("/proc/device-tree/model")) -> str:
    """Name of a board such as a Raspberry Pi, whose processor names itself in numbers only; empty elsewhere."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \n")
    except OSError:
        return ""


def _cpuinfo(path: Path) -> dict[str, str]:
    """The first processor's entries; empty where the system has no such file."""
    if not path.is_file():
        return {}
    first = path.read_text(encoding="utf-8", errors="replace").split("\n\n", 1)[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}
