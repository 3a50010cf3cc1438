"""Networks of plans for timing: the graph that a build gives, without training, scoring, tracing or calibrating.

What a build does to the graph of a network depends on sizes in a simple way: an axis of a weight, or a number in a
reshape, is that of the dense network minus a multiple of what its group of units lost. These multiples are read once
from two networks that were really cut and exported. After that a plan's file is the dense file with its constants cut
short, its blocks bridged, and its layers quantized by the same writer as in a build, in a fraction of a second. Its
weights are arbitrary ones of the dense network: good for timing, for nothing else.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import onnx
import torch
from onnx import GraphProto, ModelProto, NodeProto, numpy_helper
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from autocompress.compress.between import tidy
from autocompress.compress.export import export_onnx, runtime_session
from autocompress.compress.layers import evaluating
from autocompress.compress.prune import cut_channels
from autocompress.compress.quantize import quantize
from autocompress.compress.statistics import Statistics
from autocompress.errors import CompressionError, ExportError, InfeasibleError
from autocompress.inputs import Inputs, apply, call, named
from autocompress.records import ChannelCut, Plan, Quantizer, Structure
from autocompress.rng import derive_seed

#: A size is the dense one minus these multiples of the units that groups lost.
Size = tuple[int, tuple[tuple[str, int], ...]]
#: Constants of at most as many integers are read as sizes; longer ones are data.
_SIZES = 16
#: Networks that are cut and exported: two tell the multiples, the third settles what two leave open.
_EXPORTS = 3


@dataclass(frozen=True)
class Constant:
    """A constant input of one node, and how it follows the cuts.

    Attributes:
        values: in the dense network.
        shape: size of each axis.
        entries: for a short constant of integers, its entries as sizes; empty for another.
    """

    values: np.ndarray
    shape: tuple[Size, ...]
    entries: tuple[Size, ...] = ()

    def cut(self, lost: Mapping[str, int]) -> np.ndarray:
        """Its values once groups lost units: the first of every axis."""
        kept = self.values[tuple(slice(settled(size, lost)) for size in self.shape)]
        if self.entries:
            return np.array([settled(size, lost) for size in self.entries], dtype=kept.dtype).reshape(kept.shape)
        return np.ascontiguousarray(kept)


def settled(size: Size, lost: Mapping[str, int]) -> int:
    """A size once groups lost units."""
    base, parts = size
    return base - sum(factor * lost.get(group, 0) for group, factor in parts)


@dataclass(frozen=True)
class Bridge:
    """A block in the graph: what enters it, and what leaves it."""

    entered: str
    left: str


@dataclass(frozen=True)
class Skeleton:
    """How the files of plans follow from the dense file; see `learn_skeleton`.

    Attributes:
        dense: the dense model, without its constants.
        constants: (place of a node in the graph, position among its inputs) -> the constant there.
        attributes: (place of a node, name of its attribute) -> integers that follow the cuts.
        bridges: block -> its ends in the graph.
        structure: of the dense network.
        example: one training example, from which ranges of activations are taken.
    """

    dense: ModelProto
    constants: Mapping[tuple[int, int], Constant]
    attributes: Mapping[tuple[int, str], tuple[Size, ...]]
    bridges: Mapping[str, Bridge]
    structure: Structure
    example: Inputs

    def model(self, plan: Plan) -> bytes:
        """An ONNX file with the graph, shapes and element types of the plan's build, and arbitrary weights.

        Raises:
            InfeasibleError: the plan factorizes layers, builds another network, or names what the network lacks.
        """
        if plan.architecture is not None:
            raise InfeasibleError("skeleton: expected a plan for the dense network, got one that builds another")
        if plan.ranks:
            raise InfeasibleError(f"skeleton: expected a plan without factorized layers, got {plan.ranks[0].layer!r}")
        lost = self.lost(plan)
        proto = ModelProto()
        proto.CopyFrom(self.dense)
        added: dict[object, str] = {}
        for (place, position), constant in self.constants.items():
            node = proto.graph.node[place]
            name = node.input[position]
            key = (name, *(settled(size, lost) for size in (*constant.shape, *constant.entries)))
            if key not in added:
                # Equal constants are stored once; where they are cut unequally, each gets a name of its own.
                added[key] = name if name not in added.values() else f"{name}/{place}"
                proto.graph.initializer.append(numpy_helper.from_array(constant.cut(lost), added[key]))
            node.input[position] = added[key]
        for (place, attribute), sizes in self.attributes.items():
            set_integers(proto.graph.node[place], attribute, [settled(size, lost) for size in sizes])
        bridge(proto.graph, [self.bridges[drop.block] for drop in plan.drops])
        tidy(proto.graph)
        model: bytes = proto.SerializeToString(deterministic=True)
        return quantize(model, plan.bits, Quantizer(), self.example)

    def lost(self, plan: Plan) -> dict[str, int]:
        """Group -> units that the plan takes from it."""
        return {cut.group: self.structure.group(cut.group).width - cut.keep for cut in plan.cuts}


def bridge(graph: GraphProto, blocks: Sequence[Bridge]) -> None:
    """Let what reads a block's output read its input, in place."""
    renamed = {block.left: block.entered for block in blocks}
    for node in graph.node:
        for at, name in enumerate(node.input):
            node.input[at] = chased(name, renamed)


def chased(name: str, renamed: Mapping[str, str]) -> str:
    """What a name stands for, through every renaming: a block may follow another that is left out."""
    while name in renamed:
        name = renamed[name]
    return name


def set_integers(node: NodeProto, name: str, values: Sequence[int]) -> None:
    """Write an attribute that is an integer or a list of them."""
    attribute = next(a for a in node.attribute if a.name == name)
    if attribute.type == onnx.AttributeProto.INT:
        attribute.i = values[0]
    else:
        attribute.ints[:] = values


def learn_skeleton(
    dense: nn.Module,
    model: bytes,
    structure: Structure,
    statistics: Statistics,
    example: Inputs,
    *,
    round_to: int,
    seed: int,
) -> Skeleton:
    """Find out how the files of plans follow from the dense file.

    Args:
        dense: the dense network.
        model: its file, as `export_onnx` writes it.
        structure: of the dense network.
        statistics: of the dense network.
        example: one training example.
        round_to: the target's multiple for channel counts.
        seed: of the cuts that are tried.

    Raises:
        CompressionError: a cut changes the graph beyond its sizes, or a size by no rule that was found.
        ExportError: a network that was cut cannot be written.
    """
    proto = onnx.load_model_from_string(model)
    rng = np.random.default_rng(derive_seed(seed, "skeleton"))
    cuttable = [group for group in structure.groups if group.width > group.multiple(round_to)]
    trials: list[tuple[dict[str, int], GraphProto]] = []
    for _ in range(_EXPORTS if cuttable else 0):
        lost = {g.name: int(rng.integers(1, max(2, g.width - 1))) for g in cuttable if g.width > 1}
        cuts = [ChannelCut(group=g, keep=structure.group(g).width - n, criterion="magnitude") for g, n in lost.items()]
        module = cut_channels(dense, cuts, structure, statistics, example=example, seed=0, reconstruction="none")
        graph = onnx.load_model_from_string(export_onnx(module, example).model).graph
        _check_same(proto.graph, graph)
        trials.append((lost, graph))
    constants, attributes = _followed(proto.graph, trials)
    bridges = _bridges(dense, proto, structure, example)
    bare = ModelProto()
    bare.CopyFrom(proto)
    del bare.graph.initializer[:]
    row = apply(lambda tensor: tensor[:1], example)
    return Skeleton(bare, constants, attributes, bridges, structure, row)


def _check_same(dense: GraphProto, cut: GraphProto) -> None:
    for a, b in zip(dense.node, cut.node, strict=False):
        if (a.op_type, len(a.input), len(a.output)) != (b.op_type, len(b.input), len(b.output)):
            raise CompressionError(
                f"skeleton: expected a cut to change sizes only, but {a.name!r} ({a.op_type}) became {b.op_type}"
            )
    if len(dense.node) != len(cut.node):
        raise CompressionError(
            f"skeleton: expected a cut to change sizes only, but {len(dense.node)} nodes became {len(cut.node)}"
        )


def _followed(
    dense: GraphProto, trials: Sequence[tuple[Mapping[str, int], GraphProto]]
) -> tuple[dict[tuple[int, int], Constant], dict[tuple[int, str], tuple[Size, ...]]]:
    """Constants and attributes of every node, as sizes that follow the cuts."""
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in dense.initializer}
    others = [{t.name: numpy_helper.to_array(t) for t in graph.initializer} for _, graph in trials]
    lost = [dict(taken) for taken, _ in trials]
    constants: dict[tuple[int, int], Constant] = {}
    attributes: dict[tuple[int, str], tuple[Size, ...]] = {}
    for place, node in enumerate(dense.node):
        peers = [graph.node[place] for _, graph in trials]
        for position, name in enumerate(node.input):
            if name not in values:
                continue
            own = values[name]
            cut = []
            for peer, known in zip(peers, others, strict=True):
                if peer.input[position] not in known or known[peer.input[position]].ndim != own.ndim:
                    raise CompressionError(f"skeleton: expected a constant like {name!r} in a cut network")
                cut.append(known[peer.input[position]])
            shape = tuple(
                size_of(f"{node.name} axis {axis}", own.shape[axis], [c.shape[axis] for c in cut], lost)
                for axis in range(own.ndim)
            )
            entries: tuple[Size, ...] = ()
            if own.dtype.kind == "i" and own.size <= _SIZES and all(c.shape == own.shape for c in cut):
                entries = tuple(
                    size_of(node.name, int(v), [int(c.reshape(-1)[i]) for c in cut], lost)
                    for i, v in enumerate(own.reshape(-1))
                )
            constants[place, position] = Constant(own, shape, entries)
        for at, attribute in enumerate(node.attribute):
            own_list = _integers(attribute)
            cut_lists = [_integers(peer.attribute[at]) for peer in peers]
            if any(found != own_list for found in cut_lists):
                attributes[place, attribute.name] = tuple(
                    size_of(node.name, value, [found[i] for found in cut_lists], lost)
                    for i, value in enumerate(own_list)
                )
    return constants, attributes


def _integers(attribute: onnx.AttributeProto) -> list[int]:
    if attribute.type == onnx.AttributeProto.INT:
        return [attribute.i]
    return list(attribute.ints)


def size_of(where: str, dense: int, cut: Sequence[int], lost: Sequence[Mapping[str, int]]) -> Size:
    """The dense size and the multiples of each group's loss that give it in every trial.

    Args:
        where: what has the size, for the message.
        dense: its size in the dense network.
        cut: its size in each trial.
        lost: group -> units lost, of each trial.

    Raises:
        CompressionError: no multiples of what one or two groups lost give it.
    """
    gaps = [dense - size for size in cut]
    if not any(gaps):
        return dense, ()
    groups = list(lost[0])
    for group in groups:
        factor, rest = divmod(gaps[0], lost[0][group])
        if rest == 0 and all(gap == factor * taken[group] for gap, taken in zip(gaps, lost, strict=True)):
            return dense, ((group, factor),)
    for first, second in combinations(groups, 2):
        matrix = np.array([[taken[first], taken[second]] for taken in lost], dtype=float)
        solution = np.linalg.lstsq(matrix, np.array(gaps, dtype=float), rcond=None)[0]
        factors = np.rint(solution).astype(int)
        if np.all(factors != 0) and np.array_equal(matrix @ factors, gaps):
            return dense, ((first, int(factors[0])), (second, int(factors[1])))
    raise CompressionError(
        f"skeleton: {where}: expected a size that falls with what one or two groups lose, got {dense} and then "
        f"{list(cut)}"
    )


def _bridges(dense: nn.Module, proto: ModelProto, structure: Structure, example: Inputs) -> dict[str, Bridge]:
    """The tensors of the graph that each block takes and returns, found by their values."""
    if not structure.blocks:
        return {}
    row = apply(lambda tensor: tensor[:1].repeat(2, *[1] * (tensor.ndim - 1)), example)
    ends: dict[str, tuple[Tensor, Tensor]] = {}
    reference = copy.deepcopy(dense).cpu().eval()

    def remember(name: str) -> object:
        def hook(_: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: object) -> None:
            first = next(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
            last = next(leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
            ends[name] = (first.clone(), last.clone())

        return hook

    for block in structure.blocks:
        reference.get_submodule(block.name).register_forward_hook(remember(block.name), with_kwargs=True)  # type: ignore[arg-type]
    with torch.no_grad(), evaluating(reference):
        call(reference, row)
    tapped = ModelProto()
    tapped.CopyFrom(proto)
    names = list(dict.fromkeys(name for node in proto.graph.node for name in node.output if name))
    known = {value.name for value in proto.graph.output}
    tapped.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    try:
        session = runtime_session(tapped.SerializeToString())
        feed = {name: np.ascontiguousarray(tensor.numpy()) for name, tensor in named(row).items()}
        tensors = feed | dict(zip(names, session.run(names, feed), strict=True))
    except Exception as error:
        raise ExportError(f"skeleton: the runtime cannot run the dense model: {error}") from error
    found: dict[str, Bridge] = {}
    for name, (first, last) in ends.items():
        entered, left = _alike(tensors, first), _alike(tensors, last)
        if entered is None or left is None:
            raise CompressionError(f"skeleton: expected the input and the output of block {name!r} in the dense file")
        found[name] = Bridge(entered, left)
    return found


def _alike(tensors: Mapping[str, np.ndarray], wanted: Tensor) -> str | None:
    """The last tensor with these values: what follows a block reads the end of it."""
    values = wanted.detach().numpy()
    scale = max(1e-6, float(np.abs(values).max()))
    same = [
        name
        for name, got in tensors.items()
        if got.shape == values.shape and got.dtype.kind == "f" and float(np.abs(got - values).max()) <= 1e-3 * scale
    ]
    return same[-1] if same else None
