"""Weights rounded in place of a file's integers, to tell what a number of bits costs."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from autocompress.compress.grids import from_integers, to_integers, weight_scales


def round_weights(weight: Tensor, bits: int, axis: int) -> Tensor:
    r"""Weights on the grid that quantization after training writes: :math:`s \, \mathrm{round}(w / s)`.

    The step s of each output channel is that of `autocompress.compress.grids.weight_scales`.

    Args:
        weight: any shape.
        bits: from 2 to 8; 16 rounds to half precision.
        axis: of the output channels.

    Returns:
        A new tensor of the same shape; a channel of zeros stays so.
    """
    if bits == 16:
        return weight.half().to(weight.dtype)
    rows = np.ascontiguousarray(weight.detach().movedim(axis, 0).float().numpy())
    scale = weight_scales(rows, bits)
    return torch.from_numpy(from_integers(to_integers(rows, scale, bits), scale)).movedim(0, axis).to(weight.dtype)
