from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError
from sklearn.metrics import get_scorer, get_scorer_names

from autocompress.errors import MeasurementError
from autocompress.measure.metrics import REGRESSION, SCORERS, FunctionMetric, MetricConfig, ScikitLearn
from autocompress.measure.scoring import MetricFunction
from autocompress.records import Metric

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(200, 4))
TARGETS = (LOGITS + RNG.normal(size=LOGITS.shape)).argmax(axis=1)


def scored(scorer: str, outputs: np.ndarray, targets: np.ndarray, kind: str = "logits", **arguments: object) -> float:
    settings = ScikitLearn(scorer=scorer, name="mine", arguments=arguments)
    return MetricFunction(settings.metric(kind))(outputs, targets)  # type: ignore[arg-type]


def halves(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve by its definition: how often a positive is scored above a negative."""
    above = scores[positive][:, None] - scores[~positive][None, :]
    return float(np.mean((above > 0) + 0.5 * (above == 0)))


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits)
    return powers / powers.sum(axis=1, keepdims=True)


def test_the_known_names_are_those_of_the_installed_library():
    assert list(SCORERS) == sorted(get_scorer_names())
    for name in SCORERS:
        kind = type(get_scorer(name)._score_func).__module__.split(".")[-1]
        assert (get_scorer(name)._sign < 0) == name.startswith("neg_"), (name, kind)
        assert (get_scorer(name)._score_func.__module__ == "sklearn.metrics._regression") == (name in REGRESSION)


def test_errors_are_minimized_in_their_natural_sign():
    loss = ScikitLearn(scorer="neg_log_loss").metric()
    assert (loss.name, loss.maximize, loss.best, loss.source) == ("log_loss", False, 0.0, "scikit-learn:neg_log_loss")
    f1 = ScikitLearn(scorer="f1_macro").metric()
    assert (f1.name, f1.maximize, f1.best) == ("f1_macro", True, 1.0)
    assert ScikitLearn(scorer="mutual_info_score").metric().best is None


def test_values_of_classes_are_those_of_the_definitions():
    predicted, probabilities, rows = LOGITS.argmax(axis=1), softmax(LOGITS), np.arange(200)
    recalls = [np.mean(predicted[c == TARGETS] == c) for c in range(4)]
    assert scored("balanced_accuracy", LOGITS, TARGETS) == pytest.approx(np.mean(recalls))
    f1 = [
        2 * np.sum((predicted == c) & (c == TARGETS)) / (np.sum(predicted == c) + np.sum(c == TARGETS))
        for c in range(4)
    ]
    assert scored("f1_macro", LOGITS, TARGETS) == pytest.approx(np.mean(f1))
    assert scored("neg_log_loss", LOGITS, TARGETS) == pytest.approx(-np.mean(np.log(probabilities[rows, TARGETS])))
    areas = [halves(probabilities[:, c], c == TARGETS) for c in range(4)]
    assert scored("roc_auc_ovr", LOGITS, TARGETS) == pytest.approx(np.mean(areas))
    second = np.argsort(-LOGITS, axis=1)[:, :2]
    assert scored("top_k_accuracy", LOGITS, TARGETS) == pytest.approx(np.mean((second == TARGETS[:, None]).any(axis=1)))
    assert scored("top_k_accuracy", LOGITS, TARGETS, k=4) == 1.0


@pytest.mark.parametrize("shape", [(200,), (200, 1), (200, 2)])
def test_two_classes_may_have_one_output_or_two(shape):
    decision = LOGITS[:, 0]
    positive = decision + RNG.normal(size=200) > 0
    outputs = np.stack([np.zeros(200), decision], axis=1) if shape == (200, 2) else decision.reshape(shape)
    targets = positive.astype(float)
    assert scored("accuracy", outputs, targets) == pytest.approx(np.mean((decision > 0) == positive))
    assert scored("roc_auc", outputs, targets) == pytest.approx(halves(decision, positive))
    right = 1 / (1 + np.exp(-np.where(positive, decision, -decision)))
    assert scored("neg_log_loss", outputs, targets) == pytest.approx(-np.mean(np.log(right)))


@pytest.mark.parametrize("labels", [2, 4])
def test_many_labels_are_judged_label_by_label(labels):
    outputs = LOGITS[:, :labels]
    targets = (outputs + RNG.normal(size=outputs.shape) > 0).astype(int)
    assert scored("accuracy", outputs, targets) == pytest.approx(np.mean(((outputs > 0) == targets).all(axis=1)))
    areas = [halves(outputs[:, k], targets[:, k] == 1) for k in range(labels)]
    assert scored("roc_auc", outputs, targets) == pytest.approx(np.mean(areas))
    with pytest.raises(MeasurementError, match=r"'mine' is of classes that exclude each other: .* got \(200, "):
        scored("neg_log_loss", outputs, targets)


def test_numbers_are_compared_as_they_are():
    wanted = RNG.normal(size=(200, 1))
    found = wanted + 0.1 * RNG.normal(size=(200, 1))
    assert scored("neg_root_mean_squared_error", found, wanted[:, 0]) == pytest.approx(
        np.sqrt(np.mean((found - wanted) ** 2))
    )
    assert scored("r2", found, wanted) == pytest.approx(
        1 - np.sum((found - wanted) ** 2) / np.sum((wanted - wanted.mean()) ** 2)
    )


def test_probabilities_are_taken_as_they_are_where_the_study_says_so():
    probabilities = softmax(LOGITS)
    for scorer in ("neg_log_loss", "roc_auc_ovr", "f1_macro"):
        assert scored(scorer, probabilities, TARGETS, "probabilities") == pytest.approx(scored(scorer, LOGITS, TARGETS))
    rounded = np.round(probabilities * 255) / 255
    assert scored("neg_brier_score", rounded, TARGETS, "probabilities") == pytest.approx(
        scored("neg_brier_score", LOGITS, TARGETS), abs=0.01
    )
    with pytest.raises(
        MeasurementError, match=r"expected logits, got outputs that are probabilities.*measure.outputs: prob"
    ):
        scored("neg_log_loss", probabilities, TARGETS)
    with pytest.raises(MeasurementError, match=r"expected probabilities, as measure.outputs says, got outputs from -"):
        scored("neg_log_loss", LOGITS, TARGETS, "probabilities")
    with pytest.raises(MeasurementError, match=r"add up to 1 for each example.*got sums from 2 to 2"):
        scored("neg_log_loss", np.full((200, 4), 0.5), TARGETS, "probabilities")


@pytest.mark.parametrize(
    ("scorer", "outputs", "targets", "message"),
    [
        ("r2", LOGITS, TARGETS, r"'mine' is of regression: expected .* \(n, k\), got \(200, 4\) and \(200,\)"),
        ("f1_macro", LOGITS[:, None], TARGETS, r"'mine' is of classification: .* got \(200, 1, 4\) and \(200,\)"),
        ("f1_macro", LOGITS, TARGETS[:-1], r"is of classification: expected outputs .* got \(200, 4\) and \(199,\)"),
        (
            "f1_macro",
            LOGITS,
            TARGETS + 1,
            r"expected whole targets from 0 to 3 for outputs of shape \(200, 4\), got 1 to 4",
        ),
        ("f1_macro", LOGITS, TARGETS + 0.5, r"expected whole targets from 0 to 3 .* got 0.5 to 3.5 of type float64"),
    ],
)
def test_what_does_not_suit_the_metric_is_refused_with_both_shapes(scorer, outputs, targets, message):
    with pytest.raises(MeasurementError, match=message):
        scored(scorer, outputs, targets)


def test_a_function_gets_outputs_and_targets_as_they_are(tmp_path: Path):
    (tmp_path / "own.py").write_text(
        "def first(outputs, targets):\n    return outputs[0, 0] - targets[0]\nnumber = 3\n"
    )
    reference = f"{tmp_path}/own.py"
    metric = FunctionMetric(kind="function", name="first", function=f"{reference}:first", maximize=False, best=1.5)
    assert metric.metric() == Metric(name="first", maximize=False, best=1.5, source=f"{reference}:first")
    assert MetricFunction(metric.metric())(LOGITS, TARGETS) == LOGITS[0, 0] - TARGETS[0]
    with pytest.raises(MeasurementError, match=r"metric 'm': expected a function as .*own.py:number, got int"):
        MetricFunction(Metric(name="m", maximize=True, source=f"{reference}:number"))
    with pytest.raises(MeasurementError, match=r"metric 'm': .*own.py:none cannot be imported: ImportError"):
        MetricFunction(Metric(name="m", maximize=True, source=f"{reference}:none"))


def test_settings_are_a_name_or_a_mapping():
    adapter: TypeAdapter[object] = TypeAdapter(MetricConfig)
    assert adapter.validate_python("r2") == ScikitLearn(scorer="r2")
    for wrong, message in (
        ("f1_makro", r"such as 'f1_macro' or 'r2' \(did you mean 'f1_macro'\?\), got 'f1_makro'"),
        ("log_loss", r"did you mean 'neg_log_loss'\?"),
        ("accuracy", "another name, as 'accuracy' is the task's own metric"),
        (
            {"kind": "scikit-learn", "scorer": "r2", "name": "latency_ms"},
            "another name, as 'latency_ms' is something else",
        ),
        ({"kind": "scikit-learn", "scorer": "r2", "name": "neg_r2"}, "natural sign, such as 'r2'"),
        ({"kind": "scikit-learn", "scorer": "r2", "name": "R 2"}, "up to 60 letters a to z"),
        ({"kind": "function", "name": "f", "function": "f", "maximize": True}, "expected 'package.module:function'"),
        ({"kind": "function", "name": "f", "function": "a:f"}, "Field required"),
    ):
        with pytest.raises(ValidationError, match=message):
            adapter.validate_python(wrong)
