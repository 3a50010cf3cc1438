"""What was found in a network: what can be removed, what has weights, and what is left as it is."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Annotated, Any, Literal

from pydantic import Field

from autocompress.records.base import Record

GroupKind = Literal["channels", "heads", "hidden"]
LayerKind = Literal["conv1d", "conv2d", "conv_transpose2d", "linear", "embedding", "recurrent"]


class Use(Record):
    """Where one axis of a parameter (or of a buffer, such as a running mean) shrinks with a group.

    Attributes:
        parameter: qualified name, such as ``"layer1.0.conv1.weight"``.
        axis: of the parameter.
        per_unit: how many indices of that axis one unit of the group owns: 1 for a plain channel, 49 behind the
            flatten of a 7 × 7 map, the head's size for an attention head, 4 for the gates of an LSTM.
    """

    parameter: str
    axis: Annotated[int, Field(ge=0)]
    per_unit: Annotated[int, Field(ge=1)]


class Group(Record):
    """Units (channels, attention heads, hidden units) that can only be cut together across coupled layers.

    Attributes:
        name: qualified name of the first layer whose outputs belong to the group; a second group of the same layer
            is called ``"<layer>#2"``.
        width: number of units in the dense network.
        layers: layers whose outputs are cut together, in the order of the forward pass, the naming one first.
        consumers: layers whose inputs shrink with them.
        norms: per-channel normalizations (BatchNorm, InstanceNorm) that shrink with them.
        kind: ``"channels"`` (of a convolution, neurons of a linear layer, the features of a feed-forward block),
            ``"heads"`` of attention, or ``"hidden"`` units of a recurrent layer.
        unit: output channels of the naming layer that one unit is; the target's rounding is of units × this.
        uses: every axis that shrinks, the layers' and norms' included.
    """

    name: str
    width: Annotated[int, Field(ge=1)]
    layers: tuple[str, ...]
    consumers: tuple[str, ...] = ()
    norms: tuple[str, ...] = ()
    kind: GroupKind = "channels"
    unit: Annotated[int, Field(ge=1)] = 1
    uses: tuple[Use, ...] = ()

    def multiple(self, round_to: int) -> int:
        """Units in whose multiples the group is cut, so that its channels come in multiples of `round_to`.

        Examples:
            >>> Group(name="a", width=12, layers=("a",), unit=32).multiple(8)
            1
        """
        return next(m for m in range(1, round_to + 1) if m * self.unit % round_to == 0)


class Layer(Record):
    """A weight that can be masked, factorized, shared or quantized.

    Attributes:
        name: qualified name of the module; for a matrix of a recurrent layer, of the parameter
            (``"lstm.weight_ih_l0"``).
        kind: what the module is.
        shape: shape of the weight as torch keeps it.
        macs: multiply-adds for one example.
        group: the group that all its outputs belong to; None if they cannot be cut, or belong to several.
        factorizable: whether thinner layers can take its place: it is linear or an ungrouped convolution, and its
            weight is its own and read by nothing else.
    """

    name: str
    kind: LayerKind
    shape: tuple[int, ...]
    macs: int
    group: str | None = None
    factorizable: bool = True

    @property
    def parameter(self) -> str:
        """Qualified name of the weight."""
        return self.name if self.kind == "recurrent" else f"{self.name}.weight"


class Block(Record):
    """A part of the network that can be left out: its output has the shape of its input.

    Attributes:
        name: qualified name of the module.
        layers: names of the layers inside.
    """

    name: str
    layers: tuple[str, ...]


class LeftDense(Record):
    """A module that is not compressed, and why."""

    name: str
    reason: str


class Structure(Record):
    """What can be compressed in a network, and what cannot."""

    groups: tuple[Group, ...]
    layers: tuple[Layer, ...]
    left_dense: tuple[LeftDense, ...] = ()
    blocks: tuple[Block, ...] = ()

    def group(self, name: str) -> Group:
        """The group called `name`; KeyError if there is none."""
        return next((g for g in self.groups if g.name == name), None) or _missing("group", name)

    def layer(self, name: str) -> Layer:
        """The layer called `name`; KeyError if there is none."""
        return next((x for x in self.layers if x.name == name), None) or _missing("layer", name)

    def block(self, name: str) -> Block:
        """The block called `name`; KeyError if there is none."""
        return next((b for b in self.blocks if b.name == name), None) or _missing("block", name)

    def shapes(self, kept: Iterable[tuple[str, int]]) -> dict[str, tuple[int, ...]]:
        """Layer name -> shape of its weight once every group named in `kept` has that many units.

        Args:
            kept: pairs of a group's name and its units after the cut, each group at most once.
        """
        by_parameter = {layer.parameter: layer.name for layer in self.layers}
        shapes = {layer.name: list(layer.shape) for layer in self.layers}
        for name, keep in kept:
            group = self.group(name)
            for use in group.uses:
                if use.parameter in by_parameter:
                    shapes[by_parameter[use.parameter]][use.axis] -= (group.width - keep) * use.per_unit
        return {name: tuple(shape) for name, shape in shapes.items()}

    def weights(self, kept: Iterable[tuple[str, int]]) -> dict[str, int]:
        """Layer name -> number of weights after those cuts; see `shapes`."""
        return {name: prod(shape) for name, shape in self.shapes(kept).items()}


def _missing(what: str, name: str) -> Any:
    raise KeyError(f"no {what} named {name!r}")
