"""Where readings come from, on this machine; device nodes are in tests/integration/test_device.py."""

import os
from pathlib import Path

import pytest

from autocompress.config import Study
from autocompress.errors import MeasurementError, StudyChangedError
from autocompress.pipeline.evaluate import Evaluator
from autocompress.pipeline.folder import write_record
from autocompress.pipeline.prepare import Workbench, latency_inputs, prepare
from autocompress.pipeline.probe import check_device, host_difference, take_readings
from autocompress.records import Fidelity, Host, Plan

TASK = f"{Path(__file__).resolve().parent / 'spied.py'}:spied"
HOST = Host(cpu="x", cores=2, flags=("avx2",), memory_gb=8, system="Linux", runtime="onnxruntime 1", threads=1)


def study_in(folder, **changes):
    return Study(**{"name": "spied", "task": {"factory": TASK}, "output": folder, "search": {"trials": 2}, **changes})


def as_if_governed(bench, governor):
    """The same study, as if its dense model had been measured under another governor of the clock."""
    baseline = bench.prepared.baseline
    host = baseline.host.model_copy(update={"governor": governor})
    changed = bench.prepared.model_copy(update={"baseline": baseline.model_copy(update={"host": host})})
    write_record(bench.folder.prepared, changed)
    return Workbench(bench.study, bench.folder, changed)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_a_study_whose_training_moves_measures_and_ends_where_it_began(tmp_path):
    before = os.sched_getaffinity(0)
    bench = prepare(study_in(tmp_path, measure={"exclusive": "move"}))
    measured = Evaluator(bench)(Plan(), Fidelity(epochs=0.25), "validation")
    assert measured.latency.cores == (max(before),)
    assert os.sched_getaffinity(0) == before


def test_a_study_that_cannot_move_its_training_is_refused_before_anything_is_made(tmp_path):
    with pytest.raises(MeasurementError, match=r"measure\.exclusive: 'move' needs at least one core beside the 512"):
        prepare(study_in(tmp_path, measure={"exclusive": "move"}, target={"threads": 512}))
    assert not (tmp_path / "spied").exists()


def test_a_reading_of_another_host_is_refused_with_what_differs(tmp_path):
    bench = as_if_governed(prepare(study_in(tmp_path)), "performance")
    here = Evaluator(bench)
    with pytest.raises(MeasurementError, match="latencies of two hosts cannot be compared"):
        here(Plan(), Fidelity(epochs=0.0), "validation")
    with pytest.raises(StudyChangedError, match=r"host: \w+ -> \w+ \(governor performance -> None\)"):
        prepare(bench.study)


def test_every_sitting_has_sessions_of_its_own(tmp_path):
    bench, made = prepare(study_in(tmp_path)), []

    class Counting:
        def __init__(self, target):
            self.target = target

        def __getattr__(self, name):
            return getattr(self.target, name)

        def prepare(self, model):
            made.append(len(model))
            return self.target.prepare(model)

    dense = bench.prepared.baseline.artifact.sha256
    taken = take_readings(
        bench.study, bench.folder, Counting(bench.target), [dense], dense, bench.inputs, seed=0, baseline=bench.host,
        batches=[latency_inputs(bench.task, 2)], sittings=3,
    )  # fmt: skip
    assert len(made) == 3
    (reading,) = taken.readings
    assert reading.rounds == 3 * bench.study.measure.rounds
    assert [rate.batch_size for rate in reading.throughput] == [2]
    assert reading.ratio.value == pytest.approx(1.0, abs=0.3)


def test_what_differs_between_hosts_is_named():
    other = HOST.model_copy(update={"governor": "powersave", "threads": 4})
    assert host_difference(HOST, other) == "threads 1 -> 4, governor None -> powersave"
    assert host_difference(HOST, HOST) == "nothing"


def test_without_a_device_there_is_nothing_to_check(tmp_path):
    bench = prepare(study_in(tmp_path))
    check_device(bench.study, bench.folder, HOST)


def test_how_long_a_device_is_waited_for_is_no_part_of_what_a_study_is(tmp_path):
    patient, other = (
        study_in(tmp_path, target={"node": {"device": name}, "node_wait_s": wait})
        for name, wait in (("rpi5", 600.0), ("jetson", 0.0))
    )
    same = study_in(tmp_path, target={"node": {"device": "rpi5"}})
    assert patient.identity() == same.identity() != other.identity()
