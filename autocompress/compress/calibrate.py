"""Ranges of a model's inner tensors, taken from calibration data with onnxruntime's own calibrators."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import onnx
from onnx import ModelProto, TensorProto
from onnxruntime.quantization.calibrate import HistogramCollector

from autocompress.compress.export import runtime_session
from autocompress.errors import CompressionError
from autocompress.inputs import Inputs, batch_size, named

Calibrator = Literal["minmax", "percentile", "entropy"]
#: Examples per run of the float model.
_BATCH = 64
#: Share of the values that a percentile range holds, in percent; its histogram's bins.
_PERCENTILE, _PERCENTILE_BINS = 99.999, 2048
#: Bins of the histogram, and of the quantized distribution that it is compared with. With the default of as many bins
#: as quantized ones there is a single candidate, the whole range.
_ENTROPY_BINS, _ENTROPY_QUANTIZED = 512, 128


def check_calibration(calibration: Inputs) -> None:
    """Refuse an empty calibration set, and one that is not finite.

    Raises:
        CompressionError: naming the input and its shape.
    """
    batch_size(calibration)
    for name, tensor in named(calibration).items():
        finite = not tensor.is_floating_point() or bool(tensor.isfinite().all())
        if len(tensor) == 0 or not finite:
            raise CompressionError(
                f"quantize: expected at least one calibration input, all finite, got {name!r} of shape "
                f"{tuple(tensor.shape)}{'' if finite else ' with values that are not finite'}"
            )


def ranges(
    proto: ModelProto, tensors: Sequence[str], calibration: Inputs, calibrator: Calibrator
) -> dict[str, tuple[float, float]]:
    """Smallest and largest value that the grid of each tensor has to hold.

    Args:
        proto: a float model; left alone.
        tensors: names of its inputs or of its nodes' outputs.
        calibration: tensors of shape (n, ...), n >= 1; every one of them counts, in batches.
        calibrator: ``"minmax"``: what occurred; ``"percentile"``: all but the outermost 0.001%; ``"entropy"``: the
            symmetric range, cut to what occurred, whose quantized distribution diverges least.

    Returns:
        Tensor name -> (low, high).

    Raises:
        CompressionError: the calibration set is empty or not finite, or an inner tensor is not finite.

    References:
        Migacz, 2017, "8-bit inference with TensorRT" (entropy).
    """
    check_calibration(calibration)
    observers = {name: Observer(calibrator) for name in tensors}
    for number in range(passes(calibrator)):
        for batch in _values(proto, list(observers), calibration):
            for name, values in batch.items():
                observers[name].see(values, name, number)
    return {name: observer.range() for name, observer in observers.items()}


def passes(calibrator: Calibrator) -> int:
    """How often an `Observer` has to see every batch: histograms need to know their ends before they count."""
    return 1 if calibrator == "minmax" else 2


class Observer:
    """Collects the values of one tensor, batch by batch, into the range that its grid has to hold; see `ranges`."""

    def __init__(self, calibrator: Calibrator) -> None:
        self._calibrator = calibrator
        self._low, self._high = np.inf, -np.inf
        self._collector: HistogramCollector | None = None

    def see(self, values: np.ndarray, name: str, number: int) -> None:
        """Take one batch, of any shape, for the first (`number` 0) or second time.

        Raises:
            CompressionError: a value is not finite; it names the tensor `name`.
        """
        if not values.size:
            return
        if number > 0:
            self._count(values)
            return
        if not np.all(np.isfinite(values)):
            raise CompressionError(
                f"quantize: expected finite values in calibration, got others in tensor {name!r}; a masked score of "
                "-inf cannot be quantized"
            )
        self._low, self._high = min(self._low, float(values.min())), max(self._high, float(values.max()))

    def _count(self, values: np.ndarray) -> None:
        with _silent():
            if self._collector is None:
                self._collector = HistogramCollector(
                    method=self._calibrator,
                    symmetric=False,
                    num_bins=_PERCENTILE_BINS if self._calibrator == "percentile" else _ENTROPY_BINS,
                    num_quantized_bins=_ENTROPY_QUANTIZED,
                    percentile=_PERCENTILE,
                    scenario="same",
                )
                # Its ends first: a collector that meets a larger value later adds bins, and its search for the best
                # range takes time by their square.
                self._collector.collect({"values": np.array([self._low, self._high], dtype=np.float32)})
            self._collector.collect({"values": values.astype(np.float32)})

    def range(self) -> tuple[float, float]:
        """(low, high); (0, 0) if nothing was seen."""
        if self._low > self._high:
            return 0.0, 0.0
        if self._collector is None or self._low == self._high:
            return self._low, self._high
        with _silent():
            low, high = self._collector.compute_collection_result()["values"][:2]
        return float(low), float(high)


def _values(proto: ModelProto, tensors: Sequence[str], calibration: Inputs) -> Iterator[dict[str, np.ndarray]]:
    """Batch by batch, the tensors' values on the calibration set."""
    feeds = {name: np.ascontiguousarray(tensor.detach().cpu().numpy()) for name, tensor in named(calibration).items()}
    expected = {value.name for value in proto.graph.input}
    if set(feeds) != expected:
        raise CompressionError(
            f"quantize: expected calibration inputs {', '.join(sorted(expected))}, got {', '.join(sorted(feeds))}"
        )
    tapped = ModelProto()
    tapped.CopyFrom(proto)
    known = {value.name for value in tapped.graph.output}
    inner = [name for name in tensors if name not in feeds]
    tapped.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inner if name not in known
    )
    session = runtime_session(tapped.SerializeToString())
    count = batch_size(calibration)
    for start in range(0, count, _BATCH):
        batch = {name: values[start : start + _BATCH] for name, values in feeds.items()}
        batch = {name: v.astype(np.float32) if v.dtype.kind == "f" else v for name, v in batch.items()}
        results = session.run(inner, batch) if inner else []
        inputs = {name: batch[name] for name in tensors if name in feeds}
        yield {**inputs, **dict(zip(inner, results, strict=True))}


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """The collectors print."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
