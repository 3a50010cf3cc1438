"""Deep Compression on MNIST: LeNet-300-100 and LeNet-5 in at most a fiftieth of their bytes, at no more error.

    python benchmarks/deep_compression/run.py --data FOLDER --seeds 5

`FOLDER` holds ``mnist.npz`` (``x_train``, ``y_train``, ``x_test``, ``y_test``). For every seed the dense network is
trained, compressed by one plan (masks by gradual pruning, then shared weights, both taught by the dense network) and
packed. What is judged is the packed file: it is unpacked, and ONNX Runtime's answers on the test images are counted.

Roles: of the 60,000 training images 50,000 train, 5,000 are for validation, 5,000 for selection. The settings below
were chosen on those, with seed 1000 (``--tune``, which never opens the test images); README.md tells the one exception.
The test images are read once per seed, after dense network and packed file are final; a finished seed is kept and not
run again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import Dataset

from autocompress.compress import compress
from autocompress.compress.export import export_onnx
from autocompress.compress.pack import packed_report, unpack
from autocompress.compress.train import train_base
from autocompress.measure.onnxruntime_cpu import OnnxRuntimeCpu
from autocompress.measure.quality import predict
from autocompress.models.lenet import lenet5, lenet_300_100
from autocompress.models.weights import load_weights
from autocompress.records import Codebook, Gradual, Plan, Response, WeightMask
from autocompress.rng import derive_seed
from autocompress.task import Recipe, Task, fixed_randomness, top1
from autocompress.tasks.images import ImageTensors

TUNING_SEED = 1000
#: Which part of the training images is for what; the same for all seeds.
SPLIT_SEED, HOLDOUT = 0, 10_000
#: Pixels are scaled only, so that the background is zero and a weight that sees nothing else is worth nothing.
MEAN, STD = (0.0,), (0.3081,)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network, how it is trained and compressed, and the figures of the paper.

    Attributes:
        build: a fresh network.
        shift: training images are moved by up to so many pixels each way, for the dense network and afterwards.
        epochs: of the dense network.
        recovery_epochs: of gradual pruning (two thirds) and of the shared values (one third).
        densities: layer -> share of weights that stay.
        clusters: layer -> values that they share.
        target_error: test error in percent that the dense network has to reach.
        target_ratio: the goal for dense float32 bytes / packed bytes.
        paper: compression, dense error and compressed error in percent of Han et al., 2016.
    """

    build: Callable[[], nn.Module]
    shift: int
    epochs: int
    recovery_epochs: int
    densities: tuple[tuple[str, float], ...]
    clusters: tuple[tuple[str, int], ...]
    target_error: float
    target_ratio: float
    paper: tuple[float, float, float]
    learning_rate: float = 0.1
    recovery_learning_rate: float = 0.05
    weight_decay: float = 1e-4
    batch_size: int = 128

    def plan(self) -> Plan:
        """Masks, shared values, and how they are trained."""
        return Plan(
            masks=tuple(
                WeightMask(layer=layer, sparsity=1.0 - density, criterion="magnitude")
                for layer, density in sorted(self.densities)
            ),
            codebooks=tuple(Codebook(layer=layer, clusters=count) for layer, count in sorted(self.clusters)),
            schedule=Gradual(begin=0.0, end=0.7, updates=60),
            distillation=Response(temperature=2.0, alpha=0.5),
        )

    def digest(self) -> str:
        """Changes with every setting that changes a result."""
        text = f"{self.build.__name__} {self!r} {self.plan().key}".replace(repr(self.build), "")
        return hashlib.sha256(text.encode()).hexdigest()[:16]


CASES = {
    "lenet-300-100": Case(
        build=lenet_300_100,
        shift=1,
        epochs=30,
        recovery_epochs=60,
        densities=(("fc1", 0.055), ("fc2", 0.12), ("fc3", 0.40)),
        clusters=(("fc1", 16), ("fc2", 16), ("fc3", 16)),
        target_error=1.64,
        target_ratio=50.0,
        paper=(40.0, 1.64, 1.58),
    ),
    "lenet-5": Case(
        build=lenet5,
        shift=1,
        epochs=15,
        recovery_epochs=48,
        densities=(("conv1", 0.6), ("conv2", 0.35), ("fc1", 0.045), ("fc2", 0.30)),
        clusters=(("conv1", 32), ("conv2", 16), ("fc1", 16), ("fc2", 16)),
        target_error=0.80,
        target_ratio=50.0,
        paper=(39.0, 0.80, 0.74),
        learning_rate=0.04,
        recovery_learning_rate=0.02,
    ),
}


def main() -> int:
    """Run what is missing and write the summary; 1 if a goal was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with mnist.npz")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--networks", nargs="+", choices=sorted(CASES), default=list(CASES))
    parser.add_argument("--out", type=Path, default=Path("build/deep_compression"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tune", action="store_true", help="one run with the tuning seed, on validation images only")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name in arguments.networks:
        case = CASES[name]
        task = make_task(name, case, arguments.data / "mnist.npz")
        if arguments.tune:
            say(json.dumps(run(name, case, task, TUNING_SEED, arguments.out, final=False)))
            continue
        for seed in range(arguments.seeds):
            run(name, case, task, seed, arguments.out, final=True)
    if arguments.tune:
        return 0
    results = {name: load(name, CASES[name], arguments.seeds, arguments.out) for name in arguments.networks}
    text = summary(results)
    (arguments.out / "summary.md").write_text(text)
    (arguments.out / "summary.json").write_text(json.dumps(results, indent=1))
    picture(results, arguments.out / "bytes.png")
    sys.stdout.write(text)
    return 0 if all(reached(CASES[name], rows) for name, rows in results.items()) else 1


def make_task(name: str, case: Case, path: Path) -> Task:
    """MNIST in the four roles."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {key: torch.from_numpy(file[key]) for key in ("x_train", "y_train", "x_test", "y_test")}
    images, targets = arrays["x_train"].unsqueeze(1), arrays["y_train"].long()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(SPLIT_SEED))
    train, validation, selection = torch.split(order, [len(order) - HOLDOUT, HOLDOUT // 2, HOLDOUT // 2])

    def part(x: torch.Tensor, y: torch.Tensor, crop: int = 0) -> ImageTensors:
        return ImageTensors(x, y, mean=MEAN, std=STD, crop=crop)

    return Task(
        name=name,
        model=case.build,
        train=part(images[train], targets[train], case.shift),
        validation=part(images[validation], targets[validation]),
        selection=part(images[selection], targets[selection]),
        test=part(arrays["x_test"].unsqueeze(1), arrays["y_test"].long()),
        recipe=Recipe(
            epochs=case.epochs,
            learning_rate=case.learning_rate,
            batch_size=case.batch_size,
            weight_decay=case.weight_decay,
        ),
        recovery_learning_rate=case.recovery_learning_rate,
    )


def run(name: str, case: Case, task: Task, seed: int, out: Path, *, final: bool) -> dict[str, Any]:
    """Train, compress and judge one network, unless its result is kept."""
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"seed-{seed}-{case.digest()}"
    kept = folder / f"{stem}.json"
    if kept.is_file():
        return dict(json.loads(kept.read_text()))
    started = time.monotonic()
    with fixed_randomness(derive_seed(seed, name, "initial weights")):
        fresh = task.build()
    weights = folder / f"{stem}.safetensors"
    if weights.is_file():  # a run that was stopped while it compressed
        dense = load_weights(fresh, weights).eval()
    else:
        dense = train_base(task, fresh, seed=seed)
        neighbour = weights.with_suffix(".writing")
        save_file(dense.state_dict(), neighbour)
        neighbour.replace(weights)
    trained = time.monotonic()
    dense_model = export_onnx(dense, task.example_input()).model
    small = compress(dense, case.plan(), task, epochs=case.recovery_epochs, seed=seed, packed=True)
    finished = time.monotonic()
    (folder / f"{stem}.acp").write_bytes(small.packed)
    model = unpack((folder / f"{stem}.acp").read_bytes())
    splits = {"validation": task.validation, "selection": task.selection}
    if final:
        splits["test"] = task.test
    parameters = sum(p.numel() for p in dense.parameters())
    result = {
        "seed": seed,
        "parameters": parameters,
        "dense_bytes": 4 * parameters,
        "dense_onnx_bytes": len(dense_model),
        "packed_bytes": len(small.packed),
        "ratio": 4 * parameters / len(small.packed),
        "ratio_onnx": len(dense_model) / len(small.packed),
        "nonzero": sum(int((p != 0).sum()) for n, p in small.module.named_parameters() if n.endswith("weight")),
        "dense_error": {split: error(dense_model, data) for split, data in splits.items()},
        "error": {split: error(model, data) for split, data in splits.items()},
        "parts": {part.name: [part.coding, part.size, part.packed] for part in packed_report(small.packed)},
        "sha256": hashlib.sha256(model).hexdigest(),
        "seconds": {"dense": round(trained - started), "compress": round(finished - trained)},
        "machine": f"{platform.machine()}, {torch.get_num_threads()} thread(s), torch {torch.__version__}",
    }
    neighbour = kept.with_suffix(".writing")
    neighbour.write_text(json.dumps(result, indent=1))
    neighbour.replace(kept)
    say(
        f"{name} seed {seed}: dense {result['dense_error']}, packed {result['error']}, {result['ratio']:.1f}x, "
        f"{finished - started:.0f} s"
    )
    return result


def error(model: bytes, split: Dataset[Any]) -> float:
    """Percent of a split's images that ONNX Runtime gets wrong."""
    outputs, targets = predict(OnnxRuntimeCpu().build().prepare(model), split)
    return round(100.0 * (1.0 - top1(outputs, targets)), 4)


def load(name: str, case: Case, seeds: int, out: Path) -> list[dict[str, Any]]:
    """The kept results of all seeds."""
    return [json.loads((out / name / f"seed-{seed}-{case.digest()}.json").read_text()) for seed in range(seeds)]


def reached(case: Case, rows: list[dict[str, Any]]) -> bool:
    """Dense networks are good enough, files small enough, and no file errs more than its dense network on average."""
    means = {key: float(np.mean([row[key]["test"] for row in rows])) for key in ("dense_error", "error")}
    return (
        all(row["dense_error"]["test"] <= case.target_error for row in rows)
        and all(row["ratio"] >= case.target_ratio for row in rows)
        and means["error"] <= means["dense_error"]
    )


def summary(results: dict[str, list[dict[str, Any]]]) -> str:
    """Tables in Markdown."""
    lines = []
    for name, rows in results.items():
        case = CASES[name]
        lines += [f"### {name}", "", "| seed | dense error % | packed error % | change | bytes | smaller by |"]
        lines += ["|---|---|---|---|---|---|"]
        for row in rows:
            dense, packed = row["dense_error"]["test"], row["error"]["test"]
            lines.append(
                f"| {row['seed']} | {dense:.2f} | {packed:.2f} | {packed - dense:+.2f} | {row['packed_bytes']:,} | "
                f"{row['ratio']:.1f}x |"
            )
        columns = [
            np.array([row["dense_error"]["test"] for row in rows]),
            np.array([row["error"]["test"] for row in rows]),
            np.array([row["error"]["test"] - row["dense_error"]["test"] for row in rows]),
            np.array([row["packed_bytes"] for row in rows]),
            np.array([row["ratio"] for row in rows]),
        ]
        forms = (".3f", ".3f", "+.3f", ",.0f", ".1f")
        cells = [
            f"{c.mean():{form}} ± {c.std(ddof=1) if len(c) > 1 else 0.0:{form.lstrip('+')}}"
            for c, form in zip(columns, forms, strict=True)
        ]
        ratio, dense_error, packed_error = case.paper
        lines += [
            f"| mean ± sd | {' | '.join(cells)}x |",
            f"| Han et al. | {dense_error:.2f} | {packed_error:.2f} | {packed_error - dense_error:+.2f} | "
            f"| {ratio:.0f}x |",
            "",
            f"Goal: dense ≤ {case.target_error:.2f}%, ≥ {case.target_ratio:.0f}x, mean error no higher: "
            f"{'reached' if reached(case, rows) else 'MISSED'}. Against the dense ONNX file: "
            f"{np.mean([row['ratio_onnx'] for row in rows]):.1f}x. Seed {rows[0]['seed']}'s bytes by part:",
            "",
            "| part | coding | dense bytes | packed bytes |",
            "|---|---|---|---|",
        ]
        lines += [f"| {part} | {c} | {size:,} | {packed:,} |" for part, (c, size, packed) in rows[0]["parts"].items()]
        lines.append("")
    return "\n".join(lines) + "\n"


def picture(results: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Bytes of the first seed's packed file by part, one bar per network."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(results), 1, figsize=(9, 1.9 * len(results)), squeeze=False)
    for axis, (name, rows) in zip(axes[:, 0], results.items(), strict=True):
        start = 0
        for index, (part, (_, _, packed)) in enumerate(rows[0]["parts"].items()):
            axis.barh([0], [packed], left=start, color=f"C{index % 10}", label=f"{part} {packed:,}")
            start += packed
        axis.axvline(rows[0]["dense_bytes"] / CASES[name].target_ratio, color="black", linestyle="--", label="goal")
        axis.set_yticks([])
        axis.set_xlabel("bytes of the packed file")
        axis.set_title(f"{name}: {rows[0]['dense_bytes']:,} bytes in {start:,}", fontsize=10)
        axis.legend(fontsize=7, ncol=2, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def say(text: str) -> None:
    """A line of progress on standard error."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    raise SystemExit(main())
