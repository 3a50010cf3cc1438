from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from onnx_files import constants, eight, optimized, outputs
from torch import Tensor, nn
from torch.nn import functional

from autocompress.compress.artifact import describe
from autocompress.compress.calibrate import ranges
from autocompress.compress.export import export_onnx, runtime_session
from autocompress.compress.grids import Grid, to_integers
from autocompress.compress.quantize import quantize
from autocompress.errors import CompressionError, InfeasibleError
from autocompress.records import LayerBits, Quantizer

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
def calibration() -> Tensor:
    return torch.randn(70, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(layers=st.sets(st.sampled_from(LAYERS)), bits=st.sampled_from([8, 5]))
def test_runtime_computes_exactly_the_asked_layers_in_integers(
    model: bytes, calibration: Tensor, tmp_path: Path, layers: set[str], bits: int
) -> None:
    quantized = eight(model, layers, calibration, bits)
    assert {layer.name for layer in describe(quantized).layers if layer.bits == bits} == layers
    assert {layer.name for layer in describe(quantized).layers if layer.compute == "integer"} == layers
    assert [layer.name for layer in describe(quantized).layers] == list(LAYERS)
    count = optimized(quantized, tmp_path)
    assert count["QLinearConv"] + count["QGemm"] == len(layers)
    got, want = outputs(quantized, calibration), outputs(model, calibration)
    assert np.abs(got - want).max() < (0.1 if bits == 8 else 0.5) * np.abs(want).max()


def test_full_quantization_leaves_no_float_convolution_or_addition_between(
    model: bytes, calibration: Tensor, tmp_path: Path
) -> None:
    count = optimized(eight(model, LAYERS, calibration), tmp_path)
    assert (count["QLinearConv"], count["QGemm"], count["QLinearAdd"]) == (5, 1, 1)
    # One pair at the input, one around the mean; the last addition feeds a float mean.
    assert count["Conv"] == count["Gemm"] == 0
    assert count["QuantizeLinear"] <= 2


def test_float_weights_of_other_layers_are_untouched(model: bytes, calibration: Tensor) -> None:
    before, after = constants(model), constants(eight(model, ["a1", "b2"], calibration))
    for layer in ("stem", "a2", "b1", "fc"):
        np.testing.assert_array_equal(after[f"{layer}.weight"], before[f"{layer}.weight"])
        np.testing.assert_array_equal(after[f"{layer}.bias"], before[f"{layer}.bias"])


def test_arithmetic_is_that_of_integers(model: bytes, calibration: Tensor) -> None:
    """The naive oracle: one layer by hand, from the file's own numbers."""
    quantized = eight(model, ["stem"], calibration)
    stored = constants(quantized)
    scale, zero = float(stored["input_scale"]), int(stored["input_zero_point"])
    x = calibration[:2].numpy()
    integers = np.clip(np.rint(x / np.float32(scale)) + zero, 0, 255) - zero
    low, high = min(float(calibration.min()), 0.0), max(float(calibration.max()), 0.0)
    assert scale == pytest.approx((high - low) / 255)
    assert zero == round(-low / scale)
    products = functional.conv2d(
        torch.from_numpy(integers).double(), torch.tensor(stored["stem.weight_quantized"]).double(), padding=1
    ).numpy() + stored["stem/bias_quantized"].reshape(1, -1, 1, 1)
    real = np.maximum(products * (scale * stored["stem.weight_scale"].astype(np.float64)).reshape(1, -1, 1, 1), 0.0)
    out = float(stored["relu_scale"])
    # The Relu is gone: a grid that begins at zero clamps in its place.
    want = np.clip(np.rint(real / out), 0, 255) * out
    tapped = onnx.load_model_from_string(quantized)
    tapped.graph.output.append(onnx.helper.make_tensor_value_info("relu_dequantized", onnx.TensorProto.FLOAT, None))
    got = runtime_session(tapped.SerializeToString()).run(["relu_dequantized"], {"input": x})[0]
    # The kernel multiplies by a ratio of scales in float32: where a product falls on a half, it may round otherwise.
    assert np.abs(got - want).max() <= out * 1.001
    assert np.mean(np.abs(got - want) > 1e-6) < 1e-3


@pytest.mark.parametrize("bits", [8, 7, 6, 5, 4, 3, 2])
def test_weights_lie_on_the_grid_asked_for(model: bytes, calibration: Tensor, bits: int) -> None:
    quantized = eight(model, ["a2"], calibration, bits)
    values, scale = (constants(quantized)[f"a2.weight_{part}"] for part in ("quantized", "scale"))
    original = constants(model)["a2.weight"]
    limit = 2 ** (bits - 1) - 1
    assert values.dtype == np.int8
    assert scale.shape == (16,)
    assert np.abs(values).max() == limit
    np.testing.assert_array_equal(
        values, np.clip(np.rint(original / scale.reshape(-1, 1, 1, 1)), -limit, limit).astype(np.int8)
    )
    report = next(x for x in describe(quantized).layers if x.name == "a2")
    assert (report.bits, report.stored_bits, report.compute) == (bits, 8, "integer")


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_zeros_stay_zeros(model: bytes, calibration: Tensor, bits: int) -> None:
    layer = next(x for x in describe(eight(model, ["a1"], calibration, bits)).layers if x.name == "a1")
    assert layer.zeros >= 4 * 16 * 9


def test_output_keeps_float_resolution(model: bytes, calibration: Tensor) -> None:
    assert len(np.unique(outputs(eight(model, LAYERS, calibration), calibration))) > 256


def test_same_arguments_give_same_bytes(model: bytes, calibration: Tensor) -> None:
    assert eight(model, LAYERS, calibration) == eight(model, list(reversed(LAYERS)), calibration)
    half = [LayerBits(layer="a1", bits=16), LayerBits(layer="fc", bits=4, weights_only=True)]
    first, second = (quantize(model, half, Quantizer(), calibration) for _ in range(2))
    assert first == second


def test_layers_with_equal_weights_share_one_half(calibration: Tensor) -> None:
    module = Net().eval()
    module.b1.load_state_dict(module.a1.state_dict())
    twins = export_onnx(module, torch.randn(1, 3, 8, 8)).model
    for names in (["a1"], ["a1", "b1"]):
        half = quantize(twins, [LayerBits(layer=name, bits=16) for name in names], Quantizer(), calibration)
        assert [x.name for x in describe(half).layers if x.bits == 16] == names
        assert np.abs(outputs(half, calibration) - outputs(twins, calibration)).max() < 1e-2


def test_no_layers_returns_the_model(model: bytes, calibration: Tensor) -> None:
    assert eight(model, [], calibration) == model


def test_impossible_requests_are_named(model: bytes, calibration: Tensor) -> None:
    with pytest.raises(InfeasibleError, match="no layer 'nope' with constant weights in the model; it has a1, a2"):
        eight(model, ["nope"], calibration)
    with pytest.raises(InfeasibleError, match=r"'a1': expected a linear layer .* for weights_only, got Conv;"):
        quantize(model, [LayerBits(layer="a1", bits=8, weights_only=True)], Quantizer(), calibration)
    with pytest.raises(CompressionError, match="expected every layer once, got 'a1' again"):
        eight(model, ["a1", "a1"], calibration)


def test_bad_calibration_is_refused(model: bytes, calibration: Tensor) -> None:
    with pytest.raises(CompressionError, match=r"at least one calibration input.*'input' of shape \(0, 3, 8, 8\)"):
        eight(model, ["fc"], calibration[:0])
    with pytest.raises(CompressionError, match="all finite"):
        eight(model, ["fc"], torch.full_like(calibration, torch.nan))
    with pytest.raises(CompressionError, match="expected calibration inputs input, got image"):
        eight(model, ["fc"], {"image": calibration})


def test_grids_are_written_as_they_are(model: bytes, calibration: Tensor) -> None:
    scale = np.linspace(0.01, 0.02, 16, dtype=np.float32)
    proto = onnx.load_model_from_string(model)
    tensor = next(t for t in proto.graph.initializer if t.name == "a2.weight")
    integers = to_integers(numpy_helper.to_array(tensor), scale, 4)
    on_grid = integers.astype(np.float32) * scale.reshape(-1, 1, 1, 1)
    tensor.CopyFrom(numpy_helper.from_array(on_grid, "a2.weight"))
    grid = Grid(4, scale, np.float32(0.0123), 0)
    request = [LayerBits(layer="a2", bits=4)]
    written = quantize(proto.SerializeToString(), request, Quantizer(), calibration, {"a2": grid})
    stored = constants(written)
    np.testing.assert_array_equal(stored["a2.weight_quantized"], integers)
    np.testing.assert_array_equal(stored["a2.weight_scale"], scale)
    quantizer = next(n for n in onnx.load_model_from_string(written).graph.node if n.op_type == "QuantizeLinear")
    assert stored[quantizer.input[1]] == np.float32(0.0123)
    with pytest.raises(CompressionError, match="layer 'a2': expected weights on the trained grid"):
        quantize(model, request, Quantizer(), calibration, {"a2": grid})
    with pytest.raises(CompressionError, match=r"expected a grid of 16 output channels, got \(3,\)"):
        quantize(model, request, Quantizer(), calibration, {"a2": Grid(4, scale[:3], np.float32(1), 0)})


def test_a_large_bias_widens_a_scale_rather_than_overflow(calibration: Tensor) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 1)).eval()
    with torch.no_grad():
        module[0].weight[0], module[0].bias[0] = 1e-9, 50.0
    exported = export_onnx(module, calibration[:1]).model
    quantized = eight(exported, ["0", "2"], calibration)
    np.testing.assert_allclose(outputs(quantized, calibration), outputs(exported, calibration), atol=0.5)


# --- calibrators ------------------------------------------------------------------------------------------------------


def test_calibrators_see_every_batch(model: bytes) -> None:
    proto = onnx.load_model_from_string(model)
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(150, 3, 8, 8, generator=generator).clamp(-3, 3)
    inputs[140, 0, 0, 0] = 40.0  # one outlier among 28 800 values, in the third batch
    found = {
        name: ranges(proto, ["input", "relu"], inputs, name)["input"]  # type: ignore[arg-type]
        for name in ("minmax", "percentile", "entropy")
    }
    assert found["minmax"] == (-3.0, 40.0)
    assert found["percentile"][0] == pytest.approx(-3.0, abs=0.1)
    assert 10.0 <= found["entropy"][1] < 20.0  # a quarter of the whole range is the smallest that is tried
    calm = inputs.clamp(-3, 3)
    for name in ("minmax", "percentile", "entropy"):
        low, high = ranges(proto, ["relu"], calm, name)["relu"]  # type: ignore[arg-type]
        assert low == 0.0
        assert high > 0.5


@pytest.mark.parametrize("calibrator", ["percentile", "entropy"])
def test_calibrator_reaches_the_file(model: bytes, calibration: Tensor, calibrator: str) -> None:
    spiked = calibration.clone()
    spiked[0, 0, 0, 0] = 400.0
    request = [LayerBits(layer="stem", bits=8)]
    plain = float(constants(quantize(model, request, Quantizer(), spiked))["input_scale"])
    clipped = quantize(model, request, Quantizer(calibrator=calibrator), spiked)  # type: ignore[arg-type]
    assert plain == pytest.approx((400.0 - float(calibration.min())) / 255, rel=1e-3)
    assert float(constants(clipped)["input_scale"]) < plain
    with pytest.raises(CompressionError, match="expected finite values in calibration, got others in tensor"):
        quantize(model, request, Quantizer(), torch.full_like(calibration, 3e38))
