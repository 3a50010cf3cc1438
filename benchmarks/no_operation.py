"""The evaluator of the orchestration benchmark: a file of its own, for each candidate's process imports it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from autocompress.records import Estimate, Host, LatencyReading, Measurement, Plan


def no_operation(sleep_s: float = 0.0) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """An evaluator that answers with a whole measurement, as large as a real one of a small network.

    Args:
        sleep_s: seconds that each answer takes.
    """
    one = Estimate.exact(0.5)
    reading = LatencyReading(
        latency_ms=one, ratio=one, baseline_ms=1, p90_ms=1, p99_ms=1, rounds=1, batch_size=1, threads=1, load=0
    )
    host = Host(cpu="none", cores=1, flags=(), memory_gb=1, system="none", runtime="none", threads=1)
    layer = {"shape": (8, 8, 3, 3), "bits": 32, "zeros": 0, "weights": 576}
    reply = Measurement.model_validate(
        {
            "plan_key": Plan().key,
            "fidelity": {"epochs": 0.0},
            "role": "validation",
            "values": {"accuracy": one, "latency_ms": one},
            "artifact": {
                "sha256": "0" * 64,
                "size_bytes": 1,
                "macs": 1,
                "parameters": 1,
                "layers": [{"name": f"layer{i}", **layer} for i in range(20)],
            },
            "latency": reading,
            "host": host,
            "agreement": 0.0,
        }
    ).model_dump(mode="json")
    rung = {"kind": "rung", "seconds": {"recover": 0.0}}

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        time.sleep(sleep_s)
        key = Plan.model_validate(request["plan"]).key
        # Any values will do, as long as candidates differ and a rung ranks them.
        accuracy, latency = int(key[:8], 16) / 2**32, int(key[8:], 16) / 2**32 + 1e-6
        values = {"accuracy": Estimate.exact(accuracy), "latency_ms": Estimate.exact(latency)}
        found = {name: value.model_dump() for name, value in values.items()}
        kind = rung if request["partial"] else reply
        return {**kind, "plan_key": key, "fidelity": request["fidelity"], "values": found}

    return answer
