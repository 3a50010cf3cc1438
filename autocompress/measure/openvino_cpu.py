"""The target that runs artifacts with OpenVINO on this machine's CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from autocompress.measure.loaded import BuiltTarget, Call, Feed, LoadedModel, Recent, Signature
from autocompress.measure.target import TargetSettings

#: Shape of every input, by name.
Shapes = tuple[tuple[str, tuple[int, ...]], ...]


class OpenVinoCpu(TargetSettings):
    """Settings of the target.

    Floats and 8-bit integers have kernels of their own, and so have linear layers with weights of 8 or 4 bits beside
    activations that stay floats. Floats are computed in 32 bits also where the processor has
    16-bit ones, which OpenVINO would choose by itself: the artifact says 32.
    """

    kind: Literal["openvino-cpu"] = "openvino-cpu"

    computes: ClassVar[tuple[int, ...]] = (32, 8)
    weights_only_bits: ClassVar[tuple[int, ...]] = (8, 4)
    package: ClassVar[str] = "openvino"
    extra: ClassVar[str] = "openvino"

    def build(self) -> OpenVinoCpuTarget:
        """The target.

        Raises:
            MeasurementError: OpenVINO cannot be imported.
        """
        return OpenVinoCpuTarget(self, self.imported("openvino"))


@dataclass(frozen=True)
class OpenVinoCpuTarget(BuiltTarget[OpenVinoCpu]):
    """OpenVINO on the CPU. A network is compiled for the shapes that it runs on, when they first come."""

    module: Any

    @property
    def runtime(self) -> str:
        """Such as ``"openvino 2026.4.1"``."""
        return f"openvino {self.module.__version__.partition('-')[0]}"

    def load(self, model: bytes) -> LoadedModel:
        """Load bytes that are not empty."""
        signature = Signature.of_onnx(self.name, model)
        core = self.module.Core()
        network = core.read_model(model)
        _fold_recurrent_weights(self.module, network)
        position = next(i for i, output in enumerate(network.outputs) if signature.output.name in output.get_names())
        settings = {
            "INFERENCE_NUM_THREADS": self.threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        }

        def compiled(shapes: Shapes) -> Any:
            fixed = network.clone()
            fixed.reshape({name: self.module.PartialShape(list(shape)) for name, shape in shapes})
            return core.compile_model(fixed, "CPU", settings)

        networks = Recent[Shapes, Any](compiled)

        def bind(feed: Feed) -> Call:
            # A request of its own: another batch that is bound meanwhile must not change what this one runs on.
            request = networks.get(tuple((name, array.shape) for name, array in feed.items())).create_infer_request()
            for name, array in feed.items():
                request.set_tensor(name, self.module.Tensor(np.ascontiguousarray(array), shared_memory=True))
            output = request.get_output_tensor(position)

            def call() -> object:
                request.infer()
                return output.data

            return call

        return LoadedModel(signature, self.threads, bind)


def _fold_recurrent_weights(module: Any, network: Any) -> None:
    """Compute what recurrent layers read from constants alone, in place: their kernels take no weights but constants.

    Integer weights of other layers stay as they are, for the kernels that read integers.
    """
    for node in network.get_ordered_ops():
        if node.get_type_name() not in ("LSTMSequence", "GRUSequence", "RNNSequence"):
            continue
        for at in node.inputs():
            source = at.get_source_output()
            if source.get_node().get_type_name() == "Constant" or not _of_constants(source.get_node()):
                continue
            values = module.compile_model(module.Model([source], []), "CPU")([])[0]
            at.replace_source_output(module.op.Constant(np.ascontiguousarray(values)).output(0))


def _of_constants(node: Any) -> bool:
    if node.get_type_name() == "Parameter":
        return False
    return all(_of_constants(at.get_source_output().get_node()) for at in node.inputs())
