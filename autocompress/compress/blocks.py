"""Depth: residual blocks of which the input may become the output.

References:
    Veit et al., 2016, "Residual Networks Behave Like Ensembles of Relatively Shallow Networks".
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from autocompress.compress.coupling import Traced
from autocompress.compress.hooked import hooked
from autocompress.compress.labels import Slot
from autocompress.compress.layers import PLAIN, RECURRENT, Found, evaluating, outputs
from autocompress.compress.probe import Probe, reshaped
from autocompress.errors import CompressionError, InfeasibleError
from autocompress.inputs import Inputs, call
from autocompress.records import Block, BlockDrop, Structure

_CONTAINERS = (nn.Sequential, nn.ModuleList)


class PassThrough(nn.Module):
    """Stands where a block was left out: returns the first tensor that it is given, in the form that the block had.

    Attributes:
        wrapped: what the block returned, flattened, with None for its first tensor; empty if it returned that alone.
    """

    def __init__(self, returned: Any) -> None:
        """Take the form of `returned`.

        Raises:
            InfeasibleError: it holds several tensors.
        """
        super().__init__()
        leaves, spec = tree_flatten(returned)
        if sum(isinstance(leaf, Tensor) for leaf in leaves) != 1:
            raise InfeasibleError("expected a block that returns one tensor, got several")
        self.wrapped: list[Any] = []
        if not isinstance(returned, Tensor):
            self.wrapped = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            self._at = next(at for at, leaf in enumerate(leaves) if isinstance(leaf, Tensor))
            self._spec = spec

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The first tensor among the arguments, which the block would have added something to."""
        first = next(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        if not self.wrapped:
            return first
        return tree_unflatten([first if i == self._at else x for i, x in enumerate(self.wrapped)], self._spec)


def find_blocks(traced: Traced, probe: Probe, layers: Sequence[Found]) -> tuple[tuple[Block, ...], dict[str, str]]:
    """Blocks that can be left out, in the order of the modules, none inside another; and why a residual one cannot."""
    parts = dict(probe.module.named_modules())
    residual = [name for name in traced.boundaries if _is_residual(traced, name)]
    returned = _returned(probe.module, residual, probe.inputs)
    before = outputs(probe.module, probe.inputs)
    found: list[Block] = []
    failed: dict[str, str] = {}
    for name in (name for name in parts if name in returned):
        part = parts[name]
        owner = parts.get(name.rpartition(".")[0])
        inside = tuple(layer.name for layer in layers if layer.parameter.startswith(f"{name}."))
        if (
            not inside
            or not isinstance(owner, _CONTAINERS)
            or isinstance(part, (*_CONTAINERS, *PLAIN, *RECURRENT))
            or any(name.startswith(f"{block.name}.") for block in found)
        ):
            continue
        try:
            _replace(probe.module, name, PassThrough(returned[name]))
            reason = reshaped(before, outputs(probe.module, probe.inputs))
        # A network that does not run without the block keeps it.
        except Exception as error:  # noqa: BLE001
            reason = f"{type(error).__name__}: {error}"
        finally:
            _replace(probe.module, name, part)
        if reason:
            failed[name] = f"leaving the block out fails: {reason}"
        else:
            found.append(Block(name=name, layers=inside))
    return tuple(found), failed


def _is_residual(traced: Traced, name: str) -> bool:
    """True if, at every call, the output has the shape and the channels of the input."""
    calls = traced.boundaries.get(name, [])
    return bool(calls) and all(
        boundary.given[0] == boundary.returned[0]
        and bool(before := _classes(traced, boundary.given[1]))
        and before == _classes(traced, boundary.returned[1])
        for boundary in calls
    )


def _classes(traced: Traced, slots: Sequence[Slot]) -> dict[frozenset[int], list[Any]]:
    found = traced.tracer.atoms.compacted(slot for slot in slots if slot.strong)
    return {slot.axes: traced.tracer.atoms.find(slot.labels).tolist() for slot in found}


def drop_blocks(module: nn.Module, drops: Sequence[BlockDrop], structure: Structure, *, example: Inputs) -> nn.Module:
    """Leave blocks out: each one's input becomes its output.

    Args:
        module: the dense network, or one that was cut; left alone.
        drops: which; a block that is left out already stays so.
        structure: of the dense network.
        example: one input batch.

    Returns:
        A new module with a `PassThrough` in each block's place.

    Raises:
        InfeasibleError: a drop names no block of the network.
        CompressionError: the network does not run without the blocks.
    """
    known = [block.name for block in structure.blocks]
    for drop in drops:
        if drop.block not in known:
            raise InfeasibleError(f"plan.drops: expected a block of the network, got {drop.block!r}; it has {known}")
    try:
        before = outputs(module, example)
        result = _without(module, [drop.block for drop in drops], example)
        reason = reshaped(before, outputs(result, example))
    except InfeasibleError:
        raise
    except Exception as error:
        raise CompressionError(
            f"the network does not run without {', '.join(d.block for d in drops)}: {type(error).__name__}: {error}"
        ) from error
    if reason:
        raise CompressionError(f"leaving out {', '.join(d.block for d in drops)}: {reason}")
    return result


def _without(module: nn.Module, names: Sequence[str], example: Inputs) -> nn.Module:
    """A copy with a `PassThrough` in the place of each named module."""
    result = copy.deepcopy(module)
    present = [name for name in names if not isinstance(result.get_submodule(name), PassThrough)]
    for name, output in _returned(result, present, example).items():
        through = PassThrough(output)
        through.train(result.get_submodule(name).training)
        _replace(result, name, through)
    return result


def _returned(module: nn.Module, names: Sequence[str], example: Inputs) -> dict[str, Any]:
    """What each named module returns in one forward pass."""
    found: dict[str, Any] = {}

    def remember(name: str) -> Any:
        return lambda _module, _args, output: found.__setitem__(name, output)

    hooks = (module.get_submodule(name).register_forward_hook(remember(name)) for name in names)
    with hooked(hooks), evaluating(module):
        call(module, example)
    return found


def _replace(module: nn.Module, name: str, part: nn.Module) -> None:
    owner, _, last = name.rpartition(".")
    setattr(module.get_submodule(owner), last, part)
