from dataclasses import replace
from pathlib import Path

import pytest

from autocompress.config import Study
from autocompress.measure.quality import predict
from autocompress.pipeline.evaluate import Evaluator
from autocompress.pipeline.finalists import Finals, _open_test
from autocompress.pipeline.identity import dataset_digest
from autocompress.pipeline.prepare import prepare
from autocompress.pipeline.publish import publish
from autocompress.pipeline.verify import LATENCY_TOLERANCE, agree, verify_version
from autocompress.records import Estimate, Fidelity, Finalist, LatencyReading, LayerBits, Measurement, Plan

TASK = f"{Path(__file__).resolve().parent / 'spied.py'}:spied"


def reading(ratio: float, half: float = 0.001) -> LatencyReading:
    estimate = Estimate(value=ratio, low=ratio - half, high=ratio + half)
    return LatencyReading(
        latency_ms=estimate, ratio=estimate, baseline_ms=1.0, p90_ms=1.0, p99_ms=1.0, rounds=20, batch_size=1,
        threads=1, load=0.0,
    )  # fmt: skip


def test_readings_agree_within_the_tolerance_or_where_intervals_meet():
    assert agree(reading(0.30), reading(0.30 * (1 + LATENCY_TOLERANCE / 2)))
    assert agree(reading(0.30, half=0.1), reading(0.45, half=0.1))
    assert not agree(reading(0.30), reading(0.40))


@pytest.mark.integration
@pytest.mark.slow
def test_a_true_card_holds_and_a_false_one_is_found_out(tmp_path):
    metrics = {"metrics": ["f1_macro", "neg_log_loss"]}
    bench = prepare(Study(name="spied", task={"factory": TASK}, output=tmp_path, measure=metrics))
    plan = Plan(bits=tuple(LayerBits(layer=n, bits=8) for n in sorted(x.name for x in bench.prepared.structure.layers)))
    evaluate = Evaluator(bench)
    search = evaluate(plan, Fidelity(epochs=0.25), "validation")
    final = evaluate(plan, Fidelity(epochs=0.5, rung=-1), "selection")
    baseline = bench.prepared.baseline
    dense = bench.judge.values(*predict(bench.dense_session, bench.task.selection), "selection")["accuracy"]

    def finals(measured: Measurement) -> Finals:
        tested = _open_test(bench, measured.artifact.sha256)
        assert set(tested) == {"accuracy", "f1_macro", "log_loss"}
        test = tested.pop("accuracy")
        return Finals(
            key="k",
            finalists=(
                Finalist(
                    number=1, plan=plan, search=search, final=measured, test=test, test_metrics=tested, on_front=True
                ),
            ),
            baseline=baseline.model_copy(update={"accuracy": {**baseline.accuracy, "selection": dense, "test": test}}),
            data_sha256={**bench.prepared.data_sha256, **digests(bench)},
            code_sha256="c",
        )

    registered = publish(bench, (), finals(final))
    assert len(registered.versions) == 1
    view = verify_version(registered.versions[0].uri, output=tmp_path)
    assert view.holds, [c for c in view.checks if c.outcome == "differs"]
    assert {c.name for c in view.checks} >= {"sha256", "size_bytes", "macs", "accuracy (test)", "latency"}
    assert {c.name for c in view.checks} >= {"f1_macro (selection)", "f1_macro (test)", "log_loss (test)"}

    # Another study of the same bytes, whose card claims an accuracy that the bytes do not show. Nothing of it is kept
    # here, so its task is run only on request.
    false = Estimate(value=0.123, low=0.1, high=0.2)
    better = {**final.values, "accuracy": false, "log_loss": false}
    bench = replace(bench, study=bench.study.model_copy(update={"name": "liar"}))
    registered = publish(bench, (), finals(final.model_copy(update={"values": better})))
    unknown = verify_version(registered.versions[0].uri, output=tmp_path)
    assert {c.outcome for c in unknown.checks if "accuracy" in c.name} == {"not comparable"}
    assert all(f"--task {TASK} trusts it" in c.found for c in unknown.checks if "accuracy" in c.name)
    view = verify_version(registered.versions[0].uri, output=tmp_path, trusted=TASK)
    assert not view.holds
    assert [c.name for c in view.checks if c.outcome == "differs"] == ["accuracy (selection)", "log_loss (selection)"]


def digests(bench):
    return {role: dataset_digest(getattr(bench.task, role)) for role in ("selection", "test")}
