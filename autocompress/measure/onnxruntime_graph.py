"""Reading ONNX Runtime's optimized graph: which of the file's nodes each of its nodes stands for.

The runtime keeps no record of that. It does keep names: a node that it rewrites is called like one of those that it
stands for, with an addition, or like a tensor that one of them made, and a tensor between two of its nodes keeps its
name unless its layout changed. What neither tells follows from the order of computation: nodes that multiply with
weights are never joined to the one before them, others are joined to the node whose result is stored nowhere.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from math import prod

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from autocompress.measure.graph import Shown
from autocompress.records import Compute, RuntimeNode

#: Operators of which the runtime has kernels that multiply integers by integers.
_INTEGER = frozenset(
    {
        "ConvInteger",
        "DynamicQuantizeLSTM",
        "DynamicQuantizeMatMul",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "QAttention",
        "QGemm",
        "QLinearConv",
        "QLinearConvTranspose",
        "QLinearMatMul",
    }
)
#: Changes of layout that the runtime puts in.
_LAYOUT = frozenset({"ReorderInput", "ReorderOutput", "Transpose"})
#: Operators joined to what follows them, rather than to what comes before.
_BEFORE = frozenset({"DequantizeLinear"})
#: Operators that read weights, in a file, if one of their inputs is a constant of rank >= 2.
_PRODUCTS = frozenset(
    {"Conv", "ConvTranspose", "Gemm", "MatMul", "MatMulNBits", "Gather", "GatherBlockQuantized", "LSTM", "GRU", "RNN"}
)
_TYPES: dict[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.DOUBLE: "float64",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "uint8",
    TensorProto.INT4: "int4",
    TensorProto.UINT4: "uint4",
}


def named(graph: GraphProto) -> list[str]:
    """Names of nodes, each once: those without one are called like their operator, with a number.

    Examples:
        >>> from onnx import helper
        >>> nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Relu", ["y"], ["z"])]
        >>> named(helper.make_graph(nodes, "g", [], []))
        ['Relu (1)', 'Relu (2)']
    """
    counts: dict[str, int] = defaultdict(int)
    taken: set[str] = set()
    names = []
    for node in graph.node:
        name = node.name
        while not name or name in taken:
            counts[node.op_type] += 1
            name = f"{node.op_type} ({counts[node.op_type]})"
        taken.add(name)
        names.append(name)
    return names


def shown(source: ModelProto, optimized: ModelProto) -> Shown:
    """What the runtime made of a file.

    Args:
        source: the file.
        optimized: the same, as the runtime wrote it after all its optimizations.

    Returns:
        The runtime's nodes in the order of execution; of every node of the file, which of them computes it, or that
        it was folded or removed.
    """
    match = _Match(source.graph, optimized.graph)
    return Shown(
        nodes=tuple(match.nodes()),
        folded=tuple(match.folded()),
        removed=tuple(match.names[at] for at, owner in enumerate(match.owner) if owner is None and not match.fixed[at]),
    )


class _Match:
    """Assigns the file's nodes, by index, to the runtime's, by index."""

    def __init__(self, source: GraphProto, optimized: GraphProto) -> None:
        self.source, self.optimized = list(source.node), list(optimized.node)
        self.names, self.runtime_names = named(source), named(optimized)
        self.constants = {tensor.name: tensor for tensor in source.initializer}
        self.kept = {tensor.name: tensor for tensor in optimized.initializer}
        self.made_by = {output: at for at, node in enumerate(self.source) for output in node.output if output}
        self.made_there = {output: at for at, node in enumerate(self.optimized) for output in node.output if output}
        self.fixed = self._fixed()
        self.weighs = [self._reads_weights(node) for node in self.source]
        self.owner: list[int | None] = [None] * len(self.source)
        self._by_name()
        self._by_tensor()
        self._back_to_weights()
        self._after()
        self._before()
        self.absorbed: list[int | None] = [self._absorbing(at) for at in range(len(self.source))]

    # --- what the file's nodes are ----------------------------------------------------------------------------------

    def _fixed(self) -> list[bool]:
        """Which nodes compute from constants alone."""
        fixed: list[bool] = []
        known = set(self.constants)
        for node in self.source:
            fixed.append(all(name in known for name in node.input if name))
            if fixed[-1]:
                known.update(node.output)
        return fixed

    def _reads_weights(self, node: NodeProto) -> bool:
        if node.op_type not in _PRODUCTS:
            return False
        return node.op_type == "MatMulNBits" or any(
            (name in self.constants and len(self.constants[name].dims) >= 2)
            or (name in self.made_by and self.fixed[self.made_by[name]])
            for name in node.input[: 1 if node.op_type.startswith("Gather") else 3]
        )

    # --- who computes them ------------------------------------------------------------------------------------------

    def _take(self, at: int | None, by: int) -> None:
        if at is not None and self.owner[at] is None and (not self.fixed[at] or self._same(at, by)):
            self.owner[at] = by

    def _same(self, at: int, by: int) -> bool:
        return self.names[at] == self.runtime_names[by]

    def _added(self, by: int) -> bool:
        """Whether a node only changes the layout, and the file has none of its kind there."""
        node = self.optimized[by]
        made = self.made_by.get(node.output[0]) if node.output else None
        known = made is not None and self.source[made].op_type == node.op_type
        return node.op_type in _LAYOUT and not known and self.runtime_names[by] not in self.names

    def _by_name(self) -> None:
        index = {name: at for at, name in enumerate(self.names)}
        for by, name in enumerate(self.runtime_names):
            self._take(index.get(name), by)
        for by, name in enumerate(self.runtime_names):
            if self._added(by) or name in index:
                continue
            plain = re.sub(r"_token_\d+$", "", name)
            if plain.endswith("_nchwc"):
                self._take(self.made_by.get(plain.removesuffix("_nchwc")), by)
                continue
            plain = re.split(r"/\w*Fusion", plain.removeprefix("fused "))[0]
            self._take(index.get(plain), by)

    def _by_tensor(self) -> None:
        for by, node in enumerate(self.optimized):
            if not self._added(by):
                for output in node.output:
                    self._take(self.made_by.get(output), by)
        readers: dict[str, list[int]] = defaultdict(list)
        for at, node in enumerate(self.source):
            for name in node.input:
                if name in self.constants and self.weighs[at]:
                    readers[name].append(at)
        for by, node in enumerate(self.optimized):
            for name in node.input:
                # A weight or bias that one node alone reads tells as much as its name.
                if len(readers.get(name, ())) == 1:
                    self._take(readers[name][0], by)

    def _back_to_weights(self) -> None:
        """What multiplies with weights is joined to nodes behind it: an activation that stands for it, too."""
        for at, by in [(at, by) for at, by in enumerate(self.owner) if by is not None]:
            if not self.weighs[at]:
                self._walk(at, by)

    def _walk(self, at: int, by: int) -> bool:
        found = False
        for name in self.source[at].input:
            before = self.made_by.get(name)
            if before is None or name in self.made_there or self.owner[before] is not None or self.fixed[before]:
                continue
            if self.weighs[before] or self._walk(before, by):
                self.owner[before] = by
                found = True
        return found

    def _after(self) -> None:
        for at, node in enumerate(self.source):
            if self.owner[at] is not None or self.fixed[at] or self.weighs[at] or node.op_type in _BEFORE:
                continue
            sources = [self._made(name) for name in node.input if name not in self.made_there]
            self.owner[at] = max((by for by in sources if by is not None), default=None)

    def _made(self, name: str) -> int | None:
        before = self.made_by.get(name)
        return None if before is None else self.owner[before]

    def _before(self) -> None:
        readers: dict[str, list[int]] = defaultdict(list)
        for at, node in enumerate(self.source):
            for name in node.input:
                readers[name].append(at)
        for at in range(len(self.source) - 1, -1, -1):
            if self.owner[at] is None and not self.fixed[at] and not self.weighs[at]:
                following = [self.owner[r] for output in self.source[at].output for r in readers[output]]
                self.owner[at] = min((by for by in following if by is not None), default=None)

    def _absorbing(self, at: int) -> int | None:
        """The runtime's node that reads a dequantization's own constants, so that nothing was computed for it."""
        if not self.fixed[at] or self.owner[at] is not None:
            return None
        stored = set(self.source[at].input) & self.kept.keys()
        readers = (by for by, node in enumerate(self.optimized) if stored & set(node.input[:6]))
        return next(readers, None)

    # --- what comes out ---------------------------------------------------------------------------------------------

    def folded(self) -> Iterator[str]:
        """The file's nodes on constants that are nobody's any more."""
        for at, name in enumerate(self.names):
            if self.fixed[at] and self.owner[at] is None and self.absorbed[at] is None:
                yield name

    def nodes(self) -> Iterator[RuntimeNode]:
        stands: dict[int, list[int]] = defaultdict(list)
        for at, by in enumerate(self.owner):
            by = self.absorbed[at] if by is None else by
            if by is not None:
                stands[by].append(at)
        for by, node in enumerate(self.optimized):
            mine = stands.get(by, [])
            weights = self._weights(node) if any(self.weighs[at] for at in mine) else None
            layout = " (nchwc)" if node.domain.endswith("nchwc") and not node.op_type.startswith("Reorder") else ""
            yield RuntimeNode(
                name=self.runtime_names[by],
                operation=node.op_type + layout,
                originals=tuple(self.names[at] for at in mine),
                operations=tuple(self.source[at].op_type for at in mine),
                weights=weights,
                compute=None if weights is None else _compute(node.op_type, weights),
                unpacks_for=self._unpacks_for(by),
            )

    def _unpacks_for(self, by: int) -> str | None:
        """The node behind one that computes from constants alone, in every inference."""
        node = self.optimized[by]
        if not node.input or any(name and not self._constant_there(name) for name in node.input):
            return None
        readers = (at for at, other in enumerate(self.optimized) if set(node.output) & set(other.input))
        reader = next(readers, None)
        return None if reader is None else self._unpacks_for(reader) or self.runtime_names[reader]

    def _constant_there(self, name: str) -> bool:
        return name in self.kept or (
            name in self.made_there
            and all(self._constant_there(i) for i in self.optimized[self.made_there[name]].input if i)
            and bool(self.optimized[self.made_there[name]].input)
        )

    def _weights(self, node: NodeProto) -> str | None:
        """Element type of the largest constant that a node reads."""
        if node.op_type in ("MatMulNBits", "GatherBlockQuantized"):
            bits = next((int(a.i) for a in node.attribute if a.name == "bits"), 4)
            return f"int{bits}"
        found = [self._constant(name) for name in node.input if name]
        sized = [(size, kind) for size, kind in found if kind]
        return max(sized, key=lambda pair: pair[0])[1] if sized else None

    def _constant(self, name: str) -> tuple[int, str]:
        if name in self.kept:
            tensor = self.kept[name]
            return prod(tensor.dims), _TYPES.get(tensor.data_type, "")
        made = self.made_by.get(name)
        if made is None or not self.fixed[made]:
            return 0, ""
        node = self.source[made]
        size = max((prod(self.constants[i].dims) for i in node.input if i in self.constants), default=0)
        if node.op_type == "Cast":
            to = next((int(helper.get_attribute_value(a)) for a in node.attribute if a.name == "to"), 0)
            return size, _TYPES.get(to, "float32")
        return size, "float32"


def _compute(operation: str, weights: str) -> Compute:
    if weights.startswith(("float", "bfloat")):
        return "float"
    return "integer" if operation in _INTEGER else "weights"
