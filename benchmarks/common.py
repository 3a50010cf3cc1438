"""What the benchmarks share: results that survive a stop, accuracy of bytes, means with their spread."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from autocompress.measure.onnxruntime_cpu import OnnxRuntimeCpu
from autocompress.measure.quality import predict
from autocompress.task import MetricFunction, top1


class Kept:
    """Results by name in one JSON file, written whole after each: a stopped benchmark goes on where it was.

    With `closed` nothing is computed, and what is not there is None: for a report of what there is.
    """

    def __init__(self, path: Path, *, closed: bool = False) -> None:
        self.path, self.closed = path, closed
        path.parent.mkdir(parents=True, exist_ok=True)
        self.values: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}

    def get(self, name: str, compute: Callable[[], Any]) -> Any:
        """The kept result of that name, or what `compute` gives, which is kept; seconds are told as it goes."""
        if name not in self.values and not self.closed:
            started = time.monotonic()
            value = compute()
            self.values[name] = value
            neighbour = self.path.with_suffix(".writing")
            lines = [
                f"{json.dumps(key)}: {json.dumps(self.values[key], sort_keys=True)}" for key in sorted(self.values)
            ]
            neighbour.write_text("{\n" + ",\n".join(lines) + "\n}\n")
            neighbour.replace(self.path)
            say(f"{name}: {short(value)}  ({time.monotonic() - started:.0f} s)")
        return self.values.get(name)


def say(text: str) -> None:
    """A line of progress on standard error."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stderr.flush()


def short(value: Any) -> str:
    """A result in one short line."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {short(item)}" for key, item in value.items() if not isinstance(item, dict | list))
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def score(model: bytes, split: Dataset[Any], metric: MetricFunction = top1) -> float:
    """The metric of an ONNX file on a split, as ONNX Runtime computes it."""
    outputs, targets = predict(OnnxRuntimeCpu().build().prepare(model), split)
    return float(metric(outputs, targets))


def spread(values: Sequence[float], scale: float = 1.0, digits: int = 2) -> str:
    """Mean and, in brackets, smallest and largest value."""
    if not values:
        return "not run"
    found = scale * np.asarray(values, dtype=float)
    if len(found) == 1:
        return f"{found[0]:.{digits}f}"
    return f"{found.mean():.{digits}f} [{found.min():.{digits}f}, {found.max():.{digits}f}]"


def one_thread() -> None:
    """One thread for torch: runs side by side do not disturb each other's order of summation."""
    torch.set_num_threads(1)


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]


def log_ticks(*axes: Any) -> None:
    """Plain numbers at 1, 2 and 5 of every decade of logarithmic axes (``axes.xaxis``), and nothing between."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    for axis in axes:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(StrMethodFormatter("{x:,.6g}"))
        axis.set_minor_locator(NullLocator())
