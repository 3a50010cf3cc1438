"""Small real models, finalists and stores for the registry's tests."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from autocompress.records import (
    Artifact,
    Baseline,
    ChannelCut,
    Estimate,
    Fidelity,
    Finalist,
    Host,
    LatencyReading,
    LayerBits,
    LayerReport,
    LeftDense,
    Lineage,
    Measurement,
    Plan,
    Role,
    TrialRecord,
)
from autocompress.registry.card import EvidenceCard, Origin, Split, TargetReference, TaskReference
from autocompress.registry.store import Store

HOST = Host(
    cpu="Test CPU", cores=2, flags=("avx2",), memory_gb=8, system="Linux", runtime="onnxruntime 1.31.1", threads=1
)
START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def _network(seed: int, batch: str | int = "batch") -> bytes:
    rng = np.random.default_rng(seed)
    weight = numpy_helper.from_array(rng.normal(size=(10, 64)).astype(np.float32), "linear.weight")
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["input"], ["flat"], name="flatten"),
            helper.make_node("Gemm", ["flat", "linear.weight"], ["output"], name="linear", transB=1),
        ],
        "net",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, 1, 8, 8])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [batch, 10])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _plan(seed: int) -> Plan:
    return Plan(
        cuts=(ChannelCut(group="body", keep=8 * (seed + 1), criterion="taylor"),),
        bits=(LayerBits(layer="linear", bits=8),),
    )


def _artifact(data: bytes) -> Artifact:
    return Artifact(
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
        macs=640,
        parameters=640,
        layers=(LayerReport(name="linear", shape=(10, 64), bits=8, zeros=64, weights=640),),
    )


def _measurement(seed: int, role: Role, epochs: float, data: bytes) -> Measurement:
    accuracy = 0.9 + seed / 1000 + (0.01 if role == "selection" else 0.0)
    latency = 0.1 + 0.2 / 3 + seed
    return Measurement(
        plan_key=_plan(seed).key,
        fidelity=Fidelity(epochs=epochs, rung=-1 if role == "selection" else 0),
        role=role,
        values={
            "accuracy": Estimate(value=accuracy, low=accuracy - 0.02, high=accuracy + 0.02),
            "latency_ms": Estimate(value=latency, low=latency * 0.98, high=latency * 1.02),
            "size_bytes": Estimate.exact(float(len(data))),
        },
        artifact=_artifact(data),
        latency=LatencyReading(
            latency_ms=Estimate(value=latency, low=latency * 0.98, high=latency * 1.02),
            ratio=Estimate(value=0.4, low=0.38, high=0.42),
            baseline_ms=latency / 0.4,
            p90_ms=latency * 1.1,
            p99_ms=latency * 1.3,
            rounds=20,
            batch_size=1,
            threads=1,
            load=0.3,
        ),
        host=HOST,
        agreement=2e-6,
        seconds={"compress": 0.5, "latency": 1.0},
        warnings=("layer stem stayed in float",) if role == "selection" else (),
    )


@pytest.fixture
def network() -> Callable[..., bytes]:
    """``network(seed, batch="batch")``: bytes of a small ONNX file."""
    return _network


@pytest.fixture
def lineage() -> Lineage:
    return Lineage(
        study="digits",
        model_sha256="a" * 64,
        data_sha256="b" * 64,
        code_sha256="c" * 64,
        space_sha256="d" * 64,
        dense_sha256="e" * 64,
        task="autocompress.tasks.digits:digits",
        host=HOST.key,
        versions={"torch": "2.13.0", "onnxruntime": "1.31.1"},
    )


@pytest.fixture
def origin(lineage: Lineage) -> Origin:
    dense = _artifact(_network(99)).model_copy(
        update={"layers": (LayerReport(name="linear", shape=(10, 128), bits=32, zeros=0, weights=1280),)}
    )
    return Origin(
        task=TaskReference(factory="autocompress.tasks.digits:digits", arguments={"seed": 0}, name="digits"),
        splits=(
            Split(role="train", size=1000, sha256="1" * 64),
            Split(role="validation", size=250, sha256="2" * 64),
            Split(role="selection", size=250, sha256="3" * 64),
            Split(role="test", size=297, sha256="4" * 64),
        ),
        target=TargetReference(kind="onnxruntime-cpu", threads=1, batch_size=1),
        objectives=("accuracy", "latency_ms"),
        seed=7,
        dense=Baseline(
            artifact=dense,
            accuracy={
                "selection": Estimate(value=0.95, low=0.93, high=0.97),
                "test": Estimate(value=0.94, low=0.92, high=0.96),
            },
            latency_ms=0.5,
            host=HOST,
            agreement=1e-6,
        ),
        lineage=lineage,
        left_dense=(LeftDense(name="lstm", reason="recurrent layers are not cut"),),
        warnings=("macs have no effect here",),
    )


@pytest.fixture
def finalist() -> Callable[..., Finalist]:
    """``finalist(seed, data)``: a finalist whose artifact is `data`."""

    def make(seed: int, data: bytes) -> Finalist:
        return Finalist(
            number=seed,
            plan=_plan(seed),
            search=_measurement(seed, "validation", 0.25, data),
            final=_measurement(seed, "selection", 4.0, data),
            test=Estimate(value=0.91, low=0.89, high=0.93),
            on_front=True,
        )

    return make


@pytest.fixture
def trials() -> Callable[[int], list[TrialRecord]]:
    """``trials(n)``: n finished trials, every tenth failed."""

    def make(count: int) -> list[TrialRecord]:
        data = _network(0)
        made = []
        for number in range(count):
            failed = number % 10 == 9
            made.append(
                TrialRecord(
                    number=number,
                    state="failed" if failed else "complete",
                    origin="seed:dense" if number == 0 else "sampler",
                    params={f"sparsity/layer{i}": number / 200 for i in range(8)} | {"strategy/layer0": "structured"},
                    plan=_plan(number),
                    measurement=None if failed else _measurement(number, "validation", 0.25, data),
                    violations={"latency_ms<=50": number - 50.0},
                    reason="worker: died: signal 9" if failed else "",
                    attempts=1,
                    started=START + timedelta(seconds=number),
                    finished=START + timedelta(seconds=number + 2),
                )
            )
        return made

    return make


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with MLflow's tables: making them takes seconds, once is enough."""
    folder = tmp_path_factory.mktemp("database")
    Store(f"sqlite:///{folder}/mlflow.db", folder)._connection.client.search_experiments()
    return folder / "mlflow.db"


@pytest.fixture
def store(empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store of its own, with a space and a percent sign in its path."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "my runs 100%"
    folder.mkdir()
    shutil.copy(empty_database, folder / "mlflow.db")
    return Store(None, folder)


@pytest.fixture
def register(
    store: Store, network: Callable[..., bytes], finalist: Callable[..., Finalist], origin: Origin, lineage: Lineage
) -> Callable[..., object]:
    """``register(seed, into=store)``: one finalist into the model ``digits``; gives its version."""

    def make(seed: int = 0, into: Store = store) -> object:
        data = network(seed)
        chosen = finalist(seed, data)
        return into.register("digits", chosen, data, EvidenceCard.of("digits", chosen, origin), lineage)

    return make
