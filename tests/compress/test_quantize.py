from __future__ import annotations

from collections import Counter
from collections.abc import Collection
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
from autocompress.compress.calibrate import ranges
from autocompress.compress.export import export_onnx, runtime_session
from autocompress.compress.grids import Grid, to_integers, weight_scales
from autocompress.compress.quantize import quantize
from autocompress.errors import CompressionError, InfeasibleError
from autocompress.inputs import Inputs
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


# --- other kinds of layer ---------------------------------------------------------------------------------------------


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.deep = nn.Conv2d(8, 8, 3, groups=8)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.line = nn.Conv1d(4, 4, 3)
        self.shared = nn.Linear(4, 4)
        self.sequence = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.line(self.up(functional.max_pool2d(self.deep(x), 2)).flatten(2)).transpose(1, 2)
        return self.sequence(self.shared(self.shared(x).relu())).mean(1)


@pytest.fixture(scope="module")
def odd() -> tuple[bytes, Tensor]:
    torch.manual_seed(0)
    return export_onnx(Odd().eval(), torch.randn(1, 8, 10, 10)).model, torch.randn(16, 8, 10, 10)


@pytest.mark.parametrize(
    ("layer", "operator"),
    [
        ("deep", "QLinearConv"),
        ("line", "QLinearConv"),
        ("up", None),
        ("shared", "MatMulIntegerToFloat"),
        ("sequence", "MatMulIntegerToFloat"),
    ],
)
def test_other_kinds_of_layer(odd: tuple[bytes, Tensor], layer: str, operator: str | None, tmp_path: Path) -> None:
    exported, inputs = odd
    quantized = eight(exported, [layer], inputs)
    report = next(x for x in describe(quantized).layers if x.bits == 8)
    assert report.name == layer
    assert report.compute == ("float" if operator is None else "integer")
    if operator is not None:
        assert optimized(quantized, tmp_path)[operator] >= 1
    got, want = outputs(quantized, inputs), outputs(exported, inputs)
    np.testing.assert_allclose(got, want, atol=0.05 * float(np.abs(want).max()))


class Text(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.word = nn.Embedding(13, 24)
        self.rnn = nn.LSTM(24, 10, batch_first=True, bidirectional=True)
        self.flat = nn.Linear(20, 48)
        self.wide = nn.Linear(48, 50)
        self.last = nn.Linear(50, 3)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.rnn(self.word(ids))[0]
        return self.last(functional.gelu(self.wide(self.flat(hidden))).mean(1))


@pytest.fixture(scope="module")
def text() -> tuple[bytes, Tensor]:
    torch.manual_seed(0)
    ids = torch.randint(0, 13, (32, 7), generator=torch.Generator().manual_seed(0))
    return export_onnx(Text().eval(), ids).model, ids


def test_a_table_read_by_an_integer_layer() -> None:
    net = nn.Sequential(nn.Embedding(13, 16), nn.Linear(16, 4)).eval()
    ids = torch.randint(0, 13, (32, 7), generator=torch.Generator().manual_seed(0))
    file = quantize(export_onnx(net, ids).model, [LayerBits(layer=n, bits=8) for n in ("0", "1")], Quantizer(), ids)
    assert {x.name: (x.bits, x.compute) for x in describe(file).layers} == {"0": (8, "weights"), "1": (8, "integer")}
    (got,) = runtime_session(file).run(None, {"input": ids.numpy()})
    np.testing.assert_allclose(got, net(ids).detach().numpy(), atol=0.05)


@pytest.mark.parametrize("bits", [8, 4])
def test_weights_only(text: tuple[bytes, Tensor], bits: int, tmp_path: Path) -> None:
    # 48 inputs: blocks of 16; 50 inputs: a last block that is not full; the last layer is a Gemm with a bias.
    exported, ids = text
    request = [LayerBits(layer=name, bits=bits, weights_only=True) for name in ("flat", "last", "wide", "word")]
    quantized = quantize(exported, request, Quantizer(), ids)
    reports = {x.name: x for x in describe(quantized).layers}
    for name in ("flat", "wide", "last"):
        assert (reports[name].bits, reports[name].stored_bits, reports[name].compute) == (bits, bits, "weights")
    assert (reports["word"].bits, reports["word"].stored_bits, reports["word"].compute) == (bits, 8, "weights")
    assert optimized(quantized, tmp_path)["MatMulNBits"] == 3
    assert describe(quantized).macs == describe(exported).macs
    assert describe(quantized).parameters == describe(exported).parameters
    got, want = outputs(quantized, ids), outputs(exported, ids)
    np.testing.assert_allclose(got, want, atol=(0.02 if bits == 8 else 0.2) * float(np.abs(want).max()))


def test_recurrent_matrices_and_tables_keep_their_values(text: tuple[bytes, Tensor], tmp_path: Path) -> None:
    exported, ids = text
    names = ("rnn.weight_hh_l0", "rnn.weight_ih_l0_reverse", "word")
    quantized = eight(exported, names, ids)
    before, after = describe(exported), describe(quantized)
    assert {x.name for x in after.layers if x.bits == 8} == set(names)
    assert {x.name: x.compute for x in after.layers if x.bits == 8} == {
        "rnn.weight_hh_l0": "float",
        "rnn.weight_ih_l0_reverse": "float",
        "word": "weights",
    }
    assert [(x.name, x.shape) for x in after.layers] == [(x.name, x.shape) for x in before.layers]
    assert (after.macs, after.parameters) == (before.macs, before.parameters)
    # Restored once, when the file is loaded: nothing is left to compute but the looked-up rows.
    count = optimized(quantized, tmp_path)
    assert (count["LSTM"], count["Cast"], count["DequantizeLinear"], count["Concat"]) == (1, 1, 0, 0)
    want = outputs(exported, ids)
    np.testing.assert_allclose(outputs(quantized, ids), want, atol=0.02 * float(np.abs(want).max()))


def test_half_precision_is_storage_only(text: tuple[bytes, Tensor], tmp_path: Path) -> None:
    exported, ids = text
    names = ("flat", "last", "rnn.weight_hh_l0", "rnn.weight_ih_l0", "wide", "word")
    quantized = eight(exported, names, ids, 16)
    for report in describe(quantized).layers:
        if report.name in names:
            assert (report.bits, report.stored_bits, report.compute, report.storage_only) == (16, 16, "float", True)
        else:
            assert report.bits == 32
    assert optimized(quantized, tmp_path)["Cast"] == 0
    assert describe(quantized).parameters == describe(exported).parameters
    assert constants(quantized)["flat.weight_half"].dtype == np.float16
    assert len(quantized) < 0.75 * len(exported)
    np.testing.assert_allclose(outputs(quantized, ids), outputs(exported, ids), atol=1e-3)


def test_all_kinds_at_once(text: tuple[bytes, Tensor]) -> None:
    exported, ids = text
    request = [
        LayerBits(layer="flat", bits=8),
        LayerBits(layer="last", bits=4, weights_only=True),
        LayerBits(layer="rnn.weight_hh_l0", bits=16),
        LayerBits(layer="rnn.weight_hh_l0_reverse", bits=5),
        LayerBits(layer="wide", bits=3),
        LayerBits(layer="word", bits=6),
    ]
    quantized = quantize(exported, request, Quantizer(), ids)
    assert {x.name: x.bits for x in describe(quantized).layers if x.bits < 32} == {e.layer: e.bits for e in request}


class Loop(nn.Module):
    """A table whose rows an integer layer reads, a cell that runs step by step, one weight in two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 6)
        self.cell = nn.GRUCell(6, 6)
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight

    def forward(self, ids: Tensor) -> Tensor:
        rows = self.first(self.table(ids)).relu()
        state = rows[:, 0]
        for step in range(1, 4):
            state = self.cell(rows[:, step], state)
        return self.second(state)


def test_tied_reused_and_looked_up_weights_together() -> None:
    torch.manual_seed(0)
    ids = torch.randint(0, 9, (24, 4))
    exported = export_onnx(Loop().eval(), ids).model
    names = ["cell.weight_hh", "cell.weight_ih", "first", "second", "table"]
    assert sorted(layer.name for layer in describe(exported).layers) == names
    quantized = eight(exported, names, ids)
    assert {layer.name: layer.bits for layer in describe(quantized).layers} == dict.fromkeys(names, 8)
    assert describe(quantized).parameters == describe(exported).parameters
    want = outputs(exported, ids)
    np.testing.assert_allclose(outputs(quantized, ids), want, atol=0.05 * float(np.abs(want).max()))


# --- grids ------------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    bits=st.integers(2, 8),
    channels=st.integers(1, 5),
    size=st.integers(1, 40),
    magnitude=st.sampled_from([1e-30, 1e-4, 1.0, 1e6]),
)
def test_scales_are_no_worse_than_that_of_the_largest_weight(
    seed: int, bits: int, channels: int, size: int, magnitude: float
) -> None:
    weight = (np.random.default_rng(seed).standard_normal((channels, size)) * magnitude).astype(np.float32)
    weight[0] = 0.0
    limit = 2 ** (bits - 1) - 1

    def error(scale: np.ndarray) -> np.ndarray:
        rounded = np.clip(np.rint(weight / scale[:, None]), -limit, limit) * scale[:, None]
        return ((rounded.astype(np.float64) - weight) ** 2).sum(1)

    top = np.abs(weight).max(1)
    naive = np.where(top > 0, top / limit, 1.0).astype(np.float32)
    scale = weight_scales(weight, bits)
    assert np.all(scale > 0)
    assert scale[0] == 1.0
    assert np.all(error(scale) <= error(naive) * (1 + 1e-5))
    assert np.abs(to_integers(weight, scale, bits)).max() <= limit
    assert not to_integers(weight, scale, bits)[0].any()
