from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.records import Estimate
from autocompress.report.words import (
    cost,
    duration,
    milliseconds,
    percent,
    percent_interval,
    plural,
    significant,
    size,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.00123, "0.00123"), (0.41234, "0.412"), (1.0, "1.00"), (12.34, "12.3"), (1234.5, "1,234")],
)
def test_three_significant_digits(value: float, text: str) -> None:
    assert significant(value) == text
    assert milliseconds(value) == f"{text} ms"


@given(st.floats(1e-6, 1e6))
def test_three_significant_digits_are_within_half_a_percent(value: float) -> None:
    assert float(significant(value).replace(",", "")) == pytest.approx(value, rel=0.0051)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (4.21, "4.2 s"), (42, "42 s"), (59.7, "1 min 00 s"), (192, "3 min 12 s"), (3840, "1 h 04 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_units() -> None:
    assert [size(x) for x in (999, 1080, 1_080_000, 2e9)] == ["999 B", "1.08 kB", "1.08 MB", "2.00 GB"]
    assert [cost("macs", 40.6e6), cost("size_bytes", 1500), cost("latency_ms", 0.5)] == [
        "40.6 M",
        "1.50 kB",
        "0.500 ms",
    ]
    assert [cost("packed_bytes", 2e6), cost("worst_class_drop", 0.0312)] == ["2.00 MB", "3.12 points"]
    assert percent(0.91234) == "91.23%"
    assert percent_interval(Estimate(value=0.9, low=0.88, high=0.92)) == "[88.0, 92.0]"
    assert percent_interval(Estimate.exact(0.9)) == ""
    assert [plural(1, "trial"), plural(0, "trial")] == ["1 trial", "0 trials"]
