import numpy as np
import pytest

from autocompress.measure.kernels import OperationTime
from autocompress.measure.latency_model import (
    LatencyModel,
    ModelAccuracy,
    coldness,
    fit_regression,
    fit_table,
    judged,
    refusal,
)
from autocompress.measure.latency_table import Row, Table, measures, rows_of
from autocompress.records.outline import Operation, Site, sites


def network(widths, modes):
    """Convolutions in a row on maps of 16 × 16."""
    found, before = [], 3
    for place, (width, mode) in enumerate(zip(widths, modes, strict=True)):
        shapes = ((1, before, 16, 16),)
        found.append(Operation("Conv", "k=3", mode, (place - 1,), (width, before, 3, 3), shapes, (1, width, 16, 16)))
        before = width
    return tuple(found)


def truth(operation, *, cold=0.0):
    macs = np.prod(operation.weights) * 256e-6
    fast = 4.0 if operation.mode == "integer" else 1.0
    conversion = 0.01 if operation.mode == "integer" else 0.0
    return OperationTime(0.002 + macs / fast / 40.0, conversion, cold)


def drawn(count, seed):
    rng = np.random.default_rng(seed)
    modes = np.array(["float", "integer"])
    return [network(8 * rng.integers(1, 9, 5), modes[rng.integers(0, 2, 5)]) for _ in range(count)]


def latency(outline, factor=1.1):
    return factor * sum(t.kernel + t.conversion for t in map(truth, outline)) + 0.02


@pytest.fixture(scope="module")
def table():
    seen = drawn(40, 0)
    profiled = [(outline, [truth(o) for o in outline]) for outline in seen]
    return fit_table(profiled, [(outline, latency(outline)) for outline in seen[:30]], baseline_ms=2.0)


def test_an_operation_that_was_seen_takes_what_it_took():
    site = sites(network([8], ["float"]))[0]
    found = Table(rows_of([(site, OperationTime(1.0, 0.5)), (site, OperationTime(3.0, 0.5))])).time(site)
    assert (found.kernel, found.conversion, found.known) == (2.0, 0.5, 2)


def test_other_sizes_follow_the_work(table):
    unseen = drawn(30, 9)
    errors = [table.predict(outline).value / latency(outline) - 1.0 for outline in unseen]
    assert np.median(np.abs(errors)) < 0.03
    assert np.abs(errors).max() < 0.1


def test_another_context_falls_back_on_the_operation():
    row = Row(
        operation="Relu  float",
        context="a>b",
        sizes=((), (4,), (4,)),
        kernel_ms=1.0,
        conversion_ms=0.0,
        cold_ms=0.0,
        count=1,
    )
    found = Table([row]).time(Site("Relu  float", "c>d", ((), (4,), (4,))))
    assert found.known == 0
    assert found.kernel == pytest.approx(1.0, rel=0.01)


def test_an_operation_of_no_known_kind_takes_nothing():
    assert Table([]).time(Site("Sin  float", ">", ((), (4,), (4,)))).kernel == 0.0


def test_work_is_counted_in_blocks_of_channels():
    work = measures(sites(network([12], ["float"]))[0])
    macs = 12 * 3 * 9 * 256e-6
    assert work == pytest.approx([1.0, macs, macs * 16 / 12, macs * 16 / 12, 768e-6, 3072e-6, 324e-6])


def test_cold_caches_count_where_an_inference_fills_a_block():
    assert [coldness(x, 5.0) for x in (0.5, 2.0, 3.0, 4.5, 6.0)] == [0.0, 0.0, 0.5, 0.5, 1.0]
    outline = network([64, 64, 64], ["float"] * 3)
    slow = fit_table([(outline, [truth(o, cold=1.0) for o in outline])] * 9, [(outline, 9.0)] * 9, 9.0, block_ms=1.0)
    quick = fit_table([(outline, [truth(o, cold=1.0) for o in outline])] * 9, [(outline, 9.0)] * 9, 9.0, block_ms=1e3)
    at = slow.features.index("cold caches")
    assert slow.coefficients[at] > 1.0
    assert quick.predict(outline).value != pytest.approx(slow.predict(outline).value)


def test_a_disturbed_reading_does_not_carry_the_fit_away(table):
    seen = drawn(40, 0)
    profiled = [(outline, [truth(o) for o in outline]) for outline in seen]
    readings = [(outline, latency(outline) * (3.0 if i == 4 else 1.0)) for i, outline in enumerate(seen[:30])]
    disturbed = fit_table(profiled, readings, baseline_ms=2.0)
    for outline in drawn(5, 3):
        assert disturbed.predict(outline).value == pytest.approx(table.predict(outline).value, rel=0.05)


def test_a_regression_needs_whole_networks_only():
    model = fit_regression([(outline, latency(outline)) for outline in drawn(40, 0)], baseline_ms=2.0)
    assert model.kind == "regression"
    assert not model.rows
    errors = [model.predict(outline).value / latency(outline) - 1.0 for outline in drawn(30, 9)]
    assert np.median(np.abs(errors)) < 0.05


@pytest.mark.parametrize("kind", ["table", "regression"])
def test_json_keeps_a_model(table, kind):
    model = table
    if kind == "regression":
        model = fit_regression([(outline, latency(outline)) for outline in drawn(20, 0)], baseline_ms=2.0)
    again = LatencyModel.model_validate_json(model.model_dump_json())
    assert again == model
    for outline in drawn(10, 5):
        assert again.predict(outline) == model.predict(outline)


def test_a_model_is_judged_on_networks_measured_twice(table):
    unseen = drawn(20, 11)
    first = [latency(outline) for outline in unseen]
    accuracy = judged(table, unseen, first, [1.02 * x for x in first]).accuracy
    assert accuracy.networks == 20
    assert accuracy.ceiling == 1.0
    assert accuracy.repeat_error == pytest.approx(0.02)
    assert accuracy.median_error <= accuracy.error_95 <= accuracy.max_error
    estimate = table.model_copy(update={"accuracy": accuracy}).predict(unseen[0])
    assert estimate.low < estimate.value < estimate.high
    assert estimate.high / estimate.value == pytest.approx(1.0 + accuracy.error_95)


def accuracy(**changes):
    return ModelAccuracy(
        **{
            "networks": 20,
            "median_error": 0.02,
            "max_error": 0.08,
            "error_95": 0.06,
            "tau": 0.93,
            "ceiling": 0.95,
            "repeat_error": 0.01,
            **changes,
        }
    )


def test_a_poor_model_is_refused_with_its_figures():
    assert refusal(accuracy(), error=0.05, tau_gap=0.1) == ""
    assert refusal(accuracy(median_error=0.123), error=0.05, tau_gap=0.1) == (
        "latency model: expected a median error of at most 5.0%, got 12.3%, on 20 unseen networks"
    )
    assert "expected a Kendall tau of at least 0.850 (0.1 under the 0.950 of two measurements), got 0.700" in refusal(
        accuracy(tau=0.7), error=0.05, tau_gap=0.1
    )


def test_without_an_order_a_model_is_refused():
    assert refusal(accuracy(tau=float("nan")), error=0.05, tau_gap=0.1)
