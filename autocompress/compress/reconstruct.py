r"""What is left takes over what goes: the weights of the layers behind a cut, refitted to the inputs that they keep.

A layer computes :math:`W x + b`. Of its inputs the set S stays. What changes its outputs least is to let each input
that goes be replaced by its best prediction from those that stay, :math:`\hat x_R = A x_S + c`:

.. math::
    W'_S = W_S + W_R A, \quad b' = b + W_R c, \qquad A = C_{RS} C_{SS}^{-1}, \quad c = m_R - A m_S,

with m and C the mean and the covariance of x. That is the minimum of :math:`\mathbb E \lVert W x + b - W' x_S - b'
\rVert^2`. A convolution does so at every place of its kernel, as each of them sees the same channels; only where it
looks over the border, at zeros, its bias makes up for places that it does not see. Without a bias, what c adds is left
to the batch normalization right behind, which is recalibrated after a cut; without one, c is 0 and C the second moment.
Weights that are zero stay zero, as masks rest on them. No gradient and no label is needed, nor a pass over data beyond
the one of the statistics: m and C are those of the network that they were taken of, also once it was trained or lost
blocks.

References:
    He, Zhang and Sun, 2017, "Channel Pruning for Accelerating Very Deep Neural Networks" (least squares behind a cut);
    Hassibi and Stork, 1993, "Second Order Derivatives for Network Pruning: Optimal Brain Surgeon" (the same update from
    the curvature).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from autocompress.compress.moments import Moment, input_axis

#: Added to the variances: a share of each, and next to nothing of their mean, for inputs that never vary.
_RIDGE, _FLOOR = 1e-3, 1e-9
#: Positions for each input below which the sample alone would predict too well; the most that is added then.
_ENOUGH, _MOST = 4, 1e3


@torch.no_grad()
def reconstruct(module: nn.Module, kept: Mapping[tuple[str, int], Tensor], moments: Mapping[str, Moment]) -> None:
    """Refit the weights and biases behind a cut, in place; weights of the inputs that go stay as they are.

    Args:
        module: before anything is removed from it.
        kept: (parameter, axis) -> the indices that will stay, as of `kept_indices`.
        moments: of the inputs by parameter, as of `InputMoments`; a layer without is left as it is.
    """
    for (name, axis), stays in kept.items():
        if name not in moments or input_axis(module, name) != axis:
            continue
        weight, bias = module.get_parameter(name).data, _bias(module, name)
        spread = spread_of(module, name, moments[name]).to(weight.device)
        gone = torch.ones(weight.shape[axis], dtype=torch.bool, device=weight.device)
        gone[stays.to(weight.device)] = False
        share = _prediction(spread, moments[name].positions, ~gone, gone)
        inputs = weight.movedim(axis, -1)
        removed = inputs[..., gone].double()
        if bias is not None:
            mean = moments[name].mean.to(weight.device).double()
            offset = mean[gone] - share @ mean[~gone]
            # Over the kernel's places: all axes between outputs and inputs.
            bias.data += (removed @ offset).reshape(len(bias), -1).sum(dim=1).to(bias.dtype)
        left = inputs[..., ~gone]
        inputs[..., ~gone] = (left + (removed @ share).to(weight.dtype)).masked_fill(left == 0.0, 0.0)


def spread_of(module: nn.Module, name: str, moment: Moment) -> Tensor:
    """What the inputs of a layer are predicted by: their covariance, or their second moment; shape (inputs, inputs).

    Args:
        module: the network.
        name: of the layer's weight.
        moment: of its inputs.
    """
    covariance, mean = moment.covariance.double(), moment.mean.double()
    return covariance if offset_is_free(module, name, moment) else covariance + torch.outer(mean, mean)


def offset_is_free(module: nn.Module, name: str, moment: Moment) -> bool:
    """Whether a constant is taken up behind a layer: by its bias, or by the batch normalization right behind it."""
    return moment.normalized or _bias(module, name) is not None


def ridged(spread: Tensor, positions: int) -> Tensor:
    r"""A copy with a thousandth of each variance on top of it; of few positions, more: the sample is not the data.

    With fewer than four positions for each input the share becomes, the fewer the more, that of oracle approximating
    shrinkage of the correlations: :math:`\rho / (1 - \rho)`, :math:`\rho = \frac{1 + r}{(n + 1)(1 - r / p)}`, of n
    positions and p inputs, of which r are independent by their correlations, :math:`r = p^2 / \lVert R \rVert_F^2`. So
    inputs of few sources predict each other from a small sample too, and independent ones do not by chance.

    Args:
        spread: shape (inputs, inputs).
        positions: that it rests on.

    References:
        Chen, Wiesel, Eldar and Hero, 2010, "Shrinkage Algorithms for MMSE Covariance Estimation".
    """
    found, variances = spread.clone(), spread.diagonal()
    inputs, share = len(spread), _RIDGE
    if positions < _ENOUGH * inputs:
        deviations = variances.clamp_min(_FLOOR * float(variances.mean())).sqrt()
        independent = inputs**2 / float((spread / torch.outer(deviations, deviations)).square().sum())
        left = (positions + 1) * (1.0 - independent / inputs) - (1.0 + independent)
        shrunk = (1.0 + independent) / left if left > 0.0 else _MOST
        share += min(shrunk, _MOST) * (1.0 - positions / (_ENOUGH * inputs))
    found.diagonal().add_(share * variances + _FLOOR * variances.mean())
    return found


def _bias(module: nn.Module, name: str) -> Tensor | None:
    """What can take up an offset behind a weight: "bias_ih_l0" goes with "weight_ih_l0".

    Of a transposed convolution not every output sees every place of the kernel, so that its bias cannot.
    """
    layer, _, own = name.rpartition(".")
    part = module.get_submodule(layer)
    if isinstance(part, nn.modules.conv._ConvTransposeNd):
        return None
    return part._parameters.get(own.replace("weight", "bias"))


def _prediction(spread: Tensor, positions: int, stays: Tensor, gone: Tensor) -> Tensor:
    """A of the module's formula, shape (gone, stays); zeros where nothing varies."""
    if spread.diagonal().sum() <= 0.0:
        return spread.new_zeros(int(gone.sum()), int(stays.sum()))
    solved: Tensor = torch.linalg.solve(ridged(spread, positions)[stays][:, stays], spread[stays][:, gone])
    return solved.T
