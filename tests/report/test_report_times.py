from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.records import (
    Estimate,
    LatencyReading,
    NodeLatency,
    ProfiledModel,
    RuntimeGraph,
    RuntimeLayer,
    RuntimeNode,
    TimeProfile,
)
from autocompress.report.data import ReportData
from autocompress.report.page import render
from autocompress.report.time_figures import SHOWN, layers_figure, waterfall_figure
from autocompress.report.time_section import write_time_page
from autocompress.report.times import BETWEEN, by_kind, by_layer, kind_of, unit_of


def node(operation: str, milliseconds: float, *layers: str, name: str = "") -> NodeLatency:
    return NodeLatency(
        node=name or f"{operation} of {layers}", layers=layers, operation=operation, milliseconds=milliseconds
    )


def profiled(name: str, latency: float, *nodes: NodeLatency, dense: float = 1.0) -> ProfiledModel:
    reading = LatencyReading(
        latency_ms=Estimate.exact(latency),
        ratio=Estimate.exact(latency / dense),
        baseline_ms=dense,
        p90_ms=latency,
        p99_ms=latency,
        rounds=20,
        batch_size=1,
        threads=1,
        load=0.1,
    )
    return ProfiledModel(name=name, sha256="0" * 64, latency=reading, nodes=nodes)


def two(latency: float = 0.4, *, dense: float = 1.0) -> TimeProfile:
    before = (node("Conv (nchwc)", 0.7, "a"), node("Gemm", 0.5, "b"), node("ReorderOutput", 0.1))
    after = (
        node("QuantizeLinear", 0.12),
        node("QLinearConv", 0.3, "a"),
        node("MatMul", 0.1, "b.0"),
        node("MatMul", 0.2, "b.1"),
        node("Softmax", 0.11),
    )
    models = (profiled("dense", dense, *before, dense=dense), profiled("small", latency, *after, dense=dense))
    return TimeProfile(runtime="onnxruntime 1.31.1", host="h", inferences=100, layers=("a", "b"), models=models)


@given(
    st.lists(st.floats(0.001, 10.0), min_size=1, max_size=30),
    st.floats(0.001, 20.0),
)
def test_nodes_add_up_to_the_latency_whatever_the_profiler_costs(times: list[float], latency: float) -> None:
    nodes = [node("Conv", t, name=str(i)) for i, t in enumerate(times)]
    model = profiled("m", latency, *nodes)
    assert sum(model.own_ms) == pytest.approx(latency)
    if sum(times) > latency:
        left = sum(max(0.0, t - model.cost_ms) for t in times)
        assert left == pytest.approx(latency, rel=1e-6)
    else:
        assert model.cost_ms == 0.0


def test_a_cost_that_is_the_same_at_every_node_is_found_again() -> None:
    true = [0.02, 0.3, 0.05, 0.0]
    model = profiled("m", sum(true), *(node("Conv", t + 0.015, name=str(i)) for i, t in enumerate(true)))
    assert model.cost_ms == pytest.approx(0.015)
    assert model.own_ms == pytest.approx(true)


def test_parts_of_a_factorized_layer_are_one_and_what_is_no_layer_s_comes_last() -> None:
    profile = two()
    changes = by_layer(profile, 1)
    assert [c.part for c in changes] == ["a", "b", BETWEEN]
    assert sum(c.before for c in changes) == pytest.approx(1.0)
    assert sum(c.after for c in changes) == pytest.approx(0.4)
    assert sum(c.share or 0.0 for c in changes) == pytest.approx(1.0)
    assert sum(c.difference for c in changes) == pytest.approx(-0.6)


def test_no_shares_are_told_of_a_difference_that_is_none() -> None:
    assert {c.share for c in by_layer(two(0.97), 1)} == {None}
    assert None not in {c.share for c in by_layer(two(0.9), 1)}


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ("QLinearConv", "convolution"),
        ("Conv (nchwc)", "convolution"),
        ("FusedMatMul", "matrix product"),
        ("MatMulNBits", "matrix product"),
        ("QGemm", "matrix product"),
        ("DynamicQuantizeLSTM", "recurrent"),
        ("DequantizeLinear", "change of type"),
        ("ReorderInput", "change of layout"),
        ("Unsqueeze", "change of layout"),
        ("GlobalAveragePool (nchwc)", "pooling, reduction"),
        ("LayerNormalization", "normalization, softmax"),
        ("BiasGelu", "activation, arithmetic"),
        ("Gather", "lookup"),
        ("Loop", "other"),
    ],
)
def test_operations_have_kinds(operation: str, kind: str) -> None:
    assert kind_of(operation) == kind


def test_the_waterfall_ends_at_the_other_file_s_latency() -> None:
    profile = two()
    figure = waterfall_figure(profile, 1)["data"][0]
    assert figure["measure"][0] == "absolute"
    assert figure["measure"][-1] == "total"
    assert sum(figure["x"]) == pytest.approx(unit_of(profile).per_ms * 0.4)
    assert [c.part for c in by_kind(profile, 1)] == figure["y"][1:-1]
    assert figure["text"][-1] == "0.400 ms"


def test_short_times_are_told_in_microseconds() -> None:
    assert (unit_of(two()).name, unit_of(two(0.1, dense=0.5)).name) == ("ms", "µs")
    assert unit_of(two(0.1, dense=0.5)).told(-0.0123, signed=True) == "-12.3"
    assert unit_of(two()).told(0.0) == ""


def test_a_deep_network_shows_the_layers_that_take_longest() -> None:
    nodes = [node("Conv", 0.001 * (1 + i), f"l{i}", name=str(i)) for i in range(SHOWN + 40)]
    models = (profiled("dense", 1.0, *nodes), profiled("small", 0.5, *nodes))
    profile = TimeProfile(runtime="r", host="h", inferences=1, layers=(), models=models)
    labels = layers_figure(profile, 1)["layout"]["yaxis"]["ticktext"]
    assert len(labels) == SHOWN
    assert labels[-1] == "41 other layers"
    assert sum(layers_figure(profile, 1)["data"][0]["x"]) == pytest.approx(1.0)


def test_the_page_of_a_profile_stands_alone_and_escapes_names(tmp_path: Path) -> None:
    dense, small = two().models
    profile = two().model_copy(update={"models": (dense, small.model_copy(update={"name": "<b>"}))})
    text = write_time_page(tmp_path / "p.html", "a<script>", profile).read_text()
    assert "a<script>" not in text
    assert "a&lt;script&gt;" in text
    (kept,) = re.findall(r'id="figures">(.*?)</script>', text)
    figures = json.loads(kept)
    assert set(figures) == {"kinds-1", "layers-1"}
    assert figures["layers-1"]["data"][1]["name"] == "&lt;b&gt;"
    for key in figures:
        assert f'id="{key}"' in text
    assert "default-src 'none'" in text


def graph() -> RuntimeGraph:
    nodes = (
        RuntimeNode(name="q", operation="QuantizeLinear"),
        RuntimeNode(name="c", operation="QLinearConv", originals=("stem.0",), operations=("Conv",), weights="int8"),
    )
    layers = (
        RuntimeLayer(
            name="stem.0",
            nodes=("c",),
            operation="QLinearConv",
            fused=("DequantizeLinear", "Conv", "Relu", "QuantizeLinear"),
            stored_bits=8,
            compute="integer",
            weights="int8",
            bits=8,
        ),
        RuntimeLayer(
            name="fc",
            nodes=("f",),
            operation="Gemm",
            stored_bits=16,
            compute="float",
            weights="float32",
            bits=32,
            unpacked="at load",
        ),
    )
    return RuntimeGraph(runtime="onnxruntime 1.31.1", nodes=nodes, layers=layers, folded=("w/dequantize",))


def test_the_report_shows_the_runtime_s_graph_and_the_time(report: ReportData) -> None:
    seen = [f.model_copy(update={"final": f.final.model_copy(update={"graph": graph()})}) for f in report.finalists]
    text = render(report.model_copy(update={"finalists": tuple(seen), "times": two()}))
    section = text.split("What the runtime made of it")[1].split("</section>")[0]
    words = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", section))
    assert "8-bit integers QLinearConv Conv + Relu" in words
    assert "32-bit floats · storage only" in words
    assert "not shown by the runtime" in words
    assert "No layer's: 1 QuantizeLinear. 1 node of the file computed once, at load." in words
    assert "Where the time of an inference goes" in text
    assert 'id="kinds-1"' in text


def test_a_runtime_that_shows_no_graph_is_named_so(report: ReportData) -> None:
    text = render(report)
    assert "does not show its graph" in text
    assert "Where the time of an inference goes" not in text
