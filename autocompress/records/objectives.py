"""What a study can search for: names, directions, and what is known of a metric beyond its value."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Literal, get_args

import numpy as np
from pydantic import Field, FiniteFloat, StringConstraints

from autocompress.records.base import Estimate, Record

FixedObjective = Literal[
    "accuracy",
    "latency_ms",
    "size_bytes",
    "packed_bytes",
    "macs",
    "parameters",
    "worst_class_drop",
    "peak_memory_bytes",
    "energy_mj",
]
#: Objectives that every study knows. A study's own metrics come on top: `Metric`.
FIXED: tuple[str, ...] = get_args(FixedObjective)

#: Fixed objectives to be maximized; every other fixed one is minimized.
MAXIMIZED: frozenset[str] = frozenset({"accuracy"})

#: Fixed objectives that come out otherwise each time they are taken of the same bytes. All others repeat exactly.
REMEASURED: frozenset[str] = frozenset({"latency_ms", "peak_memory_bytes", "energy_mj"})

_NAME = re.compile(r"[a-z][a-z0-9_]{0,59}")
#: A fixed objective or the name of a metric. Which metrics there are, only the study knows, and checks.
ObjectiveName = Annotated[str, StringConstraints(pattern=rf"^{_NAME.pattern}$")]

#: What a metric may not be called, as something else is.
RESERVED: frozenset[str] = frozenset({*FIXED, "test_accuracy", "latency_ratio", "metric"})


class Metric(Record):
    """A metric that a study measures beside the task's own, in its natural sign.

    Attributes:
        name: what it is called as an objective, in constraints, on pages and in tags.
        maximize: larger is better; else smaller is, as of an error.
        best: the best value that there is; None if it is not known.
        margin: how much worse than the dense model's a value may be and still count in the hypervolume; None for a
            default that rests on `best`.
        source: ``"scikit-learn:f1_macro"``, or the function, ``"package.module:function"``.
        arguments: of a scikit-learn metric, beyond its defaults.
        outputs: what the network's outputs are taken for.
    """

    name: ObjectiveName
    maximize: bool
    best: FiniteFloat | None = None
    margin: Annotated[FiniteFloat, Field(gt=0.0)] | None = None
    source: str
    arguments: dict[str, str | int | float | bool | None] = Field(default_factory=dict)
    outputs: Literal["logits", "probabilities"] = "logits"


def name_problem(name: str) -> str | None:
    """Why a metric cannot be called `name`, as ``"<what was expected>, got <what>"``; None if it can."""
    if not _NAME.fullmatch(name):
        return f"a name of up to 60 letters a to z, digits and '_', the first a letter, got {name[:80]!r}"
    if name in RESERVED:
        what = "the task's own metric" if name == "accuracy" else "something else"
        return f"another name, as {name!r} is {what}, got {name!r}"
    if name.startswith("neg_"):
        return f"a name in the metric's natural sign, such as {name.removeprefix('neg_')!r}, got {name!r}"
    return None


def is_maximized(name: str, metrics: Iterable[Metric] = ()) -> bool:
    """Whether larger is better.

    Args:
        name: a fixed objective, or one of `metrics`.
        metrics: those of the study.

    Raises:
        ValueError: it is neither, so that nobody can tell.
    """
    if name in FIXED:
        return name in MAXIMIZED
    for metric in metrics:
        if metric.name == name:
            return metric.maximize
    raise ValueError(f"objective {name!r}: expected one of {', '.join([*FIXED, *(m.name for m in metrics)])}")


def minimized(
    values: Sequence[dict[str, Estimate]], objectives: Sequence[str], metrics: Sequence[Metric] = ()
) -> np.ndarray:
    """Objective values as an array in which every column is to be minimized.

    Args:
        values: n measurements' values by objective name.
        objectives: m names, the columns.
        metrics: those of the study; they know their directions.

    Returns:
        Shape (n, m), each column in its objective's unit; maximized objectives are negated.

    Raises:
        ValueError: an objective is neither fixed nor one of `metrics`.
    """
    signs = [-1.0 if is_maximized(name, metrics) else 1.0 for name in objectives]
    rows = [[sign * v[name].value for name, sign in zip(objectives, signs, strict=True)] for v in values]
    return np.array(rows, dtype=float).reshape(len(values), len(objectives))
