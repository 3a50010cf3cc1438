"""Inner layers of two networks that can be compared, and what flows through them."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from autocompress.compress.fast import run
from autocompress.compress.hooked import hooked
from autocompress.inputs import Inputs, batch_size

#: How many layers are compared at most, spread evenly over the network.
MAX_TAPS = 4
_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.RNNBase)
_CHANNELS_FIRST = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.modules.batchnorm._BatchNorm)


@dataclass(frozen=True)
class Tap:
    """A module whose output is compared.

    Attributes:
        name: of the module, in both networks.
        channels_first: channels are axis 1 of its output; otherwise the last axis.
        teacher, student: shape of its output for one example, channels moved last: (positions..., channels).
    """

    name: str
    channels_first: bool
    teacher: tuple[int, ...]
    student: tuple[int, ...]

    @property
    def aligned(self) -> bool:
        """True if both outputs have the same positions, so that only their channels may differ."""
        return self.teacher[:-1] == self.student[:-1]

    @property
    def has_positions(self) -> bool:
        """True if there is more than one position to attend to."""
        return min(_product(self.teacher[:-1]), _product(self.student[:-1])) > 1

    def read(self, output: Any) -> Tensor:
        """The features in a module's output, shape (n, positions..., channels), float32."""
        features = _first_tensor(output)
        if features is None:
            raise TypeError(f"{self.name}: expected a tensor, got {type(output).__name__}")
        features = features.float()
        return features.movedim(1, -1) if self.channels_first else features


def find_taps(teacher: nn.Module, student: nn.Module, example: Inputs) -> list[Tap]:
    """Up to four modules, evenly spaced, that both networks have under the same name.

    Blocks are preferred: parts of a sequence of modules that hold two weights or more. A network with less than two
    of them is compared at its weights. The last module, which gives the network's output, is left to the response.

    Args:
        teacher: left alone.
        student: left alone.
        example: a batch that both can run.

    Returns:
        In the order of the teacher's forward pass; empty if there are none.
    """
    shown, answered = _outputs(teacher, example), _outputs(student, example)
    both = [name for name in shown if name in answered and shown[name].ndim == answered[name].ndim]
    blocks = [name for name in both if _is_block(teacher, name)]
    blocks = [name for name in blocks if not any(name.startswith(f"{other}.") for other in blocks)]
    weights = [name for name in both if isinstance(teacher.get_submodule(name), _WEIGHTED)][:-1]
    found = blocks if len(blocks) >= 2 else weights
    return [_tap(teacher, name, shown[name], answered[name]) for name in _spread(found)]


@contextlib.contextmanager
def captured(module: nn.Module, taps: Sequence[Tap]) -> Iterator[list[Tensor]]:
    """The features at `taps`, in their order, once `module` has run inside the block; see `Tap.read`."""
    found: list[Tensor] = [torch.empty(0)] * len(taps)

    def keep(position: int, tap: Tap) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            found[position] = tap.read(output)

        return hook

    with hooked(module.get_submodule(tap.name).register_forward_hook(keep(i, tap)) for i, tap in enumerate(taps)):
        yield found


def _outputs(module: nn.Module, example: Inputs) -> dict[str, Tensor]:
    """Name -> output of every module that runs exactly once and returns features of this batch's examples."""
    probe = copy.deepcopy(module).eval()
    calls: dict[str, list[Any]] = {}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            calls.setdefault(name, []).append(output)

        return hook

    for name, part in probe.named_modules():
        if name:
            part.register_forward_hook(keep(name))
    with torch.no_grad():
        run(probe, example)
    found = {name: _first_tensor(outputs[0]) for name, outputs in calls.items() if len(outputs) == 1}
    count = batch_size(example)
    return {
        name: output
        for name, output in found.items()
        if output is not None and output.is_floating_point() and output.ndim >= 2 and len(output) == count
    }


def _is_block(module: nn.Module, name: str) -> bool:
    """True for a part of a sequence of modules that holds two weights or more."""
    parent = module.get_submodule(name.rpartition(".")[0])
    weights = sum(isinstance(part, _WEIGHTED) for part in module.get_submodule(name).modules())
    is_part = isinstance(parent, nn.Sequential | nn.ModuleList)
    return is_part and weights >= 2


def _tap(teacher: nn.Module, name: str, shown: Tensor, answered: Tensor) -> Tap:
    # Of two axes one is the batch's. With more, convolutions put channels second; sequences have them last.
    part = teacher.get_submodule(name)
    first = shown.ndim > 3 or (shown.ndim == 3 and any(isinstance(inner, _CHANNELS_FIRST) for inner in part.modules()))
    shapes = [tuple((x.movedim(1, -1) if first else x).shape[1:]) for x in (shown, answered)]
    return Tap(name, first, *shapes)


def _spread(names: Sequence[str]) -> list[str]:
    """At most `MAX_TAPS` of them, evenly spaced, the last one included."""
    count = min(MAX_TAPS, len(names))
    return [names[round((i + 1) * len(names) / count) - 1] for i in range(count)]


def _first_tensor(output: Any) -> Tensor | None:
    return next((leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)), None)


def _product(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
