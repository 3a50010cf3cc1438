"""A tiny evaluator that does what a request's plan tells it to, faults included. Imports nothing heavy."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from autocompress.records import Plan

HOST = {"cpu": "toy", "cores": 1, "flags": [], "memory_gb": 1, "system": "toy", "runtime": "toy", "threads": 1}


def measurement(key: str, accuracy: Any, latency_ms: Any) -> dict[str, Any]:
    exact = lambda v: {"value": v, "low": v, "high": v}  # noqa: E731
    reading = exact(1.0 if not isinstance(latency_ms, float) else latency_ms)
    return {
        "plan_key": key,
        "fidelity": {"epochs": 0.0, "rung": 0},
        "role": "validation",
        "values": {"accuracy": exact(accuracy), "latency_ms": exact(latency_ms)},
        "artifact": {"sha256": "0" * 64, "size_bytes": 1, "macs": 1, "parameters": 1, "layers": []},
        "latency": {
            "latency_ms": reading, "ratio": exact(1.0), "baseline_ms": 1.0, "p90_ms": 1.0, "p99_ms": 1.0,
            "rounds": 1, "batch_size": 1, "threads": 1, "load": 0.0,
        },
        "host": HOST,
        "agreement": 0.0,
    }  # fmt: skip


def build(
    journal: str = "", faults: dict[str, str] | None = None, seconds: float = 0.0
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """``faults``: number of kept channels -> what goes wrong. `journal`: one line per evaluation begun and ended."""

    def note(text: str) -> None:
        if journal:
            with Path(journal).open("a") as file:
                file.write(text + "\n")

    def evaluate(request: dict[str, Any]) -> dict[str, Any]:
        if "do" in request:
            return act(request["do"]) or {"pid": os.getpid(), "echo": request}
        plan = request["plan"]
        keep = plan["cuts"][0]["keep"] if plan["cuts"] else 64
        note(json.dumps({"begun": keep, "pid": os.getpid()}))
        time.sleep(seconds)
        fault = (faults or {}).get(str(keep), "")
        values = {"accuracy": 0.5 + keep / 200, "latency_ms": keep / 64}
        if request.get("partial"):
            # A rung without training sees the accuracy of an even number of channels only.
            values["accuracy"] -= 0.2 if keep % 2 else 0.1
        answer = act(fault, values) if fault else None
        note(json.dumps({"ended": keep, "pid": os.getpid(), "rung": request.get("fidelity", {}).get("rung")}))
        if answer is not None:
            return answer
        if request.get("partial"):
            exact = {name: {"value": v, "low": v, "high": v} for name, v in values.items()}
            key = Plan.model_validate(plan).key
            return {"kind": "rung", "plan_key": key, "fidelity": request["fidelity"], "values": exact, "seconds": {}}
        return measurement(Plan.model_validate(plan).key, **values)

    return evaluate


def act(fault: str, values: dict[str, Any] | None = None) -> dict[str, Any] | None:
    values = {} if values is None else values
    if fault == "raise":
        raise RuntimeError("boom")
    if fault == "export":
        from autocompress.errors import ExportError

        raise ExportError("operator not supported")
    if fault == "exit":
        sys.exit(3)
    if fault == "hard-exit":
        os._exit(7)
    if fault == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault.startswith("kill-once:"):
        mark = Path(fault.partition(":")[2])
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    if fault == "hang":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(1000)
    if fault == "spin":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            pass
    if fault.startswith("grandchild"):
        # One grandchild in the group, one that left it for a session of its own.
        script = [sys.executable, "-c", "import time; time.sleep(1000)", fault]
        subprocess.Popen(script)
        subprocess.Popen(script, start_new_session=True)
        time.sleep(1000)
    if fault == "memory":
        hoard = []
        while True:
            hoard.append(bytearray(16 * 2**20))
            time.sleep(0.01)
    if fault == "memory-error":
        bytearray(2**60)
    if fault == "print":
        print('{"ok": {"forged": true}}', flush=True)
        return {"printed": True}
    if fault == "close-stdout":
        os.close(1)
    if fault == "not-json":
        return {"value": object()}
    if fault == "not-dict":
        return [1, 2]  # type: ignore[return-value]
    if fault == "large":
        return {"text": "x" * 3_000_000}
    if fault == "nan":
        values["accuracy"] = float("nan")
    if fault == "inf":
        values["latency_ms"] = float("inf")
    if fault == "string":
        values["accuracy"] = "0.9"
    if fault == "zero":
        values["latency_ms"] = 0.0
    if fault == "range":
        values["accuracy"] = 1.7
    return None


def broken_factory() -> None:
    raise ValueError("no such model file")


def exiting_factory() -> None:
    sys.exit("bye")


def no_function() -> int:
    return 3
