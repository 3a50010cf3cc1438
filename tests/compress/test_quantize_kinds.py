from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from onnx_files import constants, eight, optimized, outputs
from torch import Tensor, nn
from torch.nn import functional

from autocompress.compress.artifact import describe
from autocompress.compress.export import export_onnx, runtime_session
from autocompress.compress.quantize import quantize
from autocompress.records import LayerBits, Quantizer


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
