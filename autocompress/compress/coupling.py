"""Which units of a network hang together, found by following labels through one forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from autocompress.compress import recurrent
from autocompress.compress.grouping import Coupled, Grouping, Units
from autocompress.compress.hooked import hooked
from autocompress.compress.labels import Slot
from autocompress.compress.layers import RECURRENT, Found, evaluating, has_own_weight, kind_of, run_layers
from autocompress.compress.origin import origin
from autocompress.compress.trace import Tracer, plain_operators
from autocompress.errors import CompressionError
from autocompress.inputs import Inputs, apply, batch_size, call, concatenate

__all__ = ["COMPUTED", "IS_OUTPUT", "Coupled", "Traced", "Units", "find_units", "trace", "trace_layers", "two_or_more"]

IS_OUTPUT = "its channels are the model's output"
COMPUTED = "its weight is computed from other tensors (a parametrization)"
#: Where a normalization without parameters counts its channels: axes of the activation from the end, or the second.
_COUNTING = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm)


@dataclass(frozen=True)
class Boundary:
    """What entered and left a module at one call: whether it can be left out is seen from it.

    Attributes:
        given: shape and labels of the first tensor that it took.
        returned: the same of the first tensor that it returned.
    """

    given: tuple[tuple[int, ...], tuple[Slot, ...]]
    returned: tuple[tuple[int, ...], tuple[Slot, ...]]


@dataclass
class Traced:
    """What one labelled pass over a network found.

    Attributes:
        groups: by name, in the order of the forward pass.
        layers: that run as modules.
        tracer: holds the classes.
        boundaries: of every module that was called, one entry per call.
        owners: class -> name of its group.
        aliases: further name of a parameter that has several -> its first.
    """

    groups: dict[str, Coupled]
    layers: list[Found]
    tracer: Tracer
    boundaries: dict[str, list[Boundary]] = field(default_factory=dict)
    owners: dict[int, str] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)

    def outputs(self, layer: Found) -> list[tuple[str | None, str]]:
        """For every output of a layer (group, why it has none); empty if its outputs were not followed."""
        reasons = self.tracer.atoms.reasons()
        parameter = self.canonical(layer.parameter)
        for axis in self.tracer.axes:
            if (axis.name, axis.axis) == (parameter, layer.output_axis):
                roots = self.tracer.atoms.find(torch.arange(axis.start, axis.start + axis.size)).tolist()
                return [(self.owners.get(root), reasons.get(root, "")) for root in roots]
        return []

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
    # A copy of every input: what an operator writes in place must not reach the caller's tensors.
    inputs = apply(torch.clone, inputs)
    try:
        with hooked(_hooks(module, tracer, boundaries)), evaluating(module), plain_operators(), tracer:
            output = call(module, inputs)
        _freeze_computed(module, tracer)
        tracer.finish(output, IS_OUTPUT)
    except Exception as error:
        raise CompressionError(
            f"the channels of {type(module).__name__} could not be followed: {type(error).__name__}: {error}"
        ) from error
    traced = Traced({}, layers, tracer, boundaries, aliases=_aliases(module))
    groups, traced.owners = Grouping(module, tracer, layers, traced.aliases).groups()
    # A single unit has nothing that holds its channels together any more: it would be taken for several.
    single = {name for name, width in origin(module).widths.items() if width == 1}
    traced.groups = {name: coupled for name, coupled in groups.items() if name not in single}
    return traced


def _hooks(module: nn.Module, tracer: Tracer, boundaries: dict[str, list[Boundary]]) -> Iterator[RemovableHandle]:
    for name, part in module.named_modules():
        if isinstance(part, RECURRENT):
            yield part.register_forward_pre_hook(lambda *_: tracer.pause())
            yield part.register_forward_hook(_follow_recurrent(tracer), with_kwargs=True)
        elif isinstance(part, _COUNTING) and not list(part.parameters(recurse=False)):
            yield part.register_forward_pre_hook(_counting(tracer, name))
        if name:
            yield part.register_forward_hook(_boundary(tracer, boundaries, name), with_kwargs=True)


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
