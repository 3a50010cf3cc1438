r"""The order in which a group's units can go, one by one, while what is left takes over what they did.

A layer behind the group computes :math:`W x`; M is the spread of its inputs, P its inverse. If unit u goes and W is
refitted, the outputs change by

.. math::
    \epsilon_u = \operatorname{tr} W_{:u} P_{uu}^{-1} W_{:u}^T

in square, and what is left has :math:`W - W_{:u} P_{uu}^{-1} P_{u:}` and :math:`P - P_{:u} P_{uu}^{-1} P_{u:}`. The
unit that costs least goes first; then the next, among what is left. So of two units that say the same one goes early
and the other one stays, which no score of single units can tell.

References:
    Hassibi and Stork, 1993, "Second Order Derivatives for Network Pruning: Optimal Brain Surgeon"; Frantar and
    Alistarh, 2022, "Optimal Brain Compression" (layer by layer); Kurtić et al., 2023, "ZipLM: Inference-Aware
    Structured Pruning of Language Models" (units).
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from autocompress.compress.moments import MOST_INPUTS, Moment, input_axis
from autocompress.compress.reconstruct import offset_is_free, ridged, spread_of

if TYPE_CHECKING:
    from autocompress.compress.coupling import Units

#: Of so many units that are left, one goes in each step; then all are looked at again.
_SHARE = 32
#: Orders that are remembered: a process judges many candidates of one dense network.
_REMEMBERED = 512
_known: OrderedDict[bytes, Tensor] = OrderedDict()


@torch.no_grad()
def elimination_scores(module: nn.Module, units: Units, moments: Mapping[str, Moment]) -> Tensor | None:
    """What share of the outputs behind a group is lost once a unit and all that go before it are gone.

    A layer that reads the group without being known by its inputs, as a recurrent one its own hidden units, is taken
    to read inputs of equal spread that tell nothing of each other; beyond 4096 of them it is left out.

    Args:
        module: the network as it is now.
        units: of a group of it.
        moments: of the inputs by parameter, as of `InputMoments`.

    Returns:
        Shape (width,), from 0 to about 1, the mean over the layers behind the group; None if of none the inputs are
        known.
    """
    behind = [
        _Read(name, module.get_parameter(name).detach().movedim(axis, -1).flatten(0, -2), positions)
        for (name, axis), positions in units.positions.items()
        if _reads(module, name, axis)
    ]
    if not any(read.name in moments for read in behind):
        return None
    digest = hashlib.blake2b()
    for read in behind:
        parts, flags = [read.weight.float(), read.positions], [0]
        if read.name in moments:
            moment = moments[read.name]
            parts += [moment.mean, moment.covariance]
            flags = [1, moment.positions, int(offset_is_free(module, read.name, moment))]
        for part in (*parts, torch.tensor(flags)):
            digest.update(part.contiguous().cpu().numpy().tobytes())
    key = digest.digest()
    if key not in _known:
        layers = [layer for read in behind if (layer := read.layer(module, moments.get(read.name))) is not None]
        _known[key] = _eliminated(layers) if layers else torch.zeros(units.group.width, dtype=torch.float64)
        while len(_known) > _REMEMBERED:
            _known.popitem(last=False)
    _known.move_to_end(key)
    return _known[key].clone()


def _reads(module: nn.Module, name: str, axis: int) -> bool:
    """Whether a layer takes the group's units along this axis, and mixes them."""
    layer, _, own = name.rpartition(".")
    hidden = isinstance(module.get_submodule(layer), nn.RNNBase) and own.startswith("weight") and axis == 1
    mixes = hidden or input_axis(module, name) == axis
    return mixes and module.get_parameter(name).shape[axis] <= MOST_INPUTS


@dataclass(frozen=True)
class _Read:
    """A weight behind the group: its name, its values of shape (outputs, inputs), and each unit's inputs."""

    name: str
    weight: Tensor
    positions: Tensor

    def layer(self, module: nn.Module, moment: Moment | None) -> _Layer | None:
        """What is needed of it; None where nothing varies."""
        inputs = self.weight.shape[1]
        spread = torch.eye(inputs, dtype=torch.float64)
        if moment is not None:
            spread = spread_of(module, self.name, moment).cpu()
        if spread.diagonal().sum() <= 0.0:
            return None
        inverse = torch.linalg.inv(ridged(spread, moment.positions if moment is not None else 4 * inputs))
        return _Layer.of(self.weight.cpu(), spread, inverse, self.positions.cpu())


@dataclass(frozen=True)
class _Layer:
    """A layer behind the group, as far as it reads the group's units; all of them at first.

    Attributes:
        weight: shape (outputs, n, k), of n units that are left, of k inputs each.
        inverse: P, shape (n, k, n, k).
        energy: mean square of the outputs.
    """

    weight: Tensor
    inverse: Tensor
    energy: float

    @classmethod
    def of(cls, weight: Tensor, spread: Tensor, inverse: Tensor, positions: Tensor) -> _Layer:
        """From all inputs of the layer: those of other groups stay, and stand in as well."""
        n, k = positions.shape
        at, weight = positions.flatten(), weight.double()
        inverse = inverse[at][:, at]
        energy = float(((weight @ spread) * weight).sum())
        return cls(weight[:, at].reshape(-1, n, k), inverse.reshape(n, k, n, k), max(energy, 1e-30))

    def costs(self) -> Tensor:
        """Share of the outputs that is lost if one unit goes, shape (n,)."""
        own = self.inverse.diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        weight = self.weight.permute(1, 2, 0)
        lost: Tensor = (weight * torch.linalg.solve(own, weight)).sum(dim=(1, 2)) / self.energy
        return lost

    def among(self, some: Tensor) -> _Layer:
        """The same of some units."""
        return _Layer(self.weight[:, some], self.inverse[some][:, :, some], self.energy)

    def without(self, gone: Tensor) -> _Layer:
        """Refitted, of the units that are left."""
        n, k = self.inverse.shape[:2]
        stays = torch.ones(n, dtype=torch.bool)
        stays[gone] = False
        inverse, weight = self.inverse.reshape(n * k, n * k), self.weight.reshape(len(self.weight), n * k)
        out, left = (~stays).repeat_interleave(k), stays.repeat_interleave(k)
        across = torch.linalg.solve(inverse[out][:, out], inverse[out][:, left])
        m = int(stays.sum())
        return _Layer(
            (weight[:, left] - weight[:, out] @ across).reshape(len(weight), m, k),
            (inverse[left][:, left] - inverse[left][:, out] @ across).reshape(m, k, m, k),
            self.energy,
        )


def _eliminated(layers: list[_Layer]) -> Tensor:
    """The scores. In each step the cheapest units go, one after the other among twice as many candidates."""
    alive = torch.arange(layers[0].weight.shape[1])
    scores, lost = torch.zeros(len(alive), dtype=torch.float64), 0.0
    while len(alive):
        count = max(1, len(alive) // _SHARE)
        nearest = _costs(layers).argsort(stable=True)[: 2 * count]
        small, left, gone = [layer.among(nearest) for layer in layers], nearest, []
        for _ in range(count):
            costs = _costs(small)
            first = int(costs.argmin())
            lost += max(0.0, float(costs[first]))
            gone.append(int(left[first]))
            scores[alive[gone[-1]]] = lost
            small = [layer.without(torch.tensor([first])) for layer in small]
            left = torch.cat([left[:first], left[first + 1 :]])
        layers = [layer.without(torch.tensor(gone)) for layer in layers]
        stays = torch.ones(len(alive), dtype=torch.bool)
        stays[gone] = False
        alive = alive[stays]
    return scores


def _costs(layers: list[_Layer]) -> Tensor:
    return torch.stack([layer.costs() for layer in layers]).mean(dim=0)
