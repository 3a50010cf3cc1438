"""A model of the latency of a target, learnt from measurements of this target alone.

latency = Σ_k a_k T_k + d f C + e B² + b n + c. T_k: the time that the table has for the operations of kind k (float
layers, integer layers, layers with integer weights alone, operations without weights, conversions); C: what cold caches
add; B: megabytes of weights, of which a cache holds fewer the more there are; n: operations that take time at all.
Coefficients are fitted on whole networks measured beside the dense one, and at least 0 except b and c: what the
profiler itself takes is known roughly only. Where no table can be made, or where it is poor, the same networks teach a
regression on the work that each kind of operation has to do.

f is the share of C that a reading has. Networks take turns, and every block of inferences begins with caches that the
others filled; the reading is the block's median. So f is 1 if one inference fills a block, 1/2 if two do, and 0 if
three or more do.

What a model is worth is known from networks that took no part in it, each measured twice: the relative error of its
predictions, and Kendall's τ between its order and the measured one, beside the τ between the two measurements, which
no model can be expected to exceed.

References:
    Zhang et al., 2021, "nn-Meter: towards accurate latency prediction of deep-learning model inference on diverse edge
    devices", for kernels as the runtime fuses them; Dudziak et al., 2020, "BRP-NAS: prediction-based NAS using GCNs",
    for judging predictors by their order.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from math import inf, prod
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from autocompress.measure.kernels import OperationTime, trace_artifact
from autocompress.measure.latency_table import Row, Table, measures, rows_of
from autocompress.records import Estimate, Record
from autocompress.records.outline import LAYERS, Outline, Site, sites

if TYPE_CHECKING:
    # Lazy: it brings torch.
    from autocompress.inputs import Arrays

ModelKind = Literal["table", "regression"]
#: Kinds of operation with a coefficient each.
_KINDS = ("float layers", "integer layers", "layers with integer weights", "other operations", "conversions")
_TABLE = (
    *_KINDS,
    *("cold caches", "square of weights", "operations", "fewer operations", "constant", "negative constant"),
)
#: What the coefficients are drawn to: every time as it is, nothing else.
_EXPECTED = np.array([1.0] * (len(_KINDS) + 1) + [0.0] * 5)
#: Weight of that against one network.
_PRIOR = 0.15
#: Relative error beyond which a network pulls no harder at the fit: a reading may be disturbed.
_HUBER = 0.03
#: Work of each mode that the regression sees.
_WORK = ("operations", "multiply-adds", "in blocks of 8", "in blocks of 16", "read", "written", "weights")
#: Width of the steps of f, a share of the latency at which a block holds one inference fewer.
_STEP = 0.08


class ModelAccuracy(Record):
    """How a model does on networks that it has not seen.

    Attributes:
        networks: how many.
        median_error, max_error: of ``|predicted / measured - 1|``.
        error_95: 95th percentile of the same.
        tau: Kendall's τ between predictions and the first measurement.
        ceiling: Kendall's τ between two measurements of the same networks.
        repeat_error: median of ``|second / first - 1|`` of the two measurements.
    """

    networks: int
    median_error: float
    max_error: float
    error_95: float
    tau: float
    ceiling: float
    repeat_error: float


class LatencyModel(Record):
    """Latencies of networks on one target and host, from their operations.

    Attributes:
        kind: ``"table"`` of operations, or ``"regression"`` on their work.
        rows: of the table.
        features, coefficients: of the sum, in milliseconds per unit.
        baseline_ms: the dense network's, to which all measurements were ratios.
        block_ms: shortest block of inferences of a reading.
        accuracy: on networks that took no part.
    """

    kind: ModelKind
    rows: tuple[Row, ...] = ()
    features: tuple[str, ...]
    coefficients: tuple[float, ...]
    baseline_ms: float = Field(gt=0.0)
    block_ms: float = Field(default=5.0, gt=0.0)
    accuracy: ModelAccuracy | None = None

    @cached_property
    def _table(self) -> Table:
        return Table(self.rows)

    def latency_ms(self, places: Sequence[Site]) -> float:
        """Milliseconds of a network with these operations."""
        table = self.kind == "table"
        values = _table_features(self._table, places, self.block_ms) if table else _work_features(self.features, places)
        return max(float(values @ np.array(self.coefficients)), 1e-6)

    def predict(self, outline: Outline) -> Estimate:
        """Milliseconds of a network, with the interval in which the errors on unseen networks lie.

        Args:
            outline: its operations.
        """
        value = self.latency_ms(sites(outline))
        wide = self.accuracy.error_95 if self.accuracy else 1.0
        return Estimate(value=value, low=value / (1.0 + wide), high=value * (1.0 + wide))

    def predict_artifact(self, model: bytes, inputs: Arrays) -> Estimate:
        """The same for the bytes of an artifact.

        Args:
            model: ONNX file of any plan of the network.
            inputs: the batch that is timed.

        Raises:
            MeasurementError: the bytes are no model that the runtime can run on the inputs.
        """
        return self.predict(trace_artifact(model, inputs).outline)


def fit_table(
    profiled: Sequence[tuple[Outline, Sequence[OperationTime]]],
    measured: Sequence[tuple[Outline, float]],
    baseline_ms: float,
    block_ms: float = 5.0,
) -> LatencyModel:
    """Learn a table from profiles of networks, and calibrate it on whole ones.

    Args:
        profiled: operations of a network, and the time of each.
        measured: operations of a network, and its latency in milliseconds; at least as many as coefficients.
        baseline_ms: the dense network's.
        block_ms: shortest block of inferences of a reading.
    """
    rows = rows_of(
        (site, time) for outline, times in profiled for site, time in zip(sites(outline), times, strict=True)
    )
    table = Table(rows)
    wanted = np.array([latency for _, latency in measured])
    features = np.array([_table_features(table, sites(outline), block_ms) for outline, _ in measured])
    return LatencyModel(
        kind="table",
        rows=rows,
        features=_TABLE,
        coefficients=tuple(_fitted(features, wanted, _EXPECTED)),
        baseline_ms=baseline_ms,
        block_ms=block_ms,
    )


def fit_regression(measured: Sequence[tuple[Outline, float]], baseline_ms: float) -> LatencyModel:
    """Learn from whole networks alone how long the work of each kind of operation takes.

    Args:
        measured: operations of a network, and its latency in milliseconds.
        baseline_ms: the dense network's.
    """
    places = [sites(outline) for outline, _ in measured]
    kinds = sorted({_kind_of(site) for found in places for site in found})
    names = (*(f"{kind}: {work}" for kind in kinds for work in _WORK), "constant")
    wanted = np.array([latency for _, latency in measured])
    features = np.array([_work_features(names, found) for found in places])
    return LatencyModel(
        kind="regression",
        features=names,
        coefficients=tuple(_fitted(features, wanted, np.zeros(len(names)), weight=0.02)),
        baseline_ms=baseline_ms,
    )


def judged(
    model: LatencyModel, unseen: Sequence[Outline], first_ms: Sequence[float], second_ms: Sequence[float]
) -> LatencyModel:
    """The model with its accuracy on networks that took no part in it, each measured twice."""
    # Lazy: scikit-learn brings it.
    from scipy.stats import kendalltau

    predicted = np.array([model.latency_ms(sites(outline)) for outline in unseen])
    first, second = np.array(first_ms), np.array(second_ms)
    errors = np.abs(predicted / first - 1.0)
    accuracy = ModelAccuracy(
        networks=len(unseen),
        median_error=float(np.median(errors)),
        max_error=float(errors.max()),
        error_95=float(np.percentile(errors, 95)),
        tau=float(kendalltau(predicted, first).statistic),
        ceiling=float(kendalltau(first, second).statistic),
        repeat_error=float(np.median(np.abs(second / first - 1.0))),
    )
    return model.model_copy(update={"accuracy": accuracy})


def refusal(accuracy: ModelAccuracy, *, error: float, tau_gap: float) -> str:
    """Why a model is too poor to be used, with its figures; empty if it is not.

    Args:
        accuracy: of the model.
        error: largest median error, a share.
        tau_gap: most that its τ may lie under the ceiling; infinite where its order does not count.
    """
    reasons = []
    if not accuracy.median_error <= error:
        reasons.append(f"a median error of at most {error:.1%}, got {accuracy.median_error:.1%}")
    if tau_gap < inf and not accuracy.tau >= accuracy.ceiling - tau_gap:
        reasons.append(
            f"a Kendall tau of at least {accuracy.ceiling - tau_gap:.3f} ({tau_gap:g} under the {accuracy.ceiling:.3f} "
            f"of two measurements), got {accuracy.tau:.3f}"
        )
    if not reasons:
        return ""
    return f"latency model: expected {' and '.join(reasons)}, on {accuracy.networks} unseen networks"


def _table_features(table: Table, places: Sequence[Site], block_ms: float) -> np.ndarray:
    """The values of `_TABLE` for a network: milliseconds, megabytes², numbers."""
    kinds, cold, megabytes, count = np.zeros(len(_KINDS)), 0.0, 0.0, 0
    for site in places:
        time, column = table.time(site), _column(site)
        kinds[column] += time.kernel
        kinds[-1] += time.conversion
        cold += time.cold
        count += (time.kernel > 0.0) + (time.conversion > 0.0)
        if column < 3 and not site.operation.startswith("Gather"):  # of a table only some rows are read
            megabytes += prod(site.sizes[0]) * (4e-6 if column == 0 else 1e-6)
    cold *= coldness(float(kinds.sum()), block_ms)
    return np.array([*kinds, cold, megabytes**2, count, -count, 1.0, -1.0])


def coldness(latency_ms: float, block_ms: float) -> float:
    """f: the share that cold caches have in a reading; its steps at 1 and 1/2 of a block are smoothed.

    Examples:
        >>> [coldness(latency, 5.0) for latency in (1.0, 3.5, 9.0)]
        [0.0, 0.5, 1.0]
    """
    share = latency_ms / block_ms
    steps = [0.5 * (1 - _STEP), 0.5 * (1 + _STEP), 1 - _STEP, 1 + _STEP]
    return float(np.interp(share, steps, [0.0, 0.5, 0.5, 1.0]))


def _column(site: Site) -> int:
    op, mode = site.operation.partition(" ")[0], site.operation.rpartition(" ")[2]
    if op not in LAYERS:
        return 3
    return 0 if mode == "float" else 2 if mode.startswith("weights") else 1


def _kind_of(site: Site) -> str:
    op, mode = site.operation.partition(" ")[0], site.operation.rpartition(" ")[2]
    return f"{op if op in LAYERS else 'other'} {mode}"


def _work_features(names: Sequence[str], places: Sequence[Site]) -> np.ndarray:
    work: dict[str, np.ndarray] = {}
    for site in places:
        kind = _kind_of(site)
        work[kind] = work.get(kind, 0.0) + measures(site)
    found = [
        work[kind][_WORK.index(what)] if (kind := name.partition(": ")[0]) in work else 0.0
        for name in names[:-1]
        for what in (name.partition(": ")[2],)
    ]
    return np.array([*found, 1.0])


def _fitted(features: np.ndarray, wanted: np.ndarray, prior: np.ndarray, weight: float = _PRIOR) -> np.ndarray:
    """Coefficients of at least 0 with the least relative errors, drawn towards a prior.

    minimize Σ_i w_i (f_i · x / y_i - 1)² + weight² Σ_k s_k² (x_k - prior_k)², x >= 0, with s_k the feature's mean share
    of a latency and w_i Huber's weights.
    """
    # Lazy: only a fit needs it.
    from sklearn.linear_model import LinearRegression

    share = features / wanted[:, None]
    scale = np.maximum(share.mean(axis=0), 1e-9)
    weights = np.ones(len(wanted))
    found = prior
    for _ in range(8):
        rows = np.vstack([share * weights[:, None], np.diag(weight * scale)]) / scale
        target = np.concatenate([weights, weight * scale * prior])
        model = LinearRegression(positive=True, fit_intercept=False).fit(rows, target)
        found = np.asarray(model.coef_) / scale
        errors = np.abs(share @ found - 1.0)
        weights = np.sqrt(_HUBER / np.maximum(errors, _HUBER))
    return found
