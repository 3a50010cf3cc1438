from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from autocompress.compress.artifact import describe
from autocompress.compress.export import export_onnx, runtime_session
from autocompress.compress.quantize import quantize_static
from autocompress.errors import CompressionError, InfeasibleError

LAYERS = ("stem", "a1", "a2", "b1", "b2", "fc")


class Net(nn.Module):
    """Two residual blocks, so that additions meet every mixture of neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.a1, self.a2 = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.b1, self.b2 = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.stem(x))
        x = functional.relu(self.a2(functional.relu(self.a1(x))) + x)
        x = functional.relu(self.b2(functional.relu6(self.b1(x))) + x)
        return self.fc(x.mean((2, 3)))


@pytest.fixture(scope="module")
def model() -> bytes:
    torch.manual_seed(0)
    module = Net().eval()
    with torch.no_grad():
        module.a1.weight[:4] = 0.0
    return export_onnx(module, torch.randn(1, 3, 8, 8)).model


@pytest.fixture(scope="module")
def calibration() -> np.ndarray:
    return torch.randn(70, 3, 8, 8, generator=torch.Generator().manual_seed(1)).numpy()


def optimized(model: bytes, folder: Path) -> onnx.ModelProto:
    """What the runtime makes of a model."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return onnx.load_model(folder / "optimized.onnx")


def integer_layers(model: bytes, folder: Path) -> int:
    count = Counter(node.op_type for node in optimized(model, folder).graph.node)
    return count["QLinearConv"] + count["QGemm"]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(layers=st.sets(st.sampled_from(LAYERS)))
def test_runtime_computes_exactly_the_asked_layers_in_integers(
    model: bytes, calibration: np.ndarray, tmp_path: Path, layers: set[str]
) -> None:
    quantized = quantize_static(model, layers, calibration)
    assert {layer.name for layer in describe(quantized).layers if layer.bits == 8} == layers
    assert [layer.name for layer in describe(quantized).layers] == list(LAYERS)
    assert integer_layers(quantized, tmp_path) == len(layers)
    got = runtime_session(quantized).run(None, {"input": calibration})[0]
    want = runtime_session(model).run(None, {"input": calibration})[0]
    assert np.abs(got - want).max() < 0.1 * np.abs(want).max()


def test_full_quantization_leaves_no_float_convolution_or_addition_between(
    model: bytes, calibration: np.ndarray, tmp_path: Path
) -> None:
    count = Counter(n.op_type for n in optimized(quantize_static(model, LAYERS, calibration), tmp_path).graph.node)
    assert (count["QLinearConv"], count["QGemm"], count["QLinearAdd"]) == (5, 1, 1)
    # One pair at the input, one around the mean; the last addition feeds a float mean.
    assert count["Conv"] == count["Gemm"] == 0
    assert count["QuantizeLinear"] <= 2


def test_float_weights_of_other_layers_are_untouched(model: bytes, calibration: np.ndarray) -> None:
    quantized = onnx.load_model_from_string(quantize_static(model, ["a1", "b2"], calibration))
    before = {t.name: numpy_helper.to_array(t) for t in onnx.load_model_from_string(model).graph.initializer}
    after = {t.name: numpy_helper.to_array(t) for t in quantized.graph.initializer}
    for layer in ("stem", "a2", "b1", "fc"):
        np.testing.assert_array_equal(after[f"{layer}.weight"], before[f"{layer}.weight"])
        np.testing.assert_array_equal(after[f"{layer}.bias"], before[f"{layer}.bias"])


def test_weights_are_symmetric_per_channel_and_near_the_originals(model: bytes, calibration: np.ndarray) -> None:
    quantized = onnx.load_model_from_string(quantize_static(model, ["a2"], calibration))
    stored = {t.name: numpy_helper.to_array(t) for t in quantized.graph.initializer}
    node = next(n for n in quantized.graph.node if n.name == "a2")
    pair = next(n for n in quantized.graph.node if node.input[1] in n.output)
    values, scale, zero = (stored[name] for name in pair.input)
    original = next(
        numpy_helper.to_array(t) for t in onnx.load_model_from_string(model).graph.initializer if t.name == "a2.weight"
    )
    assert values.dtype == np.int8
    assert scale.shape == (16,)
    assert not zero.any()
    restored = values.astype(np.float32) * scale[:, None, None, None]
    np.testing.assert_allclose(restored, original, atol=float(scale.max()) * 0.51)


def test_zeros_stay_zeros(model: bytes, calibration: np.ndarray) -> None:
    layer = next(x for x in describe(quantize_static(model, ["a1"], calibration)).layers if x.name == "a1")
    assert layer.bits == 8
    assert layer.zeros >= 4 * 16 * 9


def test_output_keeps_float_resolution(model: bytes, calibration: np.ndarray) -> None:
    outputs = runtime_session(quantize_static(model, LAYERS, calibration)).run(None, {"input": calibration})[0]
    assert len(np.unique(outputs)) > 256


def test_same_arguments_give_same_bytes(model: bytes, calibration: np.ndarray) -> None:
    assert quantize_static(model, LAYERS, calibration) == quantize_static(model, list(reversed(LAYERS)), calibration)


def test_no_layers_returns_the_model(model: bytes, calibration: np.ndarray) -> None:
    assert quantize_static(model, [], calibration) == model


def test_unknown_layer_is_named(model: bytes, calibration: np.ndarray) -> None:
    with pytest.raises(InfeasibleError, match="no layer 'nope' with constant weights in the model; it has a1, a2"):
        quantize_static(model, ["nope"], calibration)


def test_bad_calibration_is_refused(model: bytes, calibration: np.ndarray) -> None:
    with pytest.raises(CompressionError, match="at least one calibration input"):
        quantize_static(model, ["fc"], calibration[:0])
    with pytest.raises(CompressionError, match="all finite"):
        quantize_static(model, ["fc"], np.full_like(calibration, np.nan))


@pytest.mark.parametrize("layer", ["deep", "up", "shared", "sequence"])
def test_other_kinds_of_layer(layer: str) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.deep = nn.Conv2d(8, 8, 3, groups=8)
            self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
            self.shared = nn.Linear(4, 4)
            self.sequence = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.up(functional.max_pool2d(self.deep(x), 2)).flatten(2).transpose(1, 2)
            return self.sequence(self.shared(self.shared(x).relu())).mean(1)

    torch.manual_seed(0)
    exported = export_onnx(Odd().eval(), torch.randn(1, 8, 10, 10)).model
    inputs = torch.randn(16, 8, 10, 10).numpy()
    quantized = quantize_static(exported, [layer], inputs)
    assert [x.name for x in describe(quantized).layers if x.bits == 8] == [layer]
    got, want = (runtime_session(m).run(None, {"input": inputs})[0] for m in (quantized, exported))
    np.testing.assert_allclose(got, want, atol=0.05 * float(np.abs(want).max()))
