from __future__ import annotations

import re

from autocompress.records import Agreement, ClassAgreement, Estimate, Metric
from autocompress.report.data import ReportData
from autocompress.report.page import render

LOSS = Metric(name="log_loss", maximize=False, best=0.0, source="scikit-learn:neg_log_loss")


def of(value: float) -> Estimate:
    return Estimate(value=value, low=value - 0.01, high=value + 0.01)


def measured(report: ReportData) -> ReportData:
    """The report of a study whose finalists have a metric, are compared with the dense model, and are tied in pairs."""
    finalists = []
    for index, finalist in enumerate(report.finalists):
        alike = Agreement(dense=of(0.9), classes=(ClassAgreement(target=7, examples=9, dense=of(0.5)),))
        values = {**finalist.final.values, "log_loss": of(0.1 + 0.05 * index)}
        final = finalist.final.model_copy(update={"values": values, "predictions": alike})
        other = report.finalists[index ^ 1].number
        finalists.append(finalist.model_copy(update={"final": final, "tied_with": (other,)}))
    trials = tuple(
        t.model_copy(
            update={
                "measurement": t.measurement.model_copy(
                    update={"values": {**t.measurement.values, "log_loss": of(0.5)}}
                )
            }
        )
        if t.measurement
        else t
        for t in report.trials
    )
    baseline = report.baseline.model_copy(
        update={"metrics": {"validation": {"log_loss": of(0.11)}, "selection": {"log_loss": of(0.12)}}}
    )
    return report.model_copy(
        update={
            "finalists": tuple(finalists),
            "trials": trials,
            "baseline": baseline,
            "metrics": (LOSS,),
            "objectives": ("log_loss", "latency_ms"),
        }
    )


def test_metrics_agreement_and_ties_are_shown(report: ReportData) -> None:
    text = render(measured(report))
    section = re.search(r"<h2>More metrics</h2>.*?</section>", text, re.DOTALL)
    assert section is not None
    assert "log_loss is better smaller" in section[0]
    for index, finalist in enumerate(report.finalists):
        if finalist.on_front:
            assert f"{0.1 + 0.05 * index:.4g}" in section[0]
    assert "0.12" in section[0]
    agreement = re.search(r"<h2>Same predictions as before</h2>.*?</section>", text, re.DOTALL)
    assert agreement is not None
    assert "class 7" in agreement[0]
    assert "quantized" in agreement[0]
    for index, finalist in enumerate(report.finalists):
        if finalist.on_front:
            assert f"tied with trial {report.finalists[index ^ 1].number}<" in text


def test_a_study_without_metrics_has_no_such_section(report: ReportData) -> None:
    text = render(report)
    assert "More metrics" not in text
    assert "Same predictions" not in text
    assert "tied with trial" not in text
