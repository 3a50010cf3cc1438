"""What training data say about the dense network: collected once, used by every candidate's criteria.

References:
    Molchanov et al., 2017, "Pruning Convolutional Neural Networks for Resource Efficient Inference" (activations);
    Molchanov et al., 2019, "Importance Estimation for Neural Network Pruning" (mean gradients);
    LeCun et al., 1990, "Optimal Brain Damage" (the diagonal of the curvature; here the empirical Fisher's).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from autocompress.compress.activations import Activations
from autocompress.compress.fit import batches as iterate
from autocompress.compress.moments import InputMoments, Moment
from autocompress.compress.state import load_tensors, save_tensors
from autocompress.errors import CompressionError
from autocompress.inputs import forward
from autocompress.records import Structure
from autocompress.rng import derive_seed
from autocompress.task import size

if TYPE_CHECKING:
    from autocompress.task import Task


@dataclass(frozen=True)
class Statistics:
    r"""What was learned from training data about one network.

    With :math:`g_b` the gradient of the mean loss of batch b, K batches of B examples each:

    Attributes:
        gradients: parameter name -> :math:`\bar g = \frac 1 K \sum_b g_b`, in the parameter's shape.
        fishers: parameter name -> :math:`\bar g^2 + B (\frac 1 K \sum_b g_b^2 - \bar g^2)`, in the parameter's shape:
            an estimate of the mean squared gradient of single examples, the diagonal of the empirical Fisher matrix.
            It rests on single examples' gradients varying B times as much as the mean of B of them. With B = 1 it is
            that mean itself; with K = 1 it is the squared mean gradient.
        activation_taylors: layer name -> shape (outputs,): :math:`|\frac 1 M \sum_m \frac{\partial C}{\partial z_m}
            z_m|` over the M positions of an output channel, averaged over examples, divided by the layer's ℓ2 norm.
        f_statistics: layer name -> shape (outputs,); see `f_statistic`.
        output_axes: layer name -> axis of its weight that `outputs` counts along, where this is not 0.
        moments: parameter name -> means and covariances of its layer's inputs; see `InputMoments`.
    """

    gradients: Mapping[str, Tensor]
    fishers: Mapping[str, Tensor] = field(default_factory=dict)
    activation_taylors: Mapping[str, Tensor] = field(default_factory=dict)
    f_statistics: Mapping[str, Tensor] = field(default_factory=dict)
    output_axes: Mapping[str, int] = field(default_factory=dict)
    moments: Mapping[str, Moment] = field(default_factory=dict)

    def gradient(self, name: str) -> Tensor:
        """Mean gradient of the parameter `name`, in its shape; loss per unit of the weight.

        Raises:
            CompressionError: none was collected.
        """
        return _get(self.gradients, name, "a gradient", "collect them from the module that is compressed")

    def fisher(self, name: str) -> Tensor:
        """Mean squared gradient of the parameter `name`, in its shape; see the class.

        Raises:
            CompressionError: none was collected.
        """
        return _get(self.fishers, name, "squared gradients", "collect them from the module that is compressed")

    def activation_taylor(self, layer: str) -> Tensor:
        """First-order effect of each output channel of `layer`, shape (outputs,), without unit, of ℓ2 norm 1 (or 0).

        Layers are named as in `Structure.layers`, normalizations by their module. Where a matrix of a recurrent
        layer has several rows for one hidden unit, each has that unit's value; only the uppermost of stacked recurrent
        layers shows its outputs.

        Raises:
            CompressionError: none was collected.
        """
        help_ = "it needs a layer that runs as a module, whose output keeps the examples of a batch apart"
        return _get(self.activation_taylors, layer, "activation gradients", help_)

    def f_statistic(self, layer: str) -> Tensor:
        r"""F-statistic of each output channel of `layer`, shape (outputs,), without unit.

        .. math::
            F_j = \frac{\sum_c n_c (\bar a_{jc} - \bar a_j)^2 / (C - 1)}
                       {\sum_c \sum_{i \in c} (a_{ji} - \bar a_{jc})^2 / (N - C)}

        over N examples in C classes, :math:`a_{ji}` the mean activation of channel j in example i over positions. A
        constant channel has 0. The denominator is at least 1e-12 of all squares, so that a channel which separates
        classes perfectly has a large finite value.

        The screening of arXiv 2502.07189 adds a weighting that is not included here: this is the F-statistic, not a
        replication of that paper.

        Raises:
            CompressionError: none was collected.
        """
        help_ = (
            "it needs targets that are one class index per example, two classes or more, more examples than classes, "
            "and a layer that runs as a module, whose output keeps the examples of a batch apart"
        )
        return _get(self.f_statistics, layer, "an F-statistic", help_)

    def follow(self, positions: Mapping[str, Tensor]) -> Statistics:
        """The same statistics for what is left of the network after a cut.

        Args:
            positions: parameter name -> flat positions in the dense parameter, in the cut parameter's shape; parameters
                without an entry lost nothing.

        Raises:
            CompressionError: a position lies outside the dense parameter.
        """
        try:
            return Statistics(
                {n: t.flatten()[positions[n]] if n in positions else t for n, t in self.gradients.items()},
                {n: t.flatten()[positions[n]] if n in positions else t for n, t in self.fishers.items()},
                {n: t[self._outputs(n, positions)] for n, t in self.activation_taylors.items()},
                {n: t[self._outputs(n, positions)] for n, t in self.f_statistics.items()},
                self.output_axes,
                {n: self._moment(n, t, positions) for n, t in self.moments.items()},
            )
        except IndexError as error:
            raise CompressionError(
                f"statistics: expected positions in the dense network's weights, got others: {error}; "
                "collect them from the module that is compressed"
            ) from error

    def _outputs(self, layer: str, positions: Mapping[str, Tensor]) -> Tensor | slice:
        """Which of the layer's dense outputs are left."""
        parameter = f"{layer}.weight" if f"{layer}.weight" in self.gradients else layer
        left = positions.get(parameter)
        if left is None or parameter not in self.gradients:
            return slice(None)
        return _along(self.output_axes.get(layer, 0), left, self.gradients[parameter].shape)

    def _moment(self, parameter: str, moment: Moment, positions: Mapping[str, Tensor]) -> Moment:
        """Of the inputs that are left."""
        if parameter not in positions:
            return moment
        return moment.among(_along(moment.axis, positions[parameter], self.gradients[parameter].shape))

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, whole or not at all."""
        tensors = {
            f"{kind}/{name}": tensor
            for kind, named in (
                ("gradient", self.gradients),
                ("fisher", self.fishers),
                ("activation", self.activation_taylors),
                ("f", self.f_statistics),
                ("mean", {name: moment.mean for name, moment in self.moments.items()}),
                ("covariance", {name: moment.covariance for name, moment in self.moments.items()}),
                ("inputs", {name: _facts(moment) for name, moment in self.moments.items()}),
                ("axis", {name: torch.tensor(axis) for name, axis in self.output_axes.items()}),
            )
            for name, tensor in named.items()
        }
        save_tensors(tensors, path)

    @classmethod
    def load(cls, path: str | Path) -> Statistics:
        """Read what `save` wrote.

        Raises:
            CompressionError: the file is missing, damaged or of another kind.
        """
        kinds = ("gradient", "fisher", "activation", "f", "axis", "mean", "covariance", "inputs")
        found: dict[str, dict[str, Tensor]] = {kind: {} for kind in kinds}
        for key, tensor in load_tensors(path).items():
            kind, _, name = key.partition("/")
            if kind not in found or not name:
                raise CompressionError(
                    f"{path}: expected statistics named {', '.join(f'{k}/...' for k in found)}, got {key!r}; "
                    "delete it to have it made anew"
                )
            found[kind][name] = tensor
        axes = {name: int(axis) for name, axis in found["axis"].items()}
        moments = {}
        for name, facts in found["inputs"].items():
            positions, axis, normalized = facts.tolist()
            moments[name] = Moment(
                found["mean"][name], found["covariance"][name], positions, axis, normalized=bool(normalized)
            )
        return cls(found["gradient"], found["fisher"], found["activation"], found["f"], axes, moments)


def collect_statistics(
    module: nn.Module,
    task: Task,
    structure: Structure,
    *,
    batches: int = 16,
    batch_size: int = 64,
    seed: int,
) -> Statistics:
    """All statistics from one pass over training batches, at the module's weights, in evaluation mode.

    One forward and one backward pass per batch. The task's loss is taken to be a mean over examples. A parameter known
    under several names has its statistics under each; one that the loss does not reach has none.

    Args:
        module: the trained dense network; left alone.
        task: gives the training split and the loss.
        structure: of the module: moments are those of the inputs that it can cut.
        batches: how many full batches, K; fewer if the split is smaller.
        batch_size: examples per batch, B; less if the split is smaller than one batch.
        seed: of the choice of examples.

    Raises:
        CompressionError: a weight, gradient or activation is not finite, the loss reaches no parameter, or
            there are no examples.
    """
    if batches < 1 or batch_size < 1:
        raise CompressionError(f"statistics: expected batches and batch_size >= 1, got {batches} and {batch_size}")
    if size(task.train) == 0:
        raise CompressionError(f"statistics: expected training examples of {task.name!r}, got none")
    _refuse_bad_weights(module)
    # Evaluation mode: the question is what removing a weight does to the network as it ships.
    probe = copy.deepcopy(module).requires_grad_(True).eval()
    probe.zero_grad(set_to_none=True)
    full = min(batches, max(1, size(task.train) // batch_size))
    used, count = 0, 0
    sums: dict[str, Tensor] = {}
    squares: dict[str, Tensor] = {}
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(derive_seed(seed, "statistics", "augment"))
        order = derive_seed(seed, "statistics", "order")
        moments = InputMoments(probe, structure, full, seed)
        activations = Activations(probe, task.train)
        with activations.watching(), moments.watching():
            for inputs, targets in islice(iterate(task.train, batch_size, shuffle=True, seed=order), full):
                with activations.batch(targets):
                    torch.autograd.backward(task.loss(forward(probe, inputs), targets))
                for name, parameter in probe.named_parameters(remove_duplicate=False):
                    if parameter.grad is not None:
                        _add(sums, name, parameter.grad)
                        _add(squares, name, parameter.grad.square())
                probe.zero_grad(set_to_none=True)
                used, count = used + 1, len(targets)
    if not sums:
        raise CompressionError(f"statistics: the loss of {task.name!r} reaches no parameter of {type(module).__name__}")
    gradients = {name: total / used for name, total in sums.items()}
    for name, gradient in gradients.items():
        if not torch.isfinite(gradient).all():
            raise CompressionError(f"statistics: expected finite gradients, got NaN or infinity in {name!r}")
    fishers = {
        # Rounding may leave a variance just below zero.
        name: gradients[name].square() + count * (total / used - gradients[name].square()).clamp_min(0.0)
        for name, total in squares.items()
    }
    taylors, f_statistics = activations.taylors(), activations.f_statistics()
    flows = {name: moment for name, moment in moments.by_parameter().items() if name in gradients}
    spreads = {name: torch.cat([moment.mean[None], moment.covariance]) for name, moment in flows.items()}
    for name, value in (*taylors.items(), *f_statistics.items(), *spreads.items()):
        if not torch.isfinite(value).all():
            raise CompressionError(f"statistics: expected finite activations, got NaN or infinity in {name!r}")
    return Statistics(gradients, fishers, taylors, f_statistics, activations.axes(), flows)


def _facts(moment: Moment) -> Tensor:
    return torch.tensor([moment.positions, moment.axis, int(moment.normalized)])


def _get(found: Mapping[str, Tensor], name: str, what: str, help_: str) -> Tensor:
    if name not in found:
        raise CompressionError(f"statistics: expected {what} of {name!r}, got {len(found)} others; {help_}")
    return found[name]


def _along(axis: int, left: Tensor, shape: torch.Size) -> Tensor:
    """Which indices of an axis of a dense parameter are left, from the flat positions of what is left of it."""
    first = left.movedim(axis, 0).reshape(left.shape[axis], -1)[:, 0]
    return first // shape[axis + 1 :].numel() % shape[axis]


def _add(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
    """Add to a running sum; the first value is copied, because gradients are reused."""
    if name in sums:
        sums[name].add_(value)
    else:
        sums[name] = value.detach().clone()


def _refuse_bad_weights(module: nn.Module) -> None:
    for name, parameter in module.named_parameters():
        if not torch.isfinite(parameter.detach()).all():
            raise CompressionError(
                f"statistics: expected finite weights, got NaN or infinity in {name!r}; train the network again, "
                "with a lower learning rate"
            )
