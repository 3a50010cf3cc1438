"""Writing a network as ONNX: one way, checked against torch, and the same bytes for the same module.

Batch normalization is folded into its convolution before the exporter runs: that is what the runtime would do anyway,
and it leaves a graph that torch traces in two thirds of the time.
"""

from __future__ import annotations

import copy
import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import GraphProto, ModelProto
from onnxscript import opset20 as op
from onnxscript.optimizer import optimize_ir
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from autocompress.compress.fold import fold_batch_norm
from autocompress.compress.onnx_names import name_layers
from autocompress.compress.onnx_simplify import simplify
from autocompress.compress.translations import remembered
from autocompress.errors import ExportError
from autocompress.inputs import Inputs, apply, call, named

if TYPE_CHECKING:
    import onnx_ir
    from torch.onnx import ONNXProgram

#: Largest difference from torch that still counts as the same network, relative to the largest output (at least 1).
TOLERANCE = 1e-2
#: Operators that only rearrange weights: folded whatever the weights' size, so that a layer reads a constant.
_REARRANGES = frozenset({"Transpose", "Slice", "Concat", "Unsqueeze", "Squeeze", "Reshape", "Identity"})
#: Elements of the largest constant that folding may write.
_LARGEST_CONSTANT = 2**24


@dataclass(frozen=True)
class Exported:
    """An ONNX model and how well it agrees with the module that it came from.

    Attributes:
        model: bytes of the file. Inputs are called as `autocompress.inputs.named` says; a single output
            ``"output"``, several ``"output_0"``, ... in the order in which the module returns them. The batch axis
            ``"batch"`` is free.
        agreement: largest absolute difference between torch's and the runtime's outputs on three inputs.
    """

    model: bytes
    agreement: float


def export_onnx(module: nn.Module, example: Inputs) -> Exported:
    """Write `module` in evaluation mode as an ONNX model.

    Every node with weights is named like its torch layer, so that layers can be found in the file; see
    `autocompress.compress.onnx_names.name_layers`. Nothing in the file depends on the machine, the folder or the time:
    the same module gives the same bytes. `module` is not changed.

    Args:
        module: takes tensors of shape (batch, ...), returns one such tensor, or several in a tuple, list or dict.
        example: tensors of shape (1, ...) or (batch, ...); only their first rows are used. Integers (such as token
            ids) keep their type and, for the comparison with the runtime, their values.

    Raises:
        ExportError: torch cannot trace or convert the module, its batch axis is fixed, the file is not valid, or
            the runtime's outputs differ from torch's by more than ``1e-2 · max(1, max |output|)``.
    """
    row = apply(_first_row, example)
    probe = apply(_three_rows, row)
    pair = apply(lambda tensor: tensor[:2], probe)
    reference = copy.deepcopy(module).cpu().eval()
    # Two batch sizes: one that is fixed fails here, with a plain message, not inside torch's exporter.
    _run(reference, pair)
    expected = _run(reference, probe)
    folded = fold_batch_norm(reference, probe)
    proto = _trace(folded, pair, outputs=len(expected)).model_proto
    name_layers(proto.graph, folded)
    simplify(proto.graph, lambda tensors: _shapes(proto, tensors, named(pair), named(probe)))
    _check_inputs(proto.graph, named(row))
    _check_batch(proto.graph)
    model = canonical(proto)
    return Exported(model=model, agreement=_agreement(model, named(probe), expected))


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


def _first_row(tensor: Tensor) -> Tensor:
    row = tensor[:1].detach().cpu()
    return (row.to(torch.float32) if row.is_floating_point() else row).contiguous()


def _three_rows(row: Tensor) -> Tensor:
    """Three valid examples from one: other scales of floats, other orders of integers and booleans."""
    if row.is_floating_point():
        return torch.cat((row, 0.5 * row, -row))
    if row.ndim < 2:
        return row.repeat(3)
    return torch.cat((row, row.roll(1, dims=-1), row.flip(-1)))


def _run(module: nn.Module, inputs: Inputs) -> list[Tensor]:
    """All output tensors, in the order in which the module returns them."""
    try:
        with torch.no_grad():
            returned = call(module, inputs)
    except Exception as error:
        shapes = {name: tuple(tensor.shape) for name, tensor in named(inputs).items()}
        shown = next(iter(shapes.values())) if list(shapes) == ["input"] else shapes
        raise ExportError(
            f"export: the module raised on inputs of shape {shown}: {_first_cause(error)}; it has to "
            "take a batch of any size (a reshape or view that holds a fixed batch size does not)"
        ) from error
    leaves = [leaf for leaf in tree_leaves(returned) if leaf is not None]
    if not leaves or not all(isinstance(leaf, Tensor) for leaf in leaves):
        found = ", ".join(sorted({type(leaf).__name__ for leaf in leaves})) or "nothing"
        raise ExportError(f"export: expected the module to return tensors only, got {found}")
    return leaves


def _trace(module: nn.Module, example: Inputs, *, outputs: int) -> ONNXProgram:
    # A symbolic batch axis over an example of two rows: torch would specialize on sizes 0 and 1.
    batch = torch.export.Dim("batch")
    arguments: dict[str, Any]
    if isinstance(example, Mapping):
        # Keyword arguments keep their names, whatever the order in which the module declares them.
        arguments = {"args": (), "kwargs": dict(example), "dynamic_shapes": {name: {0: batch} for name in example}}
    else:
        tensors = (example,) if isinstance(example, Tensor) else tuple(example)
        arguments = {
            "args": tensors,
            "dynamic_shapes": tuple({0: batch} for _ in tensors),
            "input_names": list(named(example)),
        }
    try:
        with _quiet(), remembered():
            program = torch.onnx.export(
                module,
                dynamo=True,
                external_data=False,
                custom_translation_table={torch.ops.aten.scaled_dot_product_attention.default: _attention},
                optimize=False,
                verbose=False,
                **arguments,
            )
            if program is not None:
                inputs = [(value, value.name) for value in program.model.graph.inputs]
                optimize_ir(program.model, output_size_limit=_LARGEST_CONSTANT, should_fold=_should_fold)
                _name_outputs(program.model.graph)
                for value, name in inputs:  # an input that is returned as it is was renamed
                    value.name = name
    except Exception as error:  # torch raises whatever the user's forward raises
        raise ExportError(f"export: torch could not write the module as ONNX: {_first_cause(error)}") from error
    if program is None or len(program.model_proto.graph.output) != outputs:
        raise ExportError(f"export: expected a graph with {outputs} outputs from torch's exporter")
    return program


def _name_outputs(graph: onnx_ir.Graph) -> None:
    """``"output"``, or ``"output_0"``, ... Told these names, the exporter would rename an input that is returned."""
    single = len(graph.outputs) == 1
    names = ["output"] if single else [f"output_{index}" for index in range(len(graph.outputs))]
    taken = {value.name: value for node in graph for value in node.outputs}
    for value, name in zip(graph.outputs, names, strict=True):
        if name in taken and taken[name] is not value:
            taken[name].name = f"{name}_inner"
        value.name = name


def _should_fold(node: onnx_ir.Node) -> bool | None:
    """Keep an embedding that is read at fixed places: its table is a layer, however few rows are read."""
    if node.op_type == "Gather":
        return False if (node.inputs[0] is not None and (node.inputs[0].name or "").endswith(".weight")) else None
    return True if node.op_type in _REARRANGES else None


def _attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Attention with one plain transpose of the keys; torch's own translation reshapes them by computed sizes."""
    length, width, keys = query.shape[-2], query.shape[-1], key.shape[-2]
    fixed = all(isinstance(size, int) for size in (length, width, keys)) and len(query.shape) == 4
    if not fixed or enable_gqa or len(key.shape) != 4:
        raise ValueError("attention: expected queries and keys of shape (batch, heads, length, width), fixed but batch")
    factor = 1.0 / math.sqrt(width) if scale is None else scale
    scaled = op.Mul(query, op.Constant(value_float=factor))
    scores = op.MatMul(scaled, op.Transpose(key, perm=[0, 1, 3, 2]))
    if is_causal:
        causal = np.triu(np.full((length, keys), -np.inf, dtype=np.float32), k=1)
        scores = op.Add(scores, op.Constant(value=onnx.numpy_helper.from_array(causal)))
    elif attn_mask is not None and attn_mask.dtype is not None and attn_mask.dtype.name == "BOOL":
        scores = op.Where(attn_mask, scores, op.Constant(value_float=float("-inf")))
    elif attn_mask is not None:
        scores = op.Add(scores, attn_mask)
    return op.MatMul(op.Softmax(scores, axis=-1), value)


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


def _shapes(
    proto: ModelProto, tensors: Sequence[str], two: Mapping[str, Tensor], three: Mapping[str, Tensor]
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Shapes of inner tensors for batches of two and three."""
    tapped = ModelProto()
    tapped.CopyFrom(proto)
    known = {value.name for value in proto.graph.output}
    # The element type is the runtime's to infer: only names matter.
    tapped.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors if name not in known)
    try:
        session = runtime_session(tapped.SerializeToString())
        results = [
            session.run(list(tensors), {name: tensor.numpy() for name, tensor in batch.items()})
            for batch in (two, three)
        ]
    except Exception as error:  # the runtime has no public base class for its errors
        raise ExportError(f"export: the runtime cannot run the model: {_first_cause(error)}") from error
    return [(a.shape, b.shape) for a, b in zip(*results, strict=True)]


def _check_inputs(graph: GraphProto, inputs: Mapping[str, Tensor]) -> None:
    """The file has exactly the inputs of the module, in its order."""
    values = {value.name: value for value in graph.input}
    if set(values) != set(inputs):
        raise ExportError(f"export: expected inputs {', '.join(inputs)} in the model, got {', '.join(values)}")
    kept = [values[name] for name in inputs]
    copies = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in kept]
    del graph.input[:]
    graph.input.extend(copies)


def _check_batch(graph: GraphProto) -> None:
    """The first axis of every input and of the first output is free, and some axis of every other output."""
    for value in (*graph.input, *graph.output):
        dims = value.type.tensor_type.shape.dim
        shape = [dim.dim_param or dim.dim_value for dim in dims]
        first = value in (*graph.input, graph.output[0])
        if not any(dim.dim_param for dim in (dims[:1] if first else dims)):
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


def _agreement(model: bytes, probe: Mapping[str, Tensor], expected: list[Tensor]) -> float:
    """Largest absolute difference, over a batch of another size than the one that was traced."""
    try:
        results = runtime_session(model).run(None, {name: tensor.numpy() for name, tensor in probe.items()})
    except Exception as error:  # the runtime has no public base class for its errors
        raise ExportError(f"export: the runtime cannot run the model: {_first_cause(error)}") from error
    return max(_difference(got, tensor.numpy()) for got, tensor in zip(results, expected, strict=True))


def _difference(got: np.ndarray, want: np.ndarray) -> float:
    if got.shape != want.shape:
        raise ExportError(f"export: expected outputs of shape {want.shape} from the runtime, got {got.shape}")
    if not got.size:
        return 0.0
    got, want = got.astype(np.float64), want.astype(np.float64)
    # Where both are the same infinity (a masked score) they agree.
    difference = float(np.max(np.where(got == want, 0.0, np.abs(got - want))))
    limit = TOLERANCE * max(1.0, float(np.max(np.abs(want))))
    if not difference <= limit:
        raise ExportError(
            f"export: the runtime's outputs differ from torch's by {difference:.3g}, expected at most {limit:.3g}; "
            "does the module's forward depend on the values of its input, or on random numbers?"
        )
    return difference
