"""Trying cuts on a copy of the network with random weights, so that only what works is offered."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from autocompress.compress.coupling import Coupled, Traced, trace_layers
from autocompress.compress.layers import Found, outputs, run_layers
from autocompress.compress.surgery import Removal, settle, shrink, tensor_of
from autocompress.errors import CompressionError, TaskError
from autocompress.inputs import Inputs, apply
from autocompress.rng import derive_seed

NOT_MASKING = "removing its channels is not the same as masking them: they are mixed, moved or counted elsewhere"


class Probe:
    """A copy of a network with weights that hide nothing: a zero-initialized branch does not react to a wrong cut.

    Attributes:
        module: the copy.
        inputs: what it is tried on.
    """

    def __init__(self, module: nn.Module, inputs: Inputs, traced: Traced) -> None:
        """Copy the module.

        Raises:
            CompressionError: it cannot be copied.
        """
        generator = torch.Generator().manual_seed(derive_seed(0, "probe"))
        try:
            self.module = copy.deepcopy(module)
        except Exception as error:
            text = " ".join(str(error).split())[:200]
            raise CompressionError(
                f"{type(module).__name__} cannot be copied: {type(error).__name__}: {text}"
            ) from error
        _randomize(self.module, generator)
        self.inputs = apply(lambda x: _random_like(x, generator), inputs)
        self._traced = traced
        self._before, layers = run_layers(self.module, self.inputs)
        if not _finite(self._before):
            # Some networks need their own weights to stay in range.
            self.module = copy.deepcopy(module)
            self._before, layers = run_layers(self.module, self.inputs)
        self._macs = _macs(layers)
        self._counted = {layer.name for layer in layers if layer.macs}

    def failures(self, names: Sequence[str]) -> dict[str, str]:
        """Groups of which half cannot be removed, and why.

        Groups are tried together and, where that fails, in halves, so that a network without surprises costs two
        forward passes.
        """
        groups = self._traced.groups
        mixing = [name for name in names if groups[name].units.mixes]
        plain = [name for name in names if not groups[name].units.mixes]
        failed = self._search(plain) | self._search(mixing)
        left = [name for name in names if name not in failed]
        if plain and mixing and self._try(left):
            failed |= self._one_by_one(left)
        return failed

    def _search(self, names: Sequence[str]) -> dict[str, str]:
        if not names:
            return {}
        reason = self._try(names)
        if not reason:
            return {}
        if len(names) == 1:
            return {names[0]: reason}
        half = len(names) // 2
        failed = self._search(names[:half]) | self._search(names[half:])
        left = [name for name in names if name not in failed]
        # Parts that work by themselves, but not together: those that came first stay.
        return failed if failed and not self._try(left) else failed | self._one_by_one(left)

    def _one_by_one(self, names: Sequence[str]) -> dict[str, str]:
        kept: list[str] = []
        failed = {}
        for name in names:
            reason = self._try([*kept, name])
            if reason:
                failed[name] = f"it cannot be cut together with {kept[-1]}: {reason}" if kept else reason
            else:
                kept.append(name)
        return failed

    def _try(self, names: Sequence[str]) -> str:
        """Why removing half of the units of all these groups does not work; empty if it does."""
        if not names:
            return ""
        try:
            removals = [_half(self._traced.groups[name]) for name in names]
            result = copy.deepcopy(self.module)
            shrink(result, removals)
            return settle(result, removals, self._refusal(removals))
        # Whatever a foreign network raises when it is cut, the answer is the same: it stays dense, and why.
        except Exception as error:  # noqa: BLE001
            return _failed(error)

    def _refusal(self, removals: Sequence[Removal]) -> Callable[[nn.Module], str]:
        expected: list[list[Tensor]] = []

        def refuse(module: nn.Module) -> str:
            try:
                after, layers = run_layers(module, self.inputs)
            except Exception as error:  # noqa: BLE001
                return _failed(error.__cause__ if error.__cause__ is not None else error)
            if reason := reshaped(self._before, after):
                return reason
            if _macs(layers) >= self._macs and any(self._counted & _touched(r) for r in removals):
                return "cutting it saves no multiply-adds"
            if any(removal.coupled.units.mixes for removal in removals):
                return inconsistent(self._traced.groups, module, removals, self.inputs, layers)
            if not expected:
                expected.append(self._masked(removals))
            return "" if _equal(self._before, expected[0], after) else NOT_MASKING

        return refuse

    @torch.no_grad()
    def _masked(self, removals: Sequence[Removal]) -> list[Tensor]:
        """Outputs of the dense copy when nothing reads the units that go."""
        masked = copy.deepcopy(self.module)
        for removal in removals:
            coupled = removal.coupled
            uses = coupled.units.positions if coupled.summed else dict.fromkeys(coupled.reads)
            for name, axis in uses:
                index = coupled.units.positions[name, axis][removal.gone].flatten()
                tensor_of(masked, name).index_fill_(axis, index, 0.0)
        return outputs(masked, self.inputs)


def inconsistent(
    before: Mapping[str, Coupled],
    module: nn.Module,
    removals: Sequence[Removal],
    inputs: Inputs,
    layers: list[Found] | None = None,
) -> str:
    """What is wrong with a cut when the cut module is followed again; empty if its units are those that were kept.

    Args:
        before: the groups of the module before the cut.
        module: after it.
        removals: the cut.
        inputs: at least two examples.
        layers: of `module`, if known.
    """
    try:
        after = trace_layers(module, inputs, run_layers(module, inputs)[1] if layers is None else layers).groups
    except (CompressionError, TaskError) as error:
        return f"what is left cannot be followed: {error}"
    kept = {removal.coupled.units.group.name: removal.keep for removal in removals}
    # Positions before the cut -> after it, by the same arithmetic as the removal itself.
    indices = _indices(before, removals)
    for name, coupled in before.items():
        units, keep = coupled.units, kept.get(name)
        width = units.group.width if keep is None else len(keep)
        if width < 2:
            continue
        if name not in after:
            return f"{name} is no longer a group of its own"
        found = after[name].units
        if found.group.width != width:
            return f"{name} has {found.group.width} units where {width} were left"
        for use, positions in units.positions.items():
            stays = positions if keep is None else positions[keep]
            if use in indices:
                stays = torch.searchsorted(indices[use], stays)
            if use in found.positions and not torch.equal(stays.sort(1).values, found.positions[use].sort(1).values):
                return NOT_MASKING
            if use not in found.positions and stays.numel() > stays.shape[0]:
                return f"{name} no longer owns {use[0]}"
    return ""


def _indices(before: Mapping[str, Coupled], removals: Sequence[Removal]) -> dict[tuple[str, int], Tensor]:
    gone: dict[tuple[str, int], list[Tensor]] = {}
    for removal in removals:
        for use, positions in removal.coupled.units.positions.items():
            gone.setdefault(use, []).append(positions[removal.gone].flatten())
    found = {}
    for use, parts in gone.items():
        removed = torch.cat(parts)
        highest = max(int(c.units.positions[use].max()) for c in before.values() if use in c.units.positions)
        stays = torch.ones(max(highest, int(removed.max())) + 1, dtype=torch.bool)
        stays[removed] = False
        found[use] = stays.nonzero().flatten()
    return found


def reshaped(before: Sequence[Tensor], after: Sequence[Tensor]) -> str:
    """How the shapes of a network's outputs differ from what they were; empty if they do not."""
    for old, new in zip(before, after, strict=True):
        if old.shape != new.shape:
            return (
                f"the output's shape changes from {tuple(old.shape)} to {tuple(new.shape)}: "
                "a reshape with a fixed number of channels follows"
            )
    return ""


def _equal(before: Sequence[Tensor], expected: Sequence[Tensor], after: Sequence[Tensor]) -> bool:
    for old, want, got in zip(before, expected, after, strict=True):
        if not old.is_floating_point() or not old.numel():
            continue
        effect, scale = float((want - old).abs().max()), float(old.abs().max())
        if not float((got - want).abs().max()) <= 1e-3 * effect + 1e-4 * scale:
            return False
    return True


def _half(coupled: Coupled) -> Removal:
    width = coupled.units.group.width
    generator = torch.Generator().manual_seed(derive_seed(0, "probe", coupled.units.group.name))
    shuffled = torch.randperm(width, generator=generator)
    return Removal(coupled, shuffled[: width - width // 2].sort().values)


def _touched(removal: Removal) -> set[str]:
    group = removal.coupled.units.group
    return {*group.layers, *group.consumers}


def _failed(error: BaseException) -> str:
    return f"cutting it fails: {type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _macs(layers: Sequence[Found]) -> int:
    return sum(layer.macs for layer in layers)


def _finite(tensors: Sequence[Tensor]) -> bool:
    return all(bool(torch.isfinite(t).all()) for t in tensors if t.is_floating_point())


def _random_like(tensor: Tensor, generator: torch.Generator) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    return torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)


@torch.no_grad()
def _randomize(module: nn.Module, generator: torch.Generator) -> None:
    for parameter in module.parameters():
        if not parameter.is_floating_point():
            continue
        if parameter.ndim > 1:
            scale = (2.0 / max(1, parameter[0].numel())) ** 0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
        else:
            parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(torch.randn(buffer.shape, generator=generator) * 0.1)
        elif name.endswith("running_var"):
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
