"""Sparse from scratch: does the known order come out?

    python benchmarks/sparse_training.py --data FOLDER

FOLDER holds ``fashion-mnist.npz``. Two comparisons on a small convolutional network, each at equal sparsity and equal
training, over several seeds; the last epoch counts:

- RigL and SET against a static random mask, at 80, 90 and 95% zeros with ERK densities (Evci et al., 2020;
  Mocanu et al., 2018). Known order: RigL above static, the more so the sparser.
- Lottery tickets, rewound to the weights of their initialization or of an early step, against the same masks on freshly
  drawn weights (Frankle and Carbin, 2019; Frankle et al., 2020). Known order: the ticket above the control.

Nothing is chosen on the test split. On the validation split (24 000 images) and seeds of their own, from 100 on, were
chosen how RigL averages and how often it updates, and the network; ``sparse_training/choices.md`` has the figures.

Accuracy is ONNX Runtime's on the exported file, and zeros are counted in it. A result is kept under a name with a
digest of all its settings, so others are never mixed in. Run again after a stop, it goes on. Writes ``results.json``,
``results.md`` and ``results.png`` in `sparse_training/`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from common import Kept, one_thread, score, spread, table
from scipy import stats

from autocompress.compress.allocate import allocate_masks
from autocompress.compress.engine import build
from autocompress.compress.statistics import Statistics
from autocompress.compress.structure import find_structure
from autocompress.records import LotteryTicket, NoDistillation, Plan, Schedule, SparseTraining
from autocompress.task import Task, fixed_randomness
from autocompress.tasks.images import images

HERE = Path(__file__).resolve().parent / "sparse_training"
SPARSITIES = (0.8, 0.9, 0.95)
METHODS = {"static": "static random mask", "set": "SET", "rigl": "RigL"}
#: Of RigL and SET alike; masks move from 20 to 75% of the training, about every 120 of its 2244 steps.
FRACTION, UPDATES, BATCHES = 0.3, 10, 64
#: Of the network: 4, 8 and 16 channels, 64 hidden units.
WIDTH, DEPTH = 4, 3
LEARNING_RATE, BATCH_SIZE = 0.1, 64
#: Sparsity of the tickets; at what most networks can do, tickets and controls are alike.
TICKET_SPARSITY = 0.95
TICKETS = {
    "ticket, rewound to initialization": LotteryTicket(rounds=3),
    "ticket, rewound to 10% of training": LotteryTicket(rounds=3, rewind=0.1),
    "same masks, weights drawn anew": LotteryTicket(rounds=3, reinitialize=True),
}


@dataclass(frozen=True)
class Arm:
    """One line of a table: a schedule at a sparsity."""

    label: str
    sparsity: float
    schedule: Schedule

    def name(self, seed: int, epochs: int, examples: int) -> str:
        """Of the result of a seed, with a digest of all that it depends on."""
        settings = {
            "network": [WIDTH, DEPTH],
            "training": [epochs, examples, LEARNING_RATE, BATCH_SIZE],
            "schedule": self.schedule.model_dump(mode="json"),
            "sparsity": self.sparsity,
        }
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
        return f"{self.label} {self.sparsity:g} [{digest}] seed {seed}"


def moving(method: str, sparsity: float) -> Arm:
    """An arm of the first comparison."""
    settings = {"method": method, "fraction": FRACTION, "updates": UPDATES, "batches": BATCHES}
    return Arm(method, sparsity, SparseTraining.model_validate(settings))


def ticket(name: str) -> Arm:
    """An arm of the second comparison."""
    return Arm(name, TICKET_SPARSITY, TICKETS[name])


def network_task(data: Path, seed: int, epochs: int, examples: int) -> Task:
    """Fashion-MNIST with a small network: 4, 8 and 16 channels and 64 hidden units, 11 000 weights."""
    return images(
        data=str(data / "fashion-mnist.npz"),
        network={"kind": "autocompress.models.lenet:simple_cnn", "width": WIDTH, "depth": DEPTH},
        mean=[0.286],
        std=[0.353],
        holdout=60000 - examples,
        augment=False,
        epochs=epochs,
        learning_rate=LEARNING_RATE,
        batch_size=BATCH_SIZE,
        seed=seed,
    )


def train(arm: Arm, task: Task, seed: int, epochs: float) -> dict[str, float]:
    """Build one plan from scratch; test accuracy and the share of zeros in the file."""
    with fixed_randomness(seed):
        dense = task.build()
    structure = find_structure(dense, task.example_input())
    head = structure.layers[-1].name
    masks = allocate_masks(dense, structure, sparsity=arm.sparsity, scope="erk", criterion="magnitude", exclude=(head,))
    plan = Plan(masks=masks, schedule=arm.schedule, distillation=NoDistillation())
    done = build(task, dense, plan, structure, Statistics({}), epochs=epochs, seed=seed)
    layers = [layer for layer in done.artifact.layers if layer.name != head]
    zeros = sum(layer.zeros for layer in layers) / sum(layer.weights for layer in layers)
    return {"test": score(done.model, task.test), "zeros": zeros}


def main() -> None:
    """Run both comparisons and write down what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with fashion-mnist.npz")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=12, help="of every single training")
    parser.add_argument("--examples", type=int, default=12000, help="training images")
    parser.add_argument("--report", action="store_true", help="compute nothing, report what there is")
    options = parser.parse_args()
    one_thread()
    kept = Kept(HERE / "results.json", closed=options.report)
    for arms in ([moving(m, s) for s in SPARSITIES for m in METHODS], [ticket(name) for name in TICKETS]):
        for seed in range(options.seeds):
            task = network_task(options.data, seed, options.epochs, options.examples)
            for arm in arms:
                name = arm.name(seed, options.epochs, options.examples)
                kept.get(name, lambda a=arm, t=task, s=seed: train(a, t, s, float(options.epochs)))
    (HERE / "results.md").write_text("\n".join(report(kept, options)) + "\n")
    picture(kept, options)
    sys.stdout.write((HERE / "results.md").read_text())


def values(kept: Kept, arm: Arm, options: argparse.Namespace, key: str = "test") -> dict[int, float]:
    """One figure in percent, by seed."""
    names = {seed: arm.name(seed, options.epochs, options.examples) for seed in range(options.seeds)}
    return {seed: 100 * kept.values[name][key] for seed, name in names.items() if name in kept.values}


def gain(above: dict[int, float], below: dict[int, float]) -> tuple[float, float, list[float]]:
    """Mean difference over the seeds that both have, half of Student's 95% interval (nan of one), the differences."""
    pairs = [above[seed] - below[seed] for seed in above if seed in below]
    half = stats.t.ppf(0.975, len(pairs) - 1) * stats.sem(pairs) if len(pairs) > 1 else math.nan
    return (float(np.mean(pairs)) if pairs else math.nan), float(half), pairs


def told(above: dict[int, float], below: dict[int, float]) -> str:
    """The difference as a cell of a table."""
    mean, half, pairs = gain(above, below)
    if len(pairs) < 2:
        return f"{mean:+.2f} (one seed)" if pairs else "not run"
    return f"{mean:+.2f} ± {half:.2f} ({sum(pair > 0 for pair in pairs)} of {len(pairs)} above 0)"


def verdict(kept: Kept, options: argparse.Namespace) -> str:
    """At which sparsities RigL is above a static mask, and by how sure a margin."""
    words = []
    for sparsity in SPARSITIES:
        mean, half, _ = gain(*(values(kept, moving(m, sparsity), options) for m in ("rigl", "static")))
        sure = "above" if mean - half > 0 else "below" if mean + half < 0 else "not told apart from"
        words.append(f"{sure} at {100 * sparsity:g}%")
    return "By these intervals RigL is, beside a static mask: " + ", ".join(words) + "."


def report(kept: Kept, options: argparse.Namespace) -> list[str]:
    """The results as Markdown."""
    lines = [
        "# Sparse from scratch on Fashion-MNIST",
        "",
        f"`python benchmarks/sparse_training.py --data FOLDER --seeds {options.seeds} --epochs {options.epochs} "
        f"--examples {options.examples}`. A CNN of {'-'.join(str(WIDTH << stage) for stage in range(DEPTH))} channels; "
        "its last linear layer stays dense. No distillation. Test accuracy in percent of the exported file in ONNX "
        "Runtime, last epoch: mean [smallest, largest] over seeds. Differences are paired by seed, in points, with "
        "Student's 95% interval over seeds. Settings were chosen on the validation split, with other seeds: "
        "[choices](choices.md).",
        "",
        "## RigL and SET against a static random mask (ERK densities)",
        "",
    ]
    rows = []
    for sparsity in SPARSITIES:
        found = {method: values(kept, moving(method, sparsity), options) for method in METHODS}
        gains = [told(found[a], found[b]) for a, b in (("rigl", "static"), ("set", "static"), ("rigl", "set"))]
        rows.append([f"{100 * sparsity:g}%", *(spread(list(cell.values())) for cell in found.values()), *gains])
    lines += table(["zeros", *METHODS.values(), "RigL - static", "SET - static", "RigL - SET"], rows)
    lines += ["", verdict(kept, options), "", f"## Lottery tickets at {100 * TICKET_SPARSITY:g}% zeros", ""]
    control = values(kept, ticket(list(TICKETS)[-1]), options)
    rows = []
    for name in TICKETS:
        accuracy, zeros = (values(kept, ticket(name), options, key) for key in ("test", "zeros"))
        above = "" if accuracy == control else told(accuracy, control)
        rows.append([name, spread(list(accuracy.values())), above, spread(list(zeros.values()))])
    lines += table(["arm", "test accuracy", "above the control", "zeros in the file, %"], rows)
    return [*lines, "", "![Accuracy over sparsity](results.png)"]


def picture(kept: Kept, options: argparse.Namespace) -> None:
    """Accuracy over sparsity, a line for each method."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    for method, label in METHODS.items():
        found = {s: list(values(kept, moving(method, s), options).values()) for s in SPARSITIES}
        found = {s: y for s, y in found.items() if y}
        x = [100 * s for s in found]
        line = axes.plot(x, [np.mean(y) for y in found.values()], marker="o", label=label)[0]
        low, high = [min(y) for y in found.values()], [max(y) for y in found.values()]
        axes.fill_between(x, low, high, color=line.get_color(), alpha=0.15)
    markers: Sequence[str] = ("^", "v", "x")
    for name, marker in zip(TICKETS, markers, strict=True):
        y = list(values(kept, ticket(name), options).values())
        if y:
            axes.plot(100 * TICKET_SPARSITY, np.mean(y), marker, markersize=8, color="black", alpha=0.7, label=name)
    axes.set_xlabel("zeros in the masked layers, %")
    axes.set_ylabel("test accuracy, %")
    axes.set_title("Fashion-MNIST, equal training: mean and range over seeds", loc="left", fontsize=11)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.savefig(HERE / "results.png", dpi=130)


if __name__ == "__main__":
    main()
