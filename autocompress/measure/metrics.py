"""Metrics of a study's own, beside the task's: scikit-learn's by name, and functions by reference.

Settings only: `autocompress.measure.scoring` computes them. Nothing heavy is imported here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, field_validator, model_validator

from autocompress.records import Metric, name_problem
from autocompress.space.explain import nearest
from autocompress.space.reference import FunctionName

Margin = Annotated[float, Field(strict=True, gt=0.0, allow_inf_nan=False)] | None
OutputKind = Literal["logits", "probabilities"]

#: scikit-learn's scorers of numbers, the others being of classes. Held to the installed version by a test.
REGRESSION: frozenset[str] = frozenset(
    {
        "d2_absolute_error_score",
        "explained_variance",
        "neg_max_error",
        "neg_mean_absolute_error",
        "neg_mean_absolute_percentage_error",
        "neg_mean_gamma_deviance",
        "neg_mean_poisson_deviance",
        "neg_mean_squared_error",
        "neg_mean_squared_log_error",
        "neg_median_absolute_error",
        "neg_root_mean_squared_error",
        "neg_root_mean_squared_log_error",
        "r2",
    }
)
_AVERAGED = ("f1", "jaccard", "precision", "recall")
CLASSIFICATION: frozenset[str] = frozenset(
    {
        *(f"{name}{average}" for name in _AVERAGED for average in ("", "_macro", "_micro", "_samples", "_weighted")),
        *(f"roc_auc{kind}" for kind in ("", "_ovo", "_ovo_weighted", "_ovr", "_ovr_weighted")),
        "accuracy",
        "adjusted_mutual_info_score",
        "adjusted_rand_score",
        "average_precision",
        "balanced_accuracy",
        "completeness_score",
        "d2_brier_score",
        "d2_log_loss_score",
        "fowlkes_mallows_score",
        "homogeneity_score",
        "matthews_corrcoef",
        "mutual_info_score",
        "neg_brier_score",
        "neg_log_loss",
        "neg_negative_likelihood_ratio",
        "normalized_mutual_info_score",
        "positive_likelihood_ratio",
        "rand_score",
        "top_k_accuracy",
        "v_measure_score",
    }
)
SCORERS: tuple[str, ...] = tuple(sorted(REGRESSION | CLASSIFICATION))
#: Scorers that grow without end.
_UNBOUNDED = frozenset({"mutual_info_score", "positive_likelihood_ratio"})


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ScikitLearn(_Settings):
    """A metric of scikit-learn.

    Attributes:
        scorer: one of ``sklearn.metrics.get_scorer_names()``, such as ``"f1_macro"`` or ``"neg_log_loss"``.
        name: what the study calls it; the scorer's name if null, without ``neg_``.
        arguments: of the scorer beyond its own, such as ``{"k": 5}`` of ``top_k_accuracy``.
        margin: how much worse than the dense model's a value may be and still count in the hypervolume.
    """

    kind: Literal["scikit-learn"] = "scikit-learn"
    scorer: str
    name: str | None = None
    arguments: dict[str, str | int | float | bool | None] = {}
    margin: Margin = None

    @field_validator("scorer")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in SCORERS:
            natural = {name.removeprefix("neg_"): name for name in SCORERS}
            guess = f" (did you mean {natural[value]!r}?)" if value in natural else nearest(value, SCORERS)
            raise ValueError(f"expected a scorer of scikit-learn, such as 'f1_macro' or 'r2'{guess}, got {value!r}")
        return value

    @field_validator("name")
    @classmethod
    def _free(cls, value: str | None) -> str | None:
        return value if value is None else _checked(value)

    @model_validator(mode="after")
    def _named(self) -> ScikitLearn:
        if self.name is None:
            _checked(self.scorer.removeprefix("neg_"))
        return self

    def metric(self, outputs: OutputKind = "logits") -> Metric:
        """Name, direction and how to measure it; `outputs` says what the network's outputs are."""
        error = self.scorer.startswith("neg_")
        return Metric(
            name=self.name or self.scorer.removeprefix("neg_"),
            maximize=not error,
            best=0.0 if error else None if self.scorer in _UNBOUNDED else 1.0,
            margin=self.margin,
            source=f"scikit-learn:{self.scorer}",
            arguments=self.arguments,
            outputs=outputs,
        )


class FunctionMetric(_Settings):
    """A function ``(outputs, targets) -> number`` of arrays of shape (n, ...).

    Attributes:
        name: what the study calls it.
        function: ``package.module:function`` or ``file.py:function``; from Python also the function itself.
        maximize: larger is better; false for an error.
        best: the best value that there is, such as 100 of a score in percent; null if there is none.
        margin: how much worse than the dense model's a value may be and still count in the hypervolume.
    """

    kind: Literal["function"]
    name: str
    function: FunctionName
    maximize: Annotated[bool, Field(strict=True)]
    best: FiniteFloat | None = None
    margin: Margin = None

    @field_validator("name")
    @classmethod
    def _free(cls, value: str) -> str:
        return _checked(value)

    def metric(self, outputs: OutputKind = "logits") -> Metric:
        """Name, direction and how to measure it; what the outputs are is the function's own affair."""
        return Metric(
            name=self.name,
            maximize=self.maximize,
            best=self.best,
            margin=self.margin,
            source=self.function,
            outputs=outputs,
        )


def _by_name(value: Any) -> Any:
    return {"kind": "scikit-learn", "scorer": value} if isinstance(value, str) else value


#: As in a study file: a scorer's name, or a mapping with `kind`.
MetricConfig = Annotated[
    Annotated[ScikitLearn | FunctionMetric, Field(discriminator="kind")], BeforeValidator(_by_name)
]


def is_function(metric: Metric) -> bool:
    """Whether the metric is a function of someone's, rather than scikit-learn's."""
    return not metric.source.startswith("scikit-learn:")


def _checked(name: str) -> str:
    problem = name_problem(name)
    if problem is not None:
        raise ValueError(f"expected {problem}")
    return name
