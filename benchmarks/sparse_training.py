"""Sparse from scratch: does the known order come out?

    python benchmarks/sparse_training.py --data FOLDER

FOLDER holds ``fashion-mnist.npz``. Two comparisons on a small convolutional network, each at equal sparsity and equal
training, over several seeds; the last epoch counts, and nothing is chosen on the test split:

- RigL and SET against a static random mask, at 80, 90 and 95% zeros with ERK densities (Evci et al., 2020;
  Mocanu et al., 2018). Known order: RigL above static, the more so the sparser.
- Lottery tickets, rewound to the weights of their initialization or of an early step, against the same masks on freshly
  drawn weights (Frankle and Carbin, 2019; Frankle et al., 2020). Known order: the ticket above the control.

Accuracy is ONNX Runtime's on the exported file, and zeros are counted in it. Run again after a stop, it goes on. Writes
``results.json``, ``results.md`` and ``results.png`` in `sparse_training/`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from common import Kept, one_thread, score, spread, table

from autocompress.compress.allocate import allocate_masks
from autocompress.compress.engine import build
from autocompress.compress.statistics import Statistics
from autocompress.compress.structure import find_structure
from autocompress.records import LotteryTicket, NoDistillation, Plan, Schedule, SparseTraining
from autocompress.task import Task, fixed_randomness
from autocompress.tasks.images import images

HERE = Path(__file__).resolve().parent / "sparse_training"
SPARSITIES = (0.8, 0.9, 0.95)
METHODS = ("static", "set", "rigl")
#: Share of the weights that the first update replaces: chosen on the validation split with seeds 100 and 101.
FRACTION = 0.5
#: Sparsity of the tickets; at what most networks can do, tickets and controls are alike.
TICKET_SPARSITY = 0.95


def network_task(data: Path, seed: int, epochs: int, examples: int) -> Task:
    """Fashion-MNIST with a small network: 6, 12 and 24 channels and 96 hidden units, 25 000 weights."""
    return images(
        data=str(data / "fashion-mnist.npz"),
        network={"kind": "autocompress.models.lenet:simple_cnn", "width": 6, "depth": 3},
        mean=[0.286],
        std=[0.353],
        holdout=60000 - examples,
        augment=False,
        epochs=epochs,
        learning_rate=0.1,
        batch_size=64,
        seed=seed,
    )


def train(task: Task, schedule: Schedule, sparsity: float, scope: str, seed: int, epochs: float) -> dict[str, float]:
    """Build one plan from scratch; test accuracy and the share of zeros in the file."""
    with fixed_randomness(seed):
        dense = task.build()
    structure = find_structure(dense, task.example_input())
    masks = allocate_masks(
        dense, structure, sparsity=sparsity, scope=scope, criterion="magnitude", exclude=(structure.layers[-1].name,)
    )
    plan = Plan(masks=masks, schedule=schedule, distillation=NoDistillation())
    done = build(task, dense, plan, structure, Statistics({}), epochs=epochs, seed=seed)
    asked = {mask.layer for mask in masks}
    layers = [layer for layer in done.artifact.layers if layer.name in asked]
    zeros = sum(layer.zeros for layer in layers) / sum(layer.weights for layer in layers)
    return {"test": score(done.model, task.test), "zeros": zeros}


def main() -> None:
    """Run both comparisons and write down what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with fashion-mnist.npz")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=12, help="of every single training")
    parser.add_argument("--examples", type=int, default=12000, help="training images")
    parser.add_argument("--report", action="store_true", help="compute nothing, report what there is")
    options = parser.parse_args()
    one_thread()
    kept = Kept(HERE / "results.json", closed=options.report)
    for seed in range(options.seeds):
        task = network_task(options.data, seed, options.epochs, options.examples)
        for sparsity in SPARSITIES:
            for method in METHODS:
                kept.get(
                    f"{method} {sparsity} seed {seed}",
                    lambda s=seed, m=method, t=task, z=sparsity: train(
                        t, SparseTraining(method=m, fraction=FRACTION), z, "erk", s, float(options.epochs)
                    ),
                )
        for name, schedule in tickets().items():
            kept.get(
                f"{name} seed {seed}",
                lambda s=seed, c=schedule, t=task: train(t, c, TICKET_SPARSITY, "erk", s, float(options.epochs)),
            )
    (HERE / "results.md").write_text("\n".join(report(kept, options)) + "\n")
    picture(kept, options.seeds)
    sys.stdout.write((HERE / "results.md").read_text())


def tickets() -> dict[str, LotteryTicket]:
    """The arms of the second comparison."""
    return {
        "ticket, rewound to initialization": LotteryTicket(rounds=3),
        "ticket, rewound to 10% of training": LotteryTicket(rounds=3, rewind=0.1),
        "same masks, weights drawn anew": LotteryTicket(rounds=3, reinitialize=True),
    }


def values(kept: Kept, name: str, seeds: int, key: str = "test") -> list[float]:
    """One figure over the seeds."""
    names = [f"{name} seed {seed}" for seed in range(seeds)]
    return [kept.values[n][key] for n in names if n in kept.values]


def report(kept: Kept, options: argparse.Namespace) -> list[str]:
    """The results as Markdown."""
    seeds = options.seeds
    lines = [
        "# Sparse from scratch on Fashion-MNIST",
        "",
        f"`python benchmarks/sparse_training.py --data FOLDER --seeds {seeds} --epochs {options.epochs} "
        f"--examples {options.examples}`. Test accuracy in percent of the exported file in ONNX Runtime, last epoch: "
        "mean [smallest, largest] over seeds. No distillation. The last linear layer stays dense.",
        "",
        "## RigL and SET against a static random mask (ERK densities)",
        "",
    ]
    rows = []
    for sparsity in SPARSITIES:
        cells = [values(kept, f"{method} {sparsity}", seeds) for method in METHODS]
        gain = [100 * (r - s) for r, s in zip(cells[2], cells[0], strict=False)]
        rows.append([f"{100 * sparsity:g}%", *(spread(c, 100) for c in cells), spread(gain)])
    lines += table(["zeros", "static", "SET", "RigL", "RigL - static, points, paired"], rows)
    lines += ["", f"## Lottery tickets at {100 * TICKET_SPARSITY:g}% zeros", ""]
    control = values(kept, "same masks, weights drawn anew", seeds)
    rows = []
    for name in tickets():
        found = values(kept, name, seeds)
        gain = [100 * (a - b) for a, b in zip(found, control, strict=False)]
        rows.append([name, spread(found, 100), spread(gain), spread(values(kept, name, seeds, "zeros"), 100)])
    lines += table(["arm", "test accuracy", "above control, points, paired", "zeros in the file, %"], rows)
    return [*lines, "", "![Accuracy over sparsity](results.png)"]


def picture(kept: Kept, seeds: int) -> None:
    """Accuracy over sparsity, a line for each method."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    x = [100 * s for s in SPARSITIES]
    for method, label in zip(METHODS, ("static random mask", "SET", "RigL"), strict=True):
        y = [100 * np.array(values(kept, f"{method} {s}", seeds)) for s in SPARSITIES]
        line = axes.plot(x, [v.mean() for v in y], marker="o", label=label)[0]
        axes.fill_between(x, [v.min() for v in y], [v.max() for v in y], color=line.get_color(), alpha=0.15)
    _tickets(axes, kept, seeds)
    axes.set_xlabel("zeros in the masked layers, %")
    axes.set_ylabel("test accuracy, %")
    axes.set_title("Fashion-MNIST, equal training: mean and range over seeds", loc="left", fontsize=11)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.savefig(HERE / "results.png", dpi=130)


def _tickets(axes: object, kept: Kept, seeds: int) -> None:
    markers: Sequence[str] = ("^", "v", "x")
    for (name, _), marker in zip(tickets().items(), markers, strict=True):
        found = 100 * np.array(values(kept, name, seeds))
        if not len(found):
            continue
        axes.plot(  # type: ignore[attr-defined]
            [100 * TICKET_SPARSITY], [found.mean()], marker, markersize=8, color="black", alpha=0.7, label=name
        )


if __name__ == "__main__":
    main()
