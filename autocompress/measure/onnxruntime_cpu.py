"""The target that runs artifacts with ONNX Runtime on this machine's CPU."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from autocompress.measure.loaded import BuiltTarget, LoadedModel
from autocompress.measure.onnxruntime_session import cpu_options, loaded, open_session
from autocompress.measure.target import TargetSettings

if TYPE_CHECKING:
    from autocompress.measure.graph import Shown
    from autocompress.measure.layers import NodeProfiler


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
class OnnxRuntimeCpuTarget(BuiltTarget[OnnxRuntimeCpu]):
    """ONNX Runtime on the CPU."""

    module: Any

    @property
    def runtime(self) -> str:
        """Such as ``"onnxruntime 1.24.0"``."""
        return f"onnxruntime {self.module.__version__}"

    def load(self, model: bytes) -> LoadedModel:
        """Load bytes that are not empty."""
        return loaded(self.name, self._open(model, cpu_options(self.module, self.threads)), self.threads)

    def graph(self, model: bytes) -> Shown:
        """The runtime's graph; see `autocompress.measure.graph.ShowsGraph`."""
        import onnx

        from autocompress.measure.onnxruntime_graph import shown

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "optimized.onnx"
            options = cpu_options(self.module, self.threads)
            options.optimized_model_filepath = str(path)
            self._open(model, options)
            return shown(onnx.load_model_from_string(model), onnx.load_model(path))

    def profiler(self, model: bytes) -> NodeProfiler:
        """One that times nodes; see `autocompress.measure.layers.ProfilesNodes`."""
        from autocompress.measure.onnxruntime_profile import OnnxRuntimeProfiler

        return OnnxRuntimeProfiler(lambda options: self._open(model, options), cpu_options(self.module, self.threads))

    def _open(self, model: bytes, options: Any) -> Any:
        return open_session(self, self.module, model, options, ["CPUExecutionProvider"])
