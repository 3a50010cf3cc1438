"""What this machine can run and measure, said without raising."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import numpy as np

from autocompress.errors import MeasurementError
from autocompress.measure.host import fingerprint
from autocompress.measure.onnxruntime_cpu import OnnxRuntimeCpu
from autocompress.records import Record

#: Processor flags with which 8-bit integers are multiplied and summed in one instruction.
INT8_FLAGS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"})

#: x + x with a free batch axis, 3 columns: the smallest network that shows that the runtime works.
_TINY_MODEL = bytes.fromhex(
    "08083a3f0a0e0a01780a017812017922034164641201675a140a0178120f0a0d080112090a0312016e0a02080362140a0179"
    "120f0a0d080112090a0312016e0a02080342040a00100d"
)


class Runtime(Record):
    """One runtime on this machine.

    Attributes:
        name: ``"onnxruntime"``, ``"torch"`` or ``"cuda"``.
        version: None if it is absent.
        works: it was tried, and works.
        detail: what works, or why not.
    """

    name: str
    version: str | None
    works: bool
    detail: str


def runtimes() -> tuple[Runtime, ...]:
    """ONNX Runtime on the CPU, torch, and CUDA, each tried; takes seconds, as torch is imported. Never raises."""
    return (_onnxruntime(), _torch(), _cuda())


def _onnxruntime() -> Runtime:
    version = _version("onnxruntime")
    try:
        # A network, not the list of providers: a wheel for another processor lists them all the same.
        target = OnnxRuntimeCpu().build()
        session = target.prepare(_TINY_MODEL)
        (shape,) = session.input_shapes(2).values()
        result = session.run(np.ones(shape, dtype=np.float32))
    except MeasurementError as error:
        return Runtime(name="onnxruntime", version=version, works=False, detail=str(error))
    if not (result == 2.0).all():
        return Runtime(name="onnxruntime", version=version, works=False, detail=f"computed 1 + 1 = {result.flat[0]}")
    found = sorted(INT8_FLAGS.intersection(fingerprint("", 1).flags))
    int8 = f"fast 8-bit integers ({', '.join(found)})" if found else "no fast 8-bit integers (no VNNI): measure first"
    return Runtime(name="onnxruntime", version=version, works=True, detail=f"CPU provider; {int8}")


def _torch() -> Runtime:
    version = _version("torch")
    try:
        import torch
    except (ImportError, OSError) as error:
        return Runtime(name="torch", version=version, works=False, detail=f"import failed: {error}")
    return Runtime(name="torch", version=version, works=True, detail=f"CPU, {torch.get_num_threads()} threads")


def _cuda() -> Runtime:
    try:
        import torch

        if torch.cuda.is_available():
            names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
            return Runtime(name="cuda", version=torch.version.cuda, works=True, detail=", ".join(names))
        boards = _nvidia_boards(Path("/proc/driver/nvidia/gpus"))
    except (ImportError, OSError, RuntimeError) as error:
        return Runtime(name="cuda", version=None, works=False, detail=f"could not be asked for: {error}")
    if boards:
        detail = f"{', '.join(boards)} present, but torch {_version('torch')} does not use it: install a CUDA build"
    else:
        detail = "no NVIDIA device"
    return Runtime(name="cuda", version=None, works=False, detail=detail)


def _nvidia_boards(folder: Path) -> list[str]:
    """Names of the boards that the driver lists; empty without a driver."""
    lines = [line for path in sorted(folder.glob("*/information")) for line in path.read_text().splitlines()]
    return [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
