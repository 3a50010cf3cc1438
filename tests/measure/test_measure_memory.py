from __future__ import annotations

import time
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from autocompress.errors import MeasurementError
from autocompress.measure import memory
from autocompress.measure.memory import check_memory, peak_memory
from autocompress.measure.onnxruntime_cpu import OnnxRuntimeCpu

INPUTS = np.ones((1, 512), dtype=np.float32)


def layers(count: int) -> bytes:
    """A perceptron with `count` MiB of weights."""
    weights = {f"w{i}": np.full((512, 512), 1e-3 * (i + 1), dtype=np.float32) for i in range(count)}
    nodes = [helper.make_node("MatMul", [f"h{i}", f"w{i}"], [f"h{i + 1}"]) for i in range(count)]
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 512]) for name in ("h0", f"h{count}")]
    arrays = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", infos[:1], infos[1:], arrays)
    proto: ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return proto.SerializeToString()


@pytest.mark.slow
def test_weights_take_at_least_their_size_and_more_weights_take_more() -> None:
    small, large = (peak_memory(OnnxRuntimeCpu(), layers(n), INPUTS, children=1) for n in (4, 32))
    assert small.value > 4 * 2**20
    # Of the 28 MiB between them, every one is there at least once, and none more than four times.
    assert 28 * 2**20 <= large.value - small.value <= 4 * 28 * 2**20


@pytest.mark.slow
def test_the_interval_spans_the_children_and_is_narrow() -> None:
    found = peak_memory(OnnxRuntimeCpu(), layers(16), INPUTS)
    assert found.low <= found.value <= found.high
    assert found.high - found.low < 0.1 * found.value


@pytest.mark.slow
def test_a_larger_batch_takes_more() -> None:
    one = peak_memory(OnnxRuntimeCpu(), layers(2), INPUTS, children=1)
    many = peak_memory(OnnxRuntimeCpu(), layers(2), np.ones((8192, 512), dtype=np.float32), children=1)
    assert many.value - one.value >= 16 * 2**20  # one activation of the batch


def test_bytes_that_are_no_model_are_named() -> None:
    with pytest.raises(MeasurementError, match=r"to load and run .* 'onnxruntime-cpu', got: .*expected an ONNX model"):
        peak_memory(OnnxRuntimeCpu(), b"no model", INPUTS, children=1)


def test_inputs_that_do_not_fit_are_named() -> None:
    with pytest.raises(MeasurementError, match=r"expected shape \['n', 512\], got \[1, 3\]"):
        peak_memory(OnnxRuntimeCpu(), layers(1), np.ones((1, 3), dtype=np.float32), children=1)


class Strange(OnnxRuntimeCpu):
    """A target that hangs, or ends its process."""

    kind: Literal["strange"] = "strange"  # type: ignore[assignment]
    way: str = "hang"
    package: ClassVar[str] = "onnxruntime"

    def build(self) -> Any:
        if self.way == "hang":
            time.sleep(60)
        import os

        os.kill(os.getpid(), 9)


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child finds this file by the name of its module."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setattr(Strange, "__module__", Path(__file__).stem)


@pytest.mark.slow
@pytest.mark.usefixtures("importable")
def test_a_child_that_hangs_is_killed_and_named() -> None:
    started = time.monotonic()
    with pytest.raises(MeasurementError, match="within 3 s, it was killed after that"):
        peak_memory(Strange(), b"model", INPUTS, timeout_s=3.0)
    assert time.monotonic() - started < 10.0


@pytest.mark.usefixtures("importable")
def test_a_child_that_dies_is_named() -> None:
    with pytest.raises(MeasurementError, match="it ended with signal 9: it printed nothing"):
        peak_memory(Strange(way="die"), b"model", INPUTS)


def test_a_system_without_proc_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "_CLEAR", tmp_path / "clear_refs")
    with pytest.raises(MeasurementError, match=r"expected a system with /proc/self/status .* \(Linux\), got "):
        peak_memory(OnnxRuntimeCpu(), b"model", INPUTS)


def test_a_target_on_a_node_is_refused() -> None:
    with pytest.raises(MeasurementError, match=r"got one on a node with labels \{'device': 'rpi5'\}"):
        check_memory(OnnxRuntimeCpu(node={"device": "rpi5"}))
