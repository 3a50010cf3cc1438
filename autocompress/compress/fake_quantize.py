"""Layers that train through an integer grid: the forward pass rounds, the backward pass looks through the rounding.

References:
    Bengio et al., 2013, "Estimating or Propagating Gradients Through Stochastic Neurons" (straight-through);
    Esser et al., 2020, "Learned Step Size Quantization".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autocompress.compress.grids import LEVELS, largest
from autocompress.compress.weights_only import block_values

_NAME = "quantization"
#: Of the gradient of log s under SGD: beyond it, one step of usual size would change s by more than it is worth.
_LARGEST = 1.0


class Step(nn.Module):
    """A grid's step s, fixed or learnt.

    The parameter is p = log(s / s_0), so that s stays positive and weight decay pulls it to where it began. Learnt by
    SGD it gets the gradient (∂L/∂s) g / s, at most 1, whose step changes s, to first order, as Esser et al. do with
    theirs, (∂L/∂s) g with g = 1 / sqrt(N · q_max). An optimizer that normalizes gradients gets the plain one of p.

    Attributes:
        initial: s_0, shape of the scale, > 0.
        low, high: smallest and largest integer.
        zero: integer of the value 0.
        axis: of the tensor's channels, for one step per channel; None for one step in all.
    """

    initial: Tensor

    def __init__(
        self, initial: Tensor, *, low: int, high: int, zero: int, axis: int | None, learnt: bool, normalizes: bool
    ) -> None:
        super().__init__()
        self.register_buffer("initial", initial.detach().clone())
        self.low, self.high, self.zero, self.axis, self.normalizes = low, high, zero, axis, normalizes
        self.log_ratio = nn.Parameter(torch.zeros_like(initial)) if learnt else None

    def scale(self) -> Tensor:
        """s, shape () or (channels,)."""
        return self.initial if self.log_ratio is None else self.initial * self.log_ratio.exp()

    def forward(self, x: Tensor) -> Tensor:
        """(clip(round(x / s) + z) - z) · s, float32."""
        scale = self.scale()
        if self.axis is not None:
            scale = scale.view([-1 if at == self.axis else 1 for at in range(x.ndim)])
        # N: weights of a channel, or features of one example.
        count = x.numel() / (scale.numel() if self.axis is not None else max(1, len(x)))
        gradient_scale = 1.0 / math.sqrt(max(1.0, count) * self.high)
        rounded: Tensor = _Round.apply(  # type: ignore[no-untyped-call]
            x.float(), scale, self.low, self.high, self.zero, gradient_scale, self.normalizes
        )
        return rounded


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, low: int, high: int, zero: int, gradient_scale: float, normalizes: bool
    ) -> Tensor:
        divided = x / scale
        shifted = torch.round(divided) + zero
        integers = shifted.clamp(low, high) - zero
        inside = (divided + zero >= low) & (divided + zero <= high)
        ctx.save_for_backward(integers - divided * inside, inside, scale)
        ctx.gradient_scale, ctx.normalizes = gradient_scale, normalizes
        return integers * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        slope, inside, scale = ctx.saved_tensors
        (gradient,) = gradients
        to_scale = None
        if ctx.needs_input_grad[1]:
            to_scale = (gradient * slope).sum_to_size(scale.shape) * ctx.gradient_scale
            if not ctx.normalizes:
                # The exponential behind multiplies by s once more.
                to_scale = (to_scale / scale).clamp(-_LARGEST, _LARGEST) / scale
        return gradient * inside, to_scale, None, None, None, None, None


def weight_step(scale: np.ndarray, bits: int, axis: int, *, learnt: bool, normalizes: bool) -> Step:
    """The step of a weight's grid.

    Learnt steps begin where the squared rounding error is least (Bhalgat et al., 2020, LSQ+). Esser et al. begin at
    2 · mean|w| / sqrt(q_max), which leaves most of an 8-bit grid unused until long training has shrunk it.

    Args:
        scale: shape (channels,), of the grid from the weights alone.
        bits: 2 to 8.
        axis: of the weight's output channels.
        learnt: the step is a parameter.
        normalizes: the optimizer divides by the gradient's size; see `Step`.

    References:
        Bhalgat et al., 2020, "LSQ+: Improving low-bit quantization through learnable offsets and better
        initialization".
    """
    limit, initial = largest(bits), torch.from_numpy(scale)
    return Step(initial, low=-limit, high=limit, zero=0, axis=axis, learnt=learnt, normalizes=normalizes)


def input_step(scale: float, zero: int, *, learnt: bool, normalizes: bool) -> Step:
    """The step of an 8-bit activation."""
    initial = torch.tensor(scale, dtype=torch.float32)
    return Step(initial, low=0, high=LEVELS, zero=zero, axis=None, learnt=learnt, normalizes=normalizes)


class Blocks(nn.Module):
    """Rounds a linear layer's weight to the blocks that a runtime's packed product reads; the blocks follow it."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def forward(self, weight: Tensor) -> Tensor:
        """Values of `weight`, shape (out, in), on the blocks' grids; its gradient passes through."""
        values = block_values(weight.detach().float().cpu().numpy().T, self.bits)
        return weight + (torch.from_numpy(np.ascontiguousarray(values.T)) - weight).detach()


class Grids(nn.Module):
    """What a layer rounds with: one rule per weight, and one for its input if that is quantized."""

    def __init__(self, weights: Mapping[str, nn.Module], inputs: Step | None) -> None:
        super().__init__()
        self.weights = nn.ModuleDict(weights)
        self.inputs = inputs


class _Quantized(nn.Module):
    """A layer whose forward sees rounded weights and inputs. Its parameters keep their names."""

    def forward(self, x: Tensor, *rest: Any, **named: Any) -> Any:
        grids: Grids = self.get_submodule(_NAME)  # type: ignore[assignment]
        weight = grids.weights["weight"](self._parameters["weight"])
        # An instance's own attribute goes before the parameter, and only for this call.
        self.__dict__["weight"] = weight
        try:
            return super().forward(x if grids.inputs is None else grids.inputs(x), *rest, **named)
        finally:
            del self.__dict__["weight"]


class _QuantizedRecurrent(nn.Module):
    """The same for a recurrent module, whose matrices are kept in a list."""

    _flat_weights: list[Tensor]
    _flat_weights_names: list[str]

    def forward(self, *inputs: Any, **named: Any) -> Any:
        grids: Grids = self.get_submodule(_NAME)  # type: ignore[assignment]
        kept = self._flat_weights
        self._flat_weights = [
            grids.weights[name](weight) if name in grids.weights else weight
            for name, weight in zip(self._flat_weights_names, kept, strict=True)
        ]
        try:
            return super().forward(*inputs, **named)
        finally:
            self._flat_weights = kept


def wrap(layer: nn.Module, grids: Grids) -> None:
    """Let `layer` round its weights and inputs, in place; `unwrap` undoes it."""
    mixin = _QuantizedRecurrent if isinstance(layer, nn.RNNBase) else _Quantized
    base = type(layer)
    layer.add_module(_NAME, grids)
    layer.__class__ = type(f"Quantized{base.__name__}", (mixin, base), {})


def unwrap(layer: nn.Module) -> Grids:
    """Give a layer its own class back, in place.

    Returns:
        What it rounded with.
    """
    grids: Grids = layer.get_submodule(_NAME)  # type: ignore[assignment]
    del layer._modules[_NAME]
    layer.__class__ = type(layer).__mro__[2]
    return grids
