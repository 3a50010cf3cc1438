"""The times of operations at the sizes that were seen, and what follows from them at other sizes.

An operation that was seen where it stands, at the same sizes, takes the mean of what it took. At other sizes a trend
per family (operation, with or without its context) tells: a sum of the work's measures (multiply-adds, the same with
channels rounded up to the processor's blocks, elements read and written) with weights of at least 0, times what its
nearest neighbours in size took more or less than the trend.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import exp, log, prod

import numpy as np

from autocompress.measure.kernels import OperationTime
from autocompress.records import Record
from autocompress.records.outline import LAYERS, Site

#: Channels that a kernel computes together: other numbers of them cost as the next multiple.
_BLOCKS = (8, 16)
#: Milliseconds below which a family's error counts as absolute: the clock's steps.
_FLOOR = 0.003
#: Width, in natural logarithms of sizes, over which neighbours tell about each other.
_WIDTH = 0.25
#: Weight of the trend against that of a neighbour of equal size.
_TRUST = 0.3


class Row(Record):
    """What one operation took at one size.

    Attributes:
        operation, context, sizes: of `Site`.
        kernel_ms, conversion_ms, cold_ms: medians over `count` networks; see `OperationTime`.
        count: how often it was seen.
    """

    operation: str
    context: str
    sizes: tuple[tuple[int, ...], ...]
    kernel_ms: float
    conversion_ms: float
    cold_ms: float
    count: int

    @property
    def site(self) -> Site:
        """What was timed."""
        return Site(self.operation, self.context, self.sizes)


def rows_of(seen: Iterable[tuple[Site, OperationTime]]) -> tuple[Row, ...]:
    """Observations of equal sites as one row each, sorted."""
    found: dict[Site, list[OperationTime]] = defaultdict(list)
    for site, time in seen:
        found[site].append(time)
    return tuple(
        Row(
            operation=site.operation,
            context=site.context,
            sizes=site.sizes,
            kernel_ms=float(np.median([t.kernel for t in times])),
            conversion_ms=float(np.median([t.conversion for t in times])),
            cold_ms=float(np.median([t.cold for t in times])),
            count=len(times),
        )
        for site, times in sorted(found.items())
    )


@dataclass(frozen=True)
class SiteTime:
    """Milliseconds of an operation, from the table.

    Attributes:
        kernel, conversion, cold: as of `OperationTime`.
        known: 2: seen at these sizes; 1: from its family; 0: from operations of its kind in another context.
    """

    kernel: float
    conversion: float
    cold: float
    known: int


class Table:
    """Times by site; made of rows, with trends fitted on first use."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._exact = {row.site: SiteTime(row.kernel_ms, row.conversion_ms, row.cold_ms, 2) for row in rows}
        by_kind: dict[_Kind, list[Row]] = defaultdict(list)
        for row in rows:
            by_kind[_kind(row.site, row.context)].append(row)
            by_kind[_kind(row.site, "")].append(row)
        self._families: Mapping[_Kind, _Family] = {kind: _Family(tuple(own)) for kind, own in by_kind.items()}

    def time(self, site: Site) -> SiteTime:
        """Milliseconds of an operation; 0 for a kind that was never seen."""
        found = self._exact.get(site)
        if found is None:
            known, family = 1, self._families.get(_kind(site, site.context))
            if family is None:
                known, family = 0, self._families.get(_kind(site, ""))
            found = SiteTime(0.0, 0.0, 0.0, 0)
            if family is not None:
                found = family.time(site, known)
            self._exact[site] = found
        return found


#: Operation, context, and number of axes of each size.
_Kind = tuple[str, str, tuple[int, ...]]


def _kind(site: Site, context: str) -> _Kind:
    return site.operation, context, tuple(len(shape) for shape in site.sizes)


@dataclass(frozen=True)
class _Family:
    rows: tuple[Row, ...]

    def time(self, site: Site, known: int) -> SiteTime:
        """What the trends say."""
        kernel, conversion, cold = self.trends
        return SiteTime(kernel.at(site), conversion.at(site), cold.at(site), known)

    @cached_property
    def trends(self) -> tuple[Trend, Trend, Trend]:
        """Of kernel, conversion and what cold caches add."""
        rows = self.rows
        return (
            Trend.fit(rows, [row.kernel_ms for row in rows]),
            Trend.fit(rows, [row.conversion_ms for row in rows]),
            Trend.fit(rows, [row.cold_ms for row in rows]),
        )


@dataclass(frozen=True)
class Trend:
    """How a family's time goes with size.

    Attributes:
        coefficients: shape (features,), milliseconds per unit of each of `measures`.
        places: shape (rows, dimensions), natural logarithms of what was seen.
        errors: shape (rows,), logarithm of seen over trend.
        weights: shape (rows,), how often each was seen.
    """

    coefficients: np.ndarray
    places: np.ndarray
    errors: np.ndarray
    weights: np.ndarray = field(default_factory=lambda: np.ones(0))

    @classmethod
    def fit(cls, rows: Sequence[Row], times: Sequence[float]) -> Trend:
        """Least squares of relative errors with coefficients of at least 0."""
        # Lazy: only a model that is fitted or used needs it.
        from sklearn.linear_model import LinearRegression

        wanted = np.array(times)
        counts = np.array([row.count for row in rows], dtype=float)
        features = np.array([measures(row.site) for row in rows])
        if not wanted.any():
            return cls(np.zeros(features.shape[1]), np.zeros((0, 0)), np.zeros(0))
        scale = np.sqrt(counts) / np.maximum(wanted, _FLOOR)
        top = features.max(axis=0)
        top[top == 0.0] = 1.0
        model = LinearRegression(positive=True, fit_intercept=False)
        model.fit(features / top * scale[:, None], wanted * scale)
        coefficients = np.asarray(model.coef_) / top
        trend = np.maximum(features @ coefficients, 1e-6)
        errors = np.log(np.maximum(wanted, 1e-6) / trend)
        return cls(coefficients, np.array([_place(row.site) for row in rows]), np.clip(errors, -1.0, 1.0), counts)

    def at(self, site: Site) -> float:
        """Milliseconds at other sizes."""
        base = float(np.dot(measures(site), self.coefficients))
        if not len(self.errors) or base <= 0.0:
            return max(base, 0.0)
        gaps = self.places - _place(site)
        near = np.exp(-0.5 * (gaps * gaps).sum(axis=1) / _WIDTH**2) * np.minimum(self.weights, 4.0)
        return base * exp(float((near * self.errors).sum() / (near.sum() + _TRUST)))


def measures(site: Site) -> np.ndarray:
    """What the work of an operation may be proportional to: a constant, multiply-adds and elements.

    Returns:
        Shape (7,): 1; multiply-adds; the same with channels rounded up to blocks of 8, of 16; activations read;
        activations written; weights of a layer, each in millions.
    """
    weights, *inputs, output = site.sizes
    read = sum(prod(shape) for shape in inputs) * 1e-6
    written = prod(output) * 1e-6
    op = site.operation.partition(" ")[0]
    if op in LAYERS and op != "Gather" and len(weights) > 1:
        outputs = weights[0] if op == "Conv" else weights[-1]
        positions = prod(output) / max(1, output[1] if op == "Conv" else output[-1])
        macs = prod(weights) * positions * 1e-6
        padded = [macs / max(1, outputs) * (-(-outputs // block) * block) for block in _BLOCKS]
        return np.array([1.0, macs, *padded, read, written, prod(weights) * 1e-6])
    if op == "MatMul" and len(inputs) == 2:
        macs = prod(output) * inputs[0][-1] * 1e-6
        return np.array([1.0, macs, 0.0, 0.0, read, written, 0.0])
    return np.array([1.0, 0.0, 0.0, 0.0, read, written, 0.0])


def _place(site: Site) -> np.ndarray:
    return np.array([log(max(1, size)) for shape in site.sizes for size in shape])
