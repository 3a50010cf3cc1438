"""A study as it could have been: 60 trials of a small residual network, 8 finalists."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from autocompress.records import (
    Artifact,
    Baseline,
    Bound,
    ChannelCut,
    Estimate,
    Fidelity,
    Finalist,
    Group,
    Host,
    LatencyReading,
    Layer,
    LayerBits,
    LayerReport,
    LeftDense,
    Lineage,
    Measurement,
    Plan,
    Structure,
    TrialRecord,
    Version,
    WeightMask,
    digest,
)
from autocompress.report.data import ReportData, finalist_rows

HOST = Host(
    cpu="AMD EPYC 9R14",
    cores=2,
    flags=("avx2", "avx512f", "avx512_vnni"),
    memory_gb=16,
    system="Linux 6.1 x86_64",
    runtime="onnxruntime 1.31.1",
    threads=1,
)
BASE_MS, BASE_ACCURACY, BASE_BYTES = 2.04, 0.921, 4_346_120
START = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)


def structure() -> Structure:
    groups, layers = [], [Layer(name="stem.0", kind="conv2d", shape=(32, 3, 3, 3), macs=884_736, group="stem.0")]
    groups.append(Group(name="stem.0", width=32, layers=("stem.0", "body.0.c2", "body.1.c2", "body.2.c2")))
    for block in range(9):
        stage = block // 3
        width, before = 32 << stage, 32 << max(0, (block - 1) // 3)
        inner, outer = f"body.{block}.c1", f"body.{block}.c2"
        if stage and block % 3 == 0:
            groups.append(Group(name=outer, width=width, layers=(outer,)))
        groups.append(Group(name=inner, width=width, layers=(inner,), consumers=(outer,)))
        layers.append(Layer(name=inner, kind="conv2d", shape=(width, before, 3, 3), macs=9_437_184, group=inner))
        layers.append(Layer(name=outer, kind="conv2d", shape=(width, width, 3, 3), macs=9_437_184, group="stem.0"))
        if stage and block % 3 == 0:
            layers.append(
                Layer(name=f"body.{block}.sc.0", kind="conv2d", shape=(width, before, 1, 1), macs=524_288, group=outer)
            )
    layers.append(Layer(name="fc", kind="linear", shape=(10, 128), macs=1280))
    left = (
        LeftDense(name="fc", reason="its output channels are the network's output"),
        LeftDense(name="body.6.sc", reason="a cut changed the output's shape from (1, 10) to (1, 9)"),
    )
    return Structure(groups=tuple(groups), layers=tuple(layers), left_dense=left)


STRUCTURE = structure()


def draw_plan(rng: np.random.Generator, strength: float) -> Plan:
    cuts, masks, bits = [], [], []
    for group in STRUCTURE.groups:
        keep = max(8, 8 * round(group.width * (1 - strength * rng.uniform(0.2, 1.0)) / 8))
        if keep < group.width:
            cuts.append(ChannelCut(group=group.name, keep=keep, criterion="taylor"))
        elif rng.random() < 0.4:
            share = float(rng.choice([0.3, 0.5]))
            masks += [WeightMask(layer=x, sparsity=share, criterion="magnitude") for x in group.layers[:1]]
    bits = [LayerBits(layer=x.name, bits=8) for x in STRUCTURE.layers if rng.random() < 0.25 + strength]
    return Plan(
        cuts=tuple(sorted(cuts, key=lambda c: c.group)),
        masks=tuple(sorted(masks, key=lambda m: m.layer)),
        bits=tuple(sorted(bits, key=lambda b: b.layer)),
    )


def build_artifact(plan: Plan) -> Artifact:
    keep = {layer: c.keep for c in plan.cuts for layer in STRUCTURE.group(c.group).layers}
    zeros = {m.layer: m.sparsity for m in plan.masks}
    eight = {b.layer for b in plan.bits}
    layers = []
    for layer in STRUCTURE.layers:
        shape = (keep.get(layer.name, layer.shape[0]), *layer.shape[1:])
        weights = int(np.prod(shape))
        layers.append(
            LayerReport(
                name=layer.name,
                shape=shape,
                bits=8 if layer.name in eight else 32,
                zeros=round(weights * zeros.get(layer.name, 0.0)),
                weights=weights,
            )
        )
    size = sum(x.weights * x.bits // 8 for x in layers) + 40_000
    return Artifact(
        sha256=digest(plan) if not plan.is_dense else digest("dense"),
        size_bytes=size,
        macs=sum(x.weights for x in layers) * 150,
        parameters=sum(x.weights for x in layers),
        layers=tuple(layers),
    )


def around(value: float, half: float) -> Estimate:
    return Estimate(value=value, low=value - half, high=value + half)


def measure(plan: Plan, rng: np.random.Generator, epochs: float, noisy: bool = False) -> Measurement:
    artifact = build_artifact(plan)
    dense = build_artifact(Plan())
    share, eight = artifact.parameters / dense.parameters, len(plan.bits) / len(STRUCTURE.layers)
    ratio = 1.0 if plan.is_dense else float((0.12 + 0.88 * share**0.6) * (1 - 0.6 * eight) * rng.uniform(0.96, 1.04))
    lost = (
        (0.09 / (1 + 6 * epochs)) * (1 - share) ** 1.5
        + 0.004 * eight
        + abs(rng.normal(0, 0.004 if epochs < 1 else 0.001))
    )
    accuracy = BASE_ACCURACY - (0.0 if plan.is_dense else lost)
    if not plan.is_dense and epochs < 1 and rng.random() < 0.1:
        accuracy = float(rng.uniform(0.2, 0.7))
    latency = around(BASE_MS * ratio, 0.012 * BASE_MS * ratio)
    reading = LatencyReading(
        latency_ms=latency,
        ratio=around(ratio, 0.012 * ratio),
        baseline_ms=BASE_MS,
        p90_ms=1.1 * latency.value,
        p99_ms=1.4 * latency.value,
        rounds=20,
        batch_size=1,
        threads=1,
        load=0.31,
        noisy=noisy,
    )
    return Measurement(
        plan_key=plan.key,
        fidelity=Fidelity(epochs=epochs, rung=-1 if epochs >= 1 else 0),
        role="selection" if epochs >= 1 else "validation",
        values={
            "accuracy": around(accuracy, 0.0105),
            "latency_ms": latency,
            "size_bytes": Estimate.exact(artifact.size_bytes),
            "macs": Estimate.exact(artifact.macs),
            "parameters": Estimate.exact(artifact.parameters),
        },
        artifact=artifact,
        latency=reading,
        host=HOST,
        agreement=2.1e-6,
        warnings=("3 layers run as float in the runtime though stored at 8 bits",) if noisy else (),
    )


def draw_trials(rng: np.random.Generator, count: int) -> tuple[TrialRecord, ...]:
    trials = []
    for number in range(count):
        plan = Plan() if number == 0 else draw_plan(rng, float(rng.uniform(0.05, 0.75)))
        begun = START + timedelta(seconds=10 * number + (3600 if number > count // 2 else 0))
        row = TrialRecord(
            number=number,
            state="complete",
            origin="seed:dense" if number == 0 else "seed:uniform-0.25-8bit" if number < 6 else "sampler",
            plan=plan,
            started=begun,
            finished=begun + timedelta(seconds=float(rng.uniform(14, 26))),
            attempts=1,
        )
        if number in (17, 38):
            update: dict[str, object] = {
                "state": "failed",
                "reason": "worker: timeout: no reply within 300 s; its stack is in the log",
            }
        elif number == 44:
            update = {"state": "failed", "reason": "infeasible: body.4.c1 keeps 0 channels"}
        else:
            measurement = measure(plan, rng, 0.25)
            missed = 0.8 - measurement.values["accuracy"].value
            update = {"measurement": measurement, "violations": {"accuracy>=0.8": missed}}
        trials.append(row.model_copy(update=update))
    return tuple(trials)


def make_report(seed: int = 3, count: int = 60, **changes: object) -> ReportData:
    rng = np.random.default_rng(seed)
    trials = draw_trials(rng, count)
    complete = [t for t in trials if t.feasible and t.plan is not None and not t.plan.is_dense]
    chosen = [complete[i] for i in np.linspace(0, len(complete) - 1, 8).astype(int)]
    finals = [(t, measure(t.plan, rng, 4.0, noisy=i == 2)) for i, t in enumerate(chosen) if t.plan]
    front = {
        t.number
        for t, m in finals
        if not any(
            o.values["accuracy"].value > m.values["accuracy"].value
            and o.values["latency_ms"].value < m.values["latency_ms"].value
            for _, o in finals
        )
    }
    finalists = tuple(
        Finalist(
            number=t.number,
            plan=t.plan,
            search=t.measurement,
            final=m,
            test=around(m.values["accuracy"].value - 0.002, 0.0053) if t.number in front else None,
            on_front=t.number in front,
        )
        for t, m in finals
        if t.plan and t.measurement
    )
    fields: dict[str, object] = {
        "study": "cifar10-resnet20x2",
        "objectives": ("accuracy", "latency_ms"),
        "trials": trials,
        "finalists": finalists,
        "baseline": Baseline(
            artifact=build_artifact(Plan()),
            accuracy={
                "validation": around(0.9196, 0.0105),
                "selection": around(0.921, 0.0105),
                "test": around(0.9211, 0.0053),
            },
            latency_ms=BASE_MS,
            host=HOST,
            agreement=1.9e-6,
        ),
        "structure": STRUCTURE,
        "bounds": (Bound(objective="accuracy", min=0.8),),
        "how": (
            "45,000 images trained, recovered and calibrated; 2,500 guided the search (validation); 2,500 others "
            "judged the finalists (selection); 10,000 were opened once for the models of the front (test).",
            "Finalists recovered for 4 epochs with the dense model as teacher, then BN was recalibrated.",
        ),
        "lineage": Lineage(
            study="cifar10-resnet20x2",
            model_sha256=digest(1),
            data_sha256=digest(2),
            code_sha256=digest(3),
            space_sha256=digest(4),
            dense_sha256=digest("dense"),
            task="autocompress.tasks.images:images",
            host=HOST.key,
            versions={"torch": "2.13.0", "onnxruntime": "1.31.1", "optuna": "5.0.0", "ray": "2.60.0"},
        ),
        "seconds": {"prepare": 61.0, "profile": 4.2, "search": 1260.0, "finalists": 905.0, "register": 8.0},
        "created": datetime(2026, 3, 2, 11, 30, tzinfo=UTC),
    }
    data = ReportData.model_validate({**fields, **changes})
    if "versions" in changes:
        return data
    return data.model_copy(update={"versions": registered(data)})


def registered(data: ReportData) -> tuple[Version, ...]:
    rows = [r for r in finalist_rows(data.finalists, data.baseline) if r.on_front]
    return tuple(
        Version(model="cifar10", version=i, sha256=r.artifact.sha256, run_id=f"run{i}", aliases=r.aliases)
        for i, r in enumerate(rows, start=1)
    )


@pytest.fixture(scope="session")
def report() -> ReportData:
    return make_report()


@pytest.fixture(scope="session")
def make() -> Callable[..., ReportData]:
    return make_report
