from __future__ import annotations

from pathlib import Path

import pytest

from autocompress.config import Study
from autocompress.errors import MeasurementError
from autocompress.measure.energy import RAPL
from autocompress.pipeline.costs import asks_for, check_costs
from autocompress.pipeline.evaluate import Evaluator
from autocompress.pipeline.finalists import _measure_together
from autocompress.pipeline.folder import StudyFolder
from autocompress.pipeline.prepare import prepare
from autocompress.records import Fidelity, Plan, check_values

TASK = f"{Path(__file__).resolve().parent / 'spied.py'}:spied"
no_counters = pytest.mark.skipif(RAPL.is_dir(), reason="this host counts its energy")


def study_in(folder: Path, **changes: object) -> Study:
    return Study(**{"name": "costs", "task": {"factory": TASK}, "output": folder, "search": {"trials": 2}, **changes})


@no_counters
@pytest.mark.parametrize(
    "changes", [{"objectives": ("accuracy", "energy_mj")}, {"constraints": {"energy_mj": {"max": 5.0}}}]
)
def test_energy_is_refused_before_anything_is_made_where_nothing_counts_it(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    study = study_in(tmp_path, **changes)
    with pytest.raises(MeasurementError, match="energy_mj: expected a host that counts its energy, found none of") as e:
        prepare(study)
    assert "/sys/class/powercap/intel-rapl" in str(e.value)
    assert not StudyFolder(study.folder).prepared.exists()
    assert not StudyFolder(study.folder).model.exists()


@pytest.mark.parametrize("name", ["peak_memory_bytes", "energy_mj"])
def test_costs_of_a_device_node_are_refused(tmp_path: Path, name: str) -> None:
    study = study_in(tmp_path, objectives=("accuracy", name), target={"node": {"device": "rpi5"}})
    with pytest.raises(MeasurementError, match=f"{name}: expected a target on this machine, got one on a node"):
        check_costs(study)


def test_energy_is_not_counted_beside_training(tmp_path: Path) -> None:
    study = study_in(tmp_path, objectives=("accuracy", "energy_mj"), measure={"exclusive": "move"})
    with pytest.raises(MeasurementError, match=r"energy_mj: expected measure.exclusive 'wait', .* got 'move'"):
        check_costs(study)


def test_a_study_asks_by_objective_or_constraint(tmp_path: Path) -> None:
    assert not asks_for(study_in(tmp_path), "peak_memory_bytes")
    assert asks_for(study_in(tmp_path, objectives=("accuracy", "peak_memory_bytes")), "peak_memory_bytes")
    assert asks_for(study_in(tmp_path, constraints={"peak_memory_bytes": {"max": 1e8}}), "peak_memory_bytes")
    check_costs(study_in(tmp_path))


@pytest.mark.slow
def test_peak_memory_is_an_objective_of_candidates_and_known_of_the_dense_model(tmp_path: Path) -> None:
    bench = prepare(study_in(tmp_path, objectives=("accuracy", "peak_memory_bytes")))
    dense = bench.prepared.baseline.peak_memory_bytes
    assert dense is not None
    assert dense.value > 0
    found = Evaluator(bench)(Plan(), Fidelity(epochs=0.0), "validation")
    check_values(found.values, bench.study.objectives)
    assert found.values["peak_memory_bytes"].value == pytest.approx(dense.value, rel=0.3)
    assert found.seconds["memory"] > 0
    assert found.latency.throughput == ()


@pytest.mark.slow
def test_finalists_have_throughput_and_peak_memory_and_a_search_has_neither(tmp_path: Path) -> None:
    bench = prepare(study_in(tmp_path, measure={"batch_sizes": (8, 1, 4), "rounds": 10}))
    assert bench.prepared.baseline.peak_memory_bytes is None
    found = Evaluator(bench)(Plan(), Fidelity(epochs=0.0), "selection")
    assert "peak_memory_bytes" not in found.values
    assert (found.latency.rounds, found.latency.throughput) == (10, ())
    ((final,), memory) = _measure_together(bench, [found])
    rates = final.latency.throughput
    assert [rate.batch_size for rate in rates] == [1, 4, 8]
    own = rates[0]
    assert own.examples_per_s.value == pytest.approx(1e3 / final.values["latency_ms"].value)
    for rate in rates:
        assert rate.examples_per_s.low <= rate.examples_per_s.value <= rate.examples_per_s.high
        assert rate.baseline_per_s > 0
    assert final.values["peak_memory_bytes"].value > 0
    assert memory is not None
    assert final.energy is None


def test_how_latency_is_taken_is_part_of_a_studys_identity_and_what_finalists_report_is_not(tmp_path: Path) -> None:
    before = study_in(tmp_path).identity()
    assert study_in(tmp_path, measure={"rounds": 30}).identity() != before
    assert study_in(tmp_path, measure={"batch_sizes": (2,)}).identity() == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rounds": 9}, "greater than or equal to 10"),
        ({"batch_sizes": (1, 1)}, r"expected distinct batch sizes, got \[1, 1\]"),
        ({"batch_sizes": (0,)}, "greater than or equal to 1"),
        ({"dispersion": 0.0}, "greater than 0"),
    ],
)
def test_settings_that_make_no_measurement_are_refused(
    tmp_path: Path, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        study_in(tmp_path, measure=settings)
