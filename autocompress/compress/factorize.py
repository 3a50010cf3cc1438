"""Low-rank factorization: a layer becomes a chain of thinner ones. The given module is never changed.

A linear layer or 1×1 convolution with weight W of shape (m, n) becomes two of inner width r, by the truncated singular
value decomposition W ≈ U_r S_r V_rᵀ, the best approximation of rank r; any other convolution becomes 1×1, k×k, 1×1 by a
Tucker-2 decomposition of its kernel over the output and input channels.

References:
    Eckart and Young, 1936, "The approximation of one matrix by another of lower rank";
    Kim et al., 2016, "Compression of Deep Convolutional Neural Networks for Fast and Low Power Mobile Applications";
    De Lathauwer et al., 2000, "On the best rank-1 and rank-(R1, R2, ..., RN) approximation of higher-order tensors".
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from autocompress.compress.layers import has_own_weight
from autocompress.errors import CompressionError, InfeasibleError
from autocompress.records import LowRank
from autocompress.space.ranks import max_ranks, round_ranks

#: Alternating steps of the Tucker decomposition at most, and the relative gain below which it stops.
_HOOI_STEPS = 25
_HOOI_GAIN = 1e-9
_Conv: TypeAlias = nn.Conv1d | nn.Conv2d | nn.Conv3d
_POSSIBLE = "linear layers and convolutions of one group can be factorized; leave the layer out of plan.ranks"


def factorize(module: nn.Module, ranks: Sequence[LowRank]) -> nn.Module:
    """Replace every layer of `ranks` by a chain of thinner ones, starting from the best approximation of its weight.

    Layer ``"x"`` becomes an `nn.Sequential`: ``"x.0"`` (in → r, no bias) and ``"x.1"`` (r → out, with the bias), where
    both factors carry the square root of the singular values; or ``"x.0"`` (1×1, in → r_in), ``"x.1"`` (k×k,
    r_in → r_out, with stride, padding and dilation) and ``"x.2"`` (1×1, r_out → out, with the bias). Device, kind of
    number, training mode and `requires_grad` stay those of the layer.

    Args:
        module: left alone; its layers may be narrower than in the dense network.
        ranks: what to factorize; one rank for a linear layer or 1×1 convolution, (output, input) rank otherwise.

    Returns:
        A new module.

    Raises:
        InfeasibleError: a layer is missing, of a kind that has no such factors, given the wrong number of ranks or a
            rank above `max_ranks`, or its weight is also used elsewhere.
        CompressionError: a weight is not finite.
    """
    result = copy.deepcopy(module)
    for entry in ranks:
        layer = _layer(result, entry.layer)
        _check_ranks(entry, tuple(layer.weight.shape))
        chain = _two(layer, entry) if len(entry.ranks) == 1 else _three(layer, entry)
        chain.train(layer.training)
        # A module that the network calls under several names stays one module.
        for name, part in list(result.named_modules(remove_duplicate=False)):
            if part is layer:
                parent, _, leaf = name.rpartition(".")
                owner = result.get_submodule(parent)
                setattr(owner, leaf, chain)
                if isinstance(owner, nn.TransformerEncoderLayer):
                    # Its fused inference path reads `linear1.weight`, which is gone; this attribute turns it off.
                    owner.activation_relu_or_gelu = 0
        for part in result.modules():
            # Its nested tensors are for that path alone.
            if isinstance(part, nn.TransformerEncoder) and any(inner is chain for inner in part.modules()):
                part.use_nested_tensor = False
    return result


def factorizable(module: nn.Module, name: str) -> str:
    """Why a layer has no factors; nothing if it has.

    Args:
        module: the network.
        name: of the layer, as in `autocompress.records.Layer`.

    Examples:
        >>> factorizable(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), "0")
        ''
        >>> factorizable(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), "1")
        "layer '1' is of kind ReLU"
    """
    try:
        layer = module.get_submodule(name) if name else None
    except AttributeError:
        layer = None
    parent = name.rpartition(".")[0]
    if layer is None and any(key == name for key, _ in module.named_parameters(remove_duplicate=False)):
        return f"layer {name!r} is a matrix inside {type(module.get_submodule(parent)).__name__}"
    if layer is None:
        known = [key for key, part in module.named_modules() if isinstance(part, nn.Linear | _Conv)]
        return f"expected a layer of the network, got {name!r}; it has {', '.join(known) or 'none'}"
    if not isinstance(layer, nn.Linear | _Conv):
        return f"layer {name!r} is of kind {type(layer).__name__}"
    if not isinstance(layer, nn.Linear) and layer.groups != 1:
        return f"layer {name!r} is a {type(layer).__name__} of {layer.groups} groups"
    if not has_own_weight(layer):
        return f"the weight of layer {name!r} is computed from others"
    if isinstance(module.get_submodule(parent), nn.MultiheadAttention):
        return f"layer {name!r} is inside MultiheadAttention, which reads its weight itself"
    users = [part for part in module.modules() if any(p is layer.weight for p in part._parameters.values())]
    if len(users) > 1:
        return f"the weight of layer {name!r} is shared with {len(users) - 1} other module(s)"
    return ""


def rank_for_energy(module: nn.Module, layer: str, energy: float, *, round_to: int = 1) -> tuple[int, ...]:
    """Smallest ranks whose squared singular values hold a share of all: Σ_{i≤r} σ_i² ≥ energy · Σ_i σ_i².

    For a kernel, each rank is that of the kernel unfolded along the axis in question (the truncated higher-order
    decomposition); what both together hold is then at least 1 - 2 (1 - energy).

    Args:
        module: the network.
        layer: name of a layer that can be factorized.
        energy: share in (0, 1].
        round_to: multiple that the ranks are rounded up to.

    Raises:
        ValueError: `energy` is out of its range.
        InfeasibleError: the layer is missing or cannot be factorized.
        CompressionError: its weight is not finite.
    """
    if not 0.0 < energy <= 1.0:
        raise ValueError(f"energy: expected a share in (0, 1], got {energy}")
    weight = _matrix_or_kernel(_layer(module, layer), layer)
    unfolded = [weight] if weight.ndim == 2 else [weight.flatten(1), weight.transpose(0, 1).flatten(1)]
    found = []
    for matrix, limit in zip(unfolded, max_ranks(weight.shape), strict=True):
        held = torch.linalg.svdvals(matrix).square().cumsum(0)
        # The share itself, not a share of the sum's rounding: at energy 1 the tail of exact zeros is left out.
        found.append(min(limit, 1 + int((held < energy * held[-1]).sum())))
    return round_ranks(weight.shape, found, round_to)


def _layer(module: nn.Module, name: str) -> nn.Linear | _Conv:
    """The layer called `name`, if it has factors."""
    reason = factorizable(module, name)
    if reason:
        raise InfeasibleError(f"plan.ranks: {reason}; {_POSSIBLE}")
    layer = module.get_submodule(name)
    assert isinstance(layer, nn.Linear | _Conv)  # noqa: S101 - as was just found
    return layer


def _check_ranks(entry: LowRank, shape: tuple[int, ...]) -> None:
    limits = max_ranks(shape)
    if len(entry.ranks) != len(limits):
        wanted = "one rank" if len(limits) == 1 else "two ranks (output, input)"
        raise InfeasibleError(
            f"plan.ranks: layer {entry.layer!r} with weights of shape {shape}: expected {wanted}, got {entry.ranks}"
        )
    if any(rank > limit for rank, limit in zip(entry.ranks, limits, strict=True)):
        raise InfeasibleError(
            f"plan.ranks: layer {entry.layer!r} with weights of shape {shape}: expected ranks of at most {limits}, "
            f"got {entry.ranks}"
        )


def _matrix_or_kernel(layer: nn.Linear | _Conv, name: str) -> Tensor:
    """Its weight in double precision: (out, in), or (out, in, positions) for a kernel of several."""
    weight = layer.weight.detach().double()
    if not bool(torch.isfinite(weight).all()):
        raise CompressionError(f"factorize: layer {name!r}: expected finite weights, got NaN or infinity")
    flat = weight.flatten(2) if weight.ndim > 2 else weight.unsqueeze(2)
    return flat.squeeze(2) if flat.shape[2] == 1 else flat


def _two(layer: nn.Linear | _Conv, entry: LowRank) -> nn.Sequential:
    weight = _matrix_or_kernel(layer, entry.layer)
    rank = entry.ranks[0]
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    signs = _signs(u[:, :rank])
    root = s[:rank].sqrt()
    first, second = (signs * root).unsqueeze(1) * vh[:rank], u[:, :rank] * (signs * root)
    if isinstance(layer, nn.Linear):
        return nn.Sequential(_linear(layer, first, bias=False), _linear(layer, second, bias=True))
    # The stride goes first, so that the second layer sees fewer positions; padding too, where zeros stay zeros.
    return nn.Sequential(_conv(layer, first, spatial=True, bias=False), _conv(layer, second, spatial=False, bias=True))


def _three(layer: nn.Linear | _Conv, entry: LowRank) -> nn.Sequential:
    assert not isinstance(layer, nn.Linear)  # noqa: S101 - a matrix has one rank, as was checked
    kernel = _matrix_or_kernel(layer, entry.layer)
    core, u_out, u_in = tucker2(kernel, entry.ranks[0], entry.ranks[1])
    return nn.Sequential(
        _conv(layer, u_in.T, spatial=False, bias=False),
        _conv(layer, core.reshape(*core.shape[:2], *layer.kernel_size), spatial=True, bias=False),
        _conv(layer, u_out, spatial=False, bias=True),
    )


def tucker2(kernel: Tensor, r_out: int, r_in: int) -> tuple[Tensor, Tensor, Tensor]:
    r"""Tucker-2 decomposition :math:`K_{oip} \approx \sum_{ab} G_{abp} U_{oa} V_{ib}` with orthonormal U and V.

    Starts from the truncated higher-order singular value decomposition and improves one factor with the other held
    (HOOI) until the held energy ‖G‖² no longer grows; it never falls.

    Args:
        kernel: shape (out, in, positions), double precision.
        r_out: rank over output channels, at most out.
        r_in: rank over input channels, at most in.

    Returns:
        G of shape (r_out, r_in, positions), U of shape (out, r_out), V of shape (in, r_in).
    """
    u = _leading(kernel.flatten(1), r_out)
    v = _leading(kernel.transpose(0, 1).flatten(1), r_in)
    held = 0.0
    for _ in range(_HOOI_STEPS):
        u = _leading(torch.einsum("oip,ib->obp", kernel, v).flatten(1), r_out)
        v = _leading(torch.einsum("oip,oa->iap", kernel, u).flatten(1), r_in)
        core = torch.einsum("oip,oa,ib->abp", kernel, u, v)
        before, held = held, float(core.square().sum())
        if held <= before * (1.0 + _HOOI_GAIN):
            break
    return core, u, v


def _leading(matrix: Tensor, rank: int) -> Tensor:
    """The first `rank` left singular vectors, shape (rows, rank), with the sign of their largest entry positive."""
    # Eigenvectors of the Gram matrix span all rows, so that a rank above the number of columns has a basis too.
    _, vectors = torch.linalg.eigh(matrix @ matrix.T)
    leading: Tensor = vectors.flip(1)[:, :rank]
    return leading * _signs(leading)


def _signs(vectors: Tensor) -> Tensor:
    """±1 per column, so that each column's largest entry becomes positive: libraries differ in the sign."""
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))[0]
    return torch.where(largest < 0, -1.0, 1.0).to(vectors.dtype)


def _linear(layer: nn.Linear, weight: Tensor, *, bias: bool) -> nn.Linear:
    part = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    _fill(part, layer, weight, bias=bias)
    return part


def _conv(layer: _Conv, weight: Tensor, *, spatial: bool, bias: bool) -> _Conv:
    """A convolution with `weight` (out, in[, kernel...]); `spatial`: with the layer's stride, padding and dilation."""
    dims = len(layer.kernel_size)
    weight = weight.reshape(*weight.shape, *[1] * (2 + dims - weight.ndim))
    kind: type[_Conv] = next(k for k in (nn.Conv1d, nn.Conv2d, nn.Conv3d) if isinstance(layer, k))
    size = tuple(weight.shape[2:])
    if spatial:
        part = kind(
            weight.shape[1],
            weight.shape[0],
            size,  # type: ignore[arg-type]
            stride=layer.stride,  # type: ignore[arg-type]
            padding=layer.padding,  # type: ignore[arg-type]
            dilation=layer.dilation,  # type: ignore[arg-type]
            padding_mode=layer.padding_mode,
            bias=False,
            device="meta",
        )
    else:
        part = kind(weight.shape[1], weight.shape[0], size, bias=False, device="meta")  # type: ignore[arg-type]
    _fill(part, layer, weight, bias=bias)
    return part


def _fill(part: nn.Linear | _Conv, layer: nn.Linear | _Conv, weight: Tensor, *, bias: bool) -> None:
    own = layer.weight
    part.weight = nn.Parameter(weight.to(own.dtype).contiguous(), requires_grad=own.requires_grad)
    if bias:
        part.bias = layer.bias
