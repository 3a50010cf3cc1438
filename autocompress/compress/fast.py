"""How training runs fast on a processor: memory layout and precision. Values are the same up to rounding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from autocompress.inputs import Inputs, apply, call, named


def run(module: nn.Module, inputs: Inputs) -> Any:
    """Whatever `module` returns for `inputs`, floats as float32.

    Networks of images and transformers run in bfloat16 where the processor computes with it; recurrent ones do not.

    Args:
        module: on the CPU.
        inputs: one batch; integers stay integers.
    """
    if not (_has_bfloat16() and (_has_images(inputs) or _is_transformer(module))):
        return call(module, as_fast(inputs))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        returned = call(module, as_fast(inputs))
    return tree_map(_widened, returned)


def as_fast(inputs: Inputs) -> Inputs:
    """Images with their channels last in memory; anything else as it is."""
    return apply(lambda x: x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x, inputs)


def fast_layout(module: nn.Module) -> nn.Module:
    """The same module, its convolutions' weights with their channels last in memory."""
    if any(parameter.ndim == 5 for parameter in module.parameters()):
        return module  # torch refuses this layout for volumes
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def plain_layout(module: nn.Module) -> nn.Module:
    """The same module with contiguous weights."""
    return module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload,no-any-return]


def _widened(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.bfloat16 else value


def _has_images(inputs: Inputs) -> bool:
    return any(tensor.ndim == 4 and tensor.is_floating_point() for tensor in named(inputs).values())


def _is_transformer(module: nn.Module) -> bool:
    kinds = {type(part) for part in module.modules()}
    return nn.LayerNorm in kinds and not any(issubclass(kind, nn.RNNBase) for kind in kinds)


def _has_bfloat16() -> bool:
    # Emulated bfloat16 is slower than float32. Measured with it in hardware, one thread, images per second of training
    # in float32 / channels last / both: 150 / 177 / 326 at widths 32-64-128, 484 / 566 / 913 at 16-32-64, 961 / 1253 /
    # 1510 at 8-16-32. A step of MiniLM on 32 sequences of 32 tokens: 0.99 s in float32, 0.52 s in bfloat16.
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
