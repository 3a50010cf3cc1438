"""Networks that a task builds, in a study: prepared, evaluated, made from a plan's file."""

from pathlib import Path

import pytest

from autocompress.config import Study
from autocompress.errors import TaskError
from autocompress.pipeline.evaluate import Evaluator
from autocompress.pipeline.prepare import Workbench, prepare
from autocompress.pipeline.single import compress_one
from autocompress.records import Architecture, Fidelity, Plan

HERE = Path(__file__).resolve().parent
SPACE = {"architecture": {"width": [0.5, 1.0], "depth": [1, 2]}, "layers": {"bits": {"choices": [32, 8]}}}
PLAN = Plan(architecture=Architecture(width=0.5, depth=2, bits=8))


def study_in(folder, factory="sized.py:sized", **changes):
    task = {"factory": f"{HERE}/{factory}"}
    return Study(**{"name": "sized", "task": task, "space": SPACE, "output": folder, **changes})


@pytest.fixture(scope="module", autouse=True)
def importable():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(HERE))
        yield


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Workbench:
    return prepare(study_in(tmp_path_factory.mktemp("runs")))


def shapes(artifact):
    return {layer.name: layer.shape for layer in artifact.layers}


def test_a_built_candidate_is_measured_like_every_other(bench):
    measurement = Evaluator(bench)(PLAN, Fidelity(epochs=1.0), "validation")
    assert shapes(measurement.artifact) == {
        "0": (8, 1, 3, 3),
        "3": (8, 8, 3, 3),
        "6": (8, 8, 3, 3),
        "11": (2, 32),
    }
    assert {layer.bits for layer in measurement.artifact.layers} == {8}
    assert measurement.values["accuracy"].value > 0.6
    assert measurement.values["parameters"].value < bench.prepared.baseline.artifact.parameters
    assert Evaluator(bench)(PLAN, Fidelity(epochs=1.0), "validation").cached


def test_the_study_s_space_is_that_of_both_kinds(bench):
    assert bench.space.params(PLAN) == {
        "architecture": "built",
        "architecture/width": 0.5,
        "architecture/depth": 2.0,
        "architecture/bits": 8,
    }


def test_one_plan_from_a_file(bench, tmp_path):
    (tmp_path / "small.yaml").write_text("architecture: {width: 0.5, depth: 2, bits: 8}\n")
    built = compress_one(bench, tmp_path / "small.yaml", tmp_path, epochs=0.5)
    assert built.plan == PLAN
    assert built.summary.startswith("another network, built at width 0.5, depth 2 and trained from fresh weights")
    assert Path(built.model).is_file()
    assert shapes(built.measurement.artifact)["11"] == (2, 32)


@pytest.mark.parametrize(
    ("factory", "space", "message"),
    [
        ("spied.py:spied", SPACE, "task 'spied': expected a model function that takes 'width'"),
        (
            "sized.py:stubborn",
            {"architecture": {"depth": [0.5]}},
            r"make another network of depth=0\.5, got the dense one's",
        ),
    ],
)
def test_a_task_that_cannot_build_what_the_space_offers_is_refused_before_training(tmp_path, factory, space, message):
    with pytest.raises(TaskError, match=message):
        prepare(study_in(tmp_path, factory, space=space))
    assert not list(tmp_path.rglob("*.safetensors"))
