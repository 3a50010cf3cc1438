"""What a candidate was worth before it was trained in full."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from autocompress.records.base import Estimate, Record
from autocompress.records.results import Fidelity


class RungResult(Record):
    """What a candidate was worth at a rung below the last.

    It is compared at its own rung only, and never enters a front: for that a candidate needs a `Measurement`.

    Attributes:
        kind: tells it from a measurement.
        plan_key: the physical candidate.
        fidelity: which rung, and how many epochs it rests on.
        values: objective name -> estimate.
        predicted: names among `values` that a model told, not a reading.
        noisy: the latency was read, and stayed noisy: it decides nothing.
        seconds: part name -> wall time, as of a `Measurement`.
        judged: when the ledger was told; None before.
        cached: answered from an earlier evaluation of the same physical candidate, whose `seconds` these are.
    """

    kind: Literal["rung"] = "rung"
    plan_key: str
    fidelity: Fidelity
    values: dict[str, Estimate]
    predicted: tuple[str, ...] = ()
    noisy: bool = False
    seconds: dict[str, float] = Field(default_factory=dict)
    judged: datetime | None = None
    cached: bool = False
