import numpy as np
import pytest
import torch
from torch import nn

from autocompress.compress.export import export_onnx
from autocompress.compress.quantize import quantize
from autocompress.errors import MeasurementError
from autocompress.measure.kernels import operation_times, trace_artifact
from autocompress.records import LayerBits, Quantizer
from autocompress.records.outline import sites


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 32, 3, padding=1)
        self.b = nn.Conv2d(32, 32, 3, padding=1)
        self.c = nn.Conv2d(32, 32, 1, groups=32)
        self.head = nn.Linear(32, 4)

    def forward(self, x):
        x = self.a(x).relu()
        return self.head(self.c(x + self.b(x).relu()).mean((2, 3)))


EXAMPLE = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
INPUT = EXAMPLE.numpy()


@pytest.fixture(scope="module")
def dense():
    torch.manual_seed(0)
    return export_onnx(Small().eval(), EXAMPLE).model


def quantized(model, *layers, weights_only=False):
    bits = tuple(LayerBits(layer=name, bits=8, weights_only=weights_only) for name in sorted(layers))
    return quantize(model, bits, Quantizer(), EXAMPLE)


def test_operations_have_shapes_and_sources(dense):
    outline = trace_artifact(dense, INPUT).outline
    first = outline[0]
    assert (first.op, first.mode, first.reads, first.weights) == ("Conv", "float", (-1,), (32, 3, 3, 3))
    assert (first.inputs, first.output) == (((1, 3, 16, 16),), (1, 32, 16, 16))
    add = next(o for o in outline if o.op == "Add")
    assert [outline[source].op for source in add.reads] == ["Relu", "Relu"]
    assert "group=channels" in next(o for o in outline if o.weights == (32, 1, 1, 1)).attributes


def test_pairs_are_no_operations_but_say_what_computes_integers(dense):
    every = trace_artifact(quantized(dense, "a", "b", "c", "head"), INPUT).outline
    assert {o.op for o in every}.isdisjoint({"QuantizeLinear", "DequantizeLinear"})
    assert [o.mode for o in every if o.op in ("Conv", "Gemm")] == ["integer"] * 4
    one = trace_artifact(quantized(dense, "b"), INPUT).outline
    assert [o.mode for o in one if o.op == "Conv"] == ["float", "integer", "float"]
    # A clamp behind an integer layer is gone, as in the runtime.
    assert [o.op for o in one].count("Relu") == [o.op for o in trace_artifact(dense, INPUT).outline].count("Relu") - 1
    alone = trace_artifact(quantized(dense, "head", weights_only=True), INPUT).outline
    assert [(o.op, o.weights) for o in alone if o.mode == "weights8"] == [("MatMul", (32, 4))]


def test_fewer_bits_are_the_same_operations(dense):
    bits = tuple(LayerBits(layer=name, bits=4) for name in ("a", "b"))
    four = quantize(dense, bits, Quantizer(), EXAMPLE)
    assert trace_artifact(four, INPUT).outline == trace_artifact(quantized(dense, "a", "b"), INPUT).outline


def test_a_site_knows_its_neighbours(dense):
    found = sites(trace_artifact(quantized(dense, "b"), INPUT).outline)
    behind = next(s for s in found if s.operation.startswith("Add"))
    assert behind.context == "Relu:float(Conv:float),Conv:integer>Conv:float"


def timed(dense, *models):
    return operation_times(models, dense, INPUT, threads=1, baseline_ms=1.0, block_s=0.001, rounds=10)


def test_every_kernel_belongs_to_an_operation(dense):
    models = (dense, quantized(dense, "b"), quantized(dense, "a", "b", "c", "head"))
    for traced, times in timed(dense, *models):
        assert len(times) == len(traced.outline)
        assert all(min(t.kernel, t.conversion, t.cold) >= 0.0 for t in times)
        layers = [t for o, t in zip(traced.outline, times, strict=True) if o.op == "Conv"]
        # 32 by 32 channels at 3 by 3 positions, against one by one at one.
        assert layers[1].kernel > layers[2].kernel


def test_times_are_in_the_milliseconds_of_the_dense_network(dense):
    _, times = timed(dense, dense)[0]
    total = sum(t.kernel + t.conversion for t in times)
    # The runtime's own time around kernels is in no kernel.
    assert 0.1 < total < 1.1


def test_conversions_count_for_what_is_converted(dense):
    (_, plain), (traced, times) = timed(dense, dense, quantized(dense, "b"))
    converts = {name for name, t in zip(traced.names, times, strict=True) if t.conversion > 0.0}
    assert "b" in converts  # its result goes back to floats
    assert sum(t.conversion for t in times) > sum(t.conversion for t in plain)


def test_what_is_no_model_is_refused():
    with pytest.raises(MeasurementError, match="expected the bytes of an ONNX model, got 4 bytes"):
        trace_artifact(b"none", INPUT)


def test_another_shape_is_refused(dense):
    with pytest.raises(MeasurementError, match="expected a model that the runtime can run on the inputs"):
        trace_artifact(dense, np.zeros((1, 4, 16, 16), dtype=np.float32))
