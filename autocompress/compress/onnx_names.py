"""Names for the nodes of an exported graph: those of the torch layers that they came from."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, numpy_helper
from torch import Tensor, nn

#: Operators that a layer with weights becomes -> position of the weight among the node's inputs.
WEIGHT_INPUT = {
    "Conv": 1,
    "ConvTranspose": 1,
    "Gemm": 1,
    "MatMul": 1,
    "MatMulNBits": 1,
    "Gather": 0,
}
#: Operators whose nodes hold the matrices of one layer of a recurrent module: input weights, then recurrent weights.
RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
#: Names that these matrices have in torch, by their position among the node's inputs.
MATRICES = {1: "weight_ih", 2: "weight_hh"}

_SCOPES = "pkg.torch.onnx.name_scopes"


def layer_of(node_name: str) -> str:
    """The layer that a node belongs to; the second call of a layer is named ``"<layer>@2"``."""
    return node_name.partition("@")[0]


def matrix_name(node_name: str, position: int, direction: int) -> str:
    """Name of a recurrent layer's matrix, as torch's parameter is called.

    Args:
        node_name: as `name_layers` gives it: ``"<module>.l<layer>"``.
        position: of the matrix among the node's inputs, 1 or 2.
        direction: 1 for the backward direction.

    Examples:
        >>> matrix_name("encoder.rnn.l0", 1, 0)
        'encoder.rnn.weight_ih_l0'
        >>> matrix_name("rnn.l1@2", 2, 1)
        'rnn.weight_hh_l1_reverse'
    """
    module, _, layer = layer_of(node_name).rpartition(".")
    prefix = f"{module}." if module else ""
    return f"{prefix}{MATRICES[position]}_{layer}{'_reverse' if direction else ''}"


def name_layers(graph: GraphProto, module: nn.Module) -> None:
    """Give nodes with constant weights their layer's name, and those weights the name ``<layer>.weight``.

    The exporter keeps a parameter's name unless it folded a transpose into it, and stores equal parameters once; then
    the node's module scope tells. A product with a parameter of a module that applies it by itself is called like the
    parameter, without ``"weight"``: ``"attention.in_proj"``. The nodes of a recurrent module are called
    ``"<module>.l0"``, ``"<module>.l1"``, ...; see `matrix_name`.
    """
    layers = {name for name, part in module.named_modules() if name and _has_weight(part)}
    recurrent = {name for name, part in module.named_modules() if isinstance(part, nn.RNNBase)}
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    parameters, known = _matrices(module), {name for name, _ in module.named_parameters()}
    seen: dict[str, int] = {}
    calls: dict[str, int] = {}
    for index, node in enumerate(graph.node):
        node.name = f"{node.op_type}_{index}"
        if node.op_type in RECURRENT:
            name = _recurrent_name(node, recurrent, module, calls)
            if name is not None:
                _take(node, name, seen)
                for at in MATRICES:
                    _rename(graph, initializers, node.input[at], matrix_name(node.name, at, 0))
            continue
        position = WEIGHT_INPUT.get(node.op_type)
        if position is None or len(node.input) < 2 or node.input[position] not in initializers:
            continue
        weight = node.input[position]
        layer = _scope(node, layers)
        if node.op_type == "Gather" and not (layer and isinstance(module.get_submodule(layer), nn.Embedding)):
            continue
        if layer is None and node.op_type in ("MatMul", "Gemm"):
            layer = _by_value(node, numpy_helper.to_array(initializers[weight]), parameters)
        if layer is None and weight.endswith("weight"):
            layer = _without_weight(weight)
        if layer is None:
            continue
        if weight not in known:
            _rename(graph, initializers, weight, f"{layer}.weight")
        _take(node, layer, seen)


def _take(node: NodeProto, name: str, seen: dict[str, int]) -> None:
    """Name a node; a module that is called twice gives two nodes, whose names must differ."""
    seen[name] = seen.get(name, 0) + 1
    node.name = name if seen[name] == 1 else f"{name}@{seen[name]}"


def _recurrent_name(node: NodeProto, recurrent: set[str], module: nn.Module, calls: dict[str, int]) -> str | None:
    """Its module and the number of its layer: a module's nodes come in the order of its layers, call after call."""
    scope = _scope(node, recurrent)
    if scope is None and "" in recurrent:
        scope = ""
    if scope is None:
        return None
    part = module.get_submodule(scope) if scope else module
    layer = calls.get(scope, 0) % int(getattr(part, "num_layers", 1))
    calls[scope] = calls.get(scope, 0) + 1
    return f"{scope}.l{layer}" if scope else f"l{layer}"


def _scope(node: NodeProto, layers: set[str]) -> str | None:
    """Innermost of these modules in whose forward the node arose."""
    return next((scope for scope in reversed(_scopes(node)) if scope in layers), None)


def _scopes(node: NodeProto) -> list[str]:
    text = next((prop.value for prop in node.metadata_props if prop.key == _SCOPES), "[]")
    found: list[Any] = ast.literal_eval(text)
    return [str(scope) for scope in found]


def _has_weight(module: nn.Module) -> bool:
    return isinstance(getattr(module, "weight", None), Tensor)


def _without_weight(parameter: str) -> str:
    """``"fc"`` of ``"fc.weight"``; a matrix of a recurrent cell, ``"cell.weight_ih"``, is a layer of its own."""
    return parameter.removesuffix("weight").rstrip("._")


def _matrices(module: nn.Module) -> dict[tuple[tuple[int, ...], bytes], list[str]]:
    """Names of the matrices by their values, as torch keeps them and transposed."""
    found: dict[tuple[tuple[int, ...], bytes], list[str]] = {}
    for name, parameter in module.named_parameters():
        if parameter.ndim == 2 and "weight" in name.rpartition(".")[2]:
            values = parameter.detach().cpu().numpy()
            for key in {_key(values), _key(values.T)}:
                found.setdefault(key, []).append(_without_weight(name))
    return found


def _by_value(
    node: NodeProto, values: np.ndarray, parameters: Mapping[tuple[tuple[int, ...], bytes], list[str]]
) -> str | None:
    """The matrix with these values; of equal ones that of the innermost module in whose forward the node arose."""
    names = parameters.get(_key(values), [])
    for scope in reversed(_scopes(node)):
        inside = [name for name in names if scope and name.startswith(f"{scope}.")]
        if inside:
            return inside[0]
    return names[0] if names else None


def _key(values: np.ndarray) -> tuple[tuple[int, ...], bytes]:
    return values.shape, np.ascontiguousarray(values).tobytes()


def _rename(graph: GraphProto, initializers: dict[str, TensorProto], old: str, new: str) -> None:
    """Give a constant another name, unless that is taken."""
    if old not in initializers or new in initializers:
        return
    initializers[new] = initializers.pop(old)
    initializers[new].name = new
    for node in graph.node:
        for position, name in enumerate(node.input):
            if name == old:
                node.input[position] = new


def readers(nodes: Iterable[NodeProto]) -> dict[str, list[NodeProto]]:
    """Tensor name -> the nodes that read it, in order."""
    found: dict[str, list[NodeProto]] = {}
    for node in nodes:
        for name in dict.fromkeys(node.input):
            if name:
                found.setdefault(name, []).append(node)
    return found
