from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from autocompress.compress.artifact import describe, verify
from autocompress.compress.export import export_onnx
from autocompress.compress.quantize import quantize_static
from autocompress.errors import CompressionError, ExportError
from autocompress.records import (
    Artifact,
    ChannelCut,
    Group,
    Layer,
    LayerBits,
    LayerReport,
    Plan,
    Structure,
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
        if layer.name != "3":
            assert layer.shape == tuple(weight.shape)


def test_description_of_a_quantized_model_keeps_shapes_and_costs() -> None:
    module = network()
    exported = export_onnx(module, torch.randn(1, 3, 10, 10)).model
    quantized = quantize_static(exported, ["0", "5"], torch.randn(8, 3, 10, 10).numpy())
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
    groups=(Group(name="a", width=16, layers=("a", "b"), consumers=("c",)),),
    layers=(
        Layer(name="a", kind="conv2d", shape=(16, 3, 3, 3), macs=1, group="a"),
        Layer(name="b", kind="conv2d", shape=(16, 16, 3, 3), macs=1, group="a"),
        Layer(name="c", kind="linear", shape=(10, 16), macs=1),
    ),
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
        (Plan(), artifact(8, 16), "layer 'a': expected 16 output channels, got 8"),
        (CUT, artifact(16, 16), "layer 'a': expected 8 output channels, got 16"),
        (CUT, artifact(8, 16), "layer 'b': expected 8 output channels, got 16"),
        (MASK, artifact(zeros=1151), "layer 'b': expected at least 1152 zeros of 2304 weights, got 1151"),
        (MASK, artifact(), "layer 'b': expected at least 1152 zeros of 2304 weights, got 0"),
        (BITS, artifact(), "layer 'b': expected 8 bits, got 32"),
        (Plan(), artifact(bits=8), "layer 'b': expected 32 bits, got 8"),
        (Plan(bits=(LayerBits(layer="z", bits=8),)), artifact(), r"plan.bits: expected layers of the network, got 'z'"),
        (
            Plan(cuts=(ChannelCut(group="z", keep=8, criterion="random"),)),
            artifact(),
            r"plan.cuts: expected a group of the network, got 'z'",
        ),
    ],
)
def test_what_was_not_asked_is_named(plan: Plan, built: Artifact, message: str) -> None:
    with pytest.raises(CompressionError, match=message):
        verify(plan, STRUCTURE, built)


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
