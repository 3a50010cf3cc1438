"""Which target measures: one frozen class of settings per kind, joined in `TargetConfig`.

A runtime is imported only when its target is built, so that a study file is checked without any.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

from autocompress.errors import MeasurementError
from autocompress.measure.executorch_xnnpack import ExecuTorchXnnpack
from autocompress.measure.onnxruntime_cpu import OnnxRuntimeCpu
from autocompress.measure.onnxruntime_gpu import OnnxRuntimeCuda, OnnxRuntimeTensorRt
from autocompress.measure.openvino_cpu import OpenVinoCpu
from autocompress.measure.target import TargetSettings
from autocompress.measure.torch_targets import TorchCpu, TorchCuda


def _default_kind(value: Any) -> Any:
    return {"kind": OnnxRuntimeCpu().kind, **value} if isinstance(value, dict) else value


#: Settings of any target; a mapping without ``kind`` means the default one.
TargetConfig = Annotated[
    Annotated[
        OnnxRuntimeCpu | OpenVinoCpu | TorchCpu | ExecuTorchXnnpack | TorchCuda | OnnxRuntimeCuda | OnnxRuntimeTensorRt,
        Field(discriminator="kind"),
    ],
    BeforeValidator(_default_kind),
]

#: Every target, with its default settings; PyTorch on the CPU once for each of its compilers.
ALL: tuple[TargetSettings, ...] = (
    OnnxRuntimeCpu(),
    OpenVinoCpu(),
    TorchCpu(),
    TorchCpu(compiler="inductor"),
    ExecuTorchXnnpack(),
    TorchCuda(),
    OnnxRuntimeCuda(),
    OnnxRuntimeTensorRt(),
)


def target_settings(**values: Any) -> TargetSettings:
    """Settings of the target that the values name, such as those on an evidence card.

    Raises:
        MeasurementError: there is no such kind, or a value is not one that it takes.
    """
    try:
        found: TargetSettings = TypeAdapter(TargetConfig).validate_python(values)
    except ValidationError as error:
        problems = "; ".join(detail["msg"] for detail in error.errors(include_url=False))
        raise MeasurementError(
            f"expected the settings of a target that is known here, got {values}: {problems}"
        ) from error
    return found
