"""From classes of atoms to groups of units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from autocompress.compress.layers import RECURRENT, Found
from autocompress.compress.trace import Tracer
from autocompress.records import Group
from autocompress.records.structure import GroupKind, Use

#: Normalizations that treat every channel by itself: removing a channel leaves the others' values alone.
_PER_CHANNEL_NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)


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
class _Class:
    """Atoms that can only be removed together.

    Attributes:
        root: representative.
        atoms: rising.
        axes: index of the axis of each atom.
    """

    root: int
    atoms: np.ndarray
    axes: np.ndarray


class Grouping:
    """Classes that own equally many indices of the same axes are the units of one group."""

    def __init__(self, module: nn.Module, tracer: Tracer, layers: Sequence[Found], aliases: Mapping[str, str]) -> None:
        """Take what one pass found.

        Args:
            module: that was traced.
            tracer: of a pass that is over.
            layers: that run as modules, in the order of the forward pass.
            aliases: further name of a parameter that has several -> its first.
        """
        self._tracer, self._layers = tracer, layers
        self._first = dict(aliases)
        self._others: dict[str, list[str]] = {}
        for alias, name in aliases.items():
            self._others.setdefault(name, []).append(alias)
        self._parts = dict(module.named_modules())
        self._rank = {index: position for position, index in enumerate(tracer.produced)}
        self._mixed, self._heads = tracer.atoms.mixed(), tracer.atoms.heads()
        self._contracted = tracer.atoms.contracted()
        self._names: dict[str, int] = {}

    def groups(self) -> tuple[dict[str, Coupled], dict[int, str]]:
        """Groups by name, in the order of the forward pass; and the name of each class that is a unit."""
        found = []
        for units in self._by_signature():
            axes = units[0].axes
            naming = min((index for index in set(axes.tolist()) if index in self._rank), key=self._rank.__getitem__)
            at = int(np.argmax(axes == naming))
            ordered = sorted(units, key=lambda unit: int(unit.atoms[at]))
            found.append((self._rank[naming], int(ordered[0].atoms[at]), ordered))
        groups: dict[str, Coupled] = {}
        owners: dict[int, str] = {}
        for _, _, units in sorted(found, key=lambda entry: entry[:2]):
            # A class of everything is no choice: its units can only be removed together.
            if len(units) > 1:
                coupled = self._coupled(units)
                groups[coupled.units.group.name] = coupled
                owners |= {unit.root: coupled.units.group.name for unit in units}
        return groups, owners

    def _by_signature(self) -> list[list[_Class]]:
        tracer = self._tracer
        if not tracer.produced:
            return []
        starts = np.array([axis.start for axis in tracer.axes])
        sizes = np.array([axis.size for axis in tracer.axes])
        roots = tracer.atoms.find(torch.arange(int(sizes.sum()))).numpy()
        axes = np.repeat(np.arange(len(sizes)), sizes)
        order = np.argsort(roots, kind="stable")
        firsts = np.flatnonzero(np.diff(roots[order], prepend=-1))
        produced = np.unique(np.concatenate([roots[starts[i] : starts[i] + sizes[i]] for i in tracer.produced]))
        wanted = np.setdiff1d(produced, np.array(sorted(tracer.atoms.reasons()), dtype=np.int64))
        at = np.searchsorted(roots[order][firsts], wanted)
        ends = np.append(firsts[1:], len(order))
        found: dict[bytes, list[_Class]] = {}
        for root, first, end in zip(wanted.tolist(), firsts[at].tolist(), ends[at].tolist(), strict=True):
            atoms = order[first:end]
            # Atoms rise, so that their axes do: the list of axes is the signature.
            owned = axes[atoms]
            found.setdefault(owned.tobytes(), []).append(_Class(root, atoms, owned))
        return list(found.values())

    def _coupled(self, units: Sequence[_Class]) -> Coupled:
        axes, roots = self._tracer.axes, {unit.root for unit in units}
        table = torch.from_numpy(np.stack([unit.atoms for unit in units]))
        columns = torch.from_numpy(units[0].axes)
        indices = sorted(set(columns.tolist()))
        positions: dict[tuple[str, int], Tensor] = {}
        counted: dict[tuple[str, int], Tensor] = {}
        for index in indices:
            axis = axes[index]
            found = counted if axis.virtual else positions
            found[axis.name, axis.axis] = table[:, columns == index] - axis.start
        produced = [
            (axes[i].name, axes[i].axis) for i in sorted(indices, key=lambda i: self._rank.get(i, 0)) if i in self._rank
        ]
        reads = tuple((axes[i].name, axes[i].axis) for i in indices if i in self._tracer.read)
        heads = bool(roots & self._heads)
        group = self._group(len(units), positions, produced, reads, heads=heads)
        return Coupled(
            units=Units(group, positions, mixes=bool(roots & self._mixed)),
            reads=reads,
            counted=counted,
            summed=bool(roots & self._contracted) and not heads,
        )

    def _group(
        self,
        width: int,
        positions: Mapping[tuple[str, int], Tensor],
        produced: Sequence[tuple[str, int]],
        reads: Sequence[tuple[str, int]],
        *,
        heads: bool,
    ) -> Group:
        made = [x.name for x in self._layers if (self._canonical(x), x.output_axis) in produced]
        # What does not run as a module of its own is called by its parameter.
        layers = tuple(made) or tuple(dict.fromkeys(name.removesuffix(".weight") for name, _ in produced))
        owners = {name: self._parts[name.rpartition(".")[0]] for name, _ in positions}
        kind: GroupKind = "heads" if heads else "channels"
        if any(isinstance(owners[name], RECURRENT) for name, _ in produced):
            kind = "hidden"
        norms = [n.rpartition(".")[0] for n, _ in positions if isinstance(owners[n], _PER_CHANNEL_NORMS)]
        count = self._names[layers[0]] = self._names.get(layers[0], 0) + 1
        return Group(
            name=layers[0] if count == 1 else f"{layers[0]}#{count}",
            width=width,
            layers=layers,
            consumers=tuple(x.name for x in self._layers if (self._canonical(x), x.input_axis) in reads),
            norms=tuple(dict.fromkeys(norms)),
            kind=kind,
            unit=1 if kind == "hidden" else positions[produced[0]].shape[1],
            uses=tuple(
                Use(parameter=name, axis=axis, per_unit=where.shape[1])
                for (parameter, axis), where in positions.items()
                for name in (parameter, *self._others.get(parameter, ()))
            ),
        )

    def _canonical(self, layer: Found) -> str:
        return self._first.get(layer.parameter, layer.parameter)
