"""How often the front changes when nothing but the reading does: point dominance beside dominance under noise.

    python benchmarks/front_stability.py

The digits network is cut to five sets of widths, each by four criteria, and recovered for an epoch: twenty artifacts,
of which four at a time are one architecture, so that their true latencies are equal while their accuracies differ.
Their outputs on the selection split are computed once. Their latencies are read twelve times, every time by a process
of its own, all interleaved with the dense network as the finalists of a study are. Each reading is judged by the same
rules: the dominance of values alone, and that of `autocompress.front.noise`; and three variants of the latter, to
show what its choices do. Takes about five minutes, two of them for the readings. Writes ``results.json``,
``results.md`` and ``results.png`` in `front_stability/`; with ``--report`` from the figures that are there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from common import Kept, one_thread, say, table

from autocompress.compress.engine import build
from autocompress.config import Study
from autocompress.front import noise
from autocompress.front.dominance import non_dominated
from autocompress.front.noise import noisy_front
from autocompress.measure.latency import measure
from autocompress.measure.onnxruntime_cpu import OnnxRuntimeCpu
from autocompress.measure.quality import accuracy, difference, predict
from autocompress.pipeline.prepare import prepare
from autocompress.records import ChannelCut, Estimate, Plan, minimized
from autocompress.task import top1

HERE = Path(__file__).resolve().parent / "front_stability"
SHARES = (0.25, 0.375, 0.5, 0.625, 0.75)
CRITERIA = ("magnitude", "taylor", "fpgm", "random")
READINGS = 12
PAIR = ("accuracy", "latency_ms")
RULES = {
    "values alone": "point dominance",
    "beyond noise": "the rule in use: paired accuracy, ties represented",
    "beyond noise, all ties kept": "the same without representatives",
    "beyond noise, unpaired": "accuracies compared by their single intervals",
    "beyond the reading's own noise": "intervals of one reading as they are, without the resolution of 1%",
}


def make(work: Path) -> None:
    """Artifacts, their outputs and one input, written to a folder."""
    study = Study(
        name="stability", task={"factory": "autocompress.tasks.digits:digits"}, output=work, space="structured"
    )
    bench = prepare(study)
    np.save(work / "input.npy", bench.inputs)
    dense = bench.folder.read_artifact(bench.prepared.baseline.artifact.sha256)
    (work / "dense.onnx").write_bytes(dense)
    target = bench.target
    for share, criterion in itertools.product(SHARES, CRITERIA):
        name = f"{share:g} {criterion}"
        cuts = [
            ChannelCut(group=group.name, keep=max(8, round(share * group.width / 8) * 8), criterion=criterion)
            for group in sorted(bench.prepared.structure.groups, key=lambda group: group.name)
        ]
        made = build(
            bench.task,
            bench.dense,
            Plan(cuts=tuple(cuts)),
            bench.prepared.structure,
            bench.statistics,
            epochs=1.0,
            seed=1,
        )
        (work / f"{name}.onnx").write_bytes(made.model)
        outputs, targets = predict(target.prepare(made.model), bench.task.selection)
        np.savez(work / f"{name}.npz", outputs=outputs, targets=targets)
        say(f"{name}: {top1(outputs, targets):.4f}, {made.artifact.macs} multiply-adds")


def names() -> list[str]:
    """The artifacts, in a fixed order."""
    return [f"{share:g} {criterion}" for share, criterion in itertools.product(SHARES, CRITERIA)]


def read(work: Path, seed: int) -> list[dict[str, Any]]:
    """One reading of all artifacts."""
    target = OnnxRuntimeCpu().build()
    inputs = np.load(work / "input.npy")
    sessions = [target.prepare((work / f"{name}.onnx").read_bytes()) for name in names()]
    readings = measure(sessions, target.prepare((work / "dense.onnx").read_bytes()), inputs, seed=seed)
    return [{**r.ratio.model_dump(), "noisy": r.noisy} for r in readings]


def run(kept: Kept, work: Path, stage: str) -> None:
    """Make the artifacts and take the readings that are not there yet."""
    missing = [name for name in names() if not (work / f"{name}.npz").is_file()]
    if missing and f"reading {READINGS}" not in kept.values:
        work.mkdir(parents=True, exist_ok=True)
        make(work)
    if stage == "make":
        return
    kept.get("outputs", lambda: _outputs(work))
    for number in range(1, READINGS + 1):
        command = [sys.executable, __file__, "--work", str(work), "--read", str(number)]
        kept.get(
            f"reading {number}",
            lambda command=command: json.loads(subprocess.run(command, check=True, capture_output=True).stdout),
        )


def _outputs(work: Path) -> dict[str, Any]:
    """Accuracies and their paired differences; what is judged by does not change between readings."""
    loaded = [np.load(work / f"{name}.npz") for name in names()]
    outputs, targets = [each["outputs"] for each in loaded], loaded[0]["targets"]
    return {
        "examples": len(targets),
        "accuracy": [accuracy(each, targets, seed=0).model_dump() for each in outputs],
        "paired": {
            f"{i} {j}": difference(top1, outputs[i], outputs[j], targets, seed=0).model_dump()
            for i, j in itertools.combinations(range(len(outputs)), 2)
        },
    }


def fronts(outputs: Mapping[str, Any], reading: Sequence[Mapping[str, Any]]) -> dict[str, frozenset[int]]:
    """The members of the front by each rule."""
    values = [
        {
            "accuracy": Estimate.model_validate(quality),
            "latency_ms": Estimate(value=ratio["value"], low=ratio["low"], high=ratio["high"]),
        }
        for quality, ratio in zip(outputs["accuracy"], reading, strict=True)
    ]
    paired = {
        (int(i), int(j)): Estimate.model_validate(gap)
        for (i, j), gap in ((pair.split(), gap) for pair, gap in outputs["paired"].items())
    }
    ours = noisy_front(values, PAIR, paired={"accuracy": paired})
    return {
        "values alone": _set(non_dominated(minimized(values, PAIR))),
        "beyond noise": _set(ours.members),
        "beyond noise, all ties kept": _set(~ours.off),
        "beyond noise, unpaired": _set(noisy_front(values, PAIR).members),
        "beyond the reading's own noise": _without_resolution(values, paired),
    }


def _without_resolution(
    values: Sequence[Mapping[str, Estimate]], paired: Mapping[tuple[int, int], Estimate]
) -> frozenset[int]:
    resolution, noise.RESOLUTION = noise.RESOLUTION, 0.0
    try:
        return _set(noisy_front(values, PAIR, paired={"accuracy": paired}).members)
    finally:
        noise.RESOLUTION = resolution


def _set(mask: np.ndarray) -> frozenset[int]:
    return frozenset(int(i) for i in np.flatnonzero(mask))


def report(kept: Kept) -> None:
    """The table, the picture and what they say."""
    outputs = kept.values["outputs"]
    readings = [kept.values[f"reading {n}"] for n in range(1, READINGS + 1)]
    found = [fronts(outputs, reading) for reading in readings]
    rows, shares = [], {}
    for rule, words in RULES.items():
        sets = [each[rule] for each in found]
        pairs = list(itertools.combinations(sets, 2))
        equal = float(np.mean([a == b for a, b in pairs]))
        jaccard = float(np.mean([1 - len(a & b) / len(a | b) for a, b in pairs]))
        share = np.array([np.mean([i in each for each in sets]) for i in range(len(names()))])
        shares[rule] = share
        unsure = int(np.sum((share > 0) & (share < 1)))
        sizes = [len(each) for each in sets]
        levels = [len({i // len(CRITERIA) for i in each}) for each in sets]
        rows.append(
            (
                rule,
                words,
                f"{np.mean(sizes):.1f} [{min(sizes)}, {max(sizes)}]",
                f"{np.mean(levels):.1f}",
                len(set(sets)),
                f"{100 * (1 - equal):.0f}%",
                f"{jaccard:.2f}",
                unsure,
            )
        )
    spread = np.array([[r["value"] for r in reading] for reading in readings]).reshape(READINGS, len(SHARES), -1)
    within = 100 * np.median(
        [np.ptp(spread[n, k]) / np.median(spread[n, k]) for n in range(READINGS) for k in range(len(SHARES))]
    )
    between = 100 * np.median(np.ptp(spread, axis=0) / np.median(spread, axis=0))
    overlapping = np.mean(
        [
            a["low"] <= b["high"] and b["low"] <= a["high"]
            for reading in readings
            for k in range(len(SHARES))
            for a, b in itertools.combinations(reading[k * len(CRITERIA) : (k + 1) * len(CRITERIA)], 2)
        ]
    )
    lines = [
        "# The front, read again",
        "",
        f"Twenty artifacts of the digits network, five architectures by four criteria; {READINGS} readings of their "
        f"latency, each by its own process, accuracy on {outputs['examples']} examples. "
        "`python benchmarks/front_stability.py`.",
        "",
        *table(
            (
                "rule",
                "what it is",
                "members [range]",
                "architectures among them",
                "different fronts",
                "pairs of readings whose fronts differ",
                "mean Jaccard distance",
                "candidates in some fronts but not all",
            ),
            rows,
        ),
        "",
        f"Of one architecture, four artifacts' ratios lie {within:.1f}% apart within a reading (median), and one "
        f"artifact's ratio {between:.1f}% apart over all readings. Intervals of two artifacts of one architecture "
        f"overlap in {100 * overlapping:.0f}% of the cases; in all others a reading calls equal latencies different. "
        f"{sum(r['noisy'] for each in readings for r in each)} of {READINGS * len(names())} readings stayed noisy.",
        "",
        "The resolution of 1% is half of the spread between sessions in another benchmark, [repeatability]"
        "(../repeatability/results.md). It was added after a first set of twelve readings, whose fronts differed in "
        "100% of the pairs by values alone and in 56% by the rule without it. This is another set, taken afterwards.",
        "",
        "![share of readings in which each artifact is on the front](results.png)",
    ]
    (HERE / "results.md").write_text("\n".join(lines) + "\n")
    _draw(shares)


def _draw(shares: Mapping[str, np.ndarray]) -> None:
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(shares), 1, figsize=(9, 7.6), sharex=True, layout="constrained")
    for plot, (rule, share) in zip(axes, shares.items(), strict=True):
        colours = ["#1f4e79" if value == 1.0 else "#c0504d" for value in share]
        plot.bar(range(len(share)), 100 * share, color=colours)
        plot.set(title=rule, ylim=(0, 105), ylabel="readings, %")
        for edge in range(1, len(SHARES)):
            plot.axvline(edge * len(CRITERIA) - 0.5, color="grey", linewidth=0.6)
    axes[-1].set_xticks(range(len(names())), names(), rotation=60, ha="right", fontsize=8)
    figure.suptitle("how often each artifact is on the front; red: not always")
    figure.savefig(HERE / "results.png", dpi=130)


def main() -> None:
    """Run what is missing, then report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", action="store_true", help="write the report of the figures that are there")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "front-stability", help="artifacts")
    parser.add_argument("--stage", choices=("make", "all"), default="all", help="make the artifacts only, or go on")
    parser.add_argument("--read", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    one_thread()
    if options.read is not None:
        sys.stdout.write(json.dumps(read(options.work, options.read)))
        return
    kept = Kept(HERE / "results.json", closed=options.report)
    if not options.report:
        run(kept, options.work, options.stage)
    if options.stage == "all":
        report(kept)
        say(f"wrote {HERE / 'results.md'}")


if __name__ == "__main__":
    main()
