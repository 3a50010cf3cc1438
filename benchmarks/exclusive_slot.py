"""What keeping training away from readings costs and gives: it waits, it moves to the other cores, or nothing is done.

    python benchmarks/exclusive_slot.py

Workers do what a search's do: train a ResNet-20 for two seconds, step by step, then take a latency reading of a
narrower one beside it, again and again. There are as many workers as cores, or one more. Each way runs for the same
time; counted are the training steps of all workers together, and how far the readings' ratios lie from each other and
from those of a single worker, which has the machine to itself. Takes about four minutes. Writes ``results.json`` and
``results.md`` in `exclusive_slot/`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import one_thread, say, table
from torch import nn

from autocompress.cluster.slot import ExclusiveSlot
from autocompress.compress.export import export_onnx
from autocompress.measure.host import host_of
from autocompress.measure.latency import measure
from autocompress.measure.onnxruntime_cpu import OnnxRuntimeCpu
from autocompress.models.resnet import resnet_cifar
from autocompress.rng import derive_seed
from autocompress.task import fixed_randomness

HERE = Path(__file__).resolve().parent / "exclusive_slot"
WAYS = ("alone", "nothing", "wait", "move")
CORES = len(os.sched_getaffinity(0))
#: How training keeps away, and how many workers there are.
CASES = {"alone": ("alone", 1)} | {
    f"{way}, {count} workers": (way, count) for count in (CORES, CORES + 1) for way in WAYS[1:]
}
#: Seconds of training between two readings, of a worker's run, and how often every way has its turn.
TRAIN_S, RUN_S, TURNS = 2.0, 9.0, 2


def network(width: int) -> nn.Module:
    """A ResNet-20 of the CIFAR family with random weights."""
    return resnet_cifar(depth=20, widths=(width, 2 * width, 4 * width))


def work(way: str, folder: Path, number: int) -> None:
    """Train and measure in turns until the time is over; prints steps and readings as JSON."""
    one_thread()
    target = OnnxRuntimeCpu().build()
    dense, narrow = (target.prepare((folder / f"{width}.onnx").read_bytes()) for width in (16, 8))
    slot = None if way in ("alone", "nothing") else ExclusiveSlot(folder / way, 1 if way == "move" else None)
    with fixed_randomness(number):
        module, images, labels = network(16), torch.randn(32, 3, 32, 32), torch.randint(10, (32,))
        inputs = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    print("ready", flush=True)
    sys.stdin.readline()
    begun, steps, readings = time.monotonic(), 0, []
    while time.monotonic() - begun < RUN_S:
        until = time.monotonic() + TRAIN_S * (0.5 + 0.5 * (number + 1))  # out of step with each other
        while time.monotonic() < until:
            with slot.training() if slot else contextlib.nullcontext():
                optimizer.zero_grad()
                nn.functional.cross_entropy(module(images), labels).backward()
                optimizer.step()
            steps += 1
        with slot.measuring() if slot else contextlib.nullcontext():
            started = time.monotonic()
            reading = measure([narrow], dense, inputs, seed=derive_seed(number, len(readings)))[0]
        readings.append(
            {
                "ratio": reading.ratio.value,
                "noisy": reading.noisy,
                "dense_ms": reading.baseline_ms,
                "seconds": time.monotonic() - started,
            }
        )
    print(json.dumps({"steps": steps, "readings": readings, "seconds": time.monotonic() - begun}), flush=True)


def run(case: str, folder: Path) -> list[dict[str, Any]]:
    """All workers of one case, one turn."""
    way, count = CASES[case]
    command = [sys.executable, __file__, "--work", way, "--folder", str(folder)]
    workers = [
        subprocess.Popen([*command, "--number", str(n)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for n in range(count)
    ]
    for worker in workers:
        worker.stdout.readline()
    for worker in workers:
        worker.stdin.write("\n")
        worker.stdin.flush()
    return [json.loads(worker.communicate(timeout=20 * RUN_S)[0]) for worker in workers]


def summary(case: str, found: list[dict[str, Any]]) -> dict[str, Any]:
    """What all runs of one case came to."""
    readings = [reading for each in found for reading in each["readings"]]
    ratios = np.array([reading["ratio"] for reading in readings])
    return {
        "workers": CASES[case][1],
        "steps_per_s": sum(each["steps"] / each["seconds"] for each in found) / TURNS,
        "readings": len(readings),
        "noisy": sum(reading["noisy"] for reading in readings),
        "ratio": float(np.median(ratios)),
        "spread": float(np.subtract(*np.percentile(ratios, (75, 25))) / np.median(ratios)),
        "range": [float(ratios.min()), float(ratios.max())],
        "dense_ms": float(np.median([reading["dense_ms"] for reading in readings])),
        "reading_s": float(np.median([reading["seconds"] for reading in readings])),
    }


def report(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    header = [
        "way",
        "workers",
        "training steps/s",
        "readings",
        "noisy",
        "ratio to dense: median",
        "smallest to largest",
    ]
    header += ["interquartile range", "dense, ms", "seconds of a reading"]
    rows = [
        [
            CASES[case][0],
            found["workers"],
            f"{found['steps_per_s']:.1f}",
            found["readings"],
            found["noisy"],
            f"{found['ratio']:.3f}",
            f"{found['range'][0]:.3f} to {found['range'][1]:.3f}",
            f"{100 * found['spread']:.1f}%",
            f"{found['dense_ms']:.3f}",
            f"{found['reading_s']:.2f}",
        ]
        for case, found in results["ways"].items()
    ]
    lines = [
        "# The exclusive slot: waiting, moving, or nothing",
        "",
        f"`python benchmarks/exclusive_slot.py`, {TURNS} turns of {RUN_S:g} s each on {results['host']}.",
        "",
        *table(header, rows),
        "",
        "*alone* is one worker with the machine to itself; with *nothing* workers take no care of each other; *wait* "
        "and *move* are `measure.exclusive`.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run every way and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--number", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.work, arguments.folder, arguments.number)
        return
    host = host_of(OnnxRuntimeCpu().build())
    results: dict[str, Any] = {"host": f"{host.cpu}, {host.cores} cores, {host.runtime}", "ways": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for width in (16, 8):
            exported = export_onnx(network(width).eval(), torch.randn(16, 3, 32, 32))
            (folder / f"{width}.onnx").write_bytes(exported.model)
        found: dict[str, list[dict[str, Any]]] = {case: [] for case in CASES}
        for _ in range(TURNS):
            for case in CASES:
                found[case] += run(case, folder)
                say(f"{case}: {sum(each['steps'] for each in found[case])} steps")
        results["ways"] = {case: summary(case, each) for case, each in found.items()}
    HERE.mkdir(exist_ok=True)
    (HERE / "results.json").write_text(json.dumps(results, indent=1))
    (HERE / "results.md").write_text(report(results))


if __name__ == "__main__":
    main()
