"""ResNet-20×2 on CIFAR-10, end to end: one command from trained weights to a registered front.

    python benchmarks/cifar10/run.py --data FOLDER --weights cifar10_resnet20x2.safetensors

FOLDER holds ``cifar10.npz`` (x_train, y_train, x_test, y_test; uint8). The weights are those of a ResNet-20 at
32-64-128 with projection shortcuts, trained on the first 45 000 images of a permutation with seed 0. Takes up to an
hour on two cores; run again after an interruption, it continues. Writes ``results.md`` beside itself.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent


def command(arguments: list[str], capture: bool = False) -> str:
    """Run an autocompress command; its output, if it is captured."""
    done = subprocess.run(
        [sys.executable, "-m", "autocompress.cli", *arguments], check=True, text=True, capture_output=capture
    )
    return done.stdout or ""


def main() -> None:
    """Run the study and write down what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with cifar10.npz")
    parser.add_argument("--weights", type=Path, required=True, help="safetensors file of the trained network")
    parser.add_argument("--output", type=Path, default=Path("autocompress-runs"), help="where the study is kept")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="passed on to autocompress run")
    options = parser.parse_args()
    changes = {
        "output": options.output.resolve(),
        "task.arguments.data": (options.data / "cifar10.npz").resolve(),
        "task.arguments.weights": options.weights.resolve(),
    }
    settings = [f"{key}={value}" for key, value in changes.items()] + options.set
    flags = [part for setting in settings for part in ("--set", setting)]
    started = time.monotonic()
    command(["run", str(HERE / "study.yaml"), *flags])
    folder = options.output.resolve() / "cifar10-resnet20x2"
    spent = folder / "benchmark_minutes.json"
    runs = json.loads(spent.read_text()) if spent.is_file() else []
    runs.append((time.monotonic() - started) / 60)
    spent.write_text(json.dumps(runs))
    finals = json.loads((folder / "finalists.json").read_text())
    view = json.loads(command(["front", str(HERE / "study.yaml"), *flags, "--json"], capture=True))
    again = {row["uri"]: read_again(row["uri"], options.output) for row in view["rows"]}
    (HERE / "results.md").write_text(report(view, finals, runs, again))
    sys.stdout.write(f"\nwritten {HERE / 'results.md'}\n")


def read_again(uri: str, output: Path) -> str:
    """Latency relative to the dense model as `autocompress verify` finds it; it fails if the card does not hold."""
    checks = json.loads(command(["verify", uri, "--output", str(output.resolve()), "--json"], capture=True))["checks"]
    found = next(check["found"] for check in checks if check["name"] == "latency")
    return found.partition(", ")[2].partition(" ")[0]


def report(view: dict, finals: dict, runs: list[float], again: dict[str, str]) -> str:
    """The results as Markdown."""
    baseline, first = finals["baseline"], finals["finalists"][0]["final"]
    dense, host = baseline["accuracy"]["test"]["value"], first["host"]
    lines = [
        "# ResNet-20×2 on CIFAR-10",
        "",
        f"Wall clock: {' + '.join(f'{m:.1f}' for m in runs)} minutes. Host: {host['cpu']}, {host['cores']} cores; "
        f"{host['runtime']}, {host['threads']} thread, batch size {first['latency']['batch_size']}. Command: see "
        "`run.py`; study: `study.yaml`, space: `space.yaml`.",
        "",
        "Accuracy is ONNX Runtime's on the registered bytes. Members are chosen on the selection split (2 500 images); "
        "the test split (10 000 images) is opened once for each.",
        "",
        f"Dense: selection {pct(baseline['accuracy']['selection'])}, test {pct(baseline['accuracy']['test'])}, "
        f"{baseline['latency_ms']:.3f} ms, {baseline['artifact']['macs'] / 1e6:.1f} M MACs, "
        f"{baseline['artifact']['size_bytes'] / 1e6:.2f} MB.",
        "",
        "Every version's card was then checked by `autocompress verify`, from the registered bytes: accuracies came "
        "out equal; the column *again* is the latency that it found, relative to dense.",
        "",
        "| latency / dense, 95% | again | latency ms | selection accuracy %, 95% | test accuracy % "
        "| test change, points | MACs, M | size, MB | plan | sha256 |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in view["rows"]:
        values, test, ratio = row["values"], row["test"], row["ratio"]
        lines.append(
            f"| {ratio['value']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}] | {again[row['uri']]} "
            f"| {values['latency_ms']['value']:.3f} | {pct(values['accuracy'])} | {100 * test['value']:.2f} "
            f"| {100 * (test['value'] - dense):+.2f} "
            f"| {values['macs']['value'] / 1e6:.1f} | {values['size_bytes']['value'] / 1e6:.3f} | {row['summary']} "
            f"| {row['sha256'][:12]} |"
        )
    quick = [r for r in view["rows"] if r["ratio"]["value"] <= 0.25 and r["test"]["value"] >= dense - 0.02]
    quicker = [r for r in view["rows"] if r["ratio"]["value"] <= 0.20]
    lines += [
        "",
        f"- Members of the final front: {len(view['rows'])} (wanted: at least 6).",
        f"- At most 0.25 of dense latency with at most 2 points of test accuracy lost: {len(quick)} "
        "(wanted: at least 1).",
        f"- At most 0.20 of dense latency: {len(quicker)} (wanted: at least 1).",
        "",
    ]
    return "\n".join(lines)


def pct(estimate: dict) -> str:
    """An estimate in percent, with its interval."""
    return f"{100 * estimate['value']:.2f} [{100 * estimate['low']:.2f}, {100 * estimate['high']:.2f}]"


if __name__ == "__main__":
    main()
