"""The same bytes in several runtimes, side by side: latency, accuracy, and what each compression gains where.

    python benchmarks/runtimes.py --data FOLDER --weights FOLDER

``--data`` holds ``cifar10.npz``, ``trec.train.txt`` and ``trec.test.txt``; ``--weights`` holds
``cifar10_resnet20x2.safetensors`` (a ResNet-20 at 32-64-128 channels). Four files of it (dense, 8-bit, half of every
group's channels, both) and three of MiniLM, fine-tuned here for one epoch (dense, 8-bit, linear layers alone in 4
bits), are made once and kept below ``--output``. Every target of this machine's CPU then runs the same files: accuracy
on the first 2 000 test images and all 500 test questions as that runtime computes it, and latency by the project's
protocol, batch 1 and one thread, beside the dense file in the same runtime and beside the dense file in ONNX Runtime.
Run again after a stop, it goes on; ``--until accuracy`` leaves latency to a quiet machine. Writes ``results.json``,
``results.md`` and ``results.png`` in `runtimes/`.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch
from common import Kept, say, table
from torch.utils.data import Subset

from autocompress.compress.engine import build
from autocompress.compress.statistics import Statistics
from autocompress.compress.structure import find_structure
from autocompress.compress.train import train_base
from autocompress.errors import MeasurementError
from autocompress.inputs import Arrays, arrays
from autocompress.measure.host import fingerprint
from autocompress.measure.latency import Procedure, measure
from autocompress.measure.onnxruntime_cpu import OnnxRuntimeCpu
from autocompress.measure.quality import accuracy, predict
from autocompress.measure.target import TargetSettings
from autocompress.measure.targets import ALL
from autocompress.records import ChannelCut, LayerBits, Plan, Structure
from autocompress.task import Task
from autocompress.tasks.images import images
from autocompress.tasks.text import trec

HERE = Path(__file__).resolve().parent / "runtimes"
#: Files by network; the first is the dense one. Each: share of the channels kept, bits, weights alone.
FILES: dict[str, dict[str, tuple[float, int, bool]]] = {
    "ResNet-20 ×2": {
        "dense": (1.0, 32, False),
        "int8": (1.0, 8, False),
        "half": (0.5, 32, False),
        "half, int8": (0.5, 8, False),
    },
    "MiniLM": {"dense": (1.0, 32, False), "int8": (1.0, 8, False), "4-bit weights": (1.0, 4, True)},
}
TARGETS = tuple(settings for settings in ALL if not settings.needs_gpu)


def called(settings: TargetSettings) -> str:
    """A target in a table."""
    return " ".join([settings.kind.removesuffix("-cpu"), *settings.options.values()])


def task_of(network: str, options: argparse.Namespace) -> Task:
    """The network's task, the network trained."""
    if network == "MiniLM":
        weights = options.output / "minilm.safetensors"
        if not weights.is_file():
            from autocompress.compress.state import save_module

            task = trec(str(options.data), epochs=1)
            say("fine-tuning MiniLM for one epoch")
            save_module(train_base(task, task.build(), seed=0), weights)
        return trec(str(options.data), weights=str(weights))
    return images(
        data=str(options.data / "cifar10.npz"),
        network={"depth": 20, "widths": (32, 64, 128), "shortcut": "projection"},
        mean=[0.4914, 0.4822, 0.4465],
        std=[0.2470, 0.2435, 0.2616],
        weights=str(options.weights / "cifar10_resnet20x2.safetensors"),
        holdout=5000,
        batch_size=128,
        recovery_learning_rate=0.02,
    )


def plan_of(structure: Structure, share: float, bits: int, alone: bool) -> Plan:
    """The same for every group and layer that can have it."""
    cuts = [ChannelCut(group=g.name, keep=round(g.width * share), criterion="magnitude") for g in structure.groups]
    # An embedding's integers are storage only in every runtime here; the first layers of an image network stay.
    layers = [x for x in structure.layers if x.kind == "linear" or not alone]
    asked = [LayerBits(layer=x.name, bits=bits, weights_only=alone) for x in layers if bits < 32]
    return Plan(
        cuts=tuple(sorted(cuts, key=lambda cut: cut.group)) if share < 1 else (),
        bits=tuple(sorted(asked, key=lambda entry: entry.layer)),
    )


def make(network: str, options: argparse.Namespace) -> dict[str, bytes]:
    """The network's files, made if they are not there."""
    paths = {name: options.output / f"{network}-{name}.onnx".replace(" ", "") for name in FILES[network]}
    if not all(path.is_file() for path in paths.values()):
        task = task_of(network, options)
        dense = task.build().eval()
        structure = find_structure(dense, task.example_input())
        for name, (share, bits, alone) in FILES[network].items():
            if paths[name].is_file():
                continue
            started = time.monotonic()
            epochs = options.epochs if share < 1 else 0.0
            plan = plan_of(structure, share, bits, alone)
            # Channels are chosen by magnitude, which needs no statistics of data.
            made = build(task, dense, plan, structure, Statistics({}), epochs=epochs, seed=0)
            paths[name].write_bytes(made.model)
            say(f"{network}, {name}: made in {time.monotonic() - started:.0f} s")
    return {name: path.read_bytes() for name, path in paths.items()}


def judged(model: bytes, settings: TargetSettings, task: Task, count: int) -> dict[str, Any]:
    """Accuracy as the runtime computes it, or why it cannot."""
    split = Subset(task.test, range(min(count, len(task.test))))  # type: ignore[arg-type]
    try:
        outputs, targets = predict(settings.build().prepare(model), split)
    except MeasurementError as error:
        return {"refused": str(error)}
    return accuracy(outputs, targets, task.metric, seed=0).model_dump()


def timed(files: dict[str, dict[str, bytes]], batches: dict[str, Arrays], targets: Sequence[TargetSettings]) -> Any:
    """Network -> target -> file -> readings: beside the dense file in the same runtime, and in ONNX Runtime."""
    found: dict[str, Any] = {}
    procedure = Procedure(repeats=3)
    for network, models in files.items():
        dense = OnnxRuntimeCpu().build().prepare(models["dense"])
        sessions = {called(s): {name: s.build().prepare(model) for name, model in models.items()} for s in targets}
        everywhere = [session for group in sessions.values() for session in group.values()]
        readings = iter(measure(everywhere, dense, batches[network], seed=0, procedure=procedure))
        found[network] = {}
        for target, group in sessions.items():
            own = measure(list(group.values()), group["dense"], batches[network], seed=1, procedure=procedure)
            found[network][target] = {
                name: {"own": reading.model_dump(mode="json"), "common": next(readings).model_dump(mode="json")}
                for name, reading in zip(group, own, strict=True)
            }
            say(f"{network} in {target}: timed")
    return found


def span(estimate: dict[str, float], scale: float, digits: int) -> str:
    """An estimate with its interval."""
    value, low, high = (f"{scale * estimate[part]:.{digits}f}" for part in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def report(
    kept: Kept, hashes: dict[str, dict[str, str]], runtimes: dict[str, str], host: str, options: argparse.Namespace
) -> str:
    """The results as Markdown."""
    lines = [
        "# The same bytes in several runtimes",
        "",
        f"{host}; batch 1, one thread. Latency is the median of the rounds' ratios to the dense file in ONNX Runtime "
        "times its median; `/ dense` is the ratio to the dense file in the same runtime, in a reading of its own; 95% "
        f"intervals in brackets. Accuracy is the runtime's own, on the first {options.images} test images of CIFAR-10 "
        "and the 500 test questions of TREC. The networks' training is no subject here: MiniLM was fine-tuned for one "
        f"epoch, and the halved networks recovered for {options.epochs:g} epochs.",
        "",
        f"Versions: {'; '.join(dict.fromkeys(runtimes.values()))}.",
    ]
    latency = kept.values.get("latency", {})
    for network, files in FILES.items():
        rows = []
        for target in runtimes:
            for name in files:
                right = kept.values.get(f"{network}, {name}, {target}", {})
                reading = latency.get(network, {}).get(target, {}).get(name)
                shown = (
                    ["not timed", ""]
                    if reading is None
                    else [
                        span(reading["common"]["latency_ms"], 1, 3) + (" noisy" if reading["common"]["noisy"] else ""),
                        span(reading["own"]["ratio"], 1, 3) + (" noisy" if reading["own"]["noisy"] else ""),
                    ]
                )
                quality = right["refused"] if "refused" in right else span(right, 100, 2) if right else "not run"
                rows.append([target, name, *shown, quality, hashes[network][name][:12]])
        header = ("runtime", "file", "latency, ms", "/ dense", "accuracy, %", "sha256")
        lines += ["", f"## {network}", "", *table(header, rows)]
    return "\n".join([*lines, "", "![Latency in each runtime](results.png)", ""])


def picture(latency: dict[str, Any]) -> None:
    """Latency of each file in each runtime, grouped by runtime."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(FILES), figsize=(11, 4.2), layout="constrained")
    for plot, (network, files) in zip(axes, FILES.items(), strict=True):
        found = latency[network]
        for at, name in enumerate(files):
            values = [found[target][name]["common"]["latency_ms"] for target in found]
            middle = [v["value"] for v in values]
            spread = [[v["value"] - v["low"] for v in values], [v["high"] - v["value"] for v in values]]
            places = [i + at * 0.8 / len(files) for i in range(len(values))]
            plot.bar(places, middle, 0.8 / len(files), yerr=spread, label=name, capsize=2)
        plot.set_xticks([i + 0.3 for i in range(len(found))], [t.replace(" ", "\n") for t in found], fontsize=8)
        plot.set_title(network, loc="left", fontsize=11)
        plot.set_ylabel("milliseconds, batch 1, one thread")
        plot.legend(fontsize=8)
        plot.grid(axis="y", alpha=0.25)
    figure.savefig(HERE / "results.png", dpi=120)


def main() -> None:
    """Make the files, judge and time them, write down what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of CIFAR-10 and TREC")
    parser.add_argument("--weights", type=Path, required=True, help="folder of the ResNet's weights")
    parser.add_argument("--output", type=Path, default=Path("autocompress-runs/runtimes"), help="where files are kept")
    parser.add_argument("--epochs", type=float, default=0.25, help="of recovery of the halved networks")
    parser.add_argument("--images", type=int, default=2000, help="test images that are judged")
    parser.add_argument("--until", choices=("files", "accuracy", "latency"), default="latency", help="stop after this")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    files = {network: make(network, options) for network in FILES}
    if options.until == "files":
        return
    targets = []
    for settings in TARGETS:
        try:
            settings.build()
            targets.append(settings)
        except MeasurementError as error:
            say(f"{called(settings)}: left out: {error}")
    hashes = {n: {k: hashlib.sha256(m).hexdigest() for k, m in models.items()} for n, models in files.items()}
    kept, batches = Kept(HERE / "results.json"), {}
    if kept.values.get("files") != hashes:
        kept.values.clear()  # of other files
        kept.get("files", lambda: hashes)
    for network, models in files.items():
        task = task_of(network, options)
        batches[network] = arrays(task.example_input())
        for settings in targets:
            for name, model in models.items():
                key = f"{network}, {name}, {called(settings)}"
                kept.get(key, lambda m=model, s=settings, t=task: judged(m, s, t, options.images))
    if options.until == "latency":
        kept.get("latency", lambda: timed(files, batches, targets))
        picture(kept.values["latency"])
    host = fingerprint("", 1)
    runtimes = {called(settings): settings.build().runtime for settings in targets}
    text = report(kept, hashes, runtimes, f"{host.cpu}, {host.cores} cores", options)
    (HERE / "results.md").write_text(text)
    say(f"written {HERE / 'results.md'}")


if __name__ == "__main__":
    main()
