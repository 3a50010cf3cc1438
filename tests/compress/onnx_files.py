"""What the tests of integer files ask of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper
from torch import Tensor

from autocompress.compress.export import runtime_session
from autocompress.compress.quantize import quantize
from autocompress.inputs import Inputs
from autocompress.records import LayerBits, Quantizer


def eight(model: bytes, layers: Collection[str], calibration: Inputs, bits: int = 8) -> bytes:
    return quantize(model, [LayerBits(layer=name, bits=bits) for name in layers], Quantizer(), calibration)  # type: ignore[arg-type]


def outputs(model: bytes, inputs: Tensor) -> np.ndarray:
    return np.asarray(runtime_session(model).run(None, {"input": inputs.numpy()})[0])


def constants(model: bytes) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load_model_from_string(model).graph.initializer}


def optimized(model: bytes, folder: Path) -> Counter[str]:
    """Operators that the runtime makes of a model."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load_model(folder / "optimized.onnx").graph.node)
