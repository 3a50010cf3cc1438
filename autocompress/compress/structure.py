"""What can be compressed in a network, found by following its channels and by trying every cut once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from torch import Tensor, nn

from autocompress.compress.blocks import find_blocks
from autocompress.compress.coupling import COMPUTED, IS_OUTPUT, Traced, trace_layers, two_or_more
from autocompress.compress.factorize import factorizable
from autocompress.compress.layers import RECURRENT, Found, kind_of, outputs, run_layers
from autocompress.compress.probe import Probe
from autocompress.errors import CompressionError, TaskError
from autocompress.inputs import Inputs
from autocompress.records import Block, Group, Layer, LeftDense, Structure

__all__ = ["IS_OUTPUT", "evaluate", "find_structure", "layer_calls"]

_TOGETHER = "all its channels can only be removed together"
_NOT_RUN = "it does not run as a module in the forward pass"


def find_structure(module: nn.Module, example: Inputs) -> Structure:
    """Find the groups of coupled units, the layers and the droppable blocks of a network.

    Every group is tried on a deep copy with random weights: half of its units are removed, and the copy must still run,
    keep the shape of all outputs, need fewer multiply-adds, and compute what the dense copy computes with those units
    masked. Where a normalization over all channels follows, removing is not masking: there the channels of the cut copy
    are followed again, and must be those that were kept. What fails is named in `Structure.left_dense` with the reason,
    and stays as it is.

    Args:
        module: left alone; its parameters may be frozen.
        example: one input batch, tensors of shape (n, ...).

    Returns:
        Groups and layers in the order of the forward pass.

    Raises:
        TaskError: the module does not run on the example, or returns no tensor.
    """
    _, layers = run_layers(module, example)
    inputs = two_or_more(example)
    run_layers(module, inputs)
    parameters = dict(module.named_parameters(remove_duplicate=False))
    usable = [layer for layer in layers if layer.parameter in parameters]
    failed: dict[str, str] = {}
    groups: dict[str, Group] = {}
    blocks: tuple[Block, ...] = ()
    traced: Traced | None = None
    left: dict[str, str] = {}
    try:
        traced = trace_layers(module, inputs, usable)
        probe = Probe(module, inputs, traced)
        failed = probe.failures(list(traced.groups))
        known = {layer.name for layer in usable}
        for name, reason in failed.items():
            left |= {x: reason for x in traced.groups[name].units.group.layers if x not in known}
        groups = {name: found.units.group for name, found in traced.groups.items() if name not in failed}
        blocks, kept = find_blocks(traced, probe, usable)
        left |= kept
    except (CompressionError, TaskError) as error:
        left |= {layer.name: str(error) for layer in usable}
    owners: dict[str, str | None] = {}
    if traced is not None:
        for layer in usable:
            owners[layer.name], reason = _owner(traced, layer, groups, failed)
            if reason:
                left.setdefault(layer.name, reason)
    left |= _unsupported(module, layers, groups, left)
    return Structure(
        groups=tuple(groups.values()),
        layers=tuple(
            Layer(
                name=layer.name,
                kind=layer.kind,
                shape=tuple(parameters[layer.parameter].shape),
                macs=layer.macs,
                group=owners.get(layer.name),
                factorizable=not factorizable(module, layer.name),
            )
            for layer in usable
        ),
        left_dense=tuple(LeftDense(name=name, reason=left[name]) for name in sorted(left)),
        blocks=blocks,
    )


def layer_calls(module: nn.Module, example: Inputs) -> dict[str, int]:
    """Multiply-adds for one example of every layer that runs as a module, in the order of the forward pass.

    Args:
        module: left alone.
        example: tensors of shape (n, ...).

    Raises:
        TaskError: the module does not run on the example, or returns no tensor.
    """
    return {layer.name: layer.macs for layer in run_layers(module, example)[1]}


def evaluate(module: nn.Module, inputs: Inputs) -> Tensor:
    """The module's output, its first tensor, in evaluation mode, without gradients; every part's mode is put back.

    Raises:
        TaskError: it returns no tensor.
    """
    return outputs(module, inputs)[0]


def _owner(
    traced: Traced, layer: Found, groups: Mapping[str, Group], failed: Mapping[str, str]
) -> tuple[str | None, str]:
    """The group that has all outputs of a layer, and why some of them, or all, cannot be cut."""
    found = traced.outputs(layer)
    if not found:
        return None, "it has a single channel"
    reasons = [
        failed.get(group, "") if group is not None else reason or _TOGETHER
        for group, reason in found
        if group not in groups
    ]
    names = {group for group, _ in found}
    if not reasons:
        return (names.pop() if len(names) == 1 else None), ""
    reason = Counter(reasons).most_common(1)[0][0]
    if len(reasons) < len(found):
        reason = f"{len(reasons)} of its {len(found)} channels: {reason}"
    return None, reason


def _unsupported(
    module: nn.Module, layers: list[Found], groups: Mapping[str, Group], left: Mapping[str, str]
) -> dict[str, str]:
    """Modules with parameters of their own that are no layers."""
    running = {layer.module for layer in layers}
    shrinks = {use.parameter for group in groups.values() for use in group.uses}
    own = dict(module.named_parameters(remove_duplicate=False))
    found: dict[str, str] = {}
    for name, part in module.named_modules():
        inside = [f"{name}.{p}" if name else p for p, t in part.named_parameters(recurse=False) if t.ndim > 1]
        if kind_of(part) is not None:
            weight = f"{name}.weight" if name else "weight"
            if name not in running:
                found[name] = _NOT_RUN
            elif weight not in own:
                found[name] = COMPUTED
        elif isinstance(part, RECURRENT):
            if name not in running:
                found[name] = _NOT_RUN
        # Scales and shifts follow their neighbours, and need no entry of their own.
        elif inside and not isinstance(part, nn.LayerNorm) and not shrinks.intersection(inside):
            found[name or type(part).__name__] = f"{type(part).__name__} is not compressed"
    return {name: reason for name, reason in found.items() if name not in left}
