import json
import shutil
from pathlib import Path

import pytest

from autocompress.config import Study
from autocompress.errors import AutocompressError, MeasurementError, StudyChangedError
from autocompress.pipeline.evaluate import Evaluator, build_evaluator
from autocompress.pipeline.finalists import OpenedTest, _open_test
from autocompress.pipeline.folder import StudyFolder, write_record
from autocompress.pipeline.prepare import Workbench, prepare
from autocompress.pipeline.profile import profile
from autocompress.records import ChannelCut, Estimate, Fidelity, LayerBits, Plan

HERE = Path(__file__).resolve().parent
TASK = f"{HERE / 'spied.py'}:spied"


def study_in(folder, **changes):
    return Study(**{"name": "spied", "task": {"factory": TASK}, "output": folder, "search": {"trials": 2}, **changes})


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Workbench:
    return prepare(study_in(tmp_path_factory.mktemp("runs")))


@pytest.fixture
def plan(bench) -> Plan:
    group = bench.prepared.structure.groups[-1]
    return Plan(
        cuts=(ChannelCut(group=group.name, keep=16, criterion="magnitude"),),
        bits=tuple(LayerBits(layer=name, bits=8) for name in sorted(x.name for x in bench.prepared.structure.layers)),
    )


def asked_by(bench) -> set[str]:
    # The file may have been loaded more than once: this task's own copy of it.
    return type(bench.task.train).__getitem__.__globals__["ASKED"]


def test_the_search_touches_neither_selection_nor_test(bench, plan):
    asked = asked_by(bench)
    asked.clear()
    profile(bench)
    measurement = Evaluator(bench)(plan, Fidelity(epochs=0.5), "validation")
    assert asked == {"train", "validation"}
    assert measurement.role == "validation"
    assert measurement.fidelity.epochs == 0.5


def test_what_is_reported_is_read_from_the_kept_bytes(bench, plan):
    measurement = Evaluator(bench)(plan, Fidelity(epochs=0.5), "validation")
    model = bench.folder.read_artifact(measurement.artifact.sha256)
    assert measurement.values["size_bytes"].value == len(model)
    cut = next(x for x in measurement.artifact.layers if x.name == plan.cuts[0].group)
    assert cut.shape[0] == 16
    assert {x.bits for x in measurement.artifact.layers} == {8}


def test_the_same_candidate_is_answered_from_the_cache(bench, plan):
    first = Evaluator(bench)(plan, Fidelity(epochs=0.25), "validation")
    again = Evaluator(bench)(plan, Fidelity(epochs=0.25), "validation")
    assert (first.cached, again.cached) == (False, True)
    assert again.model_copy(update={"cached": False}) == first


def test_a_rung_leaves_a_checkpoint_and_no_file_and_full_training_takes_the_checkpoint_away(bench, plan):
    kept, evaluate = set((bench.folder.root / "artifacts").iterdir()), Evaluator(bench)
    result = evaluate.judge(plan, Fidelity(epochs=0.4, rung=1))
    assert result.values["latency_ms"].value > 0.0
    assert result.predicted == ()  # this study has no latency model: it was read
    assert set((bench.folder.root / "artifacts").iterdir()) == kept
    checkpoint = bench.folder.checkpoint(plan, "validation")
    assert (checkpoint / "trained.safetensors").is_file()
    assert evaluate.judge(plan, Fidelity(epochs=0.4, rung=1)).cached

    complete = evaluate(plan, Fidelity(epochs=0.8, rung=2), "validation")
    assert not checkpoint.exists()
    assert bench.folder.artifact(complete.artifact.sha256).is_file()


def test_another_fidelity_or_role_is_another_evaluation(bench, plan):
    evaluate = Evaluator(bench)
    evaluate(plan, Fidelity(epochs=0.25), "validation")
    assert not evaluate(plan, Fidelity(epochs=0.3), "validation").cached
    assert not evaluate(plan, Fidelity(epochs=0.3), "selection").cached


def test_no_candidate_is_judged_on_the_test_split(bench, plan):
    with pytest.raises(MeasurementError, match="expected 'validation' or 'selection', got 'test'"):
        Evaluator(bench)(plan, Fidelity(epochs=0.0), "test")


def test_a_latency_of_another_host_never_meets_the_baseline(bench, plan, tmp_path):
    elsewhere = bench.prepared.baseline.host.model_copy(update={"cpu": "another"})
    moved = bench.prepared.model_copy(
        update={"baseline": bench.prepared.baseline.model_copy(update={"host": elsewhere})}
    )
    with pytest.raises(MeasurementError, match="latencies of two hosts cannot be compared"):
        Evaluator(Workbench(bench.study, bench.folder, moved))(plan, Fidelity(epochs=0.0), "validation")
    folder = copied(bench, tmp_path)
    (folder / "spied" / "prepared.json").write_text(moved.model_dump_json())
    with pytest.raises(StudyChangedError, match="host: "):
        prepare(study_in(folder))


def test_a_candidate_s_process_answers_in_json(bench, plan):
    evaluate = build_evaluator(str(bench.folder.root))
    reply = evaluate({"plan": plan.model_dump(), "fidelity": {"epochs": 0.0}, "role": "validation"})
    assert json.loads(json.dumps(reply))["plan_key"] == plan.key


def test_the_test_split_is_opened_once_for_an_artifact(bench):
    sha256 = bench.prepared.baseline.artifact.sha256
    asked = asked_by(bench)
    asked.clear()
    first = _open_test(bench, sha256)
    assert asked == {"test"}
    asked.clear()
    assert _open_test(bench, sha256) == first
    assert asked == set()


def test_another_test_split_is_refused_once_one_was_opened(bench, tmp_path):
    folder = StudyFolder(copied(bench, tmp_path) / "spied")
    write_record(folder.opened, OpenedTest(data_sha256="0" * 64, accuracy={"other": Estimate.exact(0.5)}))
    with pytest.raises(StudyChangedError, match="the test split has changed since it was opened"):
        _open_test(Workbench(bench.study, folder, bench.prepared), bench.prepared.baseline.artifact.sha256)


def copied(bench, folder):
    shutil.copytree(bench.folder.root, folder / "spied")
    return folder


def test_a_prepared_study_is_taken_up(bench, tmp_path):
    again = prepare(study_in(copied(bench, tmp_path)))
    assert again.prepared == bench.prepared


def test_changed_data_is_refused_by_role(bench, tmp_path):
    folder = copied(bench, tmp_path)
    kept = folder / "spied" / "study.json"
    study = study_in(folder, task={"factory": TASK, "arguments": {"shift": 0.1}})
    kept.write_text(study.model_dump_json())  # the settings agree, what they load does not
    with pytest.raises(StudyChangedError, match=r"data \(train\): "):
        prepare(study)


def test_a_trained_model_that_brings_other_weights_is_refused(tmp_path):
    study = study_in(tmp_path, task={"factory": TASK, "arguments": {"trained": True}})
    first = prepare(study).prepared
    assert prepare(study).prepared == first
    kept = tmp_path / "spied" / "prepared.json"
    kept.write_text(first.model_copy(update={"model_sha256": "0" * 64}).model_dump_json())
    with pytest.raises(StudyChangedError, match="weights: 000000000000 -> "):
        prepare(study)


def test_changed_settings_are_refused_with_their_difference(bench, tmp_path):
    folder = copied(bench, tmp_path)
    with pytest.raises(StudyChangedError, match=r"seed: 0 -> 1"):
        prepare(study_in(folder, seed=1))


def test_changed_weights_are_refused(bench, tmp_path):
    folder = copied(bench, tmp_path)
    path = folder / "spied" / "base" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\0\1\2\3")
    with pytest.raises(AutocompressError, match=r"model\.safetensors"):
        _ = prepare(study_in(folder)).dense
