"""Small-dense against large-compressed: networks that a task builds and trains from scratch, beside those cut from one.

    python benchmarks/small_dense.py --data FOLDER

FOLDER holds ``fashion-mnist.npz``; the digits ship with scikit-learn. For each task and seed a study with the space
``nas`` is prepared, and points of that space are evaluated for equally many epochs, all at 8 bits and taught by the
dense network: networks built at some widths and depths, and the dense one with the same share of every group cut, with
all of its blocks and without those that may go. Nothing is chosen: accuracies are those of the selection split, after
the last epoch. Latencies are ratios to the dense network in floats in ONNX Runtime, one thread, read at the end, all
networks of a study side by side: on a machine that should be quiet then, so that it pays to run it again. Run again, it
takes up what it has. Writes ``results.md`` in `small_dense/`.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from common import say, spread, table

from autocompress.config import Study
from autocompress.pipeline.evaluate import Evaluator
from autocompress.pipeline.prepare import Workbench, prepare
from autocompress.pipeline.probe import take_readings
from autocompress.records import Fidelity, Measurement, Plan
from autocompress.rng import derive_seed
from autocompress.task import size

HERE = Path(__file__).resolve().parent / "small_dense"
SHARES = (0.5, 0.75)
WIDTHS = (1.0, 0.5, 0.25)
#: Of the training images of Fashion-MNIST: half of them train.
IMAGES = 6_000
DEPTHS = (1.0, 0.34)


@dataclass(frozen=True)
class Case:
    """A task, and how long its candidates are trained.

    Attributes:
        name: for the report.
        task: of the study file.
        dense_epochs: of the dense network.
        epochs: of every candidate, two lengths.
    """

    name: str
    task: dict[str, object]
    dense_epochs: int
    epochs: tuple[float, ...]


def cases(data: Path, output: Path) -> list[Case]:
    """Digits, and a part of Fashion-MNIST."""
    part = output / f"fashion-{IMAGES}.npz"
    if not part.is_file():
        output.mkdir(parents=True, exist_ok=True)
        with np.load(data / "fashion-mnist.npz") as file:
            np.savez(part, **{key: file[key][:IMAGES] for key in ("x_train", "y_train", "x_test", "y_test")})
    fashion = {
        "data": str(part),
        "network": {"depth": 14, "widths": [16, 32, 64], "channels": 1, "shortcut": "projection"},
        "mean": [0.286],
        "std": [0.353],
        "holdout": IMAGES // 2,
        "epochs": 12,
        "learning_rate": 0.1,
        "recovery_learning_rate": 0.03,
    }
    return [
        Case("digits", {"factory": "autocompress.tasks.digits:digits"}, 20, (5.0, 20.0)),
        Case("fashion", {"factory": "autocompress.tasks.images:images", "arguments": fashion}, 12, (2.0, 8.0)),
    ]


def candidates(bench: Workbench) -> dict[str, Plan]:
    """Points of the space, by name: built ones, and compressed ones."""
    space = bench.space
    found = {"dense": space.plan(space.uniform(sparsity=0.0, bits=8))}
    for width in WIDTHS:
        for depth in DEPTHS:
            sizes = {"architecture/width": width, "architecture/depth": depth, "architecture/bits": 8}
            found[f"built, width {width:g}, depth {depth:g}"] = space.plan({"architecture": "built", **sizes})
    drop = {f"block/{name}": "drop" for name in space.depth.droppable}
    for share in SHARES:
        params = space.uniform(sparsity=share, bits=8, criterion="taylor")
        found[f"cut by {share:g}"] = space.plan(params)
        found[f"cut by {share:g}, {len(drop)} of {len(space.structure.blocks)} blocks left out"] = space.plan(
            params | drop
        )
    return found


def study_of(case: Case, seed: int, output: Path) -> Study:
    """The study whose folder holds everything."""
    return Study.model_validate(
        {"name": f"{case.name}-{seed}", "task": case.task, "space": "nas", "seed": seed, "output": str(output)}
    )


def ratios(bench: Workbench, measured: list[Measurement]) -> list[float]:
    """Latency of each artifact as a share of the dense one's, all read side by side."""
    dense = bench.prepared.baseline.artifact.sha256
    taken = take_readings(
        bench.study,
        bench.folder,
        bench.target,
        [m.artifact.sha256 for m in measured],
        dense,
        bench.inputs,
        seed=derive_seed(bench.study.seed, "small-dense"),
        baseline=bench.host,
        loaded={dense: bench.dense_session},
    )
    return [reading.ratio.value for reading in taken.readings]


def main() -> None:
    """Evaluate what is left, read latencies, write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("small-dense-runs"))
    parser.add_argument("--tasks", nargs="*", default=["digits", "fashion"])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    chosen = parser.parse_args()
    output = chosen.output.resolve()
    lines = ["# Small-dense against large-compressed", ""]
    for case in [case for case in cases(chosen.data, output) if case.name in chosen.tasks]:
        found: dict[str, list[tuple[float, ...]]] = {}
        for seed in chosen.seeds:
            bench = prepare(study_of(case, seed, output))
            evaluate, plans = Evaluator(bench), candidates(bench)
            measured: dict[float, list[Measurement]] = {}
            for epochs in case.epochs:
                for name, plan in plans.items():
                    measured.setdefault(epochs, []).append(evaluate(plan, Fidelity(epochs=epochs), "selection"))
                    accuracy = measured[epochs][-1].values["accuracy"].value
                    say(f"{case.name} {seed}, {epochs:g} epochs, {name}: {accuracy:.4f}")
            # The shape is the same after any training: the longest trained are read.
            read = ratios(bench, measured[case.epochs[-1]])
            for i, name in enumerate(plans):
                accuracies = [measured[epochs][i].values["accuracy"].value for epochs in case.epochs]
                found.setdefault(name, []).append((read[i], *accuracies))
        lines += report(case, found, size(bench.task.selection))
    HERE.mkdir(exist_ok=True)
    (HERE / "results.md").write_text("\n".join(lines))


def report(case: Case, found: dict[str, list[tuple[float, ...]]], examples: int) -> list[str]:
    """The table of one task, slowest first: mean over seeds, with the smallest and the largest."""
    header = ("network, 8 bits", "latency / dense", *(f"accuracy, {epochs:g} epochs" for epochs in case.epochs))
    rows = []
    for name, values in sorted(found.items(), key=lambda item: -np.mean([v[0] for v in item[1]])):
        columns = list(zip(*values, strict=True))
        rows.append((name, spread(columns[0], digits=3), *(spread(column, 100) for column in columns[1:])))
    seeds = len(next(iter(found.values())))
    return [
        f"## {case.name}",
        "",
        f"The dense network was trained for {case.dense_epochs} epochs; {seeds} seeds. Accuracies are percentages of "
        f"{examples} images of the selection split, so that one image is {100 / examples:.2g} points; in brackets the "
        "smallest and the largest over seeds.",
        "",
        *table(header, rows),
        "",
    ]


if __name__ == "__main__":
    main()
