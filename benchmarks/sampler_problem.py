"""A problem in the shape of compression whose truth is a formula: for samplers, where thousands of trials are cheap.

Twenty groups of channels in three stages, each with its share and its bits. Damage is additive over groups and bits
with interactions of neighbours and a smooth part that nothing tells beforehand; error follows from damage through a
curve that recovery flattens. Latency is the sum of overheads and multiply-adds. The guide knows latency up to 2%, and
the additive part of damage up to 30% per entry: about what a profile of a network gives.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from autocompress.records import (
    Group,
    Layer,
    Measurement,
    ParamValue,
    Plan,
    RungResult,
    Structure,
    TrialRecord,
    TrialState,
)
from autocompress.search.problem import Problem
from autocompress.space.config import SpaceConfig
from autocompress.space.space import Space, resolve

WIDTHS = (32,) * 6 + (64,) * 7 + (128,) * 7
BITS = (32, 8, 4)
DENSE_ERROR = 0.08
_HOST = {"cpu": "formula", "cores": 1, "flags": (), "memory_gb": 1, "system": "-", "runtime": "-", "threads": 1}


def joint_space() -> Space:
    """Share and bits of every group; a group may stay whole."""
    names = [f"g{i:02d}" for i in range(len(WIDTHS))]
    config = SpaceConfig.model_validate(
        {
            "groups": {
                "strategy": ["structured", "none"],
                "criterion": ["magnitude"],
                "sparsity": {"low": 0.125, "high": 0.875, "step": 0.125},
            },
            "layers": {"bits": {"choices": list(BITS), "per": "layer"}},
        }
    )
    structure = Structure(
        groups=tuple(Group(name=n, width=w, layers=(n,)) for n, w in zip(names, WIDTHS, strict=True)),
        layers=tuple(
            Layer(name=n, kind="conv2d", shape=(w, w, 3, 3), macs=9 * w * w, group=n)
            for n, w in zip(names, WIDTHS, strict=True)
        ),
    )
    return resolve(config, structure, round_to=4, bits=BITS)


@dataclass(frozen=True)
class Truth:
    """What plans are worth; drawn from a seed.

    Attributes:
        seed: of the network and of the noise.
    """

    seed: int

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        n = len(WIDTHS)
        state = {
            "cut": 0.03 * rng.lognormal(0.0, 0.8, n),  # damage of half of a group
            "power": rng.uniform(1.0, 1.8, n),
            "low": 0.06 * rng.lognormal(0.0, 1.0, n),  # damage of 4 bits
            "pairs": rng.uniform(0.0, 2.0, n - 1),
            "wave": rng.normal(0.0, 1.0, (3, n)),
            "overhead": np.full(n, 0.012),
            "macs": 1.0 / n * rng.uniform(0.7, 1.3, n),
            "cut_told": rng.lognormal(0.0, 0.3, n),
            "low_told": rng.lognormal(0.0, 0.3, n),
        }
        object.__setattr__(self, "_", state)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the guide's features."""
        groups = [f"g{i:02d}" for i in range(len(WIDTHS))]
        return ("latency", "damage", "kept", "low_bits", *(f"keep/{g}" for g in groups), *(f"bits/{g}" for g in groups))

    def features(self, plan: Plan) -> np.ndarray:
        """Predicted latency and damage, mean share and bits, then each group's."""
        share, bits = _read(plan)
        s: dict[str, np.ndarray] = self._  # type: ignore[attr-defined]
        told = (s["cut_told"] * self._cut(share)).sum() + (s["low_told"] * self._bits(bits)).sum()
        few = [self._latency(share, bits), np.sqrt(told), share.mean(), (bits < 32).mean()]
        return np.concatenate([few, share, np.log2(bits) / 5.0])

    def costs(self, plan: Plan) -> dict[str, float]:
        """Latency, 2% off."""
        return {"latency_ms": self._latency(*_read(plan)) * float(np.exp(0.02 * self._noise(plan, "model")))}

    def problem(self, *, guided: bool = True) -> Problem:
        """Accuracy and latency, with this guide or without any."""
        dense = {"accuracy": 1.0 - DENSE_ERROR, "latency_ms": self._latency(*_read(Plan()))}
        return Problem(("accuracy", "latency_ms"), dense, guide=self if guided else None)

    def values(self, plan: Plan, epochs: float) -> dict[str, float]:
        """As measured: after recovery for epochs > 0, else with inherited weights."""
        share, bits = _read(plan)
        s: dict[str, np.ndarray] = self._  # type: ignore[attr-defined]
        lost = 1.0 - share
        damage = self._cut(share).sum() + self._bits(bits).sum()
        damage += float((s["pairs"] * np.sqrt(s["cut"][1:] * s["cut"][:-1]) * lost[1:] * lost[:-1]).sum())
        damage *= 1.0 + 0.15 * float(np.sin(s["wave"] @ (lost + 0.3 * (bits < 8))).mean())
        recovered = 0.12 * damage**1.5 if epochs > 0 else 2.0 * damage
        error = DENSE_ERROR + (0.9 - DENSE_ERROR) * (1.0 - np.exp(-recovered))
        error += (0.002 if epochs > 0 else 0.006) * self._noise(plan, f"error-{epochs}")
        latency = self._latency(share, bits) * float(np.exp(0.01 * self._noise(plan, "reading")))
        return {"accuracy": float(np.clip(1.0 - error, 0.0, 1.0)), "latency_ms": latency}

    def seeds(self, space: Space, count: int) -> list[dict[str, ParamValue]]:
        """What a knapsack over the guide's tables would give: the best of sampled trade-offs, by coordinate descent."""
        found = []
        for price in np.geomspace(0.02, 3.0, count):
            share, bits = np.ones(len(WIDTHS)), np.full(len(WIDTHS), 32.0)
            for _ in range(3):
                for g in range(len(WIDTHS)):
                    best = min(
                        ((self._told(share, bits, g, k, b, price), k, b) for k in np.arange(1, 9) / 8 for b in BITS),
                        key=lambda one: one[0],
                    )
                    share[g], bits[g] = best[1], best[2]
            params: dict[str, ParamValue] = {}
            for g in range(len(WIDTHS)):
                params[f"strategy/g{g:02d}"] = "none" if share[g] == 1 else "structured"
                if share[g] < 1:
                    params[f"sparsity/g{g:02d}"] = float(1 - share[g])
                params[f"bits/g{g:02d}"] = int(bits[g])
            found.append(params)
        return list({space.plan(params).key: params for params in found}.values())

    def _told(self, share: np.ndarray, bits: np.ndarray, g: int, k: float, b: int, price: float) -> float:
        share, bits = share.copy(), bits.copy()
        share[g], bits[g] = k, b
        s: dict[str, np.ndarray] = self._  # type: ignore[attr-defined]
        told = (s["cut_told"] * self._cut(share)).sum() + (s["low_told"] * self._bits(bits)).sum()
        return float(told + price * self._latency(share, bits))

    def _cut(self, share: np.ndarray) -> np.ndarray:
        s: dict[str, np.ndarray] = self._  # type: ignore[attr-defined]
        return np.asarray(s["cut"] * ((1.0 - share) / share) ** s["power"])

    def _bits(self, bits: np.ndarray) -> np.ndarray:
        s: dict[str, np.ndarray] = self._  # type: ignore[attr-defined]
        return np.asarray(np.where(bits == 4, s["low"], np.where(bits == 8, 0.02 * s["low"], 0.0)))

    def _latency(self, share: np.ndarray, bits: np.ndarray) -> float:
        s: dict[str, np.ndarray] = self._  # type: ignore[attr-defined]
        before = np.append(1.0, share[:-1])
        faster = np.where(bits < 32, 0.35, 1.0)
        return float((s["overhead"] + s["macs"] * before * share * faster).sum())

    def _noise(self, plan: Plan, what: str) -> float:
        digest = hashlib.sha256(f"{self.seed} {plan.key} {what}".encode()).digest()
        return float(np.random.default_rng(int.from_bytes(digest[:8], "big")).standard_normal())


def _read(plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    share, bits = np.ones(len(WIDTHS)), np.full(len(WIDTHS), 32.0)
    for cut in plan.cuts:
        g = int(cut.group[1:])
        share[g] = cut.keep / WIDTHS[g]
    for entry in plan.bits:
        bits[int(entry.layer[1:])] = entry.bits
    return share, bits


def trial(
    number: int,
    params: dict[str, ParamValue],
    plan: Plan,
    values: dict[str, float] | None,
    *,
    rungs: Sequence[dict[str, float]] = (),
    state: TrialState = "complete",
    seconds: float = 5.0,
) -> TrialRecord:
    """A row of a ledger: values at the last rung, of one epoch, and at earlier ones, of 0, 0.1, ... epochs."""
    begun = datetime(2026, 1, 1, tzinfo=UTC) + number * timedelta(seconds=seconds)
    return TrialRecord(
        number=number,
        state=state,
        params=params,
        plan=plan,
        measurement=None if values is None else _measurement(plan.key, values, seconds),
        rungs=tuple(
            RungResult.model_validate(
                {
                    "plan_key": plan.key,
                    "fidelity": {"epochs": 0.1 * i, "rung": i},
                    "values": {name: _exact(value) for name, value in told.items()},
                    "seconds": {"evaluate": seconds},
                }
            )
            for i, told in enumerate(rungs)
        ),
        started=begun,
        finished=begun + timedelta(seconds=seconds),
    )


def _exact(value: float) -> dict[str, float]:
    return {"value": value, "low": value, "high": value}


def _measurement(key: str, values: dict[str, float], seconds: float) -> Measurement:
    reading: dict[str, Any] = {
        "latency_ms": _exact(values["latency_ms"]), "ratio": _exact(1.0), "baseline_ms": 1.0, "p90_ms": 1.0,
        "p99_ms": 1.0, "rounds": 1, "batch_size": 1, "threads": 1, "load": 0.0,
    }  # fmt: skip
    return Measurement.model_validate(
        {
            "plan_key": key,
            "fidelity": {"epochs": 1.0, "rung": 1},
            "role": "validation",
            "values": {name: _exact(value) for name, value in values.items()},
            "artifact": {"sha256": "0" * 64, "size_bytes": 1, "macs": 1, "parameters": 1, "layers": ()},
            "latency": reading,
            "host": _HOST,
            "agreement": 0.0,
            "seconds": {"evaluate": seconds},
        }
    )
