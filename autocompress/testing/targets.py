"""What every target promises, as functions that take a built target and raise AssertionError where it breaks a promise.

Examples:
    All of them, for a target of your own::

        @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
        def test_my_target(check):
            check(MyTarget().build())
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from autocompress.errors import MeasurementError
from autocompress.measure.latency import Procedure, measure
from autocompress.measure.target import Target

#: Largest difference from numpy that still counts as the same, relative to the largest output (at least 1).
TOLERANCE = 1e-5

Check = Callable[[Target], None]


def network(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, tuple[str | int, ...]],
    outputs: Mapping[str, tuple[str | int, ...]],
    types: Mapping[str, int] | None = None,
    **constants: np.ndarray,
) -> bytes:
    """A small ONNX file.

    Args:
        nodes: of `onnx.helper.make_node`.
        inputs: name -> shape, a name for a free size.
        outputs: likewise.
        types: name -> element type, where it is not a 32-bit float.
        constants: by name.
    """
    known = types or {}

    def value(name: str, shape: tuple[str | int, ...]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, known.get(name, TensorProto.FLOAT), shape)

    graph = helper.make_graph(
        list(nodes),
        "contract",
        [value(name, shape) for name, shape in inputs.items()],
        [value(name, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data: bytes = model.SerializeToString()
    return data


def perceptron() -> tuple[bytes, Callable[[np.ndarray], np.ndarray]]:
    """relu(x W + b) V of 6 inputs, and the same in numpy."""
    rng = np.random.default_rng(0)
    w, v = (rng.standard_normal(shape).astype(np.float32) for shape in ((6, 16), (16, 4)))
    b = rng.standard_normal(16).astype(np.float32)
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], "first"),
        helper.make_node("Relu", ["h"], ["r"], "relu"),
        helper.make_node("MatMul", ["r", "v"], ["y"], "second"),
    ]
    model = network(nodes, {"x": ("batch", 6)}, {"y": ("batch", 4)}, w=w, b=b, v=v)
    return model, lambda x: np.asarray(np.maximum(x @ w + b, 0) @ v)


def lookup() -> tuple[bytes, Callable[[np.ndarray, np.ndarray], np.ndarray]]:
    """Rows of a table by ids, times a float each; a second output has no batch axis."""
    table = np.arange(12, dtype=np.float32).reshape(4, 3)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"], "gather"),
        helper.make_node("Mul", ["rows", "scale"], ["y"], "scale_rows"),
        helper.make_node("ReduceMax", ["rows"], ["most"], "most_of", axes=[0, 1], keepdims=0),
    ]
    model = network(
        nodes,
        {"ids": ("batch",), "scale": ("batch", 1)},
        {"y": ("batch", 3), "most": ()},
        {"ids": TensorProto.INT64},
        table=table,
    )
    return model, lambda ids, scale: np.asarray(table[ids] * scale)


def unary(operator: str, batch: str | int = "batch") -> bytes:
    """One operator on 3 columns."""
    return network([helper.make_node(operator, ["x"], ["y"], operator)], {"x": (batch, 3)}, {"y": (batch, 3)})


def says_what_it_can_do(target: Target) -> None:
    """Properties are of their types, and fit each other."""
    _expect(bool(target.name) and bool(target.runtime), "a name and a runtime", (target.name, target.runtime))
    _expect(target.round_to >= 1, "round_to >= 1", target.round_to)
    _expect(target.threads >= 1 and target.batch_size >= 1, "threads and batch_size >= 1", target.threads)
    _expect(32 in target.bits and set(target.bits) <= {32, 16, *range(2, 9)}, "bits with 32 among them", target.bits)
    _expect(32 in target.computes and set(target.computes) <= set(target.bits), "computes among bits", target.computes)


def computes_any_batch(target: Target) -> None:
    """Outputs are numpy's, for one example, several, and fewer than before."""
    model, oracle = perceptron()
    session = target.prepare(model)
    _expect(session.threads == target.threads, f"a session with {target.threads} threads", session.threads)
    _expect(session.input_shapes(5) == {"x": (5, 6)}, "input shapes {'x': (5, 6)}", session.input_shapes(5))
    for count in (4, 1, 3, 7):
        x = np.random.default_rng(count).standard_normal((count, 6)).astype(np.float32)
        _close(session.run(x), oracle(x))


def keeps_earlier_results(target: Target) -> None:
    """An output is not written over by the next inference, nor is an input that stands bound to a call."""
    model, oracle = perceptron()
    session = target.prepare(model)
    first, second = (np.random.default_rng(i).standard_normal((2, 6)).astype(np.float32) for i in (0, 1))
    call, other = session.runner(first), session.runner(second)
    earlier = session.run(first)
    session.run(second)
    _close(earlier, oracle(first))
    other()
    _close(np.asarray(call()), oracle(first))


def takes_inputs_by_name_and_reads_the_first_output(target: Target) -> None:
    """Several inputs in any order; a further output may have any shape."""
    model, oracle = lookup()
    session = target.prepare(model)
    for count in (1, 5):
        ids = np.arange(count, dtype=np.int64) % 4
        scale = np.linspace(1, 2, count, dtype=np.float32)[:, None]
        by_name: dict[str, np.ndarray] = {"ids": ids, "scale": scale}
        for inputs in (by_name, dict(reversed(by_name.items()))):
            _close(session.run(inputs), oracle(ids, scale))
    ids, scale = np.zeros(2, dtype=np.int64), np.ones((2, 1), dtype=np.float32)
    wrong: tuple[Any, ...] = (
        ids,
        {"ids": ids},
        {"ids": ids.astype(np.int32), "scale": scale},
        {"ids": ids, "scale": np.ones((3, 1), dtype=np.float32)},
        {"ids": ids, "scale": np.ones((2, 2), dtype=np.float32)},
        {"ids": ids[:0], "scale": scale[:0]},
    )
    for bad in wrong:
        _refuses(lambda bad=bad: session.run(bad), "expected")  # type: ignore[misc]


def refuses_what_is_no_model(target: Target) -> None:
    """Junk, an unknown operator, no bytes, a path: each an error that says what was expected."""
    for junk in (b"not a model", b"\x00" * 64, b"", unary("NoSuchOperator"), "model.onnx"):
        _refuses(lambda junk=junk: target.prepare(junk).run(np.ones((1, 3), np.float32)), "")  # type: ignore[misc]
    _refuses(lambda: target.prepare(b""), "expected the bytes of an ONNX model")


def refuses_a_fixed_batch(target: Target) -> None:
    """The error says which tensor it is and how to export it."""
    _refuses(lambda: target.prepare(unary("Neg", batch=1)), "expected a free batch axis first, got a fixed batch of 1")


def refuses_outputs_that_are_not_finite(target: Target) -> None:
    """NaN and infinity, with the example in which they are."""
    session = target.prepare(unary("Sqrt"))
    x = np.ones((4, 3), dtype=np.float32)
    _close(session.run(x), x)
    x[2, 1] = -1.0
    _refuses(lambda: session.run(x), "in 1 of 4 examples, the first at index 2")
    _refuses(lambda: session.runner(x), "in 1 of 4 examples, the first at index 2")


def takes_time_that_can_be_measured(target: Target) -> None:
    """A network beside itself: a reading with a ratio near 1, of a latency above 0."""
    session = target.prepare(perceptron()[0])
    x = np.ones((target.batch_size, 6), dtype=np.float32)
    (reading,) = measure([session], session, x, seed=0, procedure=Procedure(rounds=10, block_s=0.001, warm_up_s=0.05))
    _expect(reading.latency_ms.value > 0, "a latency above 0", reading.latency_ms)
    _expect(reading.noisy or 0.5 < reading.ratio.value < 2.0, "a ratio near 1 or a noisy reading", reading.ratio)


CHECKS: tuple[Check, ...] = (
    says_what_it_can_do,
    computes_any_batch,
    keeps_earlier_results,
    takes_inputs_by_name_and_reads_the_first_output,
    refuses_what_is_no_model,
    refuses_a_fixed_batch,
    refuses_outputs_that_are_not_finite,
    takes_time_that_can_be_measured,
)


def _expect(holds: bool, expected: str, got: object) -> None:
    if not holds:
        raise AssertionError(f"expected {expected}, got {got!r}")


def _close(got: np.ndarray, expected: np.ndarray) -> None:
    _expect(got.shape == expected.shape, f"an output of shape {expected.shape}", got.shape)
    error = float(np.abs(got - expected).max()) / max(1.0, float(np.abs(expected).max()))
    _expect(error <= TOLERANCE, f"outputs within {TOLERANCE:g} of numpy's", error)


def _refuses(act: Callable[[], object], message: str) -> None:
    try:
        act()
    except MeasurementError as error:
        _expect(message in str(error), f"an error with {message!r}", str(error))
    else:
        raise AssertionError(f"expected a MeasurementError with {message!r}, got none")
