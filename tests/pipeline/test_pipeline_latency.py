from collections import Counter
from pathlib import Path

import pytest
import torch

from autocompress.compress.export import export_onnx
from autocompress.compress.skeleton import learn_skeleton
from autocompress.compress.statistics import Statistics
from autocompress.compress.structure import find_structure
from autocompress.config import Study
from autocompress.errors import AutocompressError, InfeasibleError
from autocompress.inputs import arrays
from autocompress.measure.kernels import trace_artifact
from autocompress.models.bert import bert
from autocompress.models.resnet import resnet_cifar
from autocompress.pipeline.evaluate import Evaluator
from autocompress.pipeline.folder import write_record
from autocompress.pipeline.guide import study_guide
from autocompress.pipeline.latency_knobs import ineffective, ineffective_words
from autocompress.pipeline.latency_learning import Networks
from autocompress.pipeline.latency_model import (
    SKETCH,
    LatencyModelSummary,
    load_outlines,
    load_predictor,
    model_path,
    study_latency_model,
)
from autocompress.pipeline.latency_outline import Outlines, learn_outlines
from autocompress.pipeline.latency_plans import spread_plans, telling
from autocompress.pipeline.prepare import prepare
from autocompress.pipeline.profile import profile, without_effect
from autocompress.records import BlockDrop, Fidelity, LowRank, Plan
from autocompress.records.outline import sites
from autocompress.space.config import SpaceConfig, load_space
from autocompress.space.space import resolve

TASK = f"{Path(__file__).resolve().parent / 'spied.py'}:spied"
FEW = Networks(learning=14, unseen=6, pool=60)
BITS = (32, 16, 8, 7, 6, 5, 4, 3, 2)


def distinct(network):
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


def convolutional():
    return resnet_cifar(8, widths=(16, 32, 32), shortcut="projection"), torch.randn(1, 3, 16, 16)


def transformer():
    network = bert(vocabulary=40, width=32, depth=2, heads=4, hidden=64, length=8, classes=3)
    ids = torch.randint(1, 40, (1, 8))
    return network, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.fixture(scope="module", params=[convolutional, transformer])
def learnt(request):
    torch.manual_seed(0)
    network, example = request.param()
    distinct(network)
    structure = find_structure(network, example)
    model = export_onnx(network, example).model
    skeleton = learn_skeleton(network, model, structure, Statistics({}), example, round_to=8, seed=0)
    outlines = learn_outlines(skeleton, model, arrays(example), round_to=8, seed=0)
    return skeleton, outlines, arrays(example), structure


def space_of(name, structure):
    config = name if isinstance(name, SpaceConfig) else load_space(name)
    return resolve(config, structure, round_to=8, bits=BITS)


@pytest.mark.slow
def test_a_plan_has_the_operations_of_its_file(learnt):
    skeleton, outlines, inputs, structure = learnt
    space = space_of("transformer", structure)
    found = spread_plans(space, outlines.of, 12, seed=3)
    assert len(found) == 12
    assert len({len(plan.drops) for plan, _ in found}) > 1
    for plan, outline in found:
        expected = trace_artifact(skeleton.model(plan), inputs).outline
        assert Counter(sites(outline)) == Counter(sites(expected))


def test_json_keeps_outlines(learnt):
    _, outlines, _, structure = learnt
    again = Outlines.model_validate_json(outlines.model_dump_json())
    plan = spread_plans(space_of("transformer", structure), outlines.of, 1, seed=1)[0][0]
    assert again.of(plan) == outlines.of(plan)


def test_a_plan_of_another_network_is_refused(learnt):
    _, outlines, _, structure = learnt
    with pytest.raises(InfeasibleError, match="expected a plan of this network, got one with 'elsewhere'"):
        outlines.of(Plan(drops=(BlockDrop(block="elsewhere"),)))
    layer = next(x.name for x in structure.layers if x.kind == "linear")
    with pytest.raises(InfeasibleError, match="expected a plan without factorized layers"):
        outlines.of(Plan(ranks=(LowRank(layer=layer, ranks=(2,)),)))


def test_networks_are_of_every_size(learnt):
    _, outlines, _, structure = learnt
    found = spread_plans(space_of("structured", structure), outlines.of, 60, seed=0)
    kept = [sum(cut.keep / structure.group(cut.group).width - 1.0 for cut in plan.cuts) for plan, _ in found]
    assert min(kept) < -0.35 * len(structure.groups)
    assert max(kept) > -0.15 * len(structure.groups)
    assert len({outline for _, outline in found}) == len(found)


def test_networks_are_chosen_for_what_they_show(learnt):
    _, outlines, _, structure = learnt
    found = [outline for _, outline in spread_plans(space_of("joint", structure), outlines.of, 40, seed=0)]
    chosen = telling(found, 10)
    assert len(set(chosen)) == 10
    shown = {site for i in chosen for site in sites(found[i])}
    first = {site for outline in found[:10] for site in sites(outline)}
    assert len(shown) > len(first)


def test_choices_without_effect_are_found(learnt):
    _, outlines, _, structure = learnt
    objectives = ("accuracy", "latency_ms", "size_bytes")
    joint = ineffective(space_of("joint", structure), objectives, outlines, seed=0)
    assert "strategy=unstructured (as none)" in joint["latency_ms"]
    assert "criterion" in joint["latency_ms"]
    assert "bits" not in " ".join(joint["latency_ms"])
    assert "blocks=" not in " ".join(joint["latency_ms"])  # how many may go at most does decide
    assert "accuracy" not in joint
    sharing = ineffective(space_of("sharing", structure), objectives, outlines, seed=0)
    assert {"codebook", "schedule"} <= set(sharing["size_bytes"])
    assert ineffective_words(joint)[0].startswith("Without effect on latency_ms: ")


def test_bits_below_eight_are_told_to_be_as_eight(learnt):
    _, outlines, _, structure = learnt
    config = SpaceConfig.model_validate({"layers": {"bits": {"choices": [32, 16, 8, 4], "per": "layer"}}})
    found = ineffective(space_of(config, structure), ("latency_ms", "size_bytes"), outlines, seed=0)
    assert found["latency_ms"] == ("bits=16 (as 32)", "bits=4 (as 8)")
    assert found["size_bytes"] == ("bits=4 (as 8)",)


def test_without_outlines_nothing_is_said_of_the_latency(learnt):
    _, _, _, structure = learnt
    assert set(ineffective(space_of("joint", structure), ("latency_ms", "macs"), None, seed=0)) == {"macs"}


# --- a whole study -------------------------------------------------------------------------------------------------


def study_in(folder, name="spied", **measure):
    return Study(
        name=name,
        task={"factory": TASK},
        output=folder,
        measure={"latency_model": "auto", **measure},
        search={"trials": 2},
        objectives=("accuracy", "latency_ms", "size_bytes"),
    )


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return prepare(study_in(tmp_path_factory.mktemp("runs"), latency_model_error=10.0, latency_model_tau_gap=3.0))


@pytest.fixture(scope="module")
def summary(bench) -> LatencyModelSummary:
    return study_latency_model(bench, FEW)


@pytest.mark.slow
def test_a_study_learns_a_model_that_another_takes_up(bench, summary):
    assert summary.accepted, summary
    assert not summary.reused
    assert summary.accuracy.networks == FEW.unseen
    assert model_path(bench, summary.key).is_file()
    again = prepare(study_in(bench.study.output, "another", latency_model_error=10.0, latency_model_tau_gap=3.0))
    # The same seed trains the same weights, so that the other study's file is the same.
    assert again.prepared.baseline.artifact.sha256 == bench.prepared.baseline.artifact.sha256
    reused = study_latency_model(again, FEW)
    assert reused.reused
    assert reused.key == summary.key
    assert "of an earlier study" in reused.words()


@pytest.mark.slow
def test_networks_that_were_only_timed_are_not_kept(bench, summary):
    assert summary.accepted
    assert not list((bench.folder.root / "latency-model").rglob("*.onnx"))


@pytest.mark.slow
def test_predictions_are_of_plans_and_candidates_are_measured_still(bench, summary):
    predictor = load_predictor(bench, summary)
    plans = [bench.space.plan(bench.space.dense()), bench.space.plan(bench.space.uniform(sparsity=0.5, bits=32))]
    first, second = predictor.predict_many(plans)
    assert 0.0 < second.low < second.value < second.high
    artifact = bench.folder.read_artifact(bench.prepared.baseline.artifact.sha256)
    assert predictor.model.predict_artifact(artifact, bench.inputs) == first
    measurement = Evaluator(bench)(plans[1], Fidelity(epochs=0.0), "validation")
    assert measurement.latency.rounds >= 10
    assert measurement.values["latency_ms"].value == pytest.approx(
        measurement.latency.ratio.value * bench.prepared.baseline.latency_ms
    )
    assert measurement.values["latency_ms"] != second


@pytest.mark.slow
def test_a_poor_model_is_refused_and_says_so(bench, summary):
    assert summary.accepted
    strict = prepare(study_in(bench.study.output, "strict", latency_model_error=1e-9))
    refused = study_latency_model(strict, FEW)
    assert not refused.accepted
    assert refused.reason.startswith("latency model: expected a median error of at most 0.0%, got ")
    assert "Every candidate is measured." in refused.words()
    assert load_predictor(strict, refused) is None
    # What the operations of a plan are is known all the same.
    assert load_outlines(strict, refused) is not None
    assert "latency_ms" in without_effect(strict, refused)


@pytest.mark.slow
def test_a_space_with_too_few_networks_has_no_model(tmp_path):
    study = study_in(tmp_path).model_copy(
        update={"space": SpaceConfig.model_validate({"layers": {"bits": {"choices": [32, 8], "per": "model"}}})}
    )
    summary = study_latency_model(prepare(study), FEW)
    assert summary.accuracy is None
    assert "expected a space of at least 18 networks" in summary.reason
    assert summary.words().startswith("No latency model: ")


@pytest.mark.slow
def test_a_sketch_guides_and_takes_the_place_of_no_reading(bench, tmp_path):
    sketched = prepare(study_in(tmp_path, "sketched", latency_model="sketch"))
    summary = study_latency_model(sketched)
    assert summary.sketch
    assert summary.accuracy is not None, summary
    assert summary.networks == SKETCH.learning + SKETCH.unseen
    # Whether it is good enough is the machine's to decide; what follows from it is not.
    trusting = summary.model_copy(update={"accepted": True, "reason": ""})
    write_record(sketched.folder.profile, profile(sketched).model_copy(update={"latency_model": trusting}))
    guide = study_guide(sketched, profile(sketched))
    small = sketched.space.plan(sketched.space.uniform(sparsity=0.5, bits=32))
    assert guide.latency_words == "latencies by the study's model"
    predicted = load_predictor(sketched, trusting).predict(small).value
    assert guide.latency_share(small) == pytest.approx(predicted / sketched.prepared.baseline.latency_ms)
    judged = Evaluator(sketched).judge(small, Fidelity(epochs=0.0))
    assert "latency_ms" not in judged.predicted
    assert trusting.words().endswith("Every candidate is measured.")
    refused = trusting.model_copy(update={"accepted": False, "reason": "too poor"})
    assert refused.words() == "No latency sketch: too poor. Multiply-adds guide the search."


@pytest.mark.slow
def test_a_sketch_that_fails_in_any_way_stops_nothing(tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("of a kind that nobody thought of")

    monkeypatch.setattr("autocompress.pipeline.latency_model.learn_skeleton", broken)
    summary = study_latency_model(prepare(study_in(tmp_path, latency_model="sketch")))
    assert summary.words() == (
        "No latency sketch: RuntimeError: of a kind that nobody thought of. Multiply-adds guide the search."
    )
    with pytest.raises(RuntimeError, match="of a kind that nobody thought of"):
        study_latency_model(prepare(study_in(tmp_path, "asked")))


@pytest.mark.slow
def test_a_model_that_is_gone_is_said_to_be(bench, summary):
    gone = summary.model_copy(update={"key": "0" * 16})
    with pytest.raises(AutocompressError, match="expected the study's latency model, got no file"):
        load_predictor(bench, gone)
