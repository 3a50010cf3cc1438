from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from torch import Tensor, nn

from autocompress.compress.export import export_onnx
from autocompress.compress.quantize import quantize
from autocompress.compress.structure import find_structure
from autocompress.errors import MeasurementError
from autocompress.inputs import named
from autocompress.measure.onnx_to_torch import to_torch
from autocompress.measure.onnxruntime_cpu import OnnxRuntimeCpu
from autocompress.measure.openvino_cpu import OpenVinoCpu
from autocompress.measure.torch_targets import TorchCpu
from autocompress.models.bert import bert
from autocompress.models.mobile import mobilenet_v3
from autocompress.models.recurrent import text_classifier
from autocompress.models.resnet import resnet_cifar
from autocompress.models.unet import unet
from autocompress.models.vit import vit
from autocompress.records import LayerBits, Quantizer
from autocompress.testing.targets import network


def by_onnxruntime(model: bytes, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Every operator as the file has it, none fused: integer kernels would sum in another order."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    found: list[np.ndarray] = onnxruntime.InferenceSession(model, options).run(None, feed)
    return found


def by_torch(model: bytes, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    with torch.inference_mode():
        return [output.numpy() for output in to_torch(model)(*[torch.from_numpy(x) for x in feed.values()])]


def image(side: int) -> Callable[[int], dict[str, np.ndarray]]:
    return lambda n: {"input": np.random.default_rng(n).standard_normal((n, 3, side, side)).astype(np.float32)}


def tokens(n: int) -> dict[str, np.ndarray]:
    return {"input": np.random.default_rng(n).integers(1, 60, (n, 9))}


def text(n: int) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(n).integers(1, 60, (n, 8))
    mask = np.ones((n, 8), dtype=np.int64)
    mask[-1, 5:] = 0
    return {"input_ids": ids, "attention_mask": mask}


FAMILIES: dict[str, tuple[Callable[[], nn.Module], Callable[[int], dict[str, np.ndarray]]]] = {
    "padded ResNet": (lambda: resnet_cifar(8, (8, 16, 32)), image(16)),
    "MobileNetV3": (lambda: mobilenet_v3("small", 0.25), image(32)),
    "U-Net": (lambda: unet(4), image(16)),
    "ViT": (lambda: vit(16, 8, width=16, depth=1, heads=2, classes=5, qkv="fused"), image(16)),
    "BERT": (lambda: bert(vocabulary=60, length=8, width=16, depth=1, heads=2, classes=5), text),
    "LSTM": (lambda: text_classifier(60, 5, 8, 16, 2, both_ways=True), tokens),
    "GRU": (lambda: text_classifier(60, 5, 8, 16, 2, "gru"), tokens),
}
#: What is asked of every layer that can have it: bits, weights alone.
STORED = {"floats": (32, False), "int8": (8, False), "int4": (4, False), "half": (16, False), "blocks": (4, True)}


@functools.cache
def artifact(family: str, stored: str) -> bytes:
    build, feed = FAMILIES[family]
    torch.manual_seed(0)
    module = build().eval()
    for layer in module.modules():
        # Statistics of training; those of a fresh network would let a wrong normalization pass.
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -0.5, 0.5)
            nn.init.uniform_(layer.running_var, 0.5, 2.0)
    inputs = {name: torch.from_numpy(array) for name, array in feed(4).items()}
    example = inputs.get("input", inputs)
    model = export_onnx(module, example).model
    bits, alone = STORED[stored]
    if bits == 32:
        return model
    layers = [x for x in find_structure(module, example).layers if not alone or x.kind in ("linear", "embedding")]
    asked = tuple(LayerBits(layer=x.name, bits=bits, weights_only=alone) for x in sorted(layers, key=lambda x: x.name))
    return quantize(model, asked, Quantizer(), example)


@pytest.mark.slow
@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_artifact_computes_what_onnxruntime_does_of_the_same_bytes(family: str, stored: str) -> None:
    model, feed = artifact(family, stored), FAMILIES[family][1]
    # Blocks: onnxruntime rounds activations to 8 bits on the way. int8: a sum that ends between two integers.
    tolerance = {"blocks": 2e-2, "int8": 2e-2, "int4": 2e-2}.get(stored, 1e-5)
    for count in (1, 3):
        for ours, theirs in zip(by_torch(model, feed(count)), by_onnxruntime(model, feed(count)), strict=True):
            assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
            gap = np.abs(ours - theirs)
            assert gap.max() <= tolerance * max(1.0, np.abs(theirs).max())
            if stored != "blocks":
                assert np.median(gap) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("stored", ["floats", "int8", "blocks"])
@pytest.mark.parametrize("family", ["padded ResNet", "ViT", "LSTM"])
def test_targets_agree_on_the_same_bytes(family: str, stored: str) -> None:
    model, feed = artifact(family, stored), FAMILIES[family][1]
    expected = OnnxRuntimeCpu().build().prepare(model).run(feed(3))
    for config in (OpenVinoCpu(), TorchCpu()):
        found = config.build().prepare(model).run(feed(3))
        gap = np.abs(found - expected).max() / max(1.0, np.abs(expected).max())
        assert gap <= (1e-4 if stored in ("floats", "half") else 5e-2), config.kind


@given(
    values=st.lists(st.floats(-40, 40, width=32), min_size=1, max_size=20),
    scale=st.floats(0.015625, 2.0, width=32),
    zero=st.integers(0, 255),
    signed=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_quantizing_is_onnxruntimes_to_the_bit(values: list[float], scale: float, zero: int, signed: bool) -> None:
    kind, integer = (TensorProto.INT8, np.int8) if signed else (TensorProto.UINT8, np.uint8)
    model = network(
        [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "q"),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], "d"),
        ],
        {"x": ("batch",)},
        {"q": ("batch",), "y": ("batch",)},
        {"q": kind},
        s=np.float32(scale),
        z=np.array(zero - 128 if signed else zero, dtype=integer),
    )
    # Halves between two integers, too, which round to the even one.
    x = np.array([*values, *(np.float32(scale) * (np.arange(8) - 3.5))], dtype=np.float32)
    for ours, theirs in zip(by_torch(model, {"x": x}), by_onnxruntime(model, {"x": x}), strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == theirs.dtype


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_scales_of_channels_lie_along_their_axis(axis: int) -> None:
    size = (4, 3, 2)[axis]
    model = network(
        [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "q", axis=axis),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], "d", axis=axis),
        ],
        {"x": (4, 3, 2)},
        {"y": (4, 3, 2)},
        s=np.linspace(0.01, 0.05, size, dtype=np.float32),
        z=np.zeros(size, dtype=np.int8),
    )
    x = np.random.default_rng(0).standard_normal((4, 3, 2)).astype(np.float32)
    np.testing.assert_array_equal(by_torch(model, {"x": x})[0], by_onnxruntime(model, {"x": x})[0])


X = (4, 6, 8, 8)
#: Operators beside those that the families above hold, as nodes from x to y of whatever shape.
SINGLE = {
    "uneven pads": [helper.make_node("Conv", ["x", "w"], ["y"], pads=[0, 1, 2, 1])],
    "grouped, dilated": [helper.make_node("Conv", ["x", "g"], ["y"], group=3, dilations=[2, 2], strides=[2, 1])],
    "transposed": [
        helper.make_node("ConvTranspose", ["x", "t"], ["y"], strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1])
    ],
    "max pool": [helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])],
    "max pool, uneven": [helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], pads=[0, 0, 1, 1])],
    "average pool": [helper.make_node("AveragePool", ["x"], ["y"], kernel_shape=[3, 3], pads=[1, 1, 1, 1])],
    "global pool": [helper.make_node("GlobalAveragePool", ["x"], ["y"])],
    "flatten": [helper.make_node("Flatten", ["x"], ["y"], axis=2)],
    "slice": [helper.make_node("Slice", ["x", "from", "to", "axes", "steps"], ["y"])],
    "transpose": [helper.make_node("Transpose", ["x"], ["y"], perm=[0, 2, 3, 1])],
    "gather of rows": [helper.make_node("Gather", ["x", "rows"], ["y"], axis=-2)],
    "reshape with 0": [helper.make_node("Reshape", ["x", "keep"], ["y"])],
    "expand": [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "first"], ["n"]),
        helper.make_node("Unsqueeze", ["n", "zero"], ["n1"]),
        helper.make_node("Concat", ["n1", "tail"], ["wanted"], axis=0),
        helper.make_node("Expand", ["row", "wanted"], ["y"]),
    ],
    "constant of a shape": [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Slice", ["shape", "zero", "two"], ["wanted"]),
        helper.make_node("ConstantOfShape", ["wanted"], ["y"]),
    ],
    "means": [helper.make_node("ReduceMean", ["x"], ["y"], axes=[-1, 2], keepdims=0)],
    "hard sigmoid": [helper.make_node("HardSigmoid", ["x"], ["y"], alpha=0.3, beta=0.4)],
    "leaky": [helper.make_node("LeakyRelu", ["x"], ["y"], alpha=0.2)],
    "instance norm": [helper.make_node("InstanceNormalization", ["x", "six", "six"], ["y"])],
    "clip": [helper.make_node("Clip", ["x", "low", "high"], ["y"])],
    "split": [
        helper.make_node("Split", ["x", "parts"], ["a", "b"], axis=1),
        helper.make_node("Concat", ["b", "a"], ["y"], axis=1),
    ],
}


@pytest.mark.parametrize("name", SINGLE)
def test_an_operator_is_onnxruntimes(name: str) -> None:
    rng = np.random.default_rng(0)
    constants = {
        "w": rng.standard_normal((5, 6, 3, 3)).astype(np.float32),
        "g": rng.standard_normal((6, 2, 3, 3)).astype(np.float32),
        "t": rng.standard_normal((6, 5, 3, 3)).astype(np.float32),
        "six": rng.standard_normal(6).astype(np.float32),
        "row": rng.standard_normal((1, 1, 7)).astype(np.float32),
        "low": np.float32(-0.5),
        "high": np.float32(0.7),
        **{
            key: np.array(value)
            for key, value in {
                "from": [1, 0],
                "to": [2**63 - 1, -1],
                "axes": [1, -1],
                "steps": [2, 1],
                "rows": [[0, 2], [-1, 1]],
                "keep": [0, 0, -1],
                "first": 0,
                "zero": [0],
                "two": [2],
                "tail": [3, 1],
                "parts": [2, 4],
            }.items()
        },
    }
    nodes = SINGLE[name]
    used = {read for node in nodes for read in node.input}
    model = network(nodes, {"x": ("n", *X[1:])}, {"y": ()}, **{k: v for k, v in constants.items() if k in used})
    model = without_shape_of_output(model)
    x = rng.standard_normal(X).astype(np.float32)
    (ours,), (theirs,) = by_torch(model, {"x": x}), by_onnxruntime(model, {"x": x})
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def without_shape_of_output(model: bytes) -> bytes:
    proto = onnx.load_model_from_string(model)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    data: bytes = proto.SerializeToString()
    return data


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (
            helper.make_node("Det", ["x"], ["y"], "the-node"),
            "node 'the-node': torch has no counterpart for Det",
        ),
        (helper.make_node("Conv", ["x", "x"], ["y"], "c", auto_pad="SAME_UPPER"), "for Conv with auto_pad=SAME_UPPER"),
        (
            helper.make_node("Reshape", ["x", "ids"], ["y"], "r"),
            "for Reshape with a shape that is computed",
        ),
        (
            helper.make_node("Softmax", ["x"], ["y"], "s", axes=1),
            "'s': Softmax could not be written in torch: TypeE",
        ),
    ],
)
def test_what_has_no_counterpart_is_named(node: object, message: str) -> None:
    model = network([node], {"x": ("n", 3), "ids": (2,)}, {"y": ("n", 3)}, {"ids": TensorProto.INT64})  # type: ignore[list-item]
    with pytest.raises(MeasurementError, match=message):
        to_torch(model)


def test_a_second_result_that_is_not_known_is_refused() -> None:
    node = helper.make_node("MaxPool", ["x"], ["y", "where"], "pool", kernel_shape=[2, 2])
    model = network([node], {"x": ("n", 3, 8, 8)}, {"y": ("n", 3, 7, 7)})
    with pytest.raises(MeasurementError, match=r"for MaxPool with the results \['y', 'where'\]; expected one"):
        to_torch(model)


def test_an_old_opset_is_refused() -> None:
    proto = onnx.load_model_from_string(network([helper.make_node("Relu", ["x"], ["y"])], {"x": ("n",)}, {"y": ("n",)}))
    proto.opset_import[0].version = 11
    with pytest.raises(MeasurementError, match="expected an ONNX model of opset 13 to 23, got 11"):
        to_torch(proto.SerializeToString())


def test_junk_is_no_onnx_file() -> None:
    with pytest.raises(MeasurementError, match="expected an ONNX model, got 4 bytes that are none"):
        to_torch(b"junk")


def test_integer_weights_are_restored_once_and_not_at_every_inference() -> None:
    module = to_torch(artifact("ViT", "int8"))
    reads = {node.name for node in module.graph.nodes if node.op == "get_attr"}
    held = {name: buffer for name, buffer in module.named_buffers() if name in reads}
    assert held
    assert not [name for name, buffer in held.items() if buffer.dtype == torch.int8 and buffer.ndim > 1]


def test_every_output_is_computed_in_the_files_order() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.layer(x)
            return y, y.relu()

    module = Two().eval()
    x = torch.randn(3, 4)
    model = export_onnx(module, x).model
    assert list(named(x)) == ["input"]
    for ours, theirs in zip(by_torch(model, {"input": x.numpy()}), module(x), strict=True):
        np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("stored", "read"), [("int8", "int8_t"), ("blocks", "uint4_t")])
def test_openvino_computes_with_the_integers_of_the_file(stored: str, read: str) -> None:
    import openvino

    network = openvino.Core().read_model(artifact("ViT", stored))
    network.reshape([1, 3, 16, 16])
    compiled = openvino.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    products = [
        str([port.get_element_type() for port in node.inputs()])
        for node in compiled.get_runtime_model().get_ops()
        if node.get_rt_info()["layerType"].astype(str) == "FullyConnected"
    ]
    assert products
    assert all(read in types for types in products)
