"""Large-sparse against small-dense at equal non-zeros (Zhu and Gupta, 2017), for a CNN and a character LSTM.

    python benchmarks/large_sparse.py --data FOLDER

FOLDER holds ``fashion-mnist.npz``, and a text for the language model (``--text``, by default ``trec.train.txt`` in it,
whose labels are cut off). For each kind of network there is one large dense network and three smaller dense ones; the
large one is pruned gradually (cubic schedule) to as many non-zero weights as each of the small ones has. Small-dense
networks are trained for as long as the large one and its pruning together, and so is a second control: the large
network with a random mask held from the start. Figures are of the exported files in ONNX
Runtime; the last epoch counts, nothing is chosen on the test split. Run again after a stop, it goes on. Writes
``results.json``, ``results.md`` and ``results.png`` in `large_sparse/`.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib
import numpy as np
from common import Kept, log_ticks, one_thread, score, spread, table
from torch import nn

from autocompress.compress.allocate import allocate_masks
from autocompress.compress.engine import build
from autocompress.compress.export import export_onnx
from autocompress.compress.pack import pack
from autocompress.compress.statistics import Statistics
from autocompress.compress.structure import find_structure
from autocompress.compress.train import train_base
from autocompress.records import Gradual, NoDistillation, Plan, SparseTraining
from autocompress.task import Recipe, Task, fixed_randomness
from autocompress.tasks.images import images
from autocompress.tasks.sequences import characters

HERE = Path(__file__).resolve().parent / "large_sparse"


@dataclass(frozen=True)
class Kind:
    """A family of networks that differ in width alone.

    Attributes:
        name, unit: for the report.
        task: (width, seed, epochs) -> the task with a fresh network of that width.
        widths: the large one first.
        epochs: of the large network's training, and again of its pruning.
    """

    name: str
    unit: str
    task: Callable[[int, int, int], Task]
    widths: tuple[int, ...]
    epochs: int


def kinds(options: argparse.Namespace) -> tuple[Kind, ...]:
    """The two families."""

    def cnn(width: int, seed: int, epochs: int) -> Task:
        return images(
            data=str(options.data / "fashion-mnist.npz"),
            network={"kind": "autocompress.models.lenet:simple_cnn", "width": width, "channels": 1, "classes": 10},
            mean=[0.286],
            std=[0.353],
            holdout=60000 - options.examples,
            augment=False,
            epochs=epochs,
            learning_rate=0.1,
            batch_size=128,
            seed=seed,
        )

    def lstm(width: int, seed: int, epochs: int) -> Task:
        task = characters(data=str(text_of(options)), hidden=width, depth=1, seed=seed)
        return replace(
            task, recipe=Recipe(epochs=epochs, learning_rate=4e-3, batch_size=64, weight_decay=0.0, optimizer="adamw")
        )

    return (
        Kind("CNN on Fashion-MNIST", "test accuracy, %", cnn, (32, 16, 8, 4), options.cnn_epochs),
        Kind("character LSTM", "next character right, test, %", lstm, (256, 128, 64, 32), options.lstm_epochs),
    )


def text_of(options: argparse.Namespace) -> Path:
    """The language model's text: the file given, or the questions without their labels."""
    if options.text is not None:
        return Path(options.text)
    lines = (options.data / "trec.train.txt").read_text(encoding="latin-1").splitlines()
    text = "\n".join(line.partition(" ")[2] for line in lines)
    found = Path(tempfile.gettempdir()) / f"questions-{hashlib.sha256(text.encode()).hexdigest()[:12]}.txt"
    found.write_text(text, encoding="utf-8")
    return found


def weights_of(module: nn.Module) -> int:
    """Weights in matrices and kernels: what masks fall on; biases and normalization are counted in neither arm."""
    return sum(p.numel() for p in module.parameters() if p.ndim > 1)


def dense_run(kind: Kind, width: int, seed: int, epochs: int) -> dict[str, float]:
    """Train a dense network of one width."""
    task, module = _fresh(kind, width, seed, epochs)
    trained = train_base(task, module, seed=seed)
    model = export_onnx(trained, task.example_input()).model
    return {"test": score(model, task.test, task.metric), "nonzeros": weights_of(trained), "packed": len(pack(model))}


def sparse_run(kind: Kind, seed: int, nonzeros: int, method: str) -> dict[str, float]:
    """Prune the large network to so many non-zeros, or hold a random mask of that size from the start."""
    task, module = _fresh(kind, kind.widths[0], seed, kind.epochs)
    total = weights_of(module)
    gradual = method == "gradual"
    if gradual:
        module = train_base(task, module, seed=seed)
    structure = find_structure(module, task.example_input())
    masks = allocate_masks(
        module,
        structure,
        sparsity=1.0 - nonzeros / total,
        scope="global" if gradual else "erk",
        criterion="magnitude" if gradual else "random",
    )
    plan = Plan(
        masks=masks,
        schedule=Gradual() if gradual else SparseTraining(method="static"),
        distillation=NoDistillation(),
    )
    # Pruning gets the rate of training: at these sparsities the network learns anew what it may keep.
    task = replace(task, recovery_learning_rate=task.recipe.learning_rate / 2)
    epochs = float(kind.epochs if gradual else 2 * kind.epochs)
    done = build(task, module, plan, structure, Statistics({}), epochs=epochs, seed=seed, packed=True)
    left = total - sum(layer.zeros for layer in done.artifact.layers)
    return {
        "test": score(done.model, task.test, task.metric),
        "nonzeros": left,
        "packed": done.artifact.packed_bytes,
    }


def _fresh(kind: Kind, width: int, seed: int, epochs: int) -> tuple[Task, nn.Module]:
    task = kind.task(width, seed, epochs)
    with fixed_randomness(seed):
        return task, task.build()


def main() -> None:
    """Run every arm and write down what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with fashion-mnist.npz")
    parser.add_argument("--text", type=Path, help="text file of the language model")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--examples", type=int, default=12000, help="training images")
    parser.add_argument("--cnn-epochs", type=int, default=8)
    parser.add_argument("--lstm-epochs", type=int, default=6)
    parser.add_argument("--report", action="store_true", help="compute nothing, report what there is")
    options = parser.parse_args()
    one_thread()
    kept = Kept(HERE / "results.json", closed=options.report)
    families = kinds(options)
    if options.report:
        report(kept, families, options, options.seeds)
        return
    for seed in range(options.seeds):
        for kind in families:
            small = {}
            for width in kind.widths:
                # As long as training and pruning take together.
                epochs = 2 * kind.epochs
                name = f"{kind.name}, dense {width}, seed {seed}"
                small[width] = kept.get(name, lambda k=kind, w=width, s=seed, e=epochs: dense_run(k, w, s, e))
            for width in kind.widths[1:]:
                for method in ("gradual", "static"):
                    kept.get(
                        f"{kind.name}, {method} as {width}, seed {seed}",
                        lambda k=kind, s=seed, n=small[width]["nonzeros"], m=method: sparse_run(k, s, int(n), m),
                    )
        report(kept, families, options, seed + 1)
    sys.stdout.write((HERE / "results.md").read_text())


def runs_of(kept: Kept, kind: Kind, arm: str, seeds: int) -> list[dict[str, float]]:
    """The results of one arm, those seeds that are there."""
    names = [f"{kind.name}, {arm}, seed {s}" for s in range(seeds)]
    return [kept.values[name] for name in names if name in kept.values]


def report(kept: Kept, families: tuple[Kind, ...], options: argparse.Namespace, seeds: int) -> None:
    """The table and the picture of what there is so far."""
    lines = [
        "# Large-sparse against small-dense",
        "",
        f"`python benchmarks/large_sparse.py --data FOLDER --seeds {options.seeds} --examples {options.examples} "
        f"--cnn-epochs {options.cnn_epochs} --lstm-epochs {options.lstm_epochs}`, at most {seeds} seeds. Mean "
        "[smallest, largest] over seeds. Every network is trained for the same number of epochs in all. *Packed* is "
        "the exact packed form of the ONNX file, positions of the non-zeros included.",
        "",
    ]
    for kind in families:
        rows = []
        for width in kind.widths:
            dense = runs_of(kept, kind, f"dense {width}", seeds)
            if not dense:
                continue
            rows.append([f"dense, width {width}", *_cells(dense), ""])
            if width == kind.widths[0]:
                continue
            for method, word in (("gradual", "large, pruned gradually"), ("static", "large, random mask held")):
                found = runs_of(kept, kind, f"{method} as {width}", seeds)
                gain = [100 * (a["test"] - b["test"]) for a, b in zip(found, dense, strict=False)]
                rows.append([word, *_cells(found), spread(gain)] if found else [word, "", "not run", "", ""])
        lines += [f"## {kind.name}", ""]
        lines += table(
            ["network", "non-zero weights", kind.unit, "packed, kB", "against small-dense, points, paired"], rows
        )
        lines.append("")
    lines.append("![Curves](results.png)")
    (HERE / "results.md").write_text("\n".join(lines) + "\n")
    picture(kept, families, seeds)


def _cells(runs: list[dict[str, float]]) -> list[str]:
    return [
        f"{np.mean([r['nonzeros'] for r in runs]):,.0f}",
        spread([r["test"] for r in runs], 100),
        f"{np.mean([r['packed'] for r in runs]) / 1000:.1f}",
    ]


def picture(kept: Kept, families: tuple[Kind, ...], seeds: int) -> None:
    """Quality over non-zeros, a line for each arm, a panel for each kind of network."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    families = tuple(kind for kind in families if runs_of(kept, kind, f"dense {kind.widths[0]}", seeds))
    figure, panels = pyplot.subplots(1, len(families), figsize=(11, 4.3), layout="constrained", squeeze=False)
    for axes, kind in zip(panels[0], families, strict=True):
        arms = {
            "small-dense": [f"dense {w}" for w in kind.widths],
            "large-sparse, gradual": [f"dense {kind.widths[0]}", *(f"gradual as {w}" for w in kind.widths[1:])],
            "large, random mask": [f"dense {kind.widths[0]}", *(f"static as {w}" for w in kind.widths[1:])],
        }
        for label, names in arms.items():
            runs = [found for name in names if (found := runs_of(kept, kind, name, seeds))]
            x = [np.mean([r["nonzeros"] for r in point]) for point in runs]
            y = [[100 * r["test"] for r in point] for point in runs]
            line = axes.plot(x, [np.mean(values) for values in y], marker="o", label=label)[0]
            axes.fill_between(x, [min(v) for v in y], [max(v) for v in y], color=line.get_color(), alpha=0.15)
        axes.set_xscale("log")
        log_ticks(axes.xaxis)
        axes.set_xlabel("non-zero weights")
        axes.set_ylabel(kind.unit)
        axes.set_title(kind.name, loc="left", fontsize=11)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
    figure.savefig(HERE / "results.png", dpi=130)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
