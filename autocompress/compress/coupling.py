"""Which units of a network hang together, found by following labels through one forward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_leaves

from autocompress.compress import recurrent
from autocompress.compress.labels import Slot
from autocompress.compress.layers import RECURRENT, Found, evaluating, has_own_weight, kind_of, run_layers
from autocompress.compress.trace import Tracer, plain_operators
from autocompress.errors import CompressionError
from autocompress.inputs import Inputs, apply, batch_size, call, concatenate
from autocompress.records import Group
from autocompress.records.structure import GroupKind, Use

IS_OUTPUT = "its channels are the model's output"
COMPUTED = "its weight is computed from other tensors (a parametrization)"
#: Normalizations that treat every channel by itself: removing a channel leaves the others' values alone.
PER_CHANNEL_NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
#: Where a normalization without parameters counts its channels: axes of the activation from the end, or the second.
_COUNTING = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm)


@dataclass(frozen=True)
class Units:
    """A group with the exact positions of its units, in the module as it is now.

    Attributes:
        group: the record; its `width` is the number of units now.
        positions: (parameter or buffer, axis) -> int64, shape (width, per_unit): the indices that each unit owns.
        mixes: a normalization over all channels follows, so that removing is not the same as masking.
    """

    group: Group
    positions: Mapping[tuple[str, int], Tensor]
    mixes: bool


@dataclass(frozen=True)
class Coupled:
    """`Units` and what only cutting needs to know of them.

    Attributes:
        units: the group.
        reads: uses through which layers read the units: zeros there mask them.
        counted: (module, axis) -> positions of the units in what a normalization without parameters counts.
        summed: a product of two activations sums over the units, so that no layer reads them.
    """

    units: Units
    reads: tuple[tuple[str, int], ...]
    counted: Mapping[tuple[str, int], Tensor]
    summed: bool


@dataclass(frozen=True)
class Boundary:
    """What entered and left a module at one call: whether it can be left out is seen from it.

    Attributes:
        given: shape and labels of the first tensor that it took.
        returned: the same of the first tensor that it returned.
        form: what it returned, with None for the first tensor; None if it returned other tensors as well.
    """

    given: tuple[tuple[int, ...], tuple[Slot, ...]]
    returned: tuple[tuple[int, ...], tuple[Slot, ...]]


@dataclass
class Traced:
    """What one labelled pass over a network found.

    Attributes:
        groups: by name, in the order of the forward pass.
        layers: that run as modules.
        reasons: (parameter, axis, index) of an output that no group has -> why.
        boundaries: of every module that was called, one entry per call.
        tracer: holds the classes.
    """

    groups: dict[str, Coupled]
    layers: list[Found]
    tracer: Tracer
    boundaries: dict[str, list[Boundary]] = field(default_factory=dict)
    owners: dict[int, str] = field(default_factory=dict)

    def outputs(self, layer: Found) -> list[tuple[str | None, str]]:
        """For every output of a layer (group, why it has none); empty if its outputs were not followed."""
        reasons = self.tracer.atoms.reasons()
        parameter = self.canonical(layer.parameter)
        for axis in self.tracer.axes:
            if (axis.name, axis.axis) == (parameter, layer.output_axis):
                roots = self.tracer.atoms.find(torch.arange(axis.start, axis.start + axis.size)).tolist()
                return [(self.owners.get(root), reasons.get(root, "")) for root in roots]
        return []

    aliases: dict[str, str] = field(default_factory=dict)

    def canonical(self, parameter: str) -> str:
        """The first name of a parameter that has several."""
        return self.aliases.get(parameter, parameter)


def find_units(module: nn.Module, example: Inputs) -> dict[str, Units]:
    """The groups of a network as it is now, by one labelled forward pass; nothing is tried.

    Args:
        module: left alone; it may be cut already, or have blocks left out.
        example: one input batch.

    Returns:
        Name -> units, in the order of the forward pass. `find_structure` says which of them can be cut.

    Raises:
        TaskError: the module does not run on the example.
        CompressionError: it runs, but cannot be followed.
    """
    return {name: coupled.units for name, coupled in trace(module, example).groups.items()}


def two_or_more(example: Inputs) -> Inputs:
    """At least two examples, so that an axis of size 1 does not hide that examples and channels are mixed."""
    return example if batch_size(example) > 1 else concatenate([example, example])


def trace(module: nn.Module, example: Inputs) -> Traced:
    """One labelled forward pass; see `find_units`."""
    inputs = two_or_more(example)
    _, layers = run_layers(module, inputs)
    return trace_layers(module, inputs, layers)


def trace_layers(module: nn.Module, inputs: Inputs, layers: list[Found]) -> Traced:
    """The same for a module whose layers are known; `inputs` holds at least two examples."""
    tracer = Tracer(module)
    boundaries: dict[str, list[Boundary]] = {}
    handles = _watch(module, tracer, boundaries)
    # A copy of every input: what an operator writes in place must not reach the caller's tensors.
    inputs = apply(torch.clone, inputs)
    try:
        with evaluating(module), plain_operators(), tracer:
            output = call(module, inputs)
        _freeze_computed(module, tracer)
        tracer.finish(output, IS_OUTPUT)
    except Exception as error:
        raise CompressionError(
            f"the channels of {type(module).__name__} could not be followed: {type(error).__name__}: {error}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    traced = Traced({}, layers, tracer, boundaries, aliases=_aliases(module))
    _collect(traced, module)
    return traced


def _watch(module: nn.Module, tracer: Tracer, boundaries: dict[str, list[Boundary]]) -> list[Any]:
    handles: list[Any] = []
    for name, part in module.named_modules():
        if isinstance(part, RECURRENT):
            handles += [
                part.register_forward_pre_hook(lambda *_: tracer.pause()),
                part.register_forward_hook(_follow_recurrent(tracer), with_kwargs=True),
            ]
        elif isinstance(part, _COUNTING) and not list(part.parameters(recurse=False)):
            handles.append(part.register_forward_pre_hook(_counting(tracer, name)))
        if name:
            handles.append(part.register_forward_hook(_boundary(tracer, boundaries, name), with_kwargs=True))
    return handles


def _follow_recurrent(tracer: Tracer) -> Any:
    def hook(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        recurrent.follow(tracer, part, [*args, *kwargs.values()], output)
        tracer.resume()

    return hook


def _counting(tracer: Tracer, name: str) -> Any:
    labels: dict[int, Tensor] = {}

    def hook(part: nn.Module, args: tuple[Any, ...]) -> None:
        given = args[0]
        axes = (
            range(-len(part.normalized_shape), 0) if isinstance(part, nn.LayerNorm | nn.RMSNorm) else (1 - given.ndim,)
        )
        with tracer.paused():
            for axis in axes:
                for slot in tracer.value(given).along(given.ndim + axis):
                    if axis not in labels:
                        labels[axis] = tracer.new_axis(name, axis, given.shape[axis], virtual=True)
                    tracer.atoms.union(slot.labels, labels[axis].view(-1, *[1] * (-axis - 1)))

    return hook


def _boundary(tracer: Tracer, boundaries: dict[str, list[Boundary]], name: str) -> Any:
    def side(tree: Any) -> tuple[tuple[int, ...], tuple[Slot, ...]] | None:
        first = next((leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)), None)
        return None if first is None else (tuple(first.shape), tracer.value(first).slots)

    def hook(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        given, returned = side((args, kwargs)), side(output)
        if given is not None and returned is not None:
            boundaries.setdefault(name, []).append(Boundary(given, returned))

    return hook


def _freeze_computed(module: nn.Module, tracer: Tracer) -> None:
    """Weights that are computed from parameters stay as they are."""
    for part in module.modules():
        if parametrize.is_parametrized(part) or (kind_of(part) is not None and not has_own_weight(part)):
            for tensor in part.parameters():
                for slot in tracer.value(tensor).slots:
                    tracer.atoms.freeze(slot.labels, COMPUTED)


def _aliases(module: nn.Module) -> dict[str, str]:
    first: dict[int, str] = {}
    found = {}
    for name, tensor in module.named_parameters(remove_duplicate=False):
        if first.setdefault(id(tensor), name) != name:
            found[name] = first[id(tensor)]
    return found


def _collect(traced: Traced, module: nn.Module) -> None:
    """Make groups of the classes that no reason holds: those that own equally many of the same axes are one group."""
    tracer = traced.tracer
    atoms, reasons = tracer.atoms, tracer.atoms.reasons()
    starts = torch.tensor([axis.start for axis in tracer.axes] or [0])
    total = sum(axis.size for axis in tracer.axes)
    roots = atoms.find(torch.arange(total))
    order = torch.argsort(roots, stable=True)
    kinds, counts = torch.unique_consecutive(roots[order], return_counts=True)
    members = dict(zip(kinds.tolist(), order.split(counts.tolist()), strict=True))
    rank = {index: position for position, index in enumerate(tracer.produced)}
    made = {
        root
        for index in tracer.produced
        for root in roots[tracer.axes[index].start : tracer.axes[index].start + tracer.axes[index].size].tolist()
    }
    by_signature: dict[tuple[tuple[int, int], ...], list[Tensor]] = {}
    for root in sorted(made - reasons.keys()):
        axes, owned = torch.unique(torch.searchsorted(starts, members[root], right=True) - 1, return_counts=True)
        by_signature.setdefault(tuple(zip(axes.tolist(), owned.tolist(), strict=True)), []).append(members[root])
    entries = []
    for signature, units in by_signature.items():
        naming = min((index for index, _ in signature if index in rank), key=lambda index: rank[index])
        columns = torch.searchsorted(starts, units[0], right=True) - 1
        first = [int(unit[columns == naming][0]) for unit in units]
        table = torch.stack([units[i] for i in sorted(range(len(units)), key=lambda i: first[i])])
        entries.append((rank[naming], min(first), signature, columns, table))
    names: dict[str, int] = {}
    for _, _, signature, columns, table in sorted(entries, key=lambda entry: entry[:2]):
        if len(table) < 2:
            continue
        coupled = _coupled(traced, module, signature, columns, table, rank, names)
        traced.groups[coupled.units.group.name] = coupled
        for root in atoms.find(table[:, 0]).tolist():
            traced.owners[root] = coupled.units.group.name


def _coupled(
    traced: Traced,
    module: nn.Module,
    signature: Sequence[tuple[int, int]],
    columns: Tensor,
    table: Tensor,
    rank: Mapping[int, int],
    names: dict[str, int],
) -> Coupled:
    tracer, width = traced.tracer, len(table)
    classes = set(tracer.atoms.find(table[:, 0]).tolist())
    positions: dict[tuple[str, int], Tensor] = {}
    counted: dict[tuple[str, int], Tensor] = {}
    for index, _ in signature:
        axis = tracer.axes[index]
        found = counted if axis.virtual else positions
        found[axis.name, axis.axis] = table[:, columns == index] - axis.start
    produced = [(tracer.axes[i].name, tracer.axes[i].axis) for i in sorted(rank, key=lambda i: rank[i])]
    produced = [use for use in produced if use in positions]
    reads = tuple(
        (tracer.axes[i].name, tracer.axes[i].axis)
        for i, _ in signature
        if i in tracer.read and not tracer.axes[i].virtual
    )
    layers, consumers = _layers(traced, produced, reads)
    aliases: dict[str, list[str]] = {}
    for alias, name in traced.aliases.items():
        aliases.setdefault(name, []).append(alias)
    parts = dict(module.named_modules())
    owners = {name: parts[name.rpartition(".")[0]] for name, _ in positions}
    heads = bool(classes & tracer.atoms.heads())
    kind: GroupKind = "channels"
    if any(isinstance(owners[name], RECURRENT) for name, _ in produced):
        kind = "hidden"
    elif heads:
        kind = "heads"
    name = layers[0]
    names[name] = names.get(name, 0) + 1
    norms = [n.rpartition(".")[0] for n, _ in positions if isinstance(owners[n], PER_CHANNEL_NORMS)]
    group = Group(
        name=name if names[name] == 1 else f"{name}#{names[name]}",
        width=width,
        layers=layers,
        consumers=consumers,
        norms=tuple(dict.fromkeys(norms)),
        kind=kind,
        unit=1 if kind == "hidden" else positions[produced[0]].shape[1],
        uses=tuple(
            Use(parameter=named, axis=axis, per_unit=where.shape[1])
            for (parameter, axis), where in positions.items()
            for named in (parameter, *aliases.get(parameter, ()))
        ),
    )
    units = Units(group, positions, mixes=bool(classes & tracer.atoms.mixed()))
    return Coupled(units, reads, counted, summed=bool(classes & tracer.atoms.contracted()) and not heads)


def _layers(
    traced: Traced, produced: Sequence[tuple[str, int]], reads: Sequence[tuple[str, int]]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Layers whose outputs are these uses, and layers whose inputs are, in the order of the forward pass."""
    made = [x.name for x in traced.layers if (traced.canonical(x.parameter), x.output_axis) in produced]
    read = [x.name for x in traced.layers if (traced.canonical(x.parameter), x.input_axis) in reads]
    # What does not run as a module of its own is called by its parameter.
    return tuple(made) or tuple(dict.fromkeys(name.removesuffix(".weight") for name, _ in produced)), tuple(read)
