"""The operations of a plan's file, without the file: in about a millisecond, from what a skeleton learnt.

The operators around layers follow the rules of the quantizer itself; `autocompress.measure.kernels.trace_artifact`
finds the same operations in the file that a build writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import onnx

from autocompress.compress.between import between
from autocompress.compress.onnx_names import layer_of
from autocompress.compress.skeleton import Size, Skeleton, chased, settled, size_of
from autocompress.errors import CompressionError, InfeasibleError
from autocompress.inputs import Arrays
from autocompress.measure.kernels import PRODUCTS, trace_artifact
from autocompress.records import ChannelCut, Plan, Record
from autocompress.records.outline import Operation
from autocompress.rng import derive_seed

#: Cut networks from which the sizes of activations are learnt.
_TRIALS = 3
#: Forms of plans that are remembered.
_REMEMBERED = 256


class Sized(Record):
    """One operation of the dense network, with sizes that follow the cuts.

    Attributes:
        name, op_type, reads, writes: of its node.
        operation: in the dense network.
        activations: those of `reads` that are no constants.
        weights, inputs, output: the operation's sizes.
    """

    name: str
    op_type: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    operation: Operation
    activations: tuple[str, ...]
    weights: tuple[Size, ...]
    inputs: tuple[tuple[Size, ...], ...]
    output: tuple[Size, ...]

    @property
    def groups(self) -> tuple[str, ...]:
        """Those whose cuts change a size."""
        sizes = (size for part in (self.weights, *self.inputs, self.output) for size in part)
        return tuple(sorted({group for _, factors in sizes for group, _ in factors}))


class _Node(NamedTuple):
    """A node as the rules of the quantizer see one."""

    name: str
    op_type: str
    input: tuple[str, ...]
    output: tuple[str, ...]


class _Named(NamedTuple):
    name: str


class _Graph(NamedTuple):
    node: tuple[_Node, ...]
    initializer: tuple[_Named, ...]


class _Step(NamedTuple):
    """An operation of a plan's file, but for its sizes.

    Attributes:
        sized: that of the dense network.
        op, attributes, mode, reads: as of `Operation`.
        turned: its weights lie the other way round.
        groups: those whose cuts change its sizes.
        known: units that each of these has lost -> the operation.
    """

    sized: Sized
    op: str
    attributes: str
    mode: str
    reads: tuple[int, ...]
    turned: bool
    groups: tuple[str, ...]
    known: dict[tuple[int, ...], Operation]

    def operation(self, lost: Mapping[str, int]) -> Operation:
        """With its sizes, once groups lost units."""
        key = tuple([lost.get(group, 0) for group in self.groups])
        found = self.known.get(key)
        if found is None:
            weights = tuple(settled(size, lost) for size in self.sized.weights)
            inputs = tuple(tuple(settled(size, lost) for size in shape) for shape in self.sized.inputs)
            output = tuple(settled(size, lost) for size in self.sized.output)
            weights = weights[::-1] if self.turned else weights
            found = Operation(self.op, self.attributes, self.mode, self.reads, weights, inputs, output)
            self.known[key] = found
        return found


class Outlines(Record):
    """Plans of one network -> the operations of their files; see `learn_outlines`.

    Attributes:
        operations: of the dense network.
        constants: names of its constants, and of what is computed from constants alone.
        outputs: names of the graph's outputs.
        from_zero: names of the Clip nodes whose least value is 0.
        bridges: block -> the tensor that enters it, the one that leaves it.
        widths: group -> units in the dense network.
    """

    operations: tuple[Sized, ...]
    constants: tuple[str, ...]
    outputs: tuple[str, ...]
    from_zero: tuple[str, ...]
    bridges: dict[str, tuple[str, str]]
    widths: dict[str, int]

    @cached_property
    def _nodes(self) -> tuple[_Node, ...]:
        return tuple(_Node(x.name, x.op_type, x.reads, x.writes) for x in self.operations)

    @cached_property
    def _forms(self) -> dict[tuple[object, ...], tuple[_Step, ...]]:
        """Blocks that are left out and bits -> all but the sizes: plans that differ in cuts share it."""
        return {}

    @cached_property
    def _named(self) -> tuple[_Named, ...]:
        return tuple(_Named(name) for name in self.constants)

    def of(self, plan: Plan) -> tuple[Operation, ...]:
        """The operations of the plan's file.

        Raises:
            InfeasibleError: the plan factorizes layers, builds another network, or names what the network lacks.
        """
        if plan.architecture is not None:
            raise InfeasibleError("outline: expected a plan for the dense network, got one that builds another")
        if plan.ranks:
            raise InfeasibleError(f"outline: expected a plan without factorized layers, got {plan.ranks[0].layer!r}")
        try:
            lost = {cut.group: self.widths[cut.group] - cut.keep for cut in plan.cuts}
            ends = [self.bridges[drop.block] for drop in plan.drops]
        except KeyError as error:
            raise InfeasibleError(f"outline: expected a plan of this network, got one with {error}") from error
        key = (plan.drops, plan.bits)
        if key not in self._forms:
            if len(self._forms) >= _REMEMBERED:
                self._forms.clear()
            self._forms[key] = self._form(plan, {left: entered for entered, left in ends})
        return tuple(step.operation(lost) for step in self._forms[key])

    def _form(self, plan: Plan, renamed: Mapping[str, str]) -> tuple[_Step, ...]:
        """All but the sizes, which cuts do not change."""
        places = self._alive(renamed)
        nodes = [self._bridged(self._nodes[place], renamed) for place in places]
        modes = self._modes(plan, nodes)
        # A clamp behind an integer layer is done by its grid.
        clamped = {node.output[0]: node.input[0] for node in nodes if self._is_clamped(node, nodes, modes)}
        kept = [at for at, node in enumerate(nodes) if node.output[0] not in clamped]
        producer = {name: i for i, at in enumerate(kept) for name in nodes[at].output}
        found = []
        for at in kept:
            sized, node = self.operations[places[at]], nodes[at]
            op, attributes, mode, turned = *sized.operation[:2], modes.get(node.name, "float"), False
            if mode.startswith("weights"):
                op, attributes, turned = "MatMul", "", op == "Gemm" and "transB=1" in attributes
            read = (chased(renamed.get(name, name), renamed) for name in sized.activations)
            reads = tuple(producer.get(chased(name, clamped), -1) for name in read)
            found.append(_Step(sized, op, attributes, mode, reads, turned, sized.groups, {}))
        return tuple(found)

    def _alive(self, renamed: Mapping[str, str]) -> list[int]:
        """Places of the operations that are left once blocks are bridged."""
        if not renamed:
            return list(range(len(self._nodes)))
        needed = {chased(name, renamed) for name in self.outputs}
        alive = []
        for place in range(len(self._nodes) - 1, -1, -1):
            node = self._nodes[place]
            if needed.intersection(node.output):
                alive.append(place)
                needed.update(chased(name, renamed) for name in node.input)
        return alive[::-1]

    @staticmethod
    def _bridged(node: _Node, renamed: Mapping[str, str]) -> _Node:
        return node._replace(input=tuple(chased(x, renamed) for x in node.input)) if renamed else node

    def _modes(self, plan: Plan, nodes: Sequence[_Node]) -> dict[str, str]:
        """Node -> what it computes with, where that is no floats."""
        asked = {entry.layer: entry for entry in plan.bits if entry.bits < 16}
        if not asked:
            return {}
        modes: dict[str, str] = {}
        for node in nodes:
            entry = asked.get(layer_of(node.name))
            if entry is None or node.op_type not in (*PRODUCTS, "Gather"):
                continue
            if node.op_type == "Gather":
                modes[node.name] = "table"
            else:
                modes[node.name] = f"weights{entry.bits}" if entry.weights_only else "integer"
        eight = {name for name, mode in modes.items() if mode == "integer"}
        if eight:
            graph: Any = _Graph(tuple(nodes), self._named)
            modes |= dict.fromkeys(between(graph, eight), "integer")
        return modes

    def _is_clamped(self, node: _Node, nodes: Sequence[_Node], modes: Mapping[str, str]) -> bool:
        if node.op_type not in ("Relu", "Clip") or modes.get(node.name) != "integer":
            return False
        if node.op_type == "Clip" and node.name not in self.from_zero:
            return False
        source = next((other for other in nodes if node.input[0] in other.output), None)
        if source is None or modes.get(source.name) != "integer" or node.input[0] in self.outputs:
            return False
        return sum(node.input[0] in other.input for other in nodes) == 1


def learn_outlines(skeleton: Skeleton, model: bytes, inputs: Arrays, *, round_to: int, seed: int) -> Outlines:
    """Learn the sizes of activations from networks that a skeleton makes.

    Args:
        skeleton: of the network.
        model: the dense file.
        inputs: the batch that is timed.
        round_to: the target's multiple for channel counts.
        seed: of the cuts that are tried.

    Raises:
        CompressionError: a size follows the cuts by no rule that was found.
    """
    dense = trace_artifact(model, inputs)
    graph = onnx.load_model_from_string(model).graph
    by_name = {node.name: node for node in graph.node}
    rng = np.random.default_rng(derive_seed(seed, "outlines"))
    groups = sorted(
        (g for g in skeleton.structure.groups if g.width > g.multiple(round_to)), key=lambda group: group.name
    )
    trials, lost = [], []
    for _ in range(_TRIALS if groups else 0):
        gone = {g.name: int(rng.integers(1, max(2, g.width - 1))) for g in groups}
        cuts = tuple(ChannelCut(group=g.name, keep=g.width - gone[g.name], criterion="magnitude") for g in groups)
        trials.append(trace_artifact(skeleton.model(Plan(cuts=cuts)), inputs).outline)
        lost.append(gone)
    constants = {graph.node[place].input[position] for place, position in skeleton.constants}
    # What is computed from constants alone is one.
    constants |= {name for node in graph.node for name in node.output if name not in dense.producers}
    found: list[Sized] = []
    for place, (name, operation) in enumerate(zip(dense.names, dense.outline, strict=True)):
        peers = [trial[place] for trial in trials]
        if any((p.op, p.attributes) != (operation.op, operation.attributes) for p in peers):
            raise CompressionError(f"outline: expected a cut to change sizes only, at {name!r} ({operation.op})")
        node = by_name[name]
        found.append(
            Sized(
                name=name,
                op_type=node.op_type,
                reads=tuple(node.input),
                writes=tuple(node.output),
                operation=operation,
                activations=tuple(x for x in node.input if x and x not in constants)[: len(operation.inputs)],
                weights=_sizes(name, operation.weights, [p.weights for p in peers], lost),
                inputs=tuple(
                    _sizes(name, shape, [p.inputs[at] for p in peers], lost)
                    for at, shape in enumerate(operation.inputs)
                ),
                output=_sizes(name, operation.output, [p.output for p in peers], lost),
            )
        )
    return Outlines(
        operations=tuple(found),
        constants=tuple(sorted(constants)),
        outputs=tuple(value.name for value in graph.output),
        from_zero=tuple(
            graph.node[place].name
            for (place, position), constant in skeleton.constants.items()
            if graph.node[place].op_type == "Clip" and position == 1 and not constant.values.any()
        ),
        bridges={name: (bridge.entered, bridge.left) for name, bridge in skeleton.bridges.items()},
        widths={group.name: group.width for group in skeleton.structure.groups},
    )


def _sizes(
    where: str, dense: Sequence[int], cut: Sequence[Sequence[int]], lost: Sequence[Mapping[str, int]]
) -> tuple[Size, ...]:
    if any(len(shape) != len(dense) for shape in cut):
        raise CompressionError(f"outline: {where}: expected {len(dense)} axes in every cut network, got {list(cut)}")
    return tuple(size_of(where, size, [shape[axis] for shape in cut], lost) for axis, size in enumerate(dense))
