"""Writing a network as ONNX: one way, checked against torch, and the same bytes for the same module.

Batch normalization is folded into its convolution before the exporter runs: that is what the runtime would do anyway,
and it leaves a graph that torch traces in two thirds of the time.
"""

from __future__ import annotations

import ast
import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import GraphProto, ModelProto, NodeProto
from torch import Tensor, nn

from autocompress.compress.artifact import WEIGHTED
from autocompress.compress.fold import fold_batch_norm
from autocompress.errors import ExportError

if TYPE_CHECKING:
    from torch.onnx import ONNXProgram

#: Largest difference from torch that still counts as the same network, relative to the largest output (at least 1).
TOLERANCE = 1e-2
_SCOPES = "pkg.torch.onnx.name_scopes"


@dataclass(frozen=True)
class Exported:
    """An ONNX model and how well it agrees with the module that it came from.

    Attributes:
        model: bytes of the file; input ``"input"``, output ``"output"``, free first axis ``"batch"``.
        agreement: largest absolute difference between torch's and the runtime's outputs on three inputs.
    """

    model: bytes
    agreement: float


def export_onnx(module: nn.Module, example: Tensor) -> Exported:
    """Write `module` in evaluation mode as an ONNX model.

    Every node with weights is named like its torch layer, so that layers can be found in the file. Nothing in the file
    depends on the machine, the folder or the time: the same module gives the same bytes. `module` is not changed.

    Args:
        module: takes one tensor of shape (batch, ...), returns one tensor of shape (batch, ...).
        example: shape (1, ...) or (batch, ...); only its first row is used.

    Raises:
        ExportError: torch cannot trace or convert the module, its batch axis is fixed, the file is not valid, or
            the runtime's outputs differ from torch's by more than ``1e-2 · max(1, max |output|)``.
    """
    row = example[:1].detach().to("cpu", torch.float32).contiguous()
    probe = torch.cat((row, 0.5 * row, -row))
    reference = copy.deepcopy(module).cpu().eval()
    # Two batch sizes: one that is fixed fails here, with a plain message, not inside torch's exporter.
    _run(reference, probe[:2])
    expected = _run(reference, probe)
    folded = fold_batch_norm(reference, probe)
    program = _trace(folded, probe[:2])
    proto = program.model_proto
    _name_layers(proto.graph, {name for name, part in folded.named_modules() if name and _has_weight(part)})
    _check_batch(proto.graph)
    model = canonical(proto)
    return Exported(model=model, agreement=_agreement(model, probe, expected))


def canonical(proto: ModelProto) -> bytes:
    """Bytes of a model without metadata: no stack traces, paths or doc strings; checked, and stable when re-read.

    Raises:
        ExportError: ONNX's own checker refuses the model.
    """
    _strip(proto.graph)
    del proto.metadata_props[:]
    proto.doc_string = ""
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"export: the model is not valid ONNX: {error}") from error
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


def runtime_session(model: bytes) -> onnxruntime.InferenceSession:
    """A one-thread CPU session, for checks and calibration rather than for timing."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _run(module: nn.Module, inputs: Tensor) -> Tensor:
    try:
        with torch.no_grad():
            outputs = module(inputs)
    except Exception as error:
        raise ExportError(
            f"export: the module raised on inputs of shape {tuple(inputs.shape)}: {_first_cause(error)}; it has to "
            "take a batch of any size (a reshape or view that holds a fixed batch size does not)"
        ) from error
    if not isinstance(outputs, Tensor):
        raise ExportError(f"export: expected the module to return one tensor, got {type(outputs).__name__}")
    return outputs


def _trace(module: nn.Module, example: Tensor) -> ONNXProgram:
    # A symbolic batch axis over an example of two rows: torch would specialize on sizes 0 and 1.
    shapes = ({0: torch.export.Dim("batch")},)
    try:
        with _quiet():
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                external_data=False,
                dynamic_shapes=shapes,
                input_names=["input"],
                output_names=["output"],
                verbose=False,
            )
    except Exception as error:  # torch raises whatever the user's forward raises
        raise ExportError(f"export: torch could not write the module as ONNX: {_first_cause(error)}") from error
    if program is None or len(program.model_proto.graph.output) != 1:
        raise ExportError("export: expected a module with exactly one output tensor")
    return program


def _first_cause(error: BaseException) -> str:
    """The innermost reason in one line; the exporter wraps it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's notices about missing libraries and its own future; its errors reach us as exceptions."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    loggers += [
        logger
        for name, logger in logging.root.manager.loggerDict.items()
        if name.startswith(("torch.onnx.", "torch.export.")) and isinstance(logger, logging.Logger)
    ]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.CRITICAL)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _has_weight(module: nn.Module) -> bool:
    return isinstance(getattr(module, "weight", None), Tensor)


def _name_layers(graph: GraphProto, layers: set[str]) -> None:
    """Give nodes with constant weights their layer's name, and those weights the name ``<layer>.weight``.

    The exporter keeps a parameter's name unless it folded a transpose into it; then the node's module scope tells.
    """
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    seen: dict[str, int] = {}
    for index, node in enumerate(graph.node):
        node.name = f"{node.op_type}_{index}"
        if node.op_type not in WEIGHTED or len(node.input) < 2 or node.input[1] not in initializers:
            continue
        weight = node.input[1]
        layer = weight.removesuffix(".weight") if weight.endswith(".weight") else _scope(node, layers)
        if layer is None:
            continue
        if weight != f"{layer}.weight" and f"{layer}.weight" not in initializers:
            initializers[f"{layer}.weight"] = initializers.pop(weight)
            initializers[f"{layer}.weight"].name = f"{layer}.weight"
            _rename_input(graph, weight, f"{layer}.weight")
        # A module that is called twice gives two nodes; node names must differ.
        seen[layer] = seen.get(layer, 0) + 1
        node.name = layer if seen[layer] == 1 else f"{layer}@{seen[layer]}"


def _scope(node: NodeProto, layers: set[str]) -> str | None:
    """Innermost module with weights in whose forward the node arose."""
    text = next((prop.value for prop in node.metadata_props if prop.key == _SCOPES), "[]")
    scopes: list[Any] = ast.literal_eval(text)
    return next((str(scope) for scope in reversed(scopes) if scope in layers), None)


def _rename_input(graph: GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        for position, name in enumerate(node.input):
            if name == old:
                node.input[position] = new


def _check_batch(graph: GraphProto) -> None:
    for value in (graph.input[0], graph.output[0]):
        dims = value.type.tensor_type.shape.dim
        shape = [dim.dim_param or dim.dim_value for dim in dims]
        if not dims or not dims[0].dim_param:
            raise ExportError(
                f"export: expected a free batch axis, got {value.name} of shape {shape}; the module's "
                "forward fixes the batch size: use x.flatten(1), or x.shape[0] as it is, without int()"
            )


def _strip(graph: GraphProto) -> None:
    graph.name = "network"
    graph.doc_string = ""
    del graph.metadata_props[:]
    del graph.value_info[:]
    for tensor in graph.initializer:
        tensor.doc_string = ""
        del tensor.metadata_props[:]
    for value in (*graph.input, *graph.output):
        value.doc_string = ""
        del value.metadata_props[:]
    for node in graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
        for attribute in node.attribute:
            attribute.doc_string = ""
            for inner in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
                _strip(inner)


def _agreement(model: bytes, probe: Tensor, expected: Tensor) -> float:
    """Largest absolute difference, over a batch of another size than the one that was traced."""
    try:
        got = runtime_session(model).run(None, {"input": probe.numpy()})[0]
    except Exception as error:  # the runtime has no public base class for its errors
        raise ExportError(f"export: the runtime cannot run the model: {_first_cause(error)}") from error
    want = expected.numpy()
    if got.shape != want.shape:
        raise ExportError(f"export: expected outputs of shape {want.shape} from the runtime, got {got.shape}")
    difference = float(np.max(np.abs(got - want))) if got.size else 0.0
    limit = TOLERANCE * max(1.0, float(np.max(np.abs(want))))
    if not difference <= limit:
        raise ExportError(
            f"export: the runtime's outputs differ from torch's by {difference:.3g}, expected at most {limit:.3g}; "
            "does the module's forward depend on the values of its input, or on random numbers?"
        )
    return difference
