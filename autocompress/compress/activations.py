"""Statistics of a network's inner activations, streamed over batches through hooks at its layers' outputs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from autocompress.compress.hooked import hooked
from autocompress.inputs import forward
from autocompress.task import fetch

if TYPE_CHECKING:
    from torch.utils.data import Dataset

_Convolution = nn.modules.conv._ConvNd
_Transposed = nn.modules.conv._ConvTransposeNd
_Norm = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
#: A channel's variance within classes counts as at least this share of all its variance.
_FLOOR = 1e-12


@dataclass(frozen=True)
class _Axes:
    """Where a layer's output has examples and channels.

    Attributes:
        example: axis of the examples.
        channel: axis of the channels.
        repeats: entries of the example axis per example, next to each other: more than 1 where positions are folded
            into it.
    """

    example: int
    channel: int
    repeats: int

    def arrange(self, values: Tensor) -> Tensor:
        """`values`, an output of the layer, in shape (examples, channels, positions)."""
        moved = values.movedim((self.example, self.channel), (0, -1))
        return moved.reshape(len(moved) // self.repeats, -1, moved.shape[-1]).transpose(1, 2)


class Activations:
    """Hooks at every convolution, linear, embedding and recurrent layer, and at every normalization with a scale.

    Several calls of a layer in one forward pass count as more positions.
    """

    def __init__(self, module: nn.Module, data: Dataset[Any]) -> None:
        """Find where each layer's output has its examples, by passing two and three of them.

        Args:
            module: in evaluation mode; gets hooks inside the context only.
            data: where an example comes from.
        """
        self._layers = {name: part for name, part in module.named_modules() if _is_watched(part)}
        self._axes = self._find_axes(module, data)
        self._effects: dict[str, Tensor] = {}
        self._means: dict[str, tuple[Tensor, int]] = {}
        self._examples = 0
        self._taylors: dict[str, Tensor] = {}
        self._classes: dict[str, _ByClass] = {}

    def watching(self) -> AbstractContextManager[None]:
        """Batches run inside."""
        return hooked(self._layers[name].register_forward_hook(self._watch(name)) for name in self._axes)

    @contextmanager
    def batch(self, targets: Tensor) -> Iterator[None]:
        """One forward and backward pass of the mean loss of a batch happens inside.

        Args:
            targets: of the batch, shape (n, ...); the F-statistic needs class indices of shape (n,).
        """
        self._effects, self._means = {}, {}
        yield
        n = len(targets)
        self._examples += n
        labels = _labels(targets)
        for name, effect in self._effects.items():
            # The loss is a mean: n times its gradient is that of one example's own loss.
            value = n * (effect / self._means[name][1]).abs().sum(dim=0)
            self._taylors[name] = self._taylors[name] + value if name in self._taylors else value
        for name, (total, positions) in self._means.items():
            if labels is None or len(total) != n:
                continue
            if name not in self._classes:
                self._classes[name] = _ByClass((total / positions).mean(dim=0))
            self._classes[name].add(total / positions, labels)

    def taylors(self) -> dict[str, Tensor]:
        """Layer -> mean over examples of the absolute effect, divided by the layer's ℓ2 norm unless that is 0."""
        found: dict[str, Tensor] = {}
        for name, total in self._taylors.items():
            mean = total / self._examples
            norm = mean.norm()
            found |= self._by_row(name, (mean / norm if norm > 0 else mean).float())
        return found

    def f_statistics(self) -> dict[str, Tensor]:
        """Layer -> F-statistic per channel; without the layers that have none."""
        found: dict[str, Tensor] = {}
        for name, classes in self._classes.items():
            value = classes.f_statistic()
            if value is not None:
                found |= self._by_row(name, value.float())
        return found

    def axes(self) -> dict[str, int]:
        """Layer -> axis of its weight that its outputs lie along, where this is not 0."""
        return {name: axis for name in self._axes if (axis := output_axis(self._layers[name])) != 0}

    def _watch(self, name: str) -> Any:
        axes = self._axes[name]

        def hook(part: nn.Module, inputs: object, returned: object) -> None:
            output = _tensor(returned)
            if output is None or not output.requires_grad:
                return
            # A copy: what follows may write into the output, as an in-place ReLU does.
            values = axes.arrange(output.detach()).clone()
            total, positions = self._means.get(name, (0.0, 0))
            self._means[name] = (values.sum(dim=2, dtype=torch.float64) + total, positions + values.shape[2])

            def effect(gradient: Tensor) -> None:
                product = (values * axes.arrange(gradient)).sum(dim=2, dtype=torch.float64)
                self._effects[name] = self._effects[name] + product if name in self._effects else product

            output.register_hook(effect)  # type: ignore[no-untyped-call]

        return hook

    def _find_axes(self, module: nn.Module, data: Dataset[Any]) -> dict[str, _Axes]:
        two, three = (self._shapes(module, data, n) for n in (2, 3))
        found: dict[str, _Axes] = {}
        for name, shape in two.items():
            other = three.get(name, ())
            changed = [axis for axis, (a, b) in enumerate(zip(shape, other, strict=False)) if a != b]
            if len(shape) != len(other) or len(changed) != 1:
                continue
            axis = changed[0]
            channel = 1 if isinstance(self._layers[name], (_Convolution, *_Norm)) else len(shape) - 1
            if axis != channel and shape[axis] * 3 == other[axis] * 2:
                found[name] = _Axes(axis, channel, shape[axis] // 2)
        return found

    def _shapes(self, module: nn.Module, data: Dataset[Any], examples: int) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}

        def watch(name: str) -> Any:
            def hook(part: nn.Module, inputs: object, returned: object) -> None:
                output = _tensor(returned)
                if output is not None:
                    shapes[name] = tuple(output.shape)

            return hook

        with hooked(part.register_forward_hook(watch(name)) for name, part in self._layers.items()):
            # With gradients: without them, torch's transformer layers take a path that runs no inner module.
            forward(module, fetch(data, torch.zeros(examples, dtype=torch.int64))[0])
        return shapes

    def _by_row(self, name: str, values: Tensor) -> dict[str, Tensor]:
        """Values of a module's output channels, under the names of the weights that these are the outputs of."""
        part = self._layers[name]
        if not isinstance(part, nn.RNNBase):
            return {name: values}
        found: dict[str, Tensor] = {}
        top = part.num_layers - 1
        suffixes = ("", "_reverse") if part.bidirectional else ("",)
        for suffix, half in zip(suffixes, values.chunk(len(suffixes)), strict=True):
            kinds = ("hr",) if part.proj_size else ("ih", "hh")
            for kind in kinds:
                weight = f"weight_{kind}_l{top}{suffix}"
                rows = part.get_parameter(weight).shape[0]
                found[f"{name}.{weight}"] = half.repeat(rows // len(half))
        return found


class _ByClass:
    """n, Σa and Σa² per class, of values measured from a shift that keeps the squares small."""

    def __init__(self, shift: Tensor) -> None:
        self._shift = shift
        self._counts: dict[int, int] = {}
        self._sums: dict[int, Tensor] = {}
        self._squares = torch.zeros_like(shift)

    def add(self, values: Tensor, labels: Tensor) -> None:
        """Take in values of shape (n, channels) with class indices of shape (n,)."""
        shifted = values - self._shift
        self._squares += shifted.square().sum(dim=0)
        for label in sorted(set(labels.tolist())):
            part = shifted[labels == label]
            self._counts[label] = self._counts.get(label, 0) + len(part)
            self._sums[label] = self._sums.get(label, torch.zeros_like(self._shift)) + part.sum(dim=0)

    def f_statistic(self) -> Tensor | None:
        """Shape (channels,); None with a single class, or without more examples than classes."""
        classes, examples = len(self._counts), sum(self._counts.values())
        if classes < 2 or examples <= classes:
            return None
        counts = torch.tensor(list(self._counts.values()), dtype=torch.float64).unsqueeze(1)
        sums = torch.stack(list(self._sums.values()))
        mean = sums.sum(dim=0) / examples
        between = (counts * (sums / counts - mean).square()).sum(dim=0)
        total = (self._squares - examples * mean.square()).clamp_min(0.0)
        within = torch.maximum((total - between).clamp_min(0.0), _FLOOR * total)
        ratio = (between / (classes - 1)) / (within / (examples - classes))
        # A constant channel: what is left of its squares is rounding.
        scale = self._shift.square() + self._squares / examples
        return torch.where(total <= 1e-14 * examples * scale, 0.0, ratio)


def output_axis(part: nn.Module) -> int:
    """Axis of a layer's weight along which its output channels lie.

    Examples:
        >>> output_axis(nn.Linear(2, 3)), output_axis(nn.Embedding(2, 3)), output_axis(nn.ConvTranspose2d(2, 3, 1))
        (0, 1, 1)
    """
    if isinstance(part, nn.Embedding):
        return 1
    # Depthwise, a transposed convolution's weight has (channels, 1, ...).
    return 1 if isinstance(part, _Transposed) and part.groups == 1 else 0


def _is_watched(part: nn.Module) -> bool:
    if isinstance(part, _Norm):
        return isinstance(part.weight, nn.Parameter)
    return isinstance(part, _Convolution | nn.Linear | nn.Embedding | nn.RNNBase)


def _tensor(returned: object) -> Tensor | None:
    """A layer's output; of a recurrent layer's results the first. None if it is no tensor, as a packed sequence."""
    if isinstance(returned, tuple) and type(returned) is tuple and returned:
        returned = returned[0]
    return returned if isinstance(returned, Tensor) and returned.ndim >= 2 else None


def _labels(targets: Tensor) -> Tensor | None:
    """The targets if they are one class index per example."""
    is_index = targets.ndim == 1 and not targets.is_floating_point() and not targets.is_complex()
    return targets if is_index and bool((targets >= 0).all()) else None
