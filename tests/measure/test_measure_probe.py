from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from autocompress.errors import MeasurementError
from autocompress.measure.latency import Procedure
from autocompress.measure.probe import ReadingRequest, Taken, build_probe, pack_arrays, unpack_arrays

QUICK = Procedure(rounds=10, block_s=0.0005, warm_up_s=0.01, repeats=0)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def network(width: int = 64) -> bytes:
    weight = np.random.default_rng(0).standard_normal((width, width)).astype(np.float32)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", width]) for name in "xy"]
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], [numpy_helper.from_array(weight, "w")])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(proto.SerializeToString())


def asked(request: ReadingRequest, **files: str) -> dict[str, Any]:
    return {**request.model_dump(mode="json"), "files": files, "node": "device=rpi5"}


@pytest.mark.parametrize(
    "inputs",
    [np.arange(6, dtype=np.float32).reshape(2, 3), {"ids": np.ones((1, 4), np.int64), "file": np.zeros((1, 2))}],
)
def test_inputs_travel_whole(inputs: Any) -> None:
    found = unpack_arrays(pack_arrays(inputs))
    pairs = [(inputs, found)] if isinstance(inputs, np.ndarray) else [(inputs[k], found[k]) for k in inputs]
    assert isinstance(found, dict) == isinstance(inputs, dict)
    assert all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)


def test_bytes_that_are_no_inputs_are_refused() -> None:
    with pytest.raises(MeasurementError, match=r"expected inputs as an \.npy or \.npz file, got 4 bytes"):
        unpack_arrays(b"junk")


def test_a_device_reads_from_files_and_says_where_it_was(tmp_path: Path, home: Path) -> None:
    model, inputs = tmp_path / "a", tmp_path / "b"
    model.write_bytes(network())
    inputs.write_bytes(pack_arrays(np.zeros((1, 64), np.float32)))
    request = ReadingRequest(target={"kind": "onnxruntime-cpu"}, models=2, batches=1, procedure=QUICK)
    files = {"dense": model, "model-0": model, "model-1": model, "inputs": inputs, "batch-0": inputs}
    taken = Taken.model_validate(build_probe()(asked(request, **{k: str(v) for k, v in files.items()})))
    assert len(taken.readings) == 2
    assert all(0.3 < r.ratio.value < 3 and r.rounds == 10 and len(r.throughput) == 1 for r in taken.readings)
    assert taken.host.node == "device=rpi5"
    assert list((home / ".cache" / "autocompress" / "slot").glob("room-*.lock"))


def test_the_studys_slot_is_entered_too_where_the_device_sees_it(tmp_path: Path, home: Path) -> None:
    request = ReadingRequest(target={}, what="host", slot=str(tmp_path / "study" / "slot"))
    build_probe()(asked(request))
    assert not (tmp_path / "study").exists(), "a folder that is not there is not made"
    (tmp_path / "study").mkdir()
    build_probe()(asked(request))
    assert (tmp_path / "study" / "slot").is_dir()


def test_a_device_without_a_core_to_spare_refuses_move(home: Path) -> None:
    request = ReadingRequest(target={"threads": 512}, what="host", exclusive="move")
    with pytest.raises(MeasurementError, match="'move' needs at least one core beside the 512 that measure"):
        build_probe()(asked(request))


def test_a_device_needs_no_torch() -> None:
    code = "import sys, autocompress.measure.probe; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"
