"""ONNX Runtime's sessions, on whichever of its execution providers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from autocompress.errors import MeasurementError
from autocompress.measure.loaded import BuiltTarget, Call, Feed, LoadedModel, Port, Signature, first_line

#: ONNX Runtime's words for element types -> numpy's.
_TYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(bool)": "bool",
}


def cpu_options(module: Any, threads: int) -> Any:
    """Options of a session on the CPU: pinned threads, all of the runtime's optimizations.

    Args:
        module: the imported runtime.
        threads: that share one inference.
    """
    options = module.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = module.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = module.GraphOptimizationLevel.ORT_ENABLE_ALL
    # Spinning threads would burn the other networks' time between their turns.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors; what matters is raised
    return options


def open_session(target: BuiltTarget[Any], module: Any, model: bytes, options: Any, providers: Sequence[Any]) -> Any:
    """The runtime's own session.

    Raises:
        MeasurementError: there are no bytes, the runtime refuses them, or does not use the first provider.
    """
    if not isinstance(model, bytes) or not model:
        # The runtime would take a str for a path.
        got = "no bytes at all" if isinstance(model, bytes) else f"a {type(model).__name__}"
        raise MeasurementError(f"{target.name}: expected the bytes of an ONNX model, got {got}")
    try:
        session = module.InferenceSession(model, options, providers=list(providers))
    except Exception as error:
        raise MeasurementError(
            f"{target.name}: expected an ONNX model that {target.runtime} can load, got {len(model)} bytes "
            f"that it refuses: {first_line(error)}"
        ) from error
    first = providers[0] if isinstance(providers[0], str) else providers[0][0]
    if first not in session.get_providers():
        # Without a word it would compute on the CPU.
        raise MeasurementError(
            f"{target.name}: expected {target.runtime} to use {first}, got {session.get_providers()}: its libraries "
            "(CUDA, cuDNN, TensorRT) are missing or of another version"
        )
    return session


def loaded(target: str, session: Any, threads: int) -> LoadedModel:
    """A session behind the protocol that all targets share."""
    ports = [
        tuple(Port(node.name, _TYPES.get(node.type, node.type), _shape(node.shape)) for node in nodes)
        for nodes in (session.get_inputs(), session.get_outputs())
    ]
    signature = Signature.checked(target, *ports)
    outputs = [signature.output.name]

    def bind(feed: Feed) -> Call:
        run = session.run
        return lambda: run(outputs, feed)[0]

    return LoadedModel(signature, threads, bind)


def _shape(shape: Any) -> tuple[object, ...]:
    return tuple(shape)
