"""ResNet-20 and ResNet-56 on CIFAR-10 at fewer multiply-adds, beside their baselines.

    python benchmarks/cifar_macs.py --data FOLDER --weights FOLDER

``--data`` holds ``cifar10.npz``; ``--weights`` holds ``cifar10_resnet20.safetensors`` and
``cifar10_resnet56.safetensors`` (16-32-64 channels, zero-padded shortcuts). Channels are cut once to the wanted share
of multiply-adds and the network recovers with distillation. Arms at equal multiply-adds and equal training: the
criterion and allocation that the validation split chose after a short recovery; uniform magnitude; random channels; the
chosen shape from scratch. The last epoch counts; the test split is read once for each finished arm.

The published weights were trained on all 50 000 training images, the 5 000 that are held out here among them: accuracy
on them orders arms, and says nothing by itself. Run again after a stop, it goes on. Writes ``results.json`` and
``results.md`` in `cifar_macs/`.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from common import Kept, say, score, table
from torch import nn

from autocompress.compress.allocate import allocate_cuts
from autocompress.compress.engine import build
from autocompress.compress.export import export_onnx
from autocompress.compress.prune import cut_channels
from autocompress.compress.statistics import Statistics, collect_statistics
from autocompress.compress.structure import find_structure, layer_calls
from autocompress.records import ChannelCut, FromScratch, NoDistillation, Plan, Structure
from autocompress.task import Task
from autocompress.tasks.images import images

HERE = Path(__file__).resolve().parent / "cifar_macs"


@dataclass(frozen=True)
class Goal:
    """A network and what is wanted of it.

    Attributes:
        depth: of the ResNet.
        speedup: dense multiply-adds over those that are left.
        accuracy: wanted on the test split.
        baselines: arms beside the chosen one, of those in `BASELINES`.
    """

    depth: int
    speedup: float
    accuracy: float
    baselines: tuple[str, ...]


#: Two cores have no time for every arm of the deeper network.
BASELINES = ("uniform magnitude", "uniform random", "the chosen shape from scratch")
GOALS = (Goal(20, 1.4, 0.909, BASELINES), Goal(56, 2.6, 0.936, BASELINES[:1]))
#: (scope, criterion) that the validation split chooses from.
CANDIDATES = (("global", "taylor"), ("isomorphic", "taylor"), ("isomorphic", "magnitude"), ("uniform", "taylor"))


@dataclass(frozen=True)
class Subject:
    """A loaded network."""

    task: Task
    dense: nn.Module
    structure: Structure
    statistics: Statistics
    macs: int


def load(options: argparse.Namespace, depth: int) -> Subject:
    """The network with its published weights."""
    task = images(
        data=str(options.data / "cifar10.npz"),
        network={"depth": depth, "widths": (16, 32, 64), "shortcut": "pad"},
        mean=[0.485, 0.456, 0.406],
        std=[0.229, 0.224, 0.225],
        weights=str(options.weights / f"cifar10_resnet{depth}.safetensors"),
        holdout=5000,
        batch_size=128,
        recovery_learning_rate=options.learning_rate,
    )
    dense = task.build().eval()
    example = task.example_input()
    structure = find_structure(dense, example)
    statistics = collect_statistics(dense, task, structure, batches=32, batch_size=128, seed=0)
    return Subject(task, dense, structure, statistics, sum(layer_calls(dense, example).values()))


def cuts_for(subject: Subject, speedup: float, scope: str, criterion: str) -> tuple[tuple[ChannelCut, ...], int]:
    """The gentlest cuts that reach the speed-up, and the multiply-adds that they leave, by bisection on sparsity."""
    example = subject.task.example_input()
    low, high, best = 0.0, 0.9, None
    for _ in range(9):
        middle = (low + high) / 2
        cuts = allocate_cuts(
            subject.dense,
            subject.structure,
            subject.statistics,
            example=example,
            sparsity=middle,
            scope=scope,
            criterion=criterion,
            round_to=1,
            seed=0,
        )
        module = cut_channels(subject.dense, cuts, subject.structure, subject.statistics, example=example, seed=0)
        macs = sum(layer_calls(module, example).values())
        if subject.macs / macs >= speedup:
            best, high = (cuts, macs), middle
        else:
            low = middle
    if best is None:
        sys.exit(f"{scope} {criterion}: 90% of the channels cut do not reach {speedup} times fewer multiply-adds")
    return best


def run(subject: Subject, plan: Plan, epochs: float, split: str) -> dict[str, float]:
    """Build a plan; accuracy of the file on one split."""
    done = build(subject.task, subject.dense, plan, subject.structure, subject.statistics, epochs=epochs, seed=0)
    return {split: score(done.model, getattr(subject.task, split)), "macs": done.artifact.macs}


def main() -> None:
    """Run both networks and write down what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with cifar10.npz")
    parser.add_argument("--weights", type=Path, required=True, help="folder with the two safetensors files")
    parser.add_argument("--epochs", type=float, nargs=2, default=(8.0, 3.0), help="of recovery: ResNet-20, ResNet-56")
    parser.add_argument("--depths", type=int, nargs="+", choices=(20, 56), default=(20, 56), help="the networks to run")
    parser.add_argument("--choose-epochs", type=float, default=0.3, help="of recovery while the criterion is chosen")
    parser.add_argument("--learning-rate", type=float, default=0.05, help="peak of the recovery")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--report", action="store_true", help="compute nothing, report what there is")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    kept = Kept(HERE / "results.json", closed=options.report)
    sections = []
    for goal, epochs in zip(GOALS, options.epochs, strict=True):
        if goal.depth not in options.depths:
            continue
        sections += section(options, kept, goal, epochs)
        head = [
            "# ResNet-20 and ResNet-56 on CIFAR-10, multiply-adds",
            "",
            "`python benchmarks/cifar_macs.py --data FOLDER --weights FOLDER --epochs "
            f"{options.epochs[0]:g} {options.epochs[1]:g} --learning-rate {options.learning_rate:g}`. Accuracy is that "
            "of the exported file in ONNX Runtime, last epoch; the test split is read once for each finished arm. One "
            "seed.",
            "",
        ]
        (HERE / "results.md").write_text("\n".join(head + sections) + "\n")
    sys.stdout.write((HERE / "results.md").read_text())


def section(options: argparse.Namespace, kept: Kept, goal: Goal, epochs: float) -> list[str]:
    """One network: dense, chosen, baselines."""
    name = f"ResNet-{goal.depth}"
    subject = load(options, goal.depth)
    dense = kept.get(
        f"{name} dense",
        lambda: {
            "test": score(export_onnx(subject.dense, subject.task.example_input()).model, subject.task.test),
            "macs": subject.macs,
        },
    )
    found = {}
    for scope, criterion in CANDIDATES:
        cuts, _ = cuts_for(subject, goal.speedup, scope, criterion)
        plan = Plan(cuts=cuts, reconstruction="none")
        short = kept.get(
            f"{name} choose {scope} {criterion}", lambda p=plan: run(subject, p, options.choose_epochs, "validation")
        )
        if short is not None:
            found[scope, criterion] = short["validation"]
    if not found:
        return []
    scope, criterion = max(found, key=lambda key: found[key])
    say(f"{name}: chosen by validation: {scope} {criterion}")
    chosen, _ = cuts_for(subject, goal.speedup, scope, criterion)
    arms = {f"chosen: {scope} {criterion}": Plan(cuts=chosen, reconstruction="none")}
    for baseline in goal.baselines:
        if baseline == "the chosen shape from scratch":
            arms[baseline] = Plan(cuts=chosen, schedule=FromScratch(), distillation=NoDistillation())
        else:
            uniform, _ = cuts_for(subject, goal.speedup, "uniform", baseline.removeprefix("uniform "))
            arms[baseline] = Plan(cuts=uniform, reconstruction="none")
    rows = [["dense, published weights", f"{dense['macs'] / 1e6:.1f}", "1.00", f"{100 * dense['test']:.2f}", ""]]
    for arm, plan in arms.items():
        result = kept.get(f"{name} {arm}, {epochs:g} epochs", lambda p=plan: run(subject, p, epochs, "test"))
        if result is None:
            rows.append([arm, "", "", "not run", ""])
            continue
        change = 100 * (result["test"] - dense["test"])
        rows.append(
            [
                arm,
                f"{result['macs'] / 1e6:.1f}",
                f"{subject.macs / result['macs']:.2f}",
                f"{100 * result['test']:.2f}",
                f"{change:+.2f}",
            ]
        )
    lines = [f"## {name}, wanted: {goal.speedup:g} times fewer at {100 * goal.accuracy:g}%", ""]
    lines += table(["arm", "MACs, M", "times fewer", "test accuracy, %", "against dense, points"], rows)
    left = ", ".join(f"`{entry.name}` ({entry.reason})" for entry in subject.structure.left_dense) or "nothing"
    return [*lines, "", f"{epochs:g} epochs of recovery for every arm. Left dense: {left}.", ""]


if __name__ == "__main__":
    main()
