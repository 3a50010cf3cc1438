r"""What is left takes over what goes: the weights of the layers behind a cut, refitted to the inputs that they keep.

A layer computes :math:`W x + b`. Of its inputs the set S stays. What changes its outputs least is to let each input
that goes be replaced by its best prediction from those that stay, :math:`\hat x_R = A x_S + c`:

.. math::
    W'_S = W_S + W_R A, \quad b' = b + W_R c, \qquad A = C_{RS} C_{SS}^{-1}, \quad c = m_R - A m_S,

with m and C the mean and the covariance of x. That is the minimum of :math:`\mathbb E \lVert W x + b - W' x_S - b'
\rVert^2`. A convolution does so at every place of its kernel, as each of them sees the same channels. Without a bias,
what c adds is left to the batch normalization behind, which is recalibrated after a cut; in a network without one, c is
0 and C the second moment. No gradient and no label is needed, nor a pass over data beyond the one of the statistics.

References:
    He, Zhang and Sun, 2017, "Channel Pruning for Accelerating Very Deep Neural Networks" (least squares behind a cut);
    Hassibi and Stork, 1993, "Second Order Derivatives for Network Pruning: Optimal Brain Surgeon" (the same update from
    the curvature).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from autocompress.compress.moments import input_axis

#: Added to the diagonal, as a share of its mean: what hardly varies predicts nothing.
_RIDGE = 1e-3


@torch.no_grad()
def reconstruct(module: nn.Module, kept: Mapping[tuple[str, int], Tensor], moments: Mapping[str, Tensor]) -> None:
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
        spread = spread_of(module, name, moments[name].to(weight.device))
        gone = torch.ones(weight.shape[axis], dtype=torch.bool, device=weight.device)
        gone[stays.to(weight.device)] = False
        share = _prediction(spread, ~gone, gone)
        inputs = weight.movedim(axis, -1)
        removed = inputs[..., gone].double()
        if bias is not None:
            mean = moments[name][-1, :-1].to(weight.device).double()
            offset = mean[gone] - share @ mean[~gone]
            # Over the kernel's places: all axes between outputs and inputs.
            bias.data += (removed @ offset).reshape(len(bias), -1).sum(dim=1).to(bias.dtype)
        inputs[..., ~gone] += (removed @ share).to(weight.dtype)


def spread_of(module: nn.Module, name: str, moment: Tensor) -> Tensor:
    """What the inputs of a layer are predicted by: their covariance, or their second moment; shape (inputs, inputs).

    Args:
        module: the network.
        name: of the layer's weight.
        moment: of its inputs.
    """
    moment = moment.double()
    if not offset_is_free(module, name):
        return moment[:-1, :-1]
    return moment[:-1, :-1] - torch.outer(moment[-1, :-1], moment[-1, :-1])


def offset_is_free(module: nn.Module, name: str) -> bool:
    """Whether a constant is taken up behind a layer: by its bias, or behind a convolution by batch normalization."""
    if _bias(module, name) is not None:
        return True
    part = module.get_submodule(name.rpartition(".")[0])
    normalizes = any(isinstance(other, nn.modules.batchnorm._BatchNorm) for other in module.modules())
    return normalizes and isinstance(part, nn.modules.conv._ConvNd)


def ridged(spread: Tensor) -> Tensor:
    """A copy with a thousandth of its mean on top of its diagonal."""
    found = spread.clone()
    found.diagonal().add_(_RIDGE * spread.diagonal().mean())
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


def _prediction(spread: Tensor, stays: Tensor, gone: Tensor) -> Tensor:
    """A of the module's formula, shape (gone, stays); zeros where nothing varies."""
    if spread.diagonal().sum() <= 0.0:
        return spread.new_zeros(int(gone.sum()), int(stays.sum()))
    solved: Tensor = torch.linalg.solve(ridged(spread)[stays][:, stays], spread[stays][:, gone])
    return solved.T
