"""What it is worth to refit the layers behind a cut, and to choose what goes by what the rest can take over.

    python benchmarks/reconstruction.py --data FOLDER

FOLDER holds ``fashion-mnist.npz``. A ResNet-20 at 32-64-128 is trained on 17 000 images; then equal shares of its units
go, by Taylor scores without and with refitting, and by ``obs`` with it; without training, after half an epoch of
recovery by distillation, and in three rounds of an iterative schedule of as much training. Accuracy is ONNX Runtime's
on the file, on the test split; nothing is chosen on it. Run again after a stop, it goes on. Takes fifteen minutes on
one core. Writes ``results.json`` and ``results.md`` in `reconstruction/`.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from common import Kept, one_thread, score, table
from torch import nn

from autocompress.compress.engine import build
from autocompress.compress.export import export_onnx
from autocompress.compress.statistics import Statistics, collect_statistics
from autocompress.compress.structure import find_structure
from autocompress.compress.train import train_base
from autocompress.records import (
    ChannelCut,
    Criterion,
    Group,
    Iterative,
    OneShot,
    Plan,
    Reconstruction,
    Schedule,
    Structure,
)
from autocompress.task import Task
from autocompress.tasks.images import images

HERE = Path(__file__).resolve().parent / "reconstruction"
#: Of training in all, and those that are held out for validation and selection.
EXAMPLES, HOLDOUT = 20_000, 3_000
#: What is cut: its words, the share that goes, and whether also where blocks are added up.
CUTS = (
    ("a quarter of every group", 0.25, True),
    ("half of every group", 0.5, True),
    ("half inside the blocks", 0.5, False),
    ("three quarters inside the blocks", 0.75, False),
)
#: How it is trained: words, epochs, schedule.
TRAININGS: tuple[tuple[str, float, Schedule], ...] = (
    ("without training", 0.0, OneShot()),
    ("half an epoch", 0.5, OneShot()),
    ("half an epoch in three rounds", 0.5, Iterative(rounds=3)),
)
#: How units are chosen, and what becomes of the layers behind.
Arm = tuple[Criterion, Reconstruction]
ARMS: tuple[Arm, ...] = (("taylor", "none"), ("taylor", "least-squares"), ("obs", "least-squares"))
SEEDS = (0, 1)


def fashion(data: Path) -> Task:
    """Fashion-MNIST, of which few images are trained on, so that recovery is as short as on a larger set."""
    return images(
        data=str(data / "fashion-mnist.npz"),
        network={"depth": 20, "widths": [32, 64, 128], "channels": 1, "shortcut": "projection"},
        mean=[0.286],
        std=[0.353],
        holdout=60_000 - EXAMPLES + HOLDOUT,
        epochs=8,
        learning_rate=0.1,
    )


def plan(structure: Structure, share: float, everywhere: bool, schedule: Schedule, arm: Arm) -> Plan:
    """The share of units goes, in multiples of eight."""

    def keep(group: Group) -> int:
        return max(8, 8 * round(group.width * (1.0 - share) / 8))

    groups = sorted(structure.groups, key=lambda group: group.name)
    cuts = tuple(
        ChannelCut(group=group.name, keep=keep(group), criterion=arm[0])
        for group in groups
        if everywhere or len(group.layers) == 1
    )
    return Plan(cuts=cuts, schedule=schedule, reconstruction=arm[1])


@dataclass(frozen=True)
class Bench:
    """The dense network, and what is known of it."""

    task: Task
    dense: nn.Module
    structure: Structure
    statistics: Statistics

    def accuracies(self, asked: Plan, epochs: float) -> list[float]:
        """On the test split, of each seed; without training all would be the same."""
        known = self.task, self.dense, asked, self.structure, self.statistics
        files = (build(*known, epochs=epochs, seed=seed).model for seed in (SEEDS if epochs else SEEDS[:1]))
        return [score(model, self.task.test) for model in files]


def named(arm: Arm) -> str:
    """In a table."""
    return f"{arm[0]}{'' if arm[1] == 'none' else ', refitted'}"


def report(kept: Kept) -> str:
    """The table."""
    columns = [(words, arm) for words, *_ in TRAININGS for arm in ARMS]
    header = ["units that go", *(f"{words}: {named(arm)}" for words, arm in columns)]
    rows = []
    for cut, *_ in CUTS:
        found = [kept.values.get(f"{cut}, {words}, {named(arm)}") for words, arm in columns]
        rows.append([cut, *("not run" if f is None else f"{100 * sum(f) / len(f):.1f}%" for f in found)])
    return "\n".join(
        [
            "# What refitting the layers behind a cut is worth",
            "",
            "`python benchmarks/reconstruction.py --data FOLDER`: ResNet-20 at 32-64-128 on Fashion-MNIST, 17 000 "
            "images for training, accuracy on the 10 000 of the test split, where the dense network has "
            f"{100 * kept.values['dense']:.1f}%. Means of {len(SEEDS)} seeds where it is trained.",
            "",
            *table(header, rows),
            "",
        ]
    )


def main() -> None:
    """Measure what is missing and write down what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    options = parser.parse_args()
    one_thread()
    kept, task = Kept(HERE / "results.json"), fashion(options.data)
    dense = train_base(task, task.build(), seed=0)
    structure = find_structure(dense, task.example_input())
    bench = Bench(task, dense, structure, collect_statistics(dense, task, structure, seed=0))
    kept.get("dense", lambda: score(export_onnx(dense, task.example_input()).model, task.test))
    for words, epochs, schedule in TRAININGS:
        for cut, share, everywhere in CUTS:
            for arm in ARMS:
                asked = plan(structure, share, everywhere, schedule, arm)
                kept.get(f"{cut}, {words}, {named(arm)}", partial(bench.accuracies, asked, epochs))
                (HERE / "results.md").write_text(report(kept))


if __name__ == "__main__":
    main()
