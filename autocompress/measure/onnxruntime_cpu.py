"""The target that runs artifacts with ONNX Runtime on this machine's CPU."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from autocompress.errors import MeasurementError
from autocompress.measure.target import TargetSettings, rows

if TYPE_CHECKING:
    # Lazy: it brings torch.
    from autocompress.inputs import Arrays
    from autocompress.measure.graph import Shown
    from autocompress.measure.layers import NodeProfiler

#: ONNX Runtime's words for element types -> numpy's, for those that a network's input may have.
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
}


class OnnxRuntimeCpu(TargetSettings):
    """Settings of the target.

    Floats and 8-bit integers have kernels of their own, and so have linear layers with weights of 8 or 4 bits beside
    activations that stay floats.
    """

    kind: Literal["onnxruntime-cpu"] = "onnxruntime-cpu"

    computes: ClassVar[tuple[int, ...]] = (32, 8)
    weights_only_bits: ClassVar[tuple[int, ...]] = (8, 4)
    package: ClassVar[str] = "onnxruntime"

    def build(self) -> OnnxRuntimeCpuTarget:
        """The target.

        Raises:
            MeasurementError: ONNX Runtime cannot be imported.
        """
        return OnnxRuntimeCpuTarget(self, self.imported("onnxruntime"))


@dataclass(frozen=True)
class OnnxRuntimeCpuTarget:
    """ONNX Runtime on the CPU; satisfies `autocompress.measure.target.Target`."""

    config: OnnxRuntimeCpu
    module: Any

    @property
    def name(self) -> str:
        """Name of the target."""
        return self.config.name

    @property
    def round_to(self) -> int:
        """Multiple that channel counts are rounded to."""
        return self.config.round_to

    @property
    def bits(self) -> tuple[int, ...]:
        """Bit widths that artifacts may be stored in, and run."""
        return self.config.bits

    @property
    def computes(self) -> tuple[int, ...]:
        """Bit widths with kernels of their own."""
        return self.config.computes

    @property
    def threads(self) -> int:
        """Threads per inference."""
        return self.config.threads

    @property
    def batch_size(self) -> int:
        """Examples per inference when latency is taken."""
        return self.config.batch_size

    @property
    def runtime(self) -> str:
        """Such as ``"onnxruntime 1.24.0"``."""
        return f"onnxruntime {self.module.__version__}"

    def prepare(self, model: bytes) -> OnnxRuntimeSession:
        """Load an artifact.

        Args:
            model: the ONNX file's bytes.

        Raises:
            MeasurementError: the bytes are no model that the runtime can load, the network has no input or no
                output, or the batch axis of an input or of the first output is fixed.
        """
        session = self._session(model, self._options())
        inputs, outputs = session.get_inputs(), session.get_outputs()
        for what, nodes in (("input", inputs), ("output", outputs)):
            if not nodes:
                raise MeasurementError(f"{self.name}: expected a network with an {what}, got none")
        for node in inputs:
            self._check_batch_axis("input", node)
            if node.type not in _DTYPES:
                raise MeasurementError(
                    f"{self.name}: input {node.name!r}: expected a type out of {sorted(_DTYPES)}, got {node.type}"
                )
        # Only the first output is read; the states that a recurrent network also returns have their batch elsewhere.
        self._check_batch_axis("output", outputs[0])
        return OnnxRuntimeSession(session, self.threads)

    def graph(self, model: bytes) -> Shown:
        """The runtime's graph; see `autocompress.measure.graph.ShowsGraph`."""
        import onnx

        from autocompress.measure.onnxruntime_graph import shown

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "optimized.onnx"
            options = self._options()
            options.optimized_model_filepath = str(path)
            self._session(model, options)
            return shown(onnx.load_model_from_string(model), onnx.load_model(path))

    def profiler(self, model: bytes) -> NodeProfiler:
        """One that times nodes; see `autocompress.measure.layers.ProfilesNodes`."""
        from autocompress.measure.onnxruntime_profile import OnnxRuntimeProfiler

        return OnnxRuntimeProfiler(lambda options: self._session(model, options), self._options())

    def _session(self, model: bytes, options: Any) -> Any:
        if not isinstance(model, bytes) or not model:
            # The runtime would take a str for a path.
            got = "no bytes at all" if isinstance(model, bytes) else f"a {type(model).__name__}"
            raise MeasurementError(f"{self.name}: expected the bytes of an ONNX model, got {got}")
        try:
            return self.module.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise MeasurementError(
                f"{self.name}: expected an ONNX model that {self.runtime} can load, got {len(model)} bytes "
                f"that it refuses: {_first_line(error)}"
            ) from error

    def _check_batch_axis(self, what: str, node: Any) -> None:
        shape = list(node.shape)
        if what == "output" and not shape:
            return  # a scalar, or of unknown shape: `run` will see
        if not shape or isinstance(shape[0], int):
            axis = f"a fixed batch of {shape[0]}" if shape else "no axis at all"
            raise MeasurementError(
                f"{self.name}: {what} {node.name!r}: expected a free batch axis first, got {axis} in shape {shape}; "
                "export with a dynamic batch axis, and reshape with x.flatten(1) or x.view(x.shape[0], -1) instead of "
                "a fixed size"
            )

    def _options(self) -> Any:
        options = self.module.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.execution_mode = self.module.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = self.module.GraphOptimizationLevel.ORT_ENABLE_ALL
        # Spinning threads would burn the other networks' time between their turns.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        options.log_severity_level = 3  # errors; what matters is raised
        return options


class OnnxRuntimeSession:
    """A loaded artifact; satisfies `autocompress.measure.target.Session`."""

    def __init__(self, session: Any, threads: int) -> None:
        self.threads = threads
        self._session = session
        self._inputs = {node.name: node for node in session.get_inputs()}
        self._output: str = session.get_outputs()[0].name

    def input_shapes(self, batch_size: int) -> dict[str, tuple[int, ...]]:
        """Input name -> its shape with `batch_size` examples.

        Raises:
            MeasurementError: an axis beside the batch is free too.
        """
        shapes: dict[str, tuple[int, ...]] = {}
        for name, node in self._inputs.items():
            rest = list(node.shape[1:])
            if not all(isinstance(size, int) for size in rest):
                raise MeasurementError(
                    f"input {name!r}: expected fixed sizes behind the batch axis, got {node.shape}; "
                    "take the shape from an example instead"
                )
            shapes[name] = (batch_size, *rest)
        return shapes

    def run(self, inputs: Arrays) -> np.ndarray:
        """The first output for a batch.

        Args:
            inputs: one array of shape (n, ...) for a network with one input, or arrays by the names of its inputs;
                each of the network's own element type.

        Returns:
            Shape (n, ...); finite.

        Raises:
            MeasurementError: names, types or shapes are not the network's, or an output is NaN or infinite.
        """
        count = rows(inputs)
        outputs = np.asarray(self._call(inputs)())
        if outputs.ndim == 0 or outputs.shape[0] != count:
            raise MeasurementError(
                f"output {self._output!r}: expected {count} rows, one for each input, got shape {outputs.shape}"
            )
        finite = np.isfinite(outputs)
        if not finite.all():
            bad = np.flatnonzero(~finite.reshape(len(outputs), -1).all(axis=1))
            raise MeasurementError(
                f"output {self._output!r}: expected finite values, got {outputs[~finite].flat[0]} in {len(bad)} of "
                f"{len(outputs)} examples, the first at index {bad[0]}; the network diverged or its scales are wrong"
            )
        return outputs

    def runner(self, inputs: Arrays) -> Callable[[], object]:
        """One inference on `inputs` as a call without arguments, with nothing around it that costs time.

        Raises:
            MeasurementError: as `run`, which is tried once.
        """
        self.run(inputs)
        return self._call(inputs)

    def _call(self, inputs: Arrays) -> Callable[[], object]:
        feed = self._feed(inputs)
        run, outputs = self._session.run, [self._output]

        def call() -> object:
            try:
                return run(outputs, feed)[0]
            except Exception as error:
                shapes = ", ".join(str(array.shape) for array in feed.values())
                raise MeasurementError(
                    f"the runtime failed on an input of shape {shapes}: {_first_line(error)}"
                ) from error

        return call

    def _feed(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Arrays by input name, with names, types and shapes checked."""
        if isinstance(inputs, dict):
            feed = inputs
        else:
            if len(self._inputs) != 1:
                raise MeasurementError(f"expected arrays by the names {list(self._inputs)}, got a single array")
            feed = {next(iter(self._inputs)): inputs}
        if feed.keys() != self._inputs.keys():
            raise MeasurementError(f"inputs: expected the names {list(self._inputs)}, got {list(feed)}")
        for name, array in feed.items():
            node = self._inputs[name]
            expected = _DTYPES[node.type]
            if str(array.dtype) != expected:
                raise MeasurementError(f"input {name!r}: expected {expected}, got {array.dtype}")
            if array.ndim == 0 or array.shape[0] == 0:
                raise MeasurementError(f"input {name!r}: expected at least one example, got {array.shape}")
            if array.ndim != len(node.shape) or any(
                isinstance(want, int) and want != got for want, got in zip(node.shape, array.shape, strict=True)
            ):
                raise MeasurementError(f"input {name!r}: expected shape {node.shape}, got {list(array.shape)}")
        return feed


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
