from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from torch import Tensor, nn

from autocompress.compress.artifact import describe, distinct_values
from autocompress.compress.export import export_onnx
from autocompress.compress.pack import pack, unpack
from autocompress.compress.quantize import quantize
from autocompress.compress.verification import verify
from autocompress.errors import CompressionError, ExportError, InfeasibleError
from autocompress.records import (
    Artifact,
    Block,
    BlockDrop,
    ChannelCut,
    Codebook,
    Group,
    Layer,
    LayerBits,
    LayerReport,
    LowRank,
    Plan,
    Quantizer,
    Structure,
    Use,
    WeightMask,
)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.ConvTranspose2d(8, 6, 2, stride=2),
        nn.Flatten(),
        nn.Linear(6 * 6 * 6, 12),
        nn.ReLU(),
        nn.Linear(12, 5),
    ).eval()


def macs_by_hooks(module: nn.Module, example: Tensor) -> int:
    """The naive count: for each call, output (or input) elements times the weights that each meets."""
    total = 0

    def hook(part: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        met = part.weight[0].numel()
        total += met * (inputs[0] if isinstance(part, nn.ConvTranspose2d) else output).numel()

    for part in module.modules():
        if hasattr(part, "weight"):
            part.register_forward_hook(hook)
    module(example)
    return total


def test_description_agrees_with_torch() -> None:
    module, example = network(), torch.randn(1, 3, 10, 10)
    with torch.no_grad():
        module[0].weight[:2] = 0.0
    model = export_onnx(module, example).model
    artifact = describe(model)
    assert artifact.sha256 == hashlib.sha256(model).hexdigest()
    assert artifact.size_bytes == len(model)
    assert artifact.parameters == sum(p.numel() for p in module.parameters())
    assert artifact.macs == macs_by_hooks(module, example)
    assert [layer.name for layer in artifact.layers] == ["0", "2", "3", "5", "7"]
    for layer in artifact.layers:
        weight = module.get_submodule(layer.name).weight
        assert layer.weights == weight.numel()
        assert layer.zeros == int((weight == 0).sum())
        assert layer.bits == 32
        assert layer.shape == tuple(weight.shape)


def test_description_of_a_quantized_model_keeps_shapes_and_costs() -> None:
    module = network()
    exported = export_onnx(module, torch.randn(1, 3, 10, 10)).model
    quantized = quantize(
        exported, [LayerBits(layer="0", bits=8), LayerBits(layer="5", bits=8)], Quantizer(), torch.randn(8, 3, 10, 10)
    )
    before, after = describe(exported), describe(quantized)
    assert [x.bits for x in after.layers] == [8, 32, 32, 8, 32]
    assert [x.shape for x in after.layers] == [x.shape for x in before.layers]
    assert (after.macs, after.parameters) == (before.macs, before.parameters)
    assert after.size_bytes < before.size_bytes


def test_layer_over_a_sequence_has_torchs_shape_and_counts_each_call_once_per_use() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(self.a(x).relu())).mean(1)

    artifact = describe(export_onnx(Twice().eval(), torch.randn(1, 3, 6)).model)
    assert [(x.name, x.shape) for x in artifact.layers] == [("a", (6, 6)), ("b", (4, 6))]
    assert artifact.macs == 3 * (36 + 36 + 24)
    assert artifact.parameters == 36 + 6 + 24 + 4


@pytest.mark.parametrize("data", [b"", b"not a model", b"\x00" * 40])
def test_bytes_that_are_no_model_are_refused(data: bytes) -> None:
    with pytest.raises(ExportError, match="expected an ONNX model"):
        describe(data)


STRUCTURE = Structure(
    groups=(
        Group(
            name="a",
            width=16,
            layers=("a", "b"),
            consumers=("c",),
            uses=(
                Use(parameter="a.weight", axis=0, per_unit=1),
                Use(parameter="b.weight", axis=0, per_unit=1),
                Use(parameter="b.weight", axis=1, per_unit=1),
                Use(parameter="c.weight", axis=1, per_unit=1),
            ),
        ),
    ),
    layers=(
        Layer(name="a", kind="conv2d", shape=(16, 3, 3, 3), macs=1, group="a"),
        Layer(name="b", kind="conv2d", shape=(16, 16, 3, 3), macs=1, group="a"),
        Layer(name="c", kind="linear", shape=(10, 16), macs=1),
    ),
    blocks=(Block(name="middle", layers=("b",)),),
)


def artifact(a: int = 16, b: int = 16, bits: int = 32, zeros: int = 0) -> Artifact:
    layers = (
        LayerReport(name="a", shape=(a, 3, 3, 3), bits=32, zeros=0, weights=a * 27),
        LayerReport(name="b", shape=(b, a, 3, 3), bits=bits, zeros=zeros, weights=b * a * 9),
        LayerReport(name="c", shape=(10, b), bits=32, zeros=0, weights=10 * b),
    )
    return Artifact(sha256="0", size_bytes=1, macs=1, parameters=1, layers=layers)


CUT = Plan(cuts=(ChannelCut(group="a", keep=8, criterion="magnitude"),))
MASK = Plan(masks=(WeightMask(layer="b", sparsity=0.5, criterion="magnitude"),))
BITS = Plan(bits=(LayerBits(layer="b", bits=8),))


@pytest.mark.parametrize(
    ("plan", "built"),
    [
        (Plan(), artifact()),
        (CUT, artifact(8, 8)),
        (MASK, artifact(zeros=1152)),
        (BITS, artifact(bits=8, zeros=3)),
        (Plan(cuts=CUT.cuts, masks=MASK.masks, bits=BITS.bits), artifact(8, 8, bits=8, zeros=288)),
    ],
)
def test_what_was_asked_passes(plan: Plan, built: Artifact) -> None:
    verify(plan, STRUCTURE, built)


@pytest.mark.parametrize(
    ("plan", "built", "message"),
    [
        (Plan(), artifact(8, 16), r"layer 'a': expected shape \(16, 3, 3, 3\), got \(8, 3, 3, 3\)"),
        (CUT, artifact(16, 16), r"layer 'a': expected shape \(8, 3, 3, 3\), got \(16, 3, 3, 3\)"),
        (CUT, artifact(8, 16), r"layer 'b': expected shape \(8, 8, 3, 3\), got \(16, 8, 3, 3\)"),
        (MASK, artifact(zeros=1151), "layer 'b': expected at least 1152 zeros of 2304 weights, got 1151"),
        (MASK, artifact(), "layer 'b': expected at least 1152 zeros of 2304 weights, got 0"),
        (BITS, artifact(), "layer 'b': expected 8 bits, got 32"),
        (Plan(), artifact(bits=8), "layer 'b': expected 32 bits, got 8"),
    ],
)
def test_what_was_not_asked_is_named(plan: Plan, built: Artifact, message: str) -> None:
    with pytest.raises(CompressionError, match=message):
        verify(plan, STRUCTURE, built)


def test_a_plan_for_another_network_is_named() -> None:
    with pytest.raises(InfeasibleError, match=r"plan.bits: expected names of the network, got 'z'; it has a, b, c"):
        verify(Plan(bits=(LayerBits(layer="z", bits=8),)), STRUCTURE, artifact())


def test_input_channels_are_checked() -> None:
    fat = artifact(8, 8).model_copy(update={"layers": (*artifact(8, 8).layers[:2], artifact().layers[2])})
    with pytest.raises(CompressionError, match=r"layer 'c': expected shape \(10, 8\), got \(10, 16\)"):
        verify(CUT, STRUCTURE, fat)


def test_layers_of_a_dropped_block_are_gone() -> None:
    drop = Plan(drops=(BlockDrop(block="middle"),))
    whole = artifact()
    verify(drop, STRUCTURE, whole.model_copy(update={"layers": (whole.layers[0], whole.layers[2])}))
    with pytest.raises(CompressionError, match="layer 'b': expected none, as block 'middle' is left out, got one of"):
        verify(drop, STRUCTURE, whole)


def factors(*shapes: tuple[int, ...]) -> Artifact:
    parts = tuple(
        LayerReport(name=f"b.{i}", shape=shape, bits=32, zeros=0, weights=int(np.prod(shape)))
        for i, shape in enumerate(shapes)
    )
    return artifact().model_copy(update={"layers": (artifact().layers[0], *parts, artifact().layers[2])})


def test_factors_have_the_ranks_asked_for() -> None:
    tucker = Plan(ranks=(LowRank(layer="b", ranks=(6, 5)),))
    verify(tucker, STRUCTURE, factors((5, 16, 1, 1), (6, 5, 3, 3), (16, 6, 1, 1)))
    with pytest.raises(CompressionError, match=r"layer 'b.1': expected shape \(6, 5, 3, 3\), got \(6, 4, 3, 3\)"):
        verify(tucker, STRUCTURE, factors((5, 16, 1, 1), (6, 4, 3, 3), (16, 6, 1, 1)))
    with pytest.raises(CompressionError, match=r"layer 'b\.2' is not in the model"):
        verify(tucker, STRUCTURE, factors((5, 16, 1, 1), (6, 5, 3, 3)))
    with pytest.raises(CompressionError, match="layer 'b': expected it in factors, got it whole"):
        verify(tucker, STRUCTURE, artifact())
    low = Plan(ranks=(LowRank(layer="b", ranks=(4,)),), cuts=CUT.cuts)
    built = factors((4, 8, 3, 3), (8, 4, 1, 1))
    layers = (artifact(8, 8).layers[0], *built.layers[1:3], artifact(8, 8).layers[2])
    verify(low, STRUCTURE, built.model_copy(update={"layers": layers}))


def test_zeros_of_patterns_are_counted_exactly() -> None:
    half = Plan(masks=(WeightMask(layer="b", sparsity=0.5, criterion="magnitude", pattern="2:4"),))
    blocks = Plan(masks=(WeightMask(layer="b", sparsity=0.3, criterion="magnitude", pattern="block:4x4"),))
    verify(half, STRUCTURE, artifact(zeros=1152))
    verify(blocks, STRUCTURE, artifact(zeros=43 * 16))  # 0.3 of 144 blocks
    with pytest.raises(CompressionError, match="expected at least 688 zeros of 2304 weights, got 687"):
        verify(blocks, STRUCTURE, artifact(zeros=43 * 16 - 1))


def test_shared_values_are_counted() -> None:
    plan = Plan(codebooks=(Codebook(layer="b", clusters=16),))
    verify(plan, STRUCTURE, artifact(), {"b": 16})
    with pytest.raises(CompressionError, match="layer 'b': expected at most 16 different values, got 17"):
        verify(plan, STRUCTURE, artifact(), {"b": 17})
    with pytest.raises(CompressionError, match="expected the file's distinct values for a plan with codebooks"):
        verify(plan, STRUCTURE, artifact())


@pytest.mark.parametrize(
    ("asked", "found", "fits"),
    [(8, 8, True), (8, 7, True), (4, 5, False), (16, 16, True), (16, 8, False), (8, 16, False), (2, 2, True)],
)
def test_bits_are_at_most_those_asked_for(asked: int, found: int, fits: bool) -> None:
    plan = Plan(bits=(LayerBits(layer="b", bits=asked),))  # type: ignore[arg-type]
    if fits:
        verify(plan, STRUCTURE, artifact(bits=found))
        return
    with pytest.raises(CompressionError, match=f"layer 'b': expected {asked} bits, got {found}"):
        verify(plan, STRUCTURE, artifact(bits=found))


def test_integer_activations_where_only_weights_were_asked_for_are_refused() -> None:
    plan = Plan(bits=(LayerBits(layer="b", bits=8, weights_only=True),))
    built = artifact(bits=8)
    integer = built.layers[1].model_copy(update={"compute": "integer"})
    with pytest.raises(CompressionError, match="layer 'b': expected float activations"):
        verify(plan, STRUCTURE, built.model_copy(update={"layers": (built.layers[0], integer, built.layers[2])}))


def test_missing_layer_is_named() -> None:
    short = artifact().model_copy(update={"layers": artifact().layers[:2]})
    with pytest.raises(CompressionError, match="layer 'c' is not in the model; it has a, b"):
        verify(Plan(), STRUCTURE, short)


@settings(max_examples=50)
@given(sparsity=st.floats(0.01, 0.99), keep=st.integers(1, 16), missing=st.integers(0, 3))
def test_zeros_count_the_weights_that_are_left(sparsity: float, keep: int, missing: int) -> None:
    plan = Plan(
        cuts=(ChannelCut(group="a", keep=keep, criterion="magnitude"),) if keep < 16 else (),
        masks=(WeightMask(layer="b", sparsity=sparsity, criterion="magnitude"),),
    )
    weights = np.ones(keep * keep * 9)
    asked = round(sparsity * weights.size)
    weights[: max(0, asked - missing)] = 0.0
    built = artifact(keep, keep, zeros=int((weights == 0).sum()))
    if missing == 0 or asked == 0:
        verify(plan, STRUCTURE, built)
    else:
        with pytest.raises(CompressionError, match=f"expected at least {asked} zeros"):
            verify(plan, STRUCTURE, built)


# --- every form of weights, read from files ---------------------------------------------------------------------------


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.word = nn.Embedding(7, 4)
        self.rnn = nn.LSTM(4, 5, batch_first=True, bidirectional=True)
        self.gate = nn.GRU(10, 3, batch_first=True)
        self.out = nn.Linear(3, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.gate(self.rnn(self.word(ids))[0])[0])


@pytest.fixture(scope="module")
def words() -> tuple[nn.Module, bytes]:
    torch.manual_seed(0)
    module = Words().eval()
    with torch.no_grad():
        module.word.weight[2] = 0.0
        module.rnn.weight_hh_l0_reverse[:, 1] = 0.0
    return module, export_onnx(module, torch.zeros(1, 6, dtype=torch.long)).model


def test_embeddings_and_recurrent_matrices(words: tuple[nn.Module, bytes]) -> None:
    module, model = words
    found = describe(model)
    names = ["word", *(f"rnn.weight_{m}_l0{d}" for m in ("ih", "hh") for d in ("", "_reverse"))]
    assert [x.name for x in found.layers] == [*names, "gate.weight_ih_l0", "gate.weight_hh_l0", "out"]
    for layer in found.layers:
        weight = module.get_parameter(layer.name if "_l0" in layer.name else f"{layer.name}.weight")
        assert layer.shape == tuple(weight.shape)
        assert layer.zeros == int((weight == 0).sum())
    # Six steps: two directions of 4 gates of 5 units with 4 inputs, then 3 gates of 3 units with 10, then the output.
    assert found.macs == 6 * (2 * 4 * 5 * (4 + 5) + 3 * 3 * (10 + 3) + 2 * 3)
    assert found.parameters == sum(p.numel() for p in module.parameters())


def test_distinct_values_do_not_count_zero(words: tuple[nn.Module, bytes]) -> None:
    module, model = words
    found = distinct_values(model)
    assert found["word"] == 6 * 4
    assert found["rnn.weight_hh_l0_reverse"] == len(module.rnn.weight_hh_l0_reverse.unique()) - 1


def test_weights_that_are_folded_into_floats_are_storage_only() -> None:
    """A file by hand: 8-bit and packed 4-bit weights of a convolution whose input is not quantized."""
    for kind, stored in ((TensorProto.INT8, 8), (TensorProto.INT4, 4)):
        values = [-7, 0, 3, 1, 0, 2]
        graph = helper.make_graph(
            [
                helper.make_node("DequantizeLinear", ["w", "s", "z"], ["d"], axis=0),
                helper.make_node("Conv", ["x", "d"], ["y"], "conv"),
            ],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 5, 5])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2, 5, 5])],
            [
                helper.make_tensor("w", kind, (2, 3, 1, 1), values),
                helper.make_tensor("s", TensorProto.FLOAT, (2,), [0.1, 0.2]),
                helper.make_tensor("z", kind, (2,), [0, 0]),
            ],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
        (report,) = describe(model.SerializeToString()).layers
        assert (report.bits, report.stored_bits, report.zeros, report.compute) == (4, stored, 2, "float")
        assert report.storage_only


class Attention(nn.Module):
    """One encoder block over five tokens of 32, two heads, written out."""

    def __init__(self) -> None:
        super().__init__()
        self.word = nn.Embedding(11, 32)
        self.query, self.key, self.value, self.out = (nn.Linear(32, 32) for _ in range(4))
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)
        self.before, self.after = nn.LayerNorm(32), nn.LayerNorm(32)
        for parameter in (*self.before.parameters(), *self.after.parameters()):
            nn.init.normal_(parameter)  # equal ones would be one constant of the file

    def forward(self, ids: Tensor) -> Tensor:
        x = self.word(ids)
        q, k, v = (
            part(self.before(x)).unflatten(-1, (2, 16)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        mixed = ((q @ k.transpose(-1, -2)) / 4.0).softmax(-1) @ v
        x = x + self.out(mixed.transpose(1, 2).flatten(-2))
        return (x + self.down(self.up(self.after(x)).relu())).mean(1)


@pytest.mark.parametrize("bits", [32, 8, 4])
def test_a_transformer_costs_what_a_count_by_hand_says(bits: int) -> None:
    module = Attention().eval()
    ids = torch.arange(10).reshape(2, 5)
    model = export_onnx(module, ids).model
    names = ("down", "key", "out", "query", "up", "value")
    if bits < 32:
        model = quantize(model, [LayerBits(layer=n, bits=bits, weights_only=True) for n in names], Quantizer(), ids)
    found = describe(model)
    assert [x.bits for x in found.layers if x.name in names] == [bits] * 6
    tokens, width, inner = 5, 32, 64
    # Four projections, scores and mixture over two heads of 16, and the two layers of the perceptron.
    assert found.macs == tokens * (4 * width**2 + 2 * width * inner) + 2 * tokens * tokens * width
    assert found.parameters == sum(p.numel() for p in module.parameters())
    assert found.size_bytes == len(model)
    stored = {x.name: x.weights * x.stored_bits // 8 for x in found.layers}
    assert stored["up"] == width * inner * bits // 8
    assert found.size_bytes > sum(stored.values())
    packed = pack(model)
    assert unpack(packed) == model
    assert len(packed) < len(model)
