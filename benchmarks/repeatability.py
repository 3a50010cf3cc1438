"""How far the same networks read alike: the latency protocol beside naive timing, on a quiet machine and a busy one.

    python benchmarks/repeatability.py

Twenty networks (ResNets of the CIFAR family and perceptrons of several widths, random weights, each in fp32 and int8)
are timed in five sessions, every one a process of its own: four on a quiet machine, the fifth while a burner works on
another core. A sixth session has burners on all cores. Each session takes three arms, one after the other: *naive*
(the mean of 100 runs, one network after the other, and so for the dense network that they are compared with),
*protocol, not pinned*, and *protocol*, which also holds the computing threads to the least busy cores. Figures are of
the ratio to the dense ResNet-20. Takes about three minutes. Writes ``results.json``, ``results.md`` and ``results.png``
in `repeatability/`; with ``--report`` from the figures that are there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from common import Kept, one_thread, say, table
from scipy.stats import kendalltau
from torch import nn

from autocompress.compress.export import export_onnx
from autocompress.compress.quantize import quantize
from autocompress.compress.structure import find_structure
from autocompress.measure.host import fingerprint
from autocompress.measure.latency import Procedure, measure
from autocompress.measure.onnxruntime_cpu import OnnxRuntimeCpu
from autocompress.models.resnet import resnet_cifar
from autocompress.records import LayerBits, Quantizer
from autocompress.task import fixed_randomness

HERE = Path(__file__).resolve().parent / "repeatability"
ARMS = {"naive": None, "protocol, not pinned": Procedure(pin=False), "protocol": Procedure()}
#: Session -> how many burners work meanwhile; "all" is one for every core.
SESSIONS = {"quiet 1": "0", "quiet 2": "0", "quiet 3": "0", "quiet 4": "0", "burner": "1", "all cores": "all"}
FIVE = tuple(SESSIONS)[:5]
NAIVE_RUNS = 100
#: Multiplies matrices for a while, then copies an array larger than the caches, as training does.
BURNER = """
import numpy
a, big = numpy.random.rand(300, 300), numpy.random.rand(4_000_000)
while True:
    for _ in range(20):
        b = a @ a
    big[:] = big[::-1].copy()
"""


def networks() -> dict[str, nn.Module]:
    """The float networks, by name; the first is the dense one."""
    nets: dict[str, nn.Module] = {"ResNet-20 16": resnet_cifar(depth=20, widths=(16, 32, 64))}
    for width in (4, 8, 12, 14, 20):
        nets[f"ResNet-20 {width}"] = resnet_cifar(depth=20, widths=(width, 2 * width, 4 * width))
    for width in (256, 512, 1024, 1536):
        layers = [nn.Linear(3 * 32 * 32, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)]
        nets[f"perceptron {width}"] = nn.Sequential(nn.Flatten(), *layers)
    return nets


def artifacts() -> dict[str, bytes]:
    """ONNX files of all networks in fp32 and int8, by name."""
    found: dict[str, bytes] = {}
    with fixed_randomness(0):
        example = torch.randn(16, 3, 32, 32)
        for name, module in networks().items():
            module.eval()
            model = export_onnx(module, example[:2]).model
            layers = [layer.name for layer in find_structure(module, example[:2]).layers]
            found[name] = model
            bits = [LayerBits(layer=layer, bits=8) for layer in layers]
            found[f"{name} int8"] = quantize(model, bits, Quantizer(), example)
    return found


def session(folder: Path) -> dict[str, Any]:
    """One session: arm -> ratios of the networks in order, and how readings went."""
    target = OnnxRuntimeCpu().build()
    files = sorted(folder.iterdir())
    sessions = [target.prepare(file.read_bytes()) for file in files]
    inputs = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
    result: dict[str, Any] = {"load": os.getloadavg()[0]}
    for arm, procedure in ARMS.items():
        started = time.monotonic()
        if procedure is None:
            means = [_mean(each.runner(inputs)) for each in sessions]
            result[arm] = {"ratio": [mean / means[0] for mean in means], "ms": [1e3 * mean for mean in means]}
        else:
            readings = measure(sessions, sessions[0], inputs, seed=0, procedure=procedure)
            result[arm] = {
                "ratio": [reading.ratio.value for reading in readings],
                "ms": [reading.latency_ms.value for reading in readings],
                "repeated": sum(reading.attempts > 1 for reading in readings),
                "noisy": [reading.noisy for reading in readings],
                "cores": readings[0].cores,
            }
        result[arm]["seconds"] = time.monotonic() - started
    return result


def _mean(call: Any) -> float:
    """Seconds of one inference, the naive way."""
    call()
    start = time.perf_counter()
    for _ in range(NAIVE_RUNS):
        call()
    return (time.perf_counter() - start) / NAIVE_RUNS


@contextmanager
def burners(count: str) -> Iterator[None]:
    """Keep so many processes busy meanwhile, one thread each, wherever the system puts them."""
    wanted = len(os.sched_getaffinity(0)) if count == "all" else int(count)
    single = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    running = [subprocess.Popen([sys.executable, "-c", BURNER], env=single) for _ in range(wanted)]
    try:
        time.sleep(2.0 if wanted else 0.0)  # until they have loaded numpy and work
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def run(kept: Kept) -> None:
    """Measure every session that is not there yet."""
    with tempfile.TemporaryDirectory() as folder:
        for index, (name, model) in enumerate(artifacts().items()):
            (Path(folder) / f"{index:02d} {name}.onnx").write_bytes(model)
        kept.get("networks", lambda: [file.stem[3:] for file in sorted(Path(folder).iterdir())])
        kept.get("host", lambda: fingerprint(OnnxRuntimeCpu().build().runtime, 1).model_dump(mode="json"))
        for name, count in SESSIONS.items():
            kept.get(name, lambda count=count: _in_process(folder, count))


def _in_process(folder: str, count: str) -> Any:
    with burners(count):
        command = [sys.executable, __file__, "--session", folder]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def spreads(kept: Kept, arm: str, names: Sequence[str], *, trusted: bool = False) -> np.ndarray:
    """(largest - smallest) / median of each network's ratio over sessions; without the dense one's 1.

    With `trusted`, readings that are marked noisy are left out.
    """
    ratios = np.array([kept.values[name][arm]["ratio"] for name in names])[:, 1:]
    if trusted and ARMS[arm] is not None:
        noisy = np.array([kept.values[name][arm]["noisy"] for name in names])[:, 1:]
        ratios = np.where(noisy, np.nan, ratios)
    found: np.ndarray = (np.nanmax(ratios, axis=0) - np.nanmin(ratios, axis=0)) / np.nanmedian(ratios, axis=0)
    return found


def orders(kept: Kept, arm: str, names: Sequence[str]) -> list[float]:
    """Kendall's tau of every two sessions' order of the networks."""
    ratios = [kept.values[name][arm]["ratio"] for name in names]
    return [float(kendalltau(a, b).statistic) for a, b in itertools.combinations(ratios, 2)]


def report(kept: Kept) -> None:
    """Write the table and the picture."""
    names = kept.values["networks"]
    host = kept.values["host"]
    dense = np.median([kept.values[name]["protocol"]["ms"][0] for name in FIVE[:4]])
    header = [
        "sessions",
        "timing",
        "spread of the ratio: median",
        "largest",
        "largest, if not noisy",
        "Kendall's tau: mean",
        "smallest",
    ]
    rows = []
    for what, chosen in (("4 quiet", FIVE[:4]), ("4 quiet, 1 beside a burner", FIVE), ("all 6", tuple(SESSIONS))):
        for arm in ARMS:
            spread, tau = spreads(kept, arm, chosen), orders(kept, arm, chosen)
            rows.append(
                [
                    what,
                    arm,
                    f"{100 * np.median(spread):.1f}%",
                    f"{100 * spread.max():.1f}%",
                    f"{100 * spreads(kept, arm, chosen, trusted=True).max():.1f}%" if ARMS[arm] else "none is marked",
                    f"{np.mean(tau):.3f}",
                    f"{min(tau):.3f}",
                ]
            )
    states = [
        [
            name,
            arm,
            kept.values[name][arm]["repeated"],
            sum(kept.values[name][arm]["noisy"]),
            f"{kept.values[name][arm]['ms'][0]:.3f}",
            f"{kept.values[name][arm]['seconds']:.1f}",
        ]
        for name in SESSIONS
        for arm in ARMS
        if ARMS[arm] is not None
    ]
    lines = [
        "# Repeatability of latency readings",
        "",
        f"`python benchmarks/repeatability.py`: {len(names)} networks, one thread, batch 1, {host['runtime']}, "
        f"{host['cores']} cores ({host['cpu']}). Ratios to the dense ResNet-20 ({dense:.2f} ms). Spread: (largest - "
        "smallest) / median of one network's ratio over the sessions; median and largest over the networks, the latter "
        "also without readings that are marked noisy. Kendall's "
        "tau: of the networks' order, between every two sessions. The burners move with the system's scheduler; the "
        "networks that spread most are the perceptrons, which read up to 19 MB of weights for each inference, through "
        "a cache that all cores share, or take 16 microseconds.",
        "",
        *table(header, rows),
        "",
        f"Of {len(names)} readings in each session:",
        "",
        *table(["session", "timing", "repeated", "marked noisy", "dense network (ms)", "seconds"], states),
        "",
        "![Spread of each network's ratio](results.png)",
    ]
    (HERE / "results.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    _draw(kept)


def _draw(kept: Kept) -> None:
    """Spread of each network's ratio over the five sessions, sorted, for each arm."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.8), sharey=True, layout="constrained")
    for plot, (title, chosen) in zip(
        axes, (("four quiet sessions", FIVE[:4]), ("and one beside a burner", FIVE)), strict=True
    ):
        for arm, colour in zip(ARMS, ("#c0504d", "#8aa6c1", "#1f4e79"), strict=True):
            plot.plot(100 * np.sort(spreads(kept, arm, chosen)), "o-", markersize=3.5, color=colour, label=arm)
        plot.set(title=title, xlabel="networks, by spread", yscale="log")
        plot.grid(alpha=0.3, which="both")
    axes[0].set_ylabel("(largest - smallest) / median of the ratio, %")
    axes[0].legend(frameon=False)
    figure.savefig(HERE / "results.png", dpi=130)


def main() -> None:
    """Run what is missing, then report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", action="store_true", help="write the report of the figures that are there")
    parser.add_argument("--session", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    one_thread()
    if options.session is not None:
        sys.stdout.write(json.dumps(session(options.session)))
        return
    kept = Kept(HERE / "results.json", closed=options.report)
    if not options.report:
        run(kept)
    report(kept)
    say(f"wrote {HERE / 'results.md'}")


if __name__ == "__main__":
    main()
