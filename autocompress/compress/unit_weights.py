"""What a unit of a group owns of the network's weights, and of statistics that have their shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from autocompress.compress.activations import output_axis
from autocompress.errors import CompressionError

if TYPE_CHECKING:
    from autocompress.compress.coupling import Units


def output_use(module: nn.Module, units: Units, layer: str) -> tuple[str, int]:
    """Parameter and axis through which the group's units are outputs of one of its layers."""
    parameter = _parameter(module, units, layer)
    axes = sorted(axis for p, axis in units.positions if p == parameter)
    if not axes:
        raise CompressionError(f"group {units.group.name!r}: expected positions of its units in {layer!r}, got none")
    if len(axes) == 1:
        return parameter, axes[0]
    # The group is the layer's input as well, as in a residual stage.
    return parameter, output_axis(module.get_submodule(layer)) if parameter != layer else 0


def _parameter(module: nn.Module, units: Units, layer: str) -> str:
    """The name under which `units` knows a layer's weight: its own, or that of the layer it is tied to."""
    known = {parameter for parameter, _ in units.positions}
    for name in (f"{layer}.weight", layer):
        if name in known:
            return name
    parameters = dict(module.named_parameters(remove_duplicate=False))
    weight = parameters.get(f"{layer}.weight", parameters.get(layer))
    return next((name for name in sorted(known) if weight is not None and parameters.get(name) is weight), layer)


def slices(module: nn.Module, units: Units) -> dict[str, Tensor]:
    """Layer -> weights of each unit, shape (width, weights per unit)."""
    return {name: take(module, units, *output_use(module, units, name)) for name in units.group.layers}


def take(module: nn.Module, units: Units, parameter: str, axis: int) -> Tensor:
    """What each unit owns of a parameter, shape (width, entries per unit)."""
    return _select(units, parameter, axis, module.get_parameter(parameter).detach())


def _select(units: Units, parameter: str, axis: int, values: Tensor) -> Tensor:
    positions = units.positions[parameter, axis]
    return values.movedim(axis, 0)[positions.flatten()].reshape(len(positions), -1)


def like(module: nn.Module, units: Units, parameter: str, axis: int, values: Tensor) -> Tensor:
    """The units' share of a statistic that has the parameter's shape, shape (width, entries per unit)."""
    shape = module.get_parameter(parameter).shape
    if values.shape != shape:
        raise CompressionError(
            f"statistics of {parameter!r}: expected shape {tuple(shape)}, got {tuple(values.shape)}; "
            "they are of another network, or were not followed through a cut"
        )
    return _select(units, parameter, axis, values)


def scaled_norms(units: Units) -> tuple[str, ...]:
    """The group's normalizations that have a scale."""
    return tuple(name for name in units.group.norms if (f"{name}.weight", 0) in units.positions)


def removable(module: nn.Module, units: Units) -> dict[str, list[tuple[str, int, Tensor]]]:
    """What silences a unit when it is zero: layer -> (parameter, axis, entries of shape (width, entries per unit))."""
    norms = scaled_norms(units)
    uses = {name: (f"{name}.weight", 0) for name in norms} or {
        name: output_use(module, units, name) for name in units.group.layers
    }
    found = {}
    for name, (weight, axis) in uses.items():
        owner, _, last = weight.rpartition(".")
        bias = f"{owner}.{last.replace('weight', 'bias', 1)}" if owner else last.replace("weight", "bias", 1)
        parts = [(weight, axis), *([(bias, 0)] if (bias, 0) in units.positions else [])]
        found[name] = [(p, a, take(module, units, p, a)) for p, a in parts]
    return found


def outputs_of(
    module: nn.Module, units: Units, names: Sequence[str], available: Mapping[str, Tensor], get: Callable[[str], Tensor]
) -> dict[str, Tensor]:
    """Sums over each unit's channels of a statistic of outputs, for those of `names` that have it.

    Args:
        module: the network as it is now.
        units: of a group.
        names: layers or normalizations of the group.
        available: who has the statistic.
        get: the statistic by name, shape (outputs,).

    Returns:
        Shape (width,) each.

    Raises:
        CompressionError: none of `names` has it, or it does not fit.
    """
    found = {}
    # Of coupled layers some may have none, such as the lower ones of stacked recurrent layers; all having none raises.
    for name in [n for n in names if n in available] or names[:1]:
        values = get(name)
        parameter, axis = output_use(module, units, name)
        outputs = module.get_parameter(parameter).shape[axis]
        if values.shape != (outputs,):
            raise CompressionError(
                f"statistics of {name!r}: expected {outputs} outputs, got {tuple(values.shape)}; "
                "they are of another network, or were not followed through a cut"
            )
        found[name] = values[units.positions[parameter, axis]].sum(dim=1)
    return found
