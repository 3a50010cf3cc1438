from __future__ import annotations

import re

from autocompress.records import Estimate
from autocompress.report.controls import control_section
from autocompress.report.data import ReportData, finalist_rows
from autocompress.report.page import render


def held_against(report: ReportData) -> ReportData:
    controls = {"random": Estimate(value=0.5, low=0.48, high=0.52), "from-scratch": Estimate.exact(0.75)}
    finalists = [f.model_copy(update={"controls": controls if f.on_front else {}}) for f in report.finalists]
    return report.model_copy(update={"finalists": tuple(finalists)})


def test_every_model_stands_beside_its_controls_with_the_points_between_them(report: ReportData) -> None:
    data = held_against(report)
    rows = [row for row in finalist_rows(data.finalists, data.baseline) if row.on_front]
    section = control_section(rows)
    assert section is not None
    text = re.sub(r"<[^>]+>", " ", str(section))
    assert text.count("50.00%") == text.count("75.00%") == len(rows)
    assert "chosen at random" in text
    assert "chosen by magnitude" not in text.split("selection split of")[0]
    for row in rows:
        assert f"{100 * (0.5 - row.accuracy.value):+.2f}" in text
    assert "Against its controls" in render(data)


def test_without_controls_there_is_no_such_section(report: ReportData) -> None:
    rows = [row for row in finalist_rows(report.finalists, report.baseline) if row.on_front]
    assert control_section(rows) is None
    assert "Against its controls" not in render(report)
