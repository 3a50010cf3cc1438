"""ONNX's layers as plain functions of torch tensors: what has weights, normalizes, pools or quantizes.

As in `autocompress.measure.torch_ops`, each takes an operator's inputs in ONNX's order and its attributes by name.

References:
    The ONNX operators' specification, opsets 13 to 21, https://onnx.ai/onnx/operators/;
    onnxruntime's contributed operators, for MatMulNBits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from autocompress.measure.torch_ops import DTYPES, UnsupportedError, integers, padded, same_on_both_sides

_CONV = {3: functional.conv1d, 4: functional.conv2d, 5: functional.conv3d}
_TRANSPOSED = {
    3: functional.conv_transpose1d,
    4: functional.conv_transpose2d,
    5: functional.conv_transpose3d,
}


def _explicit(auto_pad: str) -> None:
    if auto_pad not in ("NOTSET", "VALID"):
        raise UnsupportedError(f"auto_pad={auto_pad}; expected pads")


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    strides: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    group: int = 1,
    auto_pad: str = "NOTSET",
    kernel_shape: Sequence[int] | None = None,
) -> Tensor:
    """Convolution over one to three axes; the weight has to be a constant."""
    _explicit(auto_pad)
    spatial = len(integers(kernel_shape, "kernel_shape")) if kernel_shape else weight.ndim - 2
    pads = list(pads or [0] * 2 * spatial)
    if not same_on_both_sides(pads):
        x, pads = padded(x, pads), [0] * 2 * spatial
    stride, dilation = tuple(strides or [1] * spatial), tuple(dilations or [1] * spatial)
    return _CONV[spatial + 2](x, weight, bias, stride, tuple(pads[:spatial]), dilation, group)


def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    strides: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    group: int = 1,
    output_padding: Sequence[int] | None = None,
    auto_pad: str = "NOTSET",
    kernel_shape: Sequence[int] | None = None,
) -> Tensor:
    """Transposed convolution with equal pads on both sides."""
    _explicit(auto_pad)
    spatial = len(integers(kernel_shape, "kernel_shape")) if kernel_shape else weight.ndim - 2
    pads = list(pads or [0] * 2 * spatial)
    if not same_on_both_sides(pads):
        raise UnsupportedError(f"pads={pads}; expected the same on both sides")
    stride, dilation = tuple(strides or [1] * spatial), tuple(dilations or [1] * spatial)
    added = tuple(output_padding or [0] * spatial)
    return _TRANSPOSED[spatial + 2](x, weight, bias, stride, tuple(pads[:spatial]), added, group, dilation)


def gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,  # noqa: N803
    transB: int = 0,  # noqa: N803
) -> Tensor:
    """Alpha · a' b' + beta · c, a' and b' transposed where asked."""
    a = a.t() if transA else a
    if alpha == 1.0 and beta == 1.0 and type(b) is Tensor and (c is None or (type(c) is Tensor and c.ndim == 1)):
        # Of constants, so made once.
        return functional.linear(a, b if transB else b.t().contiguous(), c)
    product = torch.matmul(a, b.t() if transB else b)
    product = product if alpha == 1.0 else product * alpha
    return product if c is None else product + (c if beta == 1.0 else c * beta)


def matmul_nbits(
    x: Tensor,
    packed: Tensor,
    scales: Tensor,
    zero_points: Tensor | None = None,
    order: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    K: int,  # noqa: N803
    N: int,  # noqa: N803
    bits: int,
    block_size: int,
    accuracy_level: int = 0,
) -> Tensor:
    """Linear layer whose constant weights are integers in blocks; here they become floats when the file is loaded.

    `packed` has shape (N, blocks, bytes), unsigned, offset by 2^(bits - 1); `scales` (N, blocks) or flat. What
    `accuracy_level` lets a runtime round, activations, stays exact.
    """
    if bits not in (4, 8) or zero_points is not None or order is not None:
        raise UnsupportedError(f"bits={bits} with zero points or an order; expected symmetric blocks of 8 or 4 bits")
    values = packed if bits == 8 else torch.stack((packed & 15, packed >> 4), dim=-1)
    blocks = values.reshape(N, -1, block_size).to(torch.float32) - 2 ** (bits - 1)
    weight = (blocks * scales.reshape(N, -1, 1)).reshape(N, -1)[:, :K].contiguous()
    return functional.linear(x, weight, bias)


# --- normalization and pooling ----------------------------------------------------------------------------------------


def batch_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
) -> Tensor:
    """With the statistics of training."""
    if training_mode:
        raise UnsupportedError("training_mode=1; expected a network in evaluation")
    return functional.batch_norm(x, mean, var, scale, bias, False, 0.0, epsilon)


def layer_normalization(
    x: Tensor, scale: Tensor, bias: Tensor | None = None, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    """Over the axes that the constant scale has."""
    return functional.layer_norm(x, tuple(scale.shape), scale, bias, epsilon)


def instance_normalization(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    """Over the axes behind the channels."""
    return functional.instance_norm(x, weight=scale, bias=bias, eps=epsilon)


def group_normalization(
    x: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    """Over groups of channels; scale and bias one for each channel, as from opset 21 on."""
    return functional.group_norm(x, num_groups, scale, bias, epsilon)


def _window(
    kernel_shape: Sequence[int], strides: Any, pads: Any, auto_pad: str
) -> tuple[int, tuple[int, ...], tuple[int, ...], list[int]]:
    _explicit(auto_pad)
    spatial = len(kernel_shape)
    return spatial, tuple(kernel_shape), tuple(strides or [1] * spatial), list(pads or [0] * 2 * spatial)


def max_pool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    ceil_mode: int = 0,
    auto_pad: str = "NOTSET",
    storage_order: int = 0,
) -> Tensor:
    """Largest value of a window."""
    spatial, kernel, stride, around = _window(kernel_shape, strides, pads, auto_pad)
    if not same_on_both_sides(around) or any(2 * p > k for p, k in zip(around, kernel, strict=False)):
        x, around = padded(x, around, -math.inf), [0] * 2 * spatial
    pool = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}[spatial]
    found: Tensor = pool(x, kernel, stride, tuple(around[:spatial]), tuple(dilations or [1] * spatial), bool(ceil_mode))
    return found


def global_average_pool(x: Tensor, *, rank: int | None = None) -> Tensor:
    """Mean over all axes behind the channels."""
    if rank is None:
        raise UnsupportedError("a tensor of unknown rank")
    return x.mean(dim=tuple(range(2, rank)), keepdim=True)


def average_pool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    auto_pad: str = "NOTSET",
) -> Tensor:
    """Mean of a window."""
    spatial, kernel, stride, around = _window(kernel_shape, strides, pads, auto_pad)
    if not same_on_both_sides(around) or any(d != 1 for d in dilations or []):
        raise UnsupportedError(f"pads={around}, dilations={dilations}; expected equal pads and no dilation")
    pool = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}[spatial]
    found: Tensor = pool(x, kernel, stride, tuple(around[:spatial]), bool(ceil_mode), bool(count_include_pad))
    return found


# --- integers ---------------------------------------------------------------------------------------------------------

_RANGES = {torch.uint8: (0, 255), torch.int8: (-128, 127)}


def _along(values: Tensor, rank_free: int) -> Tensor:
    """One value per index of an axis that `rank_free` others follow."""
    return values if values.ndim == 0 or values.numel() == 1 else values.reshape(-1, *[1] * rank_free)


def quantize_linear(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    axis: int = 1,
    rank: int | None = None,
    saturate: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
) -> Tensor:
    """clamp(round(x / scale) + zero point), rounding to the even one of two equally near integers, as ONNX defines."""
    dtype = zero_point.dtype if zero_point is not None else DTYPES[output_dtype or 2]
    if block_size or dtype not in _RANGES:
        raise UnsupportedError(f"block_size={block_size} and {dtype}; expected 8-bit integers per tensor or channel")
    scale, zero_point = _per_channel(scale, zero_point, axis, rank)
    rounded = torch.round(x / scale)
    shifted = rounded if zero_point is None else rounded + zero_point.to(x.dtype if type(x) is Tensor else scale.dtype)
    return torch.clamp(shifted, *_RANGES[dtype]).to(dtype)


def dequantize_linear(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    axis: int = 1,
    rank: int | None = None,
    block_size: int = 0,
) -> Tensor:
    """(x - zero point) · scale."""
    if block_size:
        raise UnsupportedError(f"block_size={block_size}; expected one scale per tensor or channel")
    scale, zero_point = _per_channel(scale, zero_point, axis, rank)
    # Every integer of 8 bits is a float; so is the 32-bit sum of a bias up to 2^24, beyond which runtimes round too.
    floats = x.to(scale.dtype)
    return (floats if zero_point is None else floats - zero_point.to(scale.dtype)) * scale


def _per_channel(scale: Tensor, zero_point: Tensor | None, axis: int, rank: int | None) -> tuple[Tensor, Tensor | None]:
    if type(scale) is not Tensor or (zero_point is not None and type(zero_point) is not Tensor):
        raise UnsupportedError("a scale or zero point that is computed by the network; expected constants")
    if scale.numel() == 1:
        return scale.reshape(()), None if zero_point is None else zero_point.reshape(())
    if axis < 0:
        behind = -axis - 1
    elif rank is None:
        raise UnsupportedError("scales along an axis of a tensor of unknown rank")
    else:
        behind = rank - axis - 1
    return _along(scale, behind), None if zero_point is None else _along(zero_point, behind)


# --- recurrent layers -------------------------------------------------------------------------------------------------

#: Torch's order of an operator's gates, as positions in ONNX's.
_GATES = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2)}


def _recurrent_weights(kind: str, w: Any, r: Any, b: Any, hidden: int) -> list[Tensor]:
    """Torch's flat list (W_ih, W_hh, b_ih, b_hh for each direction) from ONNX's stacked constants."""
    if any(value is not None and type(value) is not Tensor for value in (w, r, b)):
        raise UnsupportedError("weights that are computed by the network; expected constants")
    flat: list[Tensor] = []
    for direction in range(len(w)):
        biases = torch.zeros(2 * w.shape[1], dtype=w.dtype) if b is None else b[direction]
        for matrix in (w[direction], r[direction], *biases.chunk(2)):
            parts = matrix.split(hidden)
            flat.append(torch.cat([parts[gate] for gate in _GATES[kind]]).contiguous())
    return flat


def _check_recurrent(sequence_lens: Any, direction: str, layout: int, other: dict[str, Any]) -> None:
    if sequence_lens is not None or layout or other or direction not in ("forward", "bidirectional"):
        raise UnsupportedError(
            f"sequence lengths, layout={layout}, direction={direction} or {sorted(other)}; expected whole sequences, "
            "time first, forward or in both directions, with the usual activations"
        )


def _states(y: Tensor, w: Tensor, hidden: int) -> Tensor:
    """Torch's (time, batch, directions · hidden) as ONNX's (time, directions, batch, hidden)."""
    return y.reshape(y.shape[0], y.shape[1], len(w), hidden).transpose(1, 2)


def lstm(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    sequence_lens: Tensor | None = None,
    initial_h: Tensor | None = None,
    initial_c: Tensor | None = None,
    peepholes: Tensor | None = None,
    *,
    hidden_size: int,
    direction: str = "forward",
    input_forget: int = 0,
    layout: int = 0,
    **other: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer; x of shape (time, batch, inputs)."""
    _check_recurrent(sequence_lens, direction, layout, other)
    if peepholes is not None or input_forget:
        raise UnsupportedError("peepholes or coupled gates; expected a plain LSTM")
    flat = _recurrent_weights("LSTM", w, r, b, hidden_size)
    hidden, cell = (
        x.new_zeros((len(w), x.shape[1], hidden_size)) if given is None else given for given in (initial_h, initial_c)
    )
    found = torch.lstm(x, (hidden, cell), flat, True, 1, 0.0, False, direction == "bidirectional", False)
    return _states(found[0], w, hidden_size), found[1], found[2]


def gru(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    sequence_lens: Tensor | None = None,
    initial_h: Tensor | None = None,
    *,
    hidden_size: int,
    direction: str = "forward",
    linear_before_reset: int = 0,
    layout: int = 0,
    **other: Any,
) -> tuple[Tensor, Tensor]:
    """One layer; x of shape (time, batch, inputs)."""
    _check_recurrent(sequence_lens, direction, layout, other)
    if not linear_before_reset:
        raise UnsupportedError("linear_before_reset=0; expected 1, which torch computes")
    flat = _recurrent_weights("GRU", w, r, b, hidden_size)
    state = x.new_zeros((len(w), x.shape[1], hidden_size)) if initial_h is None else initial_h
    found = torch.gru(x, state, flat, True, 1, 0.0, False, direction == "bidirectional", False)
    return _states(found[0], w, hidden_size), found[1]
