"""The targets that run artifacts with ONNX Runtime on an NVIDIA GPU: by its CUDA kernels, or by TensorRT.

An inference goes from an array in the host's memory to one there, both copies included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from autocompress.errors import MeasurementError
from autocompress.measure.loaded import BuiltTarget, LoadedModel
from autocompress.measure.onnxruntime_session import cpu_options, loaded, open_session
from autocompress.measure.target import TargetSettings

_PROVIDERS = {
    "onnxruntime-cuda": ("CUDAExecutionProvider",),
    "onnxruntime-tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider"),
}


class _OnGpu(TargetSettings):
    package: ClassVar[str] = "onnxruntime-gpu"
    extra: ClassVar[str] = "gpu"
    needs_gpu: ClassVar[bool] = True

    @property
    def install(self) -> str:
        """The commands that put the build for GPUs in the place of the one for CPUs, which has the same files."""
        return f"{super().install} && pip install --force-reinstall --no-deps {self.package}"

    def build(self) -> OnnxRuntimeGpuTarget:
        """The target.

        Raises:
            MeasurementError: ONNX Runtime cannot be imported, or its build has not the provider.
        """
        module = self.imported("onnxruntime")
        provider = _PROVIDERS[self.kind][0]
        if provider not in module.get_available_providers():
            raise MeasurementError(
                f"target {self.name!r}: expected a build of onnxruntime with {provider}, got {module.__version__} with "
                f"{', '.join(module.get_available_providers())}; on a machine with an NVIDIA GPU: {self.install!r}"
            )
        return OnnxRuntimeGpuTarget(self, module)


class OnnxRuntimeCuda(_OnGpu):
    """Settings of ONNX Runtime's CUDA kernels.

    They compute in floats; pairs of QuantizeLinear and DequantizeLinear are computed as they stand. Linear layers with
    4-bit weights beside float activations have a kernel of their own.
    """

    kind: Literal["onnxruntime-cuda"] = "onnxruntime-cuda"

    weights_only_bits: ClassVar[tuple[int, ...]] = (4,)


class OnnxRuntimeTensorRt(_OnGpu):
    """Settings of ONNX Runtime with TensorRT, and CUDA for what that does not take.

    TensorRT has 8-bit kernels for symmetric activations only; those of our artifacts have a zero point, so that they
    are computed in floats.
    """

    kind: Literal["onnxruntime-tensorrt"] = "onnxruntime-tensorrt"


@dataclass(frozen=True)
class OnnxRuntimeGpuTarget(BuiltTarget[_OnGpu]):
    """ONNX Runtime on an NVIDIA GPU."""

    module: Any

    @property
    def runtime(self) -> str:
        """Such as ``"onnxruntime-cuda 1.31.1"``."""
        return f"{self.name} {self.module.__version__}"

    def load(self, model: bytes) -> LoadedModel:
        """Load bytes that are not empty."""
        session = open_session(self, self.module, model, cpu_options(self.module, self.threads), _PROVIDERS[self.name])
        return loaded(self.name, session, self.threads)
