from __future__ import annotations

import pytest

from autocompress.records import Estimate, Measurement
from autocompress.report.data import ReportData, finalist_rows
from autocompress.report.figures import front_figure
from autocompress.report.words import cost


def with_costs(measurement: Measurement) -> Measurement:
    latency = measurement.values["latency_ms"].value
    values = {
        **measurement.values,
        "peak_memory_bytes": Estimate(value=2e6 * latency, low=1.9e6 * latency, high=2.1e6 * latency),
        "energy_mj": Estimate(value=3 * latency, low=2 * latency, high=4 * latency),
    }
    return measurement.model_copy(update={"values": values})


@pytest.fixture(scope="module")
def measured(report: ReportData) -> ReportData:
    dense = report.baseline.latency_ms
    return report.model_copy(
        update={
            "baseline": report.baseline.model_copy(
                update={"peak_memory_bytes": Estimate.exact(2e6 * dense), "energy_mj": 3 * dense}
            ),
            "trials": tuple(
                t.model_copy(update={"measurement": with_costs(t.measurement)}) if t.measurement is not None else t
                for t in report.trials
            ),
            "finalists": tuple(f.model_copy(update={"final": with_costs(f.final)}) for f in report.finalists),
        }
    )


@pytest.mark.parametrize(("objective", "unit"), [("peak_memory_bytes", "B)"), ("energy_mj", "(mJ)")])
def test_memory_and_energy_are_costs_of_a_front(measured: ReportData, objective: str, unit: str) -> None:
    rows = finalist_rows(measured.finalists, measured.baseline, versions=measured.versions)
    assert all(row.costs[objective].value > 0 for row in rows)
    figure = front_figure(measured, rows, objective)
    assert figure["layout"]["xaxis"]["title"]["text"].endswith(unit)
    by_name = {trace["name"]: trace for trace in figure["data"] if "name" in trace}
    assert len(by_name["front"]["x"]) == sum(row.on_front for row in rows)


def test_costs_are_told_in_their_units() -> None:
    assert cost("peak_memory_bytes", 5_000_000.0) == "5.00 MB"
    assert cost("energy_mj", 1.234) == "1.23 mJ"
