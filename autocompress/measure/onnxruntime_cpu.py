"""The target that runs artifacts with ONNX Runtime on this machine's CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from autocompress.errors import MeasurementError

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

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


class OnnxRuntimeCpu(BaseModel):
    """Settings of the target; `build` makes it.

    Attributes:
        threads: threads that share one inference.
        batch_size: examples per inference when latency is taken.
        round_to: channel counts that run fast here are multiples of this.
        bits: bit widths with fast kernels here: 32-bit floats and 8-bit integers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    kind: Literal["onnxruntime-cpu"] = "onnxruntime-cpu"
    threads: int = Field(default=1, ge=1)
    batch_size: int = Field(default=1, ge=1)

    round_to: ClassVar[int] = 8
    bits: ClassVar[tuple[int, ...]] = (32, 8)

    @property
    def name(self) -> str:
        """Name of the target in records and reports."""
        return self.kind

    def build(self) -> OnnxRuntimeCpuTarget:
        """The target.

        Raises:
            MeasurementError: ONNX Runtime cannot be imported.
        """
        try:
            # Lazy, so that a study file is validated without it.
            import onnxruntime
        except (ImportError, OSError) as error:
            raise MeasurementError(
                f"target {self.name!r}: expected the package onnxruntime, which failed to import: {error}; "
                "install it with 'pip install onnxruntime'"
            ) from error
        return OnnxRuntimeCpuTarget(self, onnxruntime)


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
        """Supported bit widths."""
        return self.config.bits

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
            MeasurementError: the bytes are no model that the runtime can load, the network does not have exactly
                one input and one output, or its batch axis is fixed.
        """
        if not isinstance(model, bytes) or not model:
            # The runtime would take a str for a path.
            got = "no bytes at all" if isinstance(model, bytes) else f"a {type(model).__name__}"
            raise MeasurementError(f"{self.name}: expected the bytes of an ONNX model, got {got}")
        try:
            session = self.module.InferenceSession(model, self._options(), providers=["CPUExecutionProvider"])
        except Exception as error:
            raise MeasurementError(
                f"{self.name}: expected an ONNX model that {self.runtime} can load, got {len(model)} bytes "
                f"that it refuses: {_first_line(error)}"
            ) from error
        inputs, outputs = session.get_inputs(), session.get_outputs()
        for what, nodes in (("input", inputs), ("output", outputs)):
            if len(nodes) != 1:
                names = [node.name for node in nodes]
                raise MeasurementError(f"{self.name}: expected a network with one {what}, got {len(nodes)}: {names}")
            self._check_batch_axis(what, nodes[0])
        if inputs[0].type not in _DTYPES:
            raise MeasurementError(
                f"{self.name}: input {inputs[0].name!r}: expected a type out of {sorted(_DTYPES)}, got {inputs[0].type}"
            )
        return OnnxRuntimeSession(session, self.threads)

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
        self._input = session.get_inputs()[0]
        self._outputs = [session.get_outputs()[0].name]

    def input_shape(self, batch_size: int) -> tuple[int, ...]:
        """Shape of an input with `batch_size` examples.

        Raises:
            MeasurementError: an axis beside the batch is free too.
        """
        rest = list(self._input.shape[1:])
        if not all(isinstance(size, int) for size in rest):
            raise MeasurementError(
                f"input {self._input.name!r}: expected fixed sizes behind the batch axis, got {self._input.shape}; "
                "take the shape from an example instead"
            )
        return (batch_size, *rest)

    def run(self, inputs: np.ndarray) -> np.ndarray:
        """Outputs for a batch.

        Args:
            inputs: shape (n, ...), of the network's own element type.

        Returns:
            Shape (n, ...); finite.

        Raises:
            MeasurementError: type or shape is not the network's, or an output is NaN or infinite.
        """
        import numpy as np

        outputs = np.asarray(self._call(inputs)())
        if outputs.ndim == 0 or outputs.shape[0] != inputs.shape[0]:
            raise MeasurementError(
                f"output {self._outputs[0]!r}: expected {inputs.shape[0]} rows, one for each input, "
                f"got shape {outputs.shape}"
            )
        finite = np.isfinite(outputs)
        if not finite.all():
            bad = np.flatnonzero(~finite.reshape(len(outputs), -1).all(axis=1))
            raise MeasurementError(
                f"output {self._outputs[0]!r}: expected finite values, got {outputs[~finite].flat[0]} in {len(bad)} of "
                f"{len(outputs)} examples, the first at index {bad[0]}; the network diverged or its scales are wrong"
            )
        return outputs

    def runner(self, inputs: np.ndarray) -> Callable[[], object]:
        """One inference on `inputs` as a call without arguments, with nothing around it that costs time.

        Raises:
            MeasurementError: as `run`, which is tried once.
        """
        self.run(inputs)
        return self._call(inputs)

    def _call(self, inputs: np.ndarray) -> Callable[[], object]:
        expected = _DTYPES[self._input.type]
        if str(inputs.dtype) != expected:
            raise MeasurementError(f"input {self._input.name!r}: expected {expected}, got {inputs.dtype}")
        if inputs.ndim == 0 or inputs.shape[0] == 0:
            raise MeasurementError(f"input {self._input.name!r}: expected at least one example, got {inputs.shape}")
        if inputs.ndim != len(self._input.shape) or any(
            isinstance(want, int) and want != got for want, got in zip(self._input.shape, inputs.shape, strict=True)
        ):
            raise MeasurementError(
                f"input {self._input.name!r}: expected shape {self._input.shape}, got {list(inputs.shape)}"
            )
        run, outputs, feed = self._session.run, self._outputs, {self._input.name: inputs}

        def call() -> object:
            try:
                return run(outputs, feed)[0]
            except Exception as error:
                raise MeasurementError(
                    f"the runtime failed on an input of shape {inputs.shape}: {_first_line(error)}"
                ) from error

        return call


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
