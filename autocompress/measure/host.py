"""Where a latency was taken."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import psutil

from autocompress.records import Host

#: Instruction sets by which runtimes choose their kernels, in the words of Linux' /proc/cpuinfo.
KERNEL_FLAGS = frozenset(
    {
        *("sse4_1", "avx", "avx2", "fma", "f16c", "avx_vnni"),
        *("avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
        *("amx_tile", "amx_int8", "amx_bf16"),
        *("asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve", "sve2"),
    }
)


def fingerprint(runtime: str, threads: int) -> Host:
    """What decides a latency here: processor, memory, system, runtime and threads.

    Two machines of one make and setup have one fingerprint; no name or address of the machine is in it.

    Args:
        runtime: name and version, as ``target.runtime``.
        threads: threads that share one inference.
    """
    info = _cpuinfo(Path("/proc/cpuinfo"))
    release = ".".join(platform.release().split(".")[:2])  # patches of a kernel are no other host
    flags = (info.get("flags") or info.get("Features") or "").split()
    name = info.get("model name") or platform.processor() or platform.machine() or "unknown"
    return Host(
        # Clouds hide the model's name ("AMD EPYC"): its numbers still tell generations apart.
        cpu=" ".join([name, *(f"{key} {info[key]}" for key in ("cpu family", "model") if key in info)]),
        cores=os.cpu_count() or 1,
        flags=tuple(sorted(KERNEL_FLAGS.intersection(flags))),
        memory_gb=round(psutil.virtual_memory().total / 2**30),
        system=f"{platform.system()} {release} {platform.machine()}",
        runtime=runtime,
        threads=threads,
    )


def load() -> float:
    """The host's 1-minute load average; 0.0 where the system has none."""
    try:
        return os.getloadavg()[0]
    except OSError:
        return 0.0


def _cpuinfo(path: Path) -> dict[str, str]:
    """The first processor's entries; empty where the system has no such file."""
    if not path.is_file():
        return {}
    first = path.read_text(encoding="utf-8", errors="replace").split("\n\n", 1)[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}
