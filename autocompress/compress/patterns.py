"""Which weights of a layer may be set to zero together: single ones, n of every m, whole blocks.

A layer's weight is read as a matrix with one row per output channel. Its columns are the kernel's positions, and
within each position the input channels: the order in which hardware multiplies (a convolution with its channels last).
So "consecutive input weights" are weights of consecutive input channels at one position of the kernel, and a pattern
means the same for a linear layer, a convolution and its unfolded form.

References:
    Mishra et al., 2021, "Accelerating Sparse Deep Neural Networks" (2:4); Narang et al., 2017, "Block-Sparse Recurrent
    Neural Networks".
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from autocompress.errors import InfeasibleError
from autocompress.records import Layer, WeightMask

#: Position of the output axis in a weight whose inputs come first.
_INPUT_FIRST = "conv_transpose2d"


def as_matrix(weight: Tensor, kind: str) -> Tensor:
    """A weight as its matrix of output channels; see the module's description.

    Args:
        weight: shape (out, in, positions...), or (in, out, positions...) of a transposed convolution.
        kind: `Layer.kind`.

    Returns:
        Shape (out, positions · in); `from_matrix` is its inverse.
    """
    if kind == _INPUT_FIRST:
        weight = weight.transpose(0, 1)
    return weight.movedim(1, -1).flatten(1)


def from_matrix(matrix: Tensor, shape: tuple[int, ...], kind: str) -> Tensor:
    """The inverse of `as_matrix`, contiguous.

    Args:
        matrix: shape (out, positions · in).
        shape: of the weight.
        kind: `Layer.kind`.
    """
    out, inputs = (shape[1], shape[0]) if kind == _INPUT_FIRST else shape[:2]
    weight = matrix.view(out, *shape[2:], inputs).movedim(-1, 1)
    return (weight.transpose(0, 1) if kind == _INPUT_FIRST else weight).contiguous()


def zeros_asked(mask: WeightMask, shape: tuple[int, ...]) -> int:
    """How many weights of a layer the mask sets to zero, exactly.

    ``round(sparsity * n)`` of n single weights, m - n of every m, or ``round(sparsity * blocks)`` whole blocks.

    Args:
        mask: what is asked.
        shape: of the layer's weight, after any cut.
    """
    weights = prod(shape)
    if mask.n_m is not None:
        return weights // mask.n_m[1] * (mask.n_m[1] - mask.n_m[0])
    if mask.block is not None:
        size = mask.block[0] * mask.block[1]
        return round(mask.sparsity * (weights // size)) * size
    return round(mask.sparsity * weights)


def check_fits(mask: WeightMask, layer: Layer, shape: tuple[int, ...]) -> None:
    """Refuse a mask that the layer cannot have.

    Args:
        mask: what is asked.
        layer: the layer's record.
        shape: of its weight now, after any cut.

    Raises:
        InfeasibleError: the layer's inputs are no multiple of m, its matrix is no multiple of the block, or no weight
            would be left; the message names what fits.
    """
    rows, inputs = (shape[1], shape[0]) if layer.kind == _INPUT_FIRST else shape[:2]
    columns = prod(shape) // rows
    if mask.n_m is not None and inputs % mask.n_m[1]:
        raise InfeasibleError(
            f"plan.masks: pattern {mask.pattern} needs inputs in multiples of {mask.n_m[1]}, {layer.name!r} has "
            f"{inputs}; m may be {_divisors(inputs)}"
        )
    if mask.block is not None:
        for what, have, size, letter in (
            ("outputs", rows, mask.block[0], "R"),
            ("input weights", columns, mask.block[1], "C"),
        ):
            if have % size:
                raise InfeasibleError(
                    f"plan.masks: pattern {mask.pattern} needs {what} in multiples of {size}, {layer.name!r} has "
                    f"{have}; {letter} may be {_divisors(have)}"
                )
    if zeros_asked(mask, shape) >= prod(shape):
        raise InfeasibleError(
            f"plan.masks: sparsity {mask.sparsity:g} of {layer.name!r} leaves none of its {prod(shape)} weights; "
            "ask for less, or cut its channels"
        )


def select(scores: Tensor, mask: WeightMask, kind: str) -> Tensor:
    """The weights that stay: those with the highest scores that the pattern allows.

    Equal scores keep the lower position. The numbers are exactly those of `zeros_asked`, for any sparsity: a pattern
    n:m whose sparsity was lowered by `at_level` keeps ``m - round(sparsity * m)`` of every m.

    Args:
        scores: in the shape of the weight; larger = keep. A block scores the mean of its weights.
        mask: sparsity and pattern.
        kind: `Layer.kind`.

    Returns:
        Booleans in the weight's shape, True is kept.
    """
    matrix = as_matrix(scores, kind)
    if mask.n_m is not None:
        groups = matrix.reshape(-1, mask.n_m[1])
        kept = _largest(groups, mask.n_m[0]).view(matrix.shape)
    elif mask.block is not None:
        (rows, columns), (r, c) = matrix.shape, mask.block
        tiles = matrix.reshape(rows // r, r, columns // c, c)
        means = tiles.double().mean(dim=(1, 3))
        chosen = _largest(means.flatten()[None], means.numel() - round(mask.sparsity * means.numel()))
        kept = chosen.view(rows // r, 1, columns // c, 1).expand_as(tiles).reshape(matrix.shape)
    else:
        # Ties are broken by the position in the weight as torch keeps it.
        return _largest(scores.flatten()[None], scores.numel() - zeros_asked(mask, scores.shape)).view(scores.shape)
    return from_matrix(kept, tuple(scores.shape), kind)


def at_level(mask: WeightMask, sparsity: float) -> WeightMask | None:
    """The same mask on its way to its sparsity.

    Args:
        mask: where the way ends.
        sparsity: of now; at least the mask's own gives the mask itself.

    Returns:
        None where nothing is masked yet. A pattern n:m passes through n + 1 : m, n + 2 : m and so on.
    """
    if sparsity >= mask.sparsity - 1e-12:
        return mask
    if mask.n_m is not None:
        n, m = mask.n_m
        kept = max(n, m - round(sparsity * m))
        if kept == m:
            return None
        return mask.model_copy(update={"pattern": f"{kept}:{m}", "sparsity": 1 - kept / m})
    return mask.model_copy(update={"sparsity": sparsity}) if sparsity > 0.0 else None


def _largest(scores: Tensor, count: int) -> Tensor:
    """True for the `count` largest of every row; equal ones by position."""
    ranked = torch.argsort(scores, dim=1, descending=True, stable=True)[:, :count]
    return torch.zeros(scores.shape, dtype=torch.bool).scatter_(1, ranked, value=True)


def _divisors(number: int) -> str:
    found = [str(d) for d in range(2, number + 1) if number % d == 0]
    return ", ".join(found) if found else "nothing above 1"
