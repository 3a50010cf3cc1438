"""Taking computed sizes out of an exported graph: every size but the batch's is known when the graph is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from onnx import GraphProto, NodeProto, numpy_helper

from autocompress.compress.between import tidy
from autocompress.compress.onnx_names import RECURRENT

#: Names of tensors -> their shapes for a batch of two and for a batch of three.
Probe = Callable[[Sequence[str]], Sequence[tuple[tuple[int, ...], tuple[int, ...]]]]
#: Operators through which zeros stay zeros.
_KEEPS_ZEROS = frozenset({"Expand", "Slice", "Reshape", "Transpose", "Unsqueeze", "Squeeze", "Identity", "Concat"})


def simplify(graph: GraphProto, probe: Probe) -> None:
    """Give reshapes constant target sizes and recurrent layers their default initial state, in place.

    The exporter computes sizes at run time where it cannot prove them constant; a runtime then runs these small
    operators for every input, and a reader of the file cannot tell the shapes. A reshape whose result has one axis that
    grows with the batch is one with that axis free.

    Args:
        graph: of an exported model.
        probe: runs it; called only if there is a reshape to a computed size.
    """
    _drop_zero_states(graph)
    tidy(graph)
    constants = {tensor.name for tensor in graph.initializer}
    computed = [node for node in graph.node if node.op_type == "Reshape" and node.input[1] not in constants]
    if not computed:
        return
    for node, (two, three) in zip(computed, probe([node.output[0] for node in computed]), strict=True):
        free = [axis for axis, (a, b) in enumerate(zip(two, three, strict=True)) if a != b]
        if len(free) > 1 or 0 in two:
            continue
        target = np.array([-1 if axis in free else size for axis, size in enumerate(two)], dtype=np.int64)
        name = f"{node.name}/shape"
        graph.initializer.append(numpy_helper.from_array(target, name))
        node.input[1] = name
    tidy(graph)


def _drop_zero_states(graph: GraphProto) -> None:
    """An initial state of zeros is what a recurrent operator starts from by itself."""
    producer = {output: node for node in graph.node for output in node.output}
    zeros = {tensor.name for tensor in graph.initializer if not numpy_helper.to_array(tensor).any()}
    for node in graph.node:
        if node.op_type not in RECURRENT:
            continue
        states = [at for at in (5, 6) if len(node.input) > at and node.input[at]]
        if states and all(_is_zero(node.input[at], producer, zeros) for at in states):
            del node.input[5:]


def _is_zero(tensor: str, producer: dict[str, NodeProto], zeros: set[str]) -> bool:
    node = producer.get(tensor)
    if node is None:
        return tensor in zeros
    if node.op_type not in _KEEPS_ZEROS:
        return False
    sources = node.input if node.op_type == "Concat" else node.input[:1]
    return all(_is_zero(name, producer, zeros) for name in sources)
