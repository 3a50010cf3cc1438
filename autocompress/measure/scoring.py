"""Metrics of outputs: scikit-learn's scorers and functions of someone's.

What scikit-learn calls by name is a scorer: a function of (targets, response) where the response is a prediction, a
probability or a decision value, and whose errors are negated so that larger is always better. Here an error keeps its
natural sign and is to be minimized, and the response is derived from the artifact's outputs:

=============  =========================  ===================  ===========================================
task           outputs                    targets              prediction; probability of class c
=============  =========================  ===================  ===========================================
classes        (n, C), C >= 2             (n,) in 0..C - 1     argmax; softmax
two classes    (n,) or (n, 1)             (n,) in {0, 1}       output > 0; 1 / (1 + exp(-output))
many labels    (n, L), L >= 2             (n, L) in {0, 1}     output > 0 for each label; likewise
regression     (n,), (n, 1) or (n, k)     the same             the outputs themselves
=============  =========================  ===================  ===========================================

Decision values are the outputs, of two columns their difference. Outputs that are probabilities already have to be
declared so: then they are taken as they are, rows scaled to a sum of 1, and the threshold is 0.5.

References:
    scikit-learn, "Metrics and scoring", the scoring API (https://scikit-learn.org/stable/modules/model_evaluation.html).
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

import numpy as np

from autocompress.errors import MeasurementError
from autocompress.measure.metrics import REGRESSION, OutputKind, is_function
from autocompress.records import Metric
from autocompress.references import load_object

#: Scorers that have to be told the classes, as a resample may lack one.
_NEED_CLASSES = ("roc_auc", "top_k_accuracy", "neg_log_loss", "d2_log_loss_score", "neg_brier_score", "d2_brier_score")
_NEED_BOTH = ("neg_log_loss", "d2_log_loss_score", "neg_brier_score", "d2_brier_score")
#: How far the probabilities of an example may be from a sum of 1: an 8-bit softmax rounds.
_SUM_TOLERANCE = 0.1
#: So near to 1 are the sums of what is no logits.
_CERTAIN = 1e-4


class MetricFunction:
    """``(outputs, targets) -> value`` of a metric, in its natural sign."""

    def __init__(self, metric: Metric) -> None:
        """Import what the metric names.

        Raises:
            MeasurementError: its function cannot be imported or called.
        """
        self.metric = metric
        self.__name__ = metric.name
        self._function: Any = None
        if is_function(metric):
            try:
                self._function = load_object(metric.source)
            except (Exception, SystemExit) as error:
                raise MeasurementError(
                    f"metric {metric.name!r}: {metric.source} cannot be imported: {type(error).__name__}: {error}"
                ) from error
            if not callable(self._function):
                kind = type(self._function).__name__
                raise MeasurementError(f"metric {metric.name!r}: expected a function as {metric.source}, got {kind}")

    def __call__(self, outputs: np.ndarray, targets: np.ndarray) -> float:
        """The metric on n examples; NaN where scikit-learn says that it is undefined, as with a single class.

        Args:
            outputs: shape (n, ...), as the artifact gave them.
            targets: shape (n, ...).

        Raises:
            MeasurementError: shapes or values do not suit the metric; whatever the function raises.
        """
        if self._function is not None:
            return float(self._function(outputs, targets))
        scorer = self.metric.source.partition(":")[2]
        if scorer in REGRESSION:
            responses, targets = self._numbers(outputs, targets)
            return self._score(scorer, _regressor(), responses, targets, {})
        responses, targets, classes = self._classes(outputs, targets)
        if classes.ndim == 2 and scorer in _NEED_BOTH:
            raise MeasurementError(
                f"metric {self.metric.name!r} is of classes that exclude each other: expected targets of shape (n,), "
                f"got {targets.shape}"
            )
        extra: dict[str, Any] = {}
        if classes.ndim == 1 and scorer.startswith(_NEED_CLASSES if len(classes) > 2 else _NEED_BOTH):
            extra["labels"] = classes
        return self._score(scorer, _classifier()(classes, self.metric.outputs), responses, targets, extra)

    def _score(self, scorer: str, model: Any, outputs: np.ndarray, targets: np.ndarray, extra: dict[str, Any]) -> float:
        # Lazy: it takes two seconds to import, and only studies with such metrics need it.
        import sklearn
        from sklearn.exceptions import UndefinedMetricWarning
        from sklearn.metrics import get_scorer

        score = get_scorer(scorer)
        arguments = {**extra, **self.metric.arguments}
        # Arguments reach a scorer by its public call only where scikit-learn routes them.
        with sklearn.config_context(enable_metadata_routing=True), warnings.catch_warnings():
            # A class that is never predicted has no precision, which counts as 0: scikit-learn's own convention.
            warnings.simplefilter("ignore", UndefinedMetricWarning)
            warnings.filterwarnings("ignore", message=".*overlap", category=UserWarning)
            value = float(score(model, outputs, targets, **arguments))
        return -value if scorer.startswith("neg_") else value

    def _numbers(self, outputs: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found, wanted = _flat(outputs), _flat(targets)
        if found.shape != wanted.shape or found.ndim > 2:
            raise MeasurementError(
                f"metric {self.metric.name!r} is of regression: expected outputs and targets of one shape, (n,) or "
                f"(n, k), got {outputs.shape} and {targets.shape}"
            )
        return found.astype(float), wanted.astype(float)

    def _classes(self, outputs: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Outputs, targets as integers, and the classes: shape (C,), or (L, 2) for many labels."""
        found, wanted = _flat(outputs), _flat(targets)
        labels = found.ndim == 2 and found.shape == wanted.shape
        if (
            outputs.ndim > 2
            or targets.ndim > 2
            or found.ndim > 2
            or not (labels or (wanted.ndim == 1 and len(found) == len(wanted)))
        ):
            raise MeasurementError(
                f"metric {self.metric.name!r} is of classification: expected outputs of shape (n, classes) with "
                "targets of shape (n,), (n,) with (n,), or (n, labels) with (n, labels), got "
                f"{outputs.shape} and {targets.shape}"
            )
        count = found.shape[1] if found.ndim == 2 and not labels else 2
        whole = wanted.astype(np.int64)
        if wanted.size and (np.any(whole != wanted) or whole.min() < 0 or whole.max() >= count):
            raise MeasurementError(
                f"metric {self.metric.name!r} is of classification: expected whole targets from 0 to {count - 1} for "
                f"outputs of shape {outputs.shape}, got {wanted.min()} to {wanted.max()} of type {targets.dtype}"
            )
        found = found.astype(float)
        several = found.ndim == 2 and not labels
        if self.metric.outputs == "probabilities":
            found = self._probabilities(found, several)
        elif several and found.min() >= 0.0 and np.all(np.abs(found.sum(axis=1) - 1.0) < _CERTAIN):
            raise MeasurementError(
                f"metric {self.metric.name!r}: expected logits, got outputs that are probabilities, as each example's "
                "add up to 1; say measure.outputs: probabilities"
            )
        return found, whole, np.tile([0, 1], (found.shape[1], 1)) if labels and found.ndim == 2 else np.arange(count)

    def _probabilities(self, found: np.ndarray, several: bool) -> np.ndarray:
        if found.size and not (found.min() >= 0.0 and found.max() <= 1.0 + 1e-6):
            raise MeasurementError(
                f"metric {self.metric.name!r}: expected probabilities, as measure.outputs says, got outputs from "
                f"{found.min():.4g} to {found.max():.4g}"
            )
        if not several:
            return np.asarray(np.minimum(found, 1.0))
        sums = found.sum(axis=1, keepdims=True)
        if np.any(np.abs(sums - 1.0) > _SUM_TOLERANCE):
            raise MeasurementError(
                f"metric {self.metric.name!r}: expected probabilities that add up to 1 for each example, as "
                f"measure.outputs says, got sums from {sums.min():.4g} to {sums.max():.4g}"
            )
        scaled: np.ndarray = found / sums
        return scaled


def _flat(values: np.ndarray) -> np.ndarray:
    """Without a last axis of one: (n, 1) as (n,)."""
    return values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values


@functools.cache
def _regressor() -> Any:
    """What a scorer takes for a fitted regressor: its "inputs" are the outputs themselves."""
    from sklearn.base import BaseEstimator, RegressorMixin

    class Outputs(RegressorMixin, BaseEstimator):  # type: ignore[misc]
        def predict(self, outputs: np.ndarray) -> np.ndarray:
            return outputs

    return Outputs()


@functools.cache
def _classifier() -> Any:
    from sklearn.base import BaseEstimator, ClassifierMixin

    class Outputs(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
        """What a scorer takes for a fitted classifier: its "inputs" are the outputs themselves."""

        def __init__(self, classes: np.ndarray | None = None, kind: OutputKind = "logits") -> None:
            # `classes_` of shape (L, 2) is how an estimator of many labels is known.
            self.classes = self.classes_ = np.arange(2) if classes is None else classes
            self.kind = kind

        def predict(self, outputs: np.ndarray) -> np.ndarray:
            if outputs.ndim == 2 and self.classes_.ndim == 1:
                return np.asarray(outputs.argmax(axis=1))
            return np.asarray(outputs > (0.5 if self.kind == "probabilities" else 0.0)).astype(np.int64)

        def predict_proba(self, outputs: np.ndarray) -> np.ndarray:
            from scipy.special import expit, softmax

            given = self.kind == "probabilities"
            if outputs.ndim == 2 and self.classes_.ndim == 1:
                return np.asarray(outputs if given else softmax(outputs, axis=1))
            positive = np.asarray(outputs if given else expit(outputs))
            return positive if outputs.ndim == 2 else np.stack([1.0 - positive, positive], axis=1)

        def decision_function(self, outputs: np.ndarray) -> np.ndarray:
            two = self.classes_.ndim == 1 and outputs.ndim == 2 and outputs.shape[1] == 2
            return np.asarray(outputs[:, 1] - outputs[:, 0] if two else outputs)

    return Outputs
