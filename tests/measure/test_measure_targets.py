from __future__ import annotations

import json
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper
from pydantic import ValidationError

from autocompress.errors import MeasurementError
from autocompress.measure.doctor import boards
from autocompress.measure.executorch_xnnpack import ExecuTorchXnnpack
from autocompress.measure.host import fingerprint, load
from autocompress.measure.latency import Procedure, measure
from autocompress.measure.layers import node_latencies
from autocompress.measure.onnxruntime_cpu import OnnxRuntimeCpu, OnnxRuntimeCpuTarget
from autocompress.measure.onnxruntime_gpu import OnnxRuntimeCuda, OnnxRuntimeGpuTarget, OnnxRuntimeTensorRt
from autocompress.measure.openvino_cpu import OpenVinoCpu
from autocompress.measure.target import Session, Target, TargetSettings, rows
from autocompress.measure.targets import ALL, target_settings
from autocompress.measure.torch_targets import TorchCpu, TorchCuda
from autocompress.testing.targets import CHECKS, Check
from autocompress.testing.targets import perceptron as small_perceptron


def value(name: str, shape: list[str | int], kind: int = TensorProto.FLOAT) -> object:
    return helper.make_tensor_value_info(name, kind, shape)


def model(nodes: list[object], inputs: list[object], outputs: list[object], **initializers: np.ndarray) -> bytes:
    arrays = [numpy_helper.from_array(array, name) for name, array in initializers.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, arrays)
    proto: ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return proto.SerializeToString()


def unary(operator: str, batch: str | int = "n", out: str | int = "n") -> bytes:
    return model([helper.make_node(operator, ["x"], ["y"])], [value("x", [batch, 3])], [value("y", [out, 3])])


def perceptron(width: int, layers: int) -> bytes:
    rng = np.random.default_rng(0)
    weights = {f"w{i}": (rng.standard_normal((width, width)) / width**0.5).astype(np.float32) for i in range(layers)}
    nodes = [helper.make_node("MatMul", [f"h{i}", f"w{i}"], [f"h{i + 1}"]) for i in range(layers)]
    return model(nodes, [value("h0", ["n", width])], [value(f"h{layers}", ["n", width])], **weights)


@pytest.fixture(scope="module")
def target() -> OnnxRuntimeCpuTarget:
    return OnnxRuntimeCpu().build()


def test_the_target_and_its_session_satisfy_the_protocols(target: OnnxRuntimeCpuTarget) -> None:
    as_target: Target = target
    session: Session = as_target.prepare(unary("Abs"))
    assert (target.name, target.round_to, target.computes) == ("onnxruntime-cpu", 8, (32, 8))
    assert target.bits == (32, 16, 8, 7, 6, 5, 4, 3, 2)
    assert (target.threads, target.batch_size, session.threads) == (1, 1, 1)
    assert target.runtime.startswith("onnxruntime 1.")
    assert session.input_shapes(5) == {"x": (5, 3)}


def test_the_config_is_strict_and_its_json_comes_back() -> None:
    config = OnnxRuntimeCpu(threads=2, batch_size=8)
    assert OnnxRuntimeCpu.model_validate_json(config.model_dump_json()) == config
    assert (config.name, config.round_to, config.weights_only_bits) == ("onnxruntime-cpu", 8, (8, 4))
    assert set(config.computes) < set(config.bits)
    assert config.build().threads == 2
    for bad in ({"threads": 0}, {"batch_size": 0}, {"kind": "tensorrt"}, {"thread": 1}):
        with pytest.raises(ValidationError, match=next(iter(bad))):
            OnnxRuntimeCpu.model_validate(bad)


def test_importing_the_settings_of_all_targets_imports_no_runtime() -> None:
    code = (
        "import sys, json, autocompress.measure.targets; "
        "print(json.dumps([m for m in ('torch', 'onnxruntime', 'onnx', 'openvino', 'executorch') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


INSTALLED = [OnnxRuntimeCpu(), OpenVinoCpu(), TorchCpu()]
#: Compiles for each shape, takes half a minute, or is no part of the development environment.
SLOW = [TorchCpu(compiler="inductor"), ExecuTorchXnnpack(), TorchCuda(), OnnxRuntimeCuda(), OnnxRuntimeTensorRt()]


def built(settings: TargetSettings) -> Target:
    """The target, or a skip that names what is not here."""
    try:
        return settings.build()
    except MeasurementError as error:
        if settings.needs_gpu or settings.extra == "executorch":
            pytest.skip(str(error))
        raise


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize(
    "settings",
    [*INSTALLED, *(pytest.param(one, marks=pytest.mark.slow) for one in SLOW)],
    ids=lambda one: "-".join([one.kind, *one.options.values()]),
)
def test_every_target_keeps_what_targets_promise(settings: TargetSettings, check: Check) -> None:
    check(built(settings))


def test_a_target_that_breaks_a_promise_is_caught() -> None:
    class Static:
        """Takes a fixed batch, and rounds what it computes."""

        def __init__(self) -> None:
            self._target = OnnxRuntimeCpu().build()

        def __getattr__(self, name: str) -> object:
            return getattr(self._target, name)

        def prepare(self, data: bytes) -> object:
            session = self._target.prepare(data)
            run = session.run
            session.run = lambda inputs: np.round(run(inputs), 1)  # type: ignore[method-assign]
            return session

    broken = next(check for check in CHECKS if check.__name__ == "computes_any_batch")
    with pytest.raises(AssertionError, match="expected outputs within 1e-05 of numpy's, got 0"):
        broken(Static())  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", [*INSTALLED, *SLOW, *ALL], ids=lambda one: one.kind)
def test_settings_of_every_target_are_strict_and_come_back_from_json(settings: TargetSettings) -> None:
    assert target_settings(**json.loads(settings.model_dump_json())) == settings
    assert target_settings(kind=settings.kind, threads=2, batch_size=8, **settings.options).threads == 2
    with pytest.raises(MeasurementError, match=r"expected the settings of a target that is known here, got .*'thread'"):
        target_settings(kind=settings.kind, thread=1)


def test_settings_without_a_kind_are_the_default_target() -> None:
    assert target_settings(threads=2) == OnnxRuntimeCpu(threads=2)
    with pytest.raises(MeasurementError, match="'onnxruntime-cpu', 'openvino-cpu', 'torch-cpu'"):
        target_settings(kind="tensorrt")


@pytest.mark.skipif(bool(boards()), reason="this machine has an NVIDIA GPU")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (TorchCuda(), r"'torch-cuda': expected an NVIDIA GPU that torch can use, got none \(torch .*pip install torch"),
        (OnnxRuntimeCuda(), r"'onnxruntime-cuda': expected a build of onnxruntime with CUDAExecutionProvider, got "),
        (OnnxRuntimeTensorRt(), r"with TensorrtExecutionProvider, got .*--no-deps onnxruntime-gpu"),
    ],
)
def test_a_gpu_target_without_a_gpu_says_what_is_missing(settings: TargetSettings, message: str) -> None:
    with pytest.raises(MeasurementError, match=message):
        settings.build()


def test_a_session_that_leaves_its_provider_is_refused() -> None:
    class Module:
        """onnxruntime's own, in which a session falls back to the CPU as it does where CUDA's libraries are missing."""

        def __getattr__(self, name: str) -> object:
            import onnxruntime

            return getattr(onnxruntime, name)

        def InferenceSession(self, model: bytes, options: object, providers: object) -> object:  # noqa: N802
            import onnxruntime

            return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    with pytest.raises(MeasurementError, match=r"to use CUDAExecutionProvider, got \['CPUExecutionProvider'\]"):
        OnnxRuntimeGpuTarget(OnnxRuntimeCuda(), Module()).prepare(unary("Neg"))


def test_torch_keeps_the_process_own_number_of_threads() -> None:
    import torch

    before = torch.get_num_threads()
    session = TorchCpu(threads=before + 1).build().prepare(small_perceptron()[0])
    session.run(np.ones((2, 6), dtype=np.float32))
    assert torch.get_num_threads() == before


def test_run_computes_for_any_batch_size(target: OnnxRuntimeCpuTarget) -> None:
    session = target.prepare(unary("Neg"))
    for count in (1, 7):
        inputs = np.random.default_rng(0).random((count, 3), dtype=np.float32)
        np.testing.assert_array_equal(session.run(inputs), -inputs)


@pytest.mark.parametrize(
    "junk", [b"not a model", b"\x00" * 64, unary("Neg")[:40], unary("NoSuchOperator"), b"\x80\x04pickle."]
)
def test_bytes_that_are_no_model_are_refused(target: OnnxRuntimeCpuTarget, junk: bytes) -> None:
    with pytest.raises(
        MeasurementError, match=rf"expected an ONNX model .* got {len(junk)} bytes that it refuses: \S+"
    ):
        target.prepare(junk)


def test_no_bytes_and_a_path_are_refused(target: OnnxRuntimeCpuTarget) -> None:
    with pytest.raises(MeasurementError, match="expected the bytes of an ONNX model, got no bytes at all"):
        target.prepare(b"")
    with pytest.raises(MeasurementError, match="expected the bytes of an ONNX model, got a str"):
        target.prepare("model.onnx")  # type: ignore[arg-type]


def test_a_fixed_batch_is_refused_with_what_to_do(target: OnnxRuntimeCpuTarget) -> None:
    with pytest.raises(MeasurementError, match=r"input 'x': expected a free batch axis first, got a fixed batch of 1"):
        target.prepare(unary("Neg", batch=1, out=1))
    reshape = model(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        [value("x", ["n", 3])],
        [value("y", [4, 3])],
        shape=np.array([4, 3]),
    )
    with pytest.raises(MeasurementError, match=r"output 'y': .* fixed batch of 4 .*flatten\(1\)"):
        target.prepare(reshape)


def gather_and_scale(second: str | int = "n") -> bytes:
    """Rows of a table by ids, times a float each; and the same negated as a second output without a batch axis."""
    table = np.arange(12, dtype=np.float32).reshape(4, 3)
    return model(
        [
            helper.make_node("Gather", ["table", "ids"], ["rows"]),
            helper.make_node("Mul", ["rows", "scale"], ["y"]),
            helper.make_node("ReduceSum", ["rows"], ["total"], keepdims=0),
        ],
        [value("ids", ["n"], TensorProto.INT64), value("scale", [second, 1])],
        [value("y", ["n", 3]), value("total", [])],
        table=table,
    )


def test_several_inputs_go_in_by_name_and_the_first_output_comes_out(target: OnnxRuntimeCpuTarget) -> None:
    session = target.prepare(gather_and_scale())
    table = np.arange(12).reshape(4, 3)
    for count in (1, 5):
        ids, scale = np.arange(count) % 4, np.linspace(1, 2, count, dtype=np.float32)[:, None]
        for inputs in ({"ids": ids, "scale": scale}, {"scale": scale, "ids": ids}):
            got = session.run(inputs)
            np.testing.assert_allclose(got, np.stack([table[i] * s for i, s in zip(ids, scale, strict=True)]))
            np.testing.assert_array_equal(session.runner(inputs)(), got)
    assert session.input_shapes(2) == {"ids": (2,), "scale": (2, 1)}
    (reading,) = measure([session], session, {"ids": ids, "scale": scale}, seed=0, procedure=Procedure(rounds=10))
    assert reading.batch_size == 5


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"ids": np.zeros(2, dtype=np.int64)}, r"expected the names \['ids', 'scale'\], got \['ids'\]"),
        (np.zeros(2, dtype=np.int64), r"expected arrays by the names \['ids', 'scale'\], got a single array"),
        (
            {"ids": np.zeros(2, dtype=np.int64), "scale": np.ones((3, 1), dtype=np.float32)},
            r"same number of examples, got shapes \{'ids': \(2,\), 'scale': \(3, 1\)\}",
        ),
        (
            {"ids": np.zeros(2, dtype=np.int32), "scale": np.ones((2, 1), dtype=np.float32)},
            "input 'ids': expected int64, got int32",
        ),
        (
            {"ids": np.zeros(2, dtype=np.int64), "scale": np.ones((2, 2), dtype=np.float32)},
            r"input 'scale': expected shape \['n', 1\], got \[2, 2\]",
        ),
        ({}, r"same number of examples, got shapes \{\}"),
    ],
)
def test_inputs_that_are_not_the_networks_are_refused(
    target: OnnxRuntimeCpuTarget, inputs: np.ndarray | dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(MeasurementError, match=message):
        target.prepare(gather_and_scale()).run(inputs)


def test_every_inputs_batch_axis_must_be_free(target: OnnxRuntimeCpuTarget) -> None:
    with pytest.raises(MeasurementError, match="input 'scale': expected a free batch axis first, got a fixed batch"):
        target.prepare(gather_and_scale(second=4))


def test_a_network_without_inputs_is_refused(target: OnnxRuntimeCpuTarget) -> None:
    node, ones = helper.make_node("Identity", ["w"], ["y"]), np.ones((2, 3), dtype=np.float32)
    with pytest.raises(MeasurementError, match="expected a network with an input, got none"):
        target.prepare(model([node], [], [value("y", [2, 3])], w=ones))


def test_one_array_of_several_inputs_may_be_a_dict_with_one_name(target: OnnxRuntimeCpuTarget) -> None:
    x = np.ones((2, 3), dtype=np.float32)
    np.testing.assert_array_equal(target.prepare(unary("Neg")).run({"x": x}), -x)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_rows_is_the_common_first_axis(counts: list[int]) -> None:
    inputs = {f"input_{i}": np.zeros((count, 2)) for i, count in enumerate(counts)}
    if len(set(counts)) == 1:
        assert rows(inputs) == rows(inputs["input_0"]) == counts[0]
    else:
        with pytest.raises(MeasurementError, match="same number of examples"):
            rows(inputs)


def test_the_profile_of_a_network_with_several_inputs(target: OnnxRuntimeCpuTarget) -> None:
    example = {"ids": np.zeros(1, dtype=np.int64), "scale": np.ones((1, 1), dtype=np.float32)}
    found = node_latencies(target, [(gather_and_scale(), {})], example, inferences=5)
    assert found is not None
    assert {"Gather", "Mul"} <= {node.operation for node in found[0]}


def test_an_input_that_is_no_tensor_of_numbers_is_refused(target: OnnxRuntimeCpuTarget) -> None:
    text = model(
        [helper.make_node("Identity", ["x"], ["y"])],
        [value("x", ["n", 3], TensorProto.STRING)],
        [value("y", ["n", 3], TensorProto.STRING)],
    )
    with pytest.raises(MeasurementError, match=r"input 'x': expected a type out of .* got tensor\(string\)"):
        target.prepare(text)


def test_outputs_that_are_not_finite_are_refused(target: OnnxRuntimeCpuTarget) -> None:
    session = target.prepare(unary("Log"))
    inputs = np.ones((4, 3), dtype=np.float32)
    inputs[2, 1] = -1.0
    with pytest.raises(MeasurementError, match=r"expected finite values, got nan in 1 of 4 examples, .* index 2"):
        session.run(inputs)
    inputs[2, 1] = 0.0
    with pytest.raises(MeasurementError, match="got -inf in 1 of 4"):
        session.runner(inputs)


def test_inputs_of_the_wrong_type_or_shape_are_refused(target: OnnxRuntimeCpuTarget) -> None:
    session = target.prepare(unary("Neg"))
    with pytest.raises(MeasurementError, match="input 'x': expected float32, got float64"):
        session.run(np.ones((2, 3)))
    with pytest.raises(MeasurementError, match=r"input 'x': expected shape \['n', 3\], got \[2, 4\]"):
        session.run(np.ones((2, 4), dtype=np.float32))
    with pytest.raises(MeasurementError, match="expected at least one example"):
        session.run(np.ones((0, 3), dtype=np.float32))


def test_a_reshape_that_mixes_examples_is_refused(target: OnnxRuntimeCpuTarget) -> None:
    mixed = model(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        [value("x", ["n", 4])],
        [value("y", ["m", 2])],
        shape=np.array([-1, 2]),
    )
    with pytest.raises(MeasurementError, match=r"output 'y': expected 3 rows, one for each input, got shape \(6, 2\)"):
        target.prepare(mixed).run(np.ones((3, 4), dtype=np.float32))


def test_a_failure_inside_the_runtime_is_reported(target: OnnxRuntimeCpuTarget) -> None:
    reshape = model(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        [value("x", ["n", 3])],
        [value("y", ["m", 4])],
        shape=np.array([-1, 4]),
    )
    with pytest.raises(MeasurementError, match=r"the runtime failed on an input of shape \(3, 3\): \S+"):
        target.prepare(reshape).run(np.ones((3, 3), dtype=np.float32))


def test_a_free_axis_behind_the_batch_has_no_shape_to_tell(target: OnnxRuntimeCpuTarget) -> None:
    free = model([helper.make_node("Neg", ["x"], ["y"])], [value("x", ["n", "t"])], [value("y", ["n", "t"])])
    session = target.prepare(free)
    with pytest.raises(MeasurementError, match="expected fixed sizes behind the batch axis"):
        session.input_shapes(1)
    assert session.run(np.ones((2, 5), dtype=np.float32)).shape == (2, 5)


def test_a_real_network_of_a_third_of_the_work_is_measured_as_faster(target: OnnxRuntimeCpuTarget) -> None:
    dense, third = target.prepare(perceptron(512, 12)), target.prepare(perceptron(512, 4))
    inputs = np.random.default_rng(0).standard_normal((1, 512)).astype(np.float32)
    start = time.perf_counter()
    (reading,) = measure([third], dense, inputs, seed=0)
    seconds = time.perf_counter() - start
    assert reading.noisy or 0.2 < reading.ratio.value < 0.6
    assert reading.latency_ms.value == pytest.approx(reading.ratio.value * reading.baseline_ms)
    assert seconds < 5.0  # 0.5 s on a machine of its own


def test_a_fingerprint_tells_hosts_runtimes_and_threads_apart() -> None:
    host = fingerprint("onnxruntime 1.0", 1)
    assert host == fingerprint("onnxruntime 1.0", 1)
    assert len({host.key, fingerprint("onnxruntime 1.1", 1).key, fingerprint("onnxruntime 1.0", 2).key}) == 3
    assert host.cpu
    assert host.cores >= 1
    assert host.memory_gb >= 1
    assert host.flags == tuple(sorted(host.flags))
    assert load() >= 0.0
