"""The runtime's graph, read from real artifacts of every kind."""

from __future__ import annotations

import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from autocompress.compress.artifact import describe, layer_nodes
from autocompress.compress.export import export_onnx
from autocompress.compress.quantize import quantize
from autocompress.errors import MeasurementError
from autocompress.inputs import arrays
from autocompress.measure.graph import bits_of, differences, runtime_graph
from autocompress.measure.layers import node_latencies
from autocompress.measure.onnxruntime_cpu import OnnxRuntimeCpu, OnnxRuntimeCpuTarget
from autocompress.records import LayerBits, Quantizer, RuntimeGraph, settled


class Residual(nn.Module):
    """Convolutions without biases, so that no bias tells whose node it is; a residual sum; a depthwise layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.a1, self.a2 = (nn.Conv2d(16, 16, 3, padding=1, bias=False) for _ in range(2))
        self.dw = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.stem(x))
        x = functional.relu(self.a2(functional.relu(self.a1(x))) + x)
        return self.fc(functional.hardswish(self.dw(x)).mean((2, 3)))


class Perceptron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(64, 128), nn.Linear(128, 128), nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.b(functional.gelu(self.a(x)))))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(50, 16)
        self.rnn = nn.LSTM(16, 24, num_layers=2, batch_first=True, bidirectional=True)
        self.out = nn.Linear(48, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(self.emb(x))[0].mean(1))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(50, 32)
        self.enc = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, activation="gelu")
        self.out = nn.Linear(32, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.enc(self.emb(x)).mean(1))


NETWORKS = {"conv": Residual, "mlp": Perceptron, "rnn": Recurrent, "transformer": Transformer}


def inputs_of(kind: str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    if kind in ("rnn", "transformer"):
        return torch.randint(0, 50, (40, 12), generator=generator)
    return torch.randn((40, 3, 12, 12) if kind == "conv" else (40, 64), generator=generator)


@pytest.fixture(scope="module")
def dense() -> dict[str, bytes]:
    torch.manual_seed(0)
    return {kind: export_onnx(make().eval(), inputs_of(kind)[:1]).model for kind, make in NETWORKS.items()}


@pytest.fixture(scope="module")
def target() -> OnnxRuntimeCpuTarget:
    return OnnxRuntimeCpu().build()


def with_bits(model: bytes, kind: str, bits: dict[str, int], *, weights_only: bool = False) -> bytes:
    plan = [LayerBits(layer=name, bits=b, weights_only=weights_only) for name, b in bits.items()]  # type: ignore[arg-type]
    return quantize(model, plan, Quantizer(), inputs_of(kind))


def all_at(model: bytes, kind: str, bits: int, *, weights_only: bool = False) -> bytes:
    return with_bits(model, kind, {x.name: bits for x in describe(model).layers}, weights_only=weights_only)


def read(target: OnnxRuntimeCpuTarget, model: bytes) -> RuntimeGraph:
    graph = runtime_graph(target, model, describe(model), layer_nodes(model))
    assert graph is not None
    return graph


def complete(graph: RuntimeGraph, model: bytes) -> None:
    """Every layer once, in order, with the file's bits; every node of the file somewhere, once."""
    artifact = describe(model)
    assert [x.name for x in graph.layers] == [x.name for x in artifact.layers]
    assert [x.stored_bits for x in graph.layers] == [x.stored_bits for x in artifact.layers]
    names = [node.name for node in graph.nodes]
    assert len(set(names)) == len(names)
    assert {n for x in graph.layers for n in x.nodes} <= set(names)
    told = [name for node in graph.nodes for name in node.originals]
    assert sorted([*told, *graph.folded, *graph.removed]) == sorted(
        node.name for node in onnx.load_model_from_string(model).graph.node
    )


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_dense_network_computes_in_32_bit_floats(
    dense: dict[str, bytes], target: OnnxRuntimeCpuTarget, kind: str
) -> None:
    graph = read(target, dense[kind])
    complete(graph, dense[kind])
    assert {(x.computing, x.unpacked, x.storage_only) for x in graph.layers} == {("32-bit floats", "never", False)}
    assert differences(graph, describe(dense[kind])) == ()
    assert graph.runtime.startswith("onnxruntime ")


def test_sums_and_activations_are_found_in_the_convolution_that_they_were_fused_into(
    dense: dict[str, bytes], target: OnnxRuntimeCpuTarget
) -> None:
    graph = read(target, dense["conv"])
    fused = {x.name: x.joined for x in graph.layers}
    assert (fused["stem"], fused["a1"], fused["fc"]) == ("Conv + Relu", "Conv + Relu", "Gemm")
    # With its own layout the sum and the activation behind it go into the convolution as well.
    if graph.layers[2].operation == "Conv (nchwc)":
        assert fused["a2"] == "Conv + Add + Relu"
        assert fused["dw"] == "Conv + HardSwish"
        assert graph.others == {"ReduceMean": 1, "ReorderOutput": 1}


def test_a_quantized_network_computes_in_integers(dense: dict[str, bytes], target: OnnxRuntimeCpuTarget) -> None:
    model = all_at(dense["conv"], "conv", 8)
    graph = read(target, model)
    complete(graph, model)
    assert {x.name: x.operation for x in graph.layers} == {
        **dict.fromkeys(("stem", "a1", "a2", "dw"), "QLinearConv"),
        "fc": "QGemm",
    }
    assert {(x.computing, x.stored_bits, x.unpacked) for x in graph.layers} == {("8-bit integers", 8, "never")}
    assert graph.others["QuantizeLinear"] >= 1
    assert not any("weight" in name for name in graph.folded)


def test_half_precision_and_recurrent_integers_are_storage_only(
    dense: dict[str, bytes], target: OnnxRuntimeCpuTarget
) -> None:
    for kind, bits in (("conv", 16), ("mlp", 16), ("rnn", 8)):
        model = all_at(dense[kind], kind, bits)
        graph = read(target, model)
        complete(graph, model)
        folded = [x for x in graph.layers if x.name not in ("emb", "out")] if kind == "rnn" else graph.layers
        assert {(x.stored_bits, x.computing, x.unpacked, x.storage_only) for x in folded} == {
            (bits, "32-bit floats", "at load", True)
        }
        assert graph.folded
    lookup = graph.layer("emb")
    assert lookup is not None
    assert (lookup.operation, lookup.computing, lookup.storage_only) == ("Gather", "8-bit weights, floats", False)
    assert "4 unpacked" not in graph.summary
    assert "8 unpacked at load: storage only" in graph.summary


@pytest.mark.parametrize("bits", [4, 8])
def test_packed_weights_meet_floats(dense: dict[str, bytes], target: OnnxRuntimeCpuTarget, bits: int) -> None:
    model = all_at(dense["mlp"], "mlp", bits, weights_only=True)
    graph = read(target, model)
    complete(graph, model)
    assert {(x.operation, x.computing, x.stored_bits) for x in graph.layers} == {
        ("MatMulNBits", f"{bits}-bit weights, floats", bits)
    }
    assert [x.joined for x in graph.layers][2] == "MatMulNBits + Add"


def test_weights_of_a_transformer_in_integers(dense: dict[str, bytes], target: OnnxRuntimeCpuTarget) -> None:
    model = all_at(dense["transformer"], "transformer", 8)
    graph = read(target, model)
    complete(graph, model)
    assert {x.compute for x in graph.layers if x.name != "emb"} == {"integer"}
    assert graph.others["Softmax"] == 1


def only_weights_in_integers() -> bytes:
    """A convolution whose weights are 8-bit integers in the file, between floats."""
    generator = torch.Generator().manual_seed(0)
    stored = torch.randint(-127, 128, (16, 3, 3, 3), generator=generator).to(torch.int8).numpy()
    other = torch.randn(16, 16, 3, 3, generator=generator).numpy()
    scale, zero = torch.full((16,), 0.01).numpy(), torch.zeros(16, dtype=torch.int8).numpy()
    nodes = [
        helper.make_node("DequantizeLinear", ["c1.weight_q", "s", "z"], ["w"], name="c1.weight/dequantize", axis=0),
        helper.make_node("Conv", ["x", "w"], ["a"], name="c1", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"], name="r1"),
        helper.make_node("Conv", ["b", "c2.weight"], ["y"], name="c2", pads=[1] * 4),
    ]
    arrays_of = {"c1.weight_q": stored, "s": scale, "z": zero, "c2.weight": other}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 16, 8, 8])],
        [numpy_helper.from_array(array, name) for name, array in arrays_of.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(proto.SerializeToString())


def test_integer_weights_between_floats_are_storage_only_and_cost_time(target: OnnxRuntimeCpuTarget) -> None:
    model = only_weights_in_integers()
    graph = read(target, model)
    complete(graph, model)
    layer = graph.layer("c1")
    assert layer is not None
    assert (layer.stored_bits, layer.computing, layer.storage_only) == (8, "32-bit floats", True)
    assert layer.unpacked == "every run"
    assert layer.nodes[0] == "c1.weight/dequantize"
    told = differences(graph, describe(model))
    assert told == (f"{graph.runtime} turns the stored weights of c1 into floats in every inference",)


def test_the_runtime_wins_where_the_file_says_otherwise(dense: dict[str, bytes], target: OnnxRuntimeCpuTarget) -> None:
    model = all_at(dense["conv"], "conv", 8)
    artifact, graph = describe(model), read(target, model)
    wrong = artifact.model_copy(
        update={"layers": tuple(x.model_copy(update={"compute": "float"}) for x in artifact.layers)}
    )
    assert settled(wrong, graph) == artifact
    assert settled(wrong, None) == wrong
    told = differences(graph, wrong)
    assert told == (
        f"by the file stem, a1, a2, dw, fc would compute with floats, {graph.runtime} computes with integers",
    )
    missing = graph.model_copy(update={"layers": graph.layers[1:]})
    assert differences(missing, artifact) == (f"{graph.runtime} shows no node for stem",)


@pytest.mark.slow
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_layer_of_any_mixture_is_found_once_with_the_bits_of_the_file(
    dense: dict[str, bytes], target: OnnxRuntimeCpuTarget, data: st.DataObject
) -> None:
    kind = data.draw(st.sampled_from(["conv", "mlp", "rnn"]))
    names = [x.name for x in describe(dense[kind]).layers]
    chosen = data.draw(st.dictionaries(st.sampled_from(names), st.sampled_from([16, 8, 4]), min_size=1))
    if kind == "rnn":  # the directions of one matrix share their bits
        chosen = {name: chosen.get(name.removesuffix("_reverse"), 32) for name in names}
    model = with_bits(dense[kind], kind, {name: bits for name, bits in chosen.items() if bits < 32})
    graph = read(target, model)
    complete(graph, model)
    unmerged = kind == "mlp" and chosen.get("b") in (8, 4) and chosen.get("c", 32) in (32, 16)
    assert bool(differences(graph, describe(model))) == unmerged


def test_an_integer_layer_whose_relu_feeds_floats_is_told_to_be_unpacked_in_every_inference(
    dense: dict[str, bytes], target: OnnxRuntimeCpuTarget
) -> None:
    # The runtime merges Gemm and Relu before it looks for integers; with another Gemm in integers behind, it does not.
    model = with_bits(dense["mlp"], "mlp", {"b": 8})
    by_file, by_runtime = differences(read(target, model), describe(model))
    assert "by the file b would compute with integers" in by_file
    assert "turns the stored weights of b into floats in every inference" in by_runtime


def test_another_target_without_a_graph_says_none(dense: dict[str, bytes]) -> None:
    class Silent:
        name = "silent"

    assert runtime_graph(Silent(), dense["mlp"], describe(dense["mlp"]), {}) is None  # type: ignore[arg-type]
    assert node_latencies(Silent(), [(dense["mlp"], {})], arrays(inputs_of("mlp")[:1])) is None  # type: ignore[arg-type]


def test_bytes_that_are_no_model_are_refused(target: OnnxRuntimeCpuTarget, dense: dict[str, bytes]) -> None:
    with pytest.raises(MeasurementError, match="expected an ONNX model that onnxruntime"):
        target.graph(b"no model")
    with pytest.raises(ValueError, match="ends with its bits, such as 'int8', got 'bool'"):
        bits_of("bool")


@pytest.mark.parametrize("kind", NETWORKS)
def test_every_node_is_timed_and_belongs_to_its_layers(
    dense: dict[str, bytes], target: OnnxRuntimeCpuTarget, kind: str
) -> None:
    small = all_at(dense[kind], kind, 8)
    models = [(m, layer_nodes(m)) for m in (dense[kind], small)]
    found = node_latencies(target, models, arrays(inputs_of(kind)[:1]), inferences=10)
    assert found is not None
    for nodes, (model, _) in zip(found, models, strict=True):
        graph = read(target, model)
        assert {node.node for node in nodes} == {node.name for node in graph.nodes}
        assert {name for node in nodes for name in node.layers} == {x.name for x in graph.layers}
        assert sum(node.milliseconds for node in nodes) > 0
