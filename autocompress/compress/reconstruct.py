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
    normalizes = any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in module.modules())
    for (name, axis), stays in kept.items():
        layer, _, own = name.rpartition(".")
        part = module.get_submodule(layer)
        if name not in moments or input_axis(part, own) != axis:
            continue
        weight = module.get_parameter(name).data
        # "weight_ih_l0" goes with "bias_ih_l0". Of a transposed convolution not every output sees every place of the
        # kernel, so that its bias cannot take up what they add.
        transposed = isinstance(part, nn.modules.conv._ConvTransposeNd)
        bias = None if transposed else part._parameters.get(own.replace("weight", "bias"))
        left_to_norm = normalizes and isinstance(part, nn.modules.conv._ConvNd)
        moment = moments[name].to(weight.device).double()
        gone = torch.ones(weight.shape[axis], dtype=torch.bool, device=weight.device)
        gone[stays.to(weight.device)] = False
        share, offset = _prediction(moment, ~gone, gone, free=bias is not None or left_to_norm)
        inputs = weight.movedim(axis, -1)
        removed = inputs[..., gone].double()
        if bias is not None:
            # Over the kernel's places: all axes between outputs and inputs.
            bias.data += (removed @ offset).reshape(len(bias), -1).sum(dim=1).to(bias.dtype)
        inputs[..., ~gone] += (removed @ share).to(weight.dtype)


def _prediction(moment: Tensor, stays: Tensor, gone: Tensor, *, free: bool) -> tuple[Tensor, Tensor]:
    """A and c of the module's formula, shapes (gone, stays) and (gone,); zeros where nothing varies."""
    mean = moment[-1, :-1] if free else torch.zeros_like(moment[-1, :-1])
    spread = moment[:-1, :-1] - torch.outer(mean, mean)
    scale = spread.diagonal().mean()
    if scale <= 0.0:
        share = spread.new_zeros(int(gone.sum()), int(stays.sum()))
    else:
        among = spread[stays][:, stays]
        among.diagonal().add_(_RIDGE * scale)
        share = torch.linalg.solve(among, spread[stays][:, gone]).T
    return share, mean[gone] - share @ mean[stays]
