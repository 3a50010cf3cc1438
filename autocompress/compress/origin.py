"""Where the weights of a cut module come from in the dense one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

#: Where a cut module keeps its `Origin`; a plain attribute, so it is neither saved nor exported, but copied along.
_ORIGIN = "_autocompress_origin"


@dataclass(frozen=True)
class Origin:
    """Which of the dense network's weights a cut module's weights are.

    Attributes:
        positions: parameter or buffer name -> flat positions in the dense tensor, in the cut tensor's shape; only for
            tensors that lost something. A parameter known under several names has an entry for each.
        widths: group -> its units, for the groups that were cut.
    """

    positions: Mapping[str, Tensor]
    widths: Mapping[str, int] = field(default_factory=dict)

    def follow(self, name: str, dense: Tensor) -> Tensor:
        """The entries of `dense`, shaped as the dense tensor `name`, that belong to surviving weights."""
        positions = self.positions.get(name)
        return dense if positions is None else dense.flatten()[positions]


def origin(module: nn.Module) -> Origin:
    """Where a module's weights come from; for a module that was never cut, every weight from itself."""
    found = vars(module).get(_ORIGIN)
    return found if isinstance(found, Origin) else Origin({})


def remember(module: nn.Module, came_from: Origin) -> None:
    """Note on a module, in place, where its weights come from."""
    vars(module)[_ORIGIN] = came_from
