from types import SimpleNamespace

import numpy as np
import pytest

from autocompress.errors import NoCandidateError
from autocompress.pipeline import final_front as module
from autocompress.pipeline.final_front import final_front
from autocompress.pipeline.judge import Judge
from autocompress.records import Artifact, Bound, Estimate, Fidelity, Host, LatencyReading, Measurement
from autocompress.tasks.digits import digits

HOST = Host(cpu="c", cores=2, flags=(), memory_gb=8, system="s", runtime="r", threads=1)
TARGETS = np.random.default_rng(0).integers(0, 10, 400)


def outputs(wrong):
    """Scores that are wrong on the first `wrong` examples."""
    predicted = TARGETS.copy()
    predicted[:wrong] = (predicted[:wrong] + 1) % 10
    return np.eye(10)[predicted]


def measured(number, wrong, latency):
    # The interval is that of a single accuracy, far wider than that of a difference on the same examples.
    accuracy, taken = 1 - wrong / 400, Estimate(value=latency, low=0.99 * latency, high=1.01 * latency)
    values = {
        "accuracy": Estimate(value=accuracy, low=accuracy - 0.05, high=accuracy + 0.05),
        "latency_ms": taken,
        "size_bytes": Estimate.exact(10.0),
    }
    reading = LatencyReading(
        latency_ms=taken, ratio=taken, baseline_ms=1.0, p90_ms=1.0, p99_ms=1.0, rounds=20, batch_size=1, threads=1,
        load=0.0,
    )  # fmt: skip
    return Measurement(
        plan_key=str(number), fidelity=Fidelity(epochs=1.0), role="selection", latency=reading, host=HOST,
        agreement=0.0, values=values,
        artifact=Artifact(sha256=f"{number} {wrong}", size_bytes=10, macs=1, parameters=1, layers=()),
    )  # fmt: skip


def bench(monkeypatch, bounds=(), objectives=("accuracy", "latency_ms")):
    """A study whose artifacts are told by name how many examples they get wrong."""
    task = digits()
    monkeypatch.setattr(module, "predict", lambda session, split: (outputs(int(session.split()[1])), TARGETS))
    return SimpleNamespace(
        study=SimpleNamespace(name="s", bounds=bounds, objectives=objectives, metrics=()),
        task=task,
        judge=Judge(task, (), 0),
        target=SimpleNamespace(prepare=lambda model: model),
        folder=SimpleNamespace(read_artifact=lambda sha256: sha256),
    )


def test_accuracies_are_told_apart_on_the_same_examples(monkeypatch):
    # 3 points apart with single intervals of 5: clearly apart, as all other errors are shared. Latencies overlap.
    found = [measured(0, 20, 1.01), measured(1, 32, 1.0)]
    members, tied = final_front(bench(monkeypatch), found)
    assert members == [True, False]
    assert tied == [(), ()]
    # One example apart is not.
    members, tied = final_front(bench(monkeypatch), [measured(0, 20, 1.01), measured(1, 21, 1.0)])
    assert members == [True, False]
    assert tied == [(1,), (0,)]


def test_a_faster_one_stays_beside_a_better_one(monkeypatch):
    assert final_front(bench(monkeypatch), [measured(0, 20, 1.0), measured(1, 21, 0.5)])[0] == [True, True]
    assert final_front(bench(monkeypatch), [measured(0, 21, 1.0), measured(1, 20, 0.5)])[0] == [False, True]


def test_only_the_feasible_stand_for_others(monkeypatch):
    found = [measured(0, 20, 1.0), measured(1, 21, 0.999), measured(2, 22, 0.998)]
    members, tied = final_front(bench(monkeypatch, (Bound(objective="latency_ms", max=0.9995),)), found)
    assert members == [False, True, False]
    assert tied == [(), (2,), (1,)]
    with pytest.raises(NoCandidateError, match="no finalist of study 's' meets its constraints after full recovery"):
        final_front(bench(monkeypatch, (Bound(objective="latency_ms", max=0.5),)), found)
