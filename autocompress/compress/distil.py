"""What a dense network teaches while a compressed one recovers. Each way is a loss, an object that training calls.

Parameters that only help to compare the two networks (regressors, attention) live in these objects. They are trained
beside the student and never ship. The teacher is a copy in evaluation mode that gradients do not reach.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from autocompress.compress.fast import fast_layout, run
from autocompress.compress.taps import Tap, captured, find_taps
from autocompress.errors import InfeasibleError
from autocompress.inputs import Inputs, output_of
from autocompress.records import Distillation, Features, NoDistillation, Response, SequenceLevel
from autocompress.rng import derive_seed
from autocompress.task import Task, fixed_randomness

#: Width of the queries and keys with which layer pairs are weighed.
_ATTENTION_WIDTH = 32


class Lesson(Protocol):
    """A loss that a student is trained on."""

    def __call__(self, student: nn.Module, inputs: Inputs, targets: Tensor) -> Tensor:
        """The loss on one batch, a scalar; runs the student."""
        ...

    def parameters(self) -> Sequence[nn.Parameter]:
        """What is trained beside the student."""
        ...


def lesson(
    distillation: Distillation, task: Task, teacher: nn.Module, student: nn.Module, example: Inputs, *, seed: int
) -> Lesson:
    """The loss that `distillation` asks for.

    Args:
        distillation: the way of teaching.
        task: gives the loss on the targets.
        teacher: the dense network; left alone.
        student: the compressed network, as it is before training; left alone.
        example: a batch, on which the networks are run once to find their inner layers.
        seed: of the initial values of what is trained beside the student.

    Raises:
        InfeasibleError: the teacher, or the pair of networks, lacks what this way needs; the message says what.
    """
    match distillation:
        case NoDistillation():
            return _Alone(task)
    wise = fast_layout(copy.deepcopy(teacher).eval()).requires_grad_(False)
    match distillation:
        case Response():
            return _Responses(task, wise, distillation)
        case SequenceLevel():
            return _Decoded(task, wise, distillation.beams)
    with fixed_randomness(derive_seed(seed, "helpers")):
        taps = find_taps(wise, student, example)
        if isinstance(distillation, Features):
            return _Features(task, wise, distillation.weight, [tap for tap in taps if tap.aligned])
        return _Attention(task, wise, distillation.weight, [tap for tap in taps if tap.has_positions])


def class_axis(outputs: Tensor, targets: Tensor) -> int | None:
    """The axis of `outputs` that holds classes, or None if the outputs are no logits.

    Targets that are integers tell classes from quantities: beside them, outputs of shape (n, classes) have their
    classes on axis 1, (n, positions, classes) on the last, and (n, classes, height, width) on axis 1. Where the
    targets' shape fits only one of the two, that one is taken. A single class is none.
    """
    if targets.is_floating_point() or targets.dtype == torch.bool or outputs.ndim < 2:
        return None
    first, last = 1, outputs.ndim - 1
    axis = last if outputs.ndim == 3 else first
    fits = [a for a in (first, last) if outputs.shape[:a] + outputs.shape[a + 1 :] == targets.shape]
    if fits and axis not in fits:
        axis = fits[0]
    return axis if outputs.shape[axis] > 1 else None


def response_loss(
    outputs: Tensor, teacher: Tensor, targets: Tensor, hard: Tensor, *, temperature: float, alpha: float
) -> Tensor:
    r""":math:`(1 - \alpha) L + \alpha T^2 \, KL(p_t^T \Vert p_s^T)`, the divergence averaged over predictions.

    Args:
        outputs: the student's logits, shape (n, classes), (n, positions, classes) or (n, classes, height, width).
        teacher: the teacher's logits, same shape.
        targets: what the task's loss compares with; predictions whose target is negative (such as torch's ignored
            index, -100) do not count. See `class_axis`.
        hard: L, the task's own loss on the student's outputs, a scalar.
        temperature: T.
        alpha: share of the teacher's term.

    Returns:
        A scalar. Where outputs are no logits their mean squared difference takes the place of T² KL.

    References:
        Hinton et al., 2015, "Distilling the Knowledge in a Neural Network".
    """
    axis = class_axis(outputs, targets)
    if axis is None:
        soft = functional.mse_loss(outputs, teacher)
    else:
        divergence = functional.kl_div(
            functional.log_softmax(outputs / temperature, dim=axis),
            functional.log_softmax(teacher / temperature, dim=axis),
            reduction="none",
            log_target=True,
        ).sum(dim=axis)
        counts = targets >= 0 if targets.shape == divergence.shape else torch.ones_like(divergence)
        soft = temperature**2 * (divergence * counts).sum() / counts.sum().clamp_min(1)
    return (1.0 - alpha) * hard + alpha * soft


def feature_distance(teacher: Tensor, student: Tensor) -> Tensor:
    r""":math:`\frac{1}{2} \lVert F_t - r(F_s) \rVert^2`, averaged over elements; both of the same shape."""
    return 0.5 * functional.mse_loss(student, teacher)


def attention_map(features: Tensor) -> Tensor:
    """Mean over channels of the squared features, per example divided by its 2-norm over positions.

    Args:
        features: shape (n, positions..., channels).

    Returns:
        Shape (n, positions...); an example of zeros stays zero.
    """
    squares = features.square().mean(dim=-1)
    return functional.normalize(squares.flatten(1), dim=1).view(squares.shape)


class _Alone:
    """The task's own loss."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def __call__(self, student: nn.Module, inputs: Inputs, targets: Tensor) -> Tensor:
        return self.task.loss(output_of(run(student, inputs)), targets)

    def parameters(self) -> Sequence[nn.Parameter]:
        return []


class _Responses:
    """`response_loss` against the teacher's outputs."""

    def __init__(self, task: Task, teacher: nn.Module, response: Response) -> None:
        self.task, self.teacher, self.response = task, teacher, response

    def __call__(self, student: nn.Module, inputs: Inputs, targets: Tensor) -> Tensor:
        with torch.no_grad():
            answers = output_of(run(self.teacher, inputs))
        outputs = output_of(run(student, inputs))
        return response_loss(
            outputs,
            answers,
            targets,
            self.task.loss(outputs, targets),
            temperature=self.response.temperature,
            alpha=self.response.alpha,
        )

    def parameters(self) -> Sequence[nn.Parameter]:
        return []


class _Inner(_Responses, ABC):
    """`Response` plus weight times a comparison of inner layers."""

    def __init__(self, task: Task, teacher: nn.Module, weight: float, taps: Sequence[Tap]) -> None:
        super().__init__(task, teacher, Response())
        self.weight, self.taps = weight, taps

    @abstractmethod
    def compare(self, teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Tensor:
        """Distance of the taps' features, each of shape (n, positions..., channels); a scalar."""

    def __call__(self, student: nn.Module, inputs: Inputs, targets: Tensor) -> Tensor:
        with captured(self.teacher, self.taps) as shown, captured(student, self.taps) as answered:
            total = super().__call__(student, inputs, targets)
        return total + self.weight * self.compare(shown, answered)


class _Features(_Inner):
    r"""Mean over layer pairs of :math:`\frac{1}{2} \lVert F_t - r(F_s) \rVert^2` per element.

    r is a 1 × 1 convolution: one linear map of the channels at all positions. It begins as the identity where both
    networks have as many channels.

    References:
        Romero et al., 2015, "FitNets: Hints for Thin Deep Nets".
    """

    def __init__(self, task: Task, teacher: nn.Module, weight: float, taps: Sequence[Tap]) -> None:
        if not taps:
            raise InfeasibleError(
                "plan.distillation: features need an inner layer that dense and compressed network have under the "
                "same name with as many positions, got none; use response"
            )
        super().__init__(task, teacher, weight, taps)
        self.regressors = nn.ModuleList(_regressor(tap.student[-1], tap.teacher[-1]) for tap in taps)

    def compare(self, teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Tensor:
        pairs = zip(teacher, student, self.regressors, strict=True)
        return torch.stack([feature_distance(t, regressor(s)) for t, s, regressor in pairs]).mean()

    def parameters(self) -> Sequence[nn.Parameter]:
        return list(self.regressors.parameters())


class _Attention(_Inner):
    r"""Mean over teacher layers t of :math:`\sum_s \alpha_{ts} \lVert \phi(F_t) - \phi(F_s) \rVert^2`.

    φ is `attention_map`, resized to the teacher's positions. For every example, a query from the teacher layer's
    features and keys from all student layers' features, both averaged over positions and mapped linearly to a common
    width d, give :math:`\alpha_t = softmax_s((q_t \cdot W k_s + p_t \cdot p_s) / \sqrt{d})`, with trained encodings p
    of the layers themselves.

    References:
        Ji et al., 2021, "Show, Attend and Distill: Knowledge Distillation via Attention-based Feature Matching".
    """

    def __init__(self, task: Task, teacher: nn.Module, weight: float, taps: Sequence[Tap]) -> None:
        if not taps:
            raise InfeasibleError(
                "plan.distillation: attention needs an inner layer with positions (an image's or a sequence's), "
                "got none; use response or features"
            )
        super().__init__(task, teacher, weight, taps)
        width = _ATTENTION_WIDTH
        self.queries = nn.ModuleList(nn.Linear(tap.teacher[-1], width) for tap in taps)
        self.keys = nn.ModuleList(nn.Linear(tap.student[-1], width) for tap in taps)
        self.bilinear = nn.Linear(width, width, bias=False)
        self.teacher_places = nn.Parameter(0.1 * torch.randn(len(taps), width))
        self.student_places = nn.Parameter(0.1 * torch.randn(len(taps), width))

    def weights(self, teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Tensor:
        """α, shape (n, teacher layers, student layers); rows sum to 1."""
        q = torch.stack([m(_pooled(f)) for m, f in zip(self.queries, teacher, strict=True)], dim=1)
        k = torch.stack([m(_pooled(f)) for m, f in zip(self.keys, student, strict=True)], dim=1)
        match = q @ self.bilinear(k).transpose(1, 2) + self.teacher_places @ self.student_places.T
        return torch.softmax(match / _ATTENTION_WIDTH**0.5, dim=-1)

    def compare(self, teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Tensor:
        rows = []
        own = [attention_map(features) for features in student]
        for features in teacher:
            map_t = attention_map(features)
            rows.append(torch.stack([(map_t - _resized(m, map_t)).square().flatten(1).sum(1) for m in own], dim=1))
        return (self.weights(teacher, student) * torch.stack(rows, dim=1)).sum(dim=-1).mean()

    def parameters(self) -> Sequence[nn.Parameter]:
        parts: list[nn.Module] = [self.queries, self.keys, self.bilinear]
        return [p for part in parts for p in part.parameters()] + [self.teacher_places, self.student_places]


class _Decoded:
    """The task's loss on what the teacher decodes from the batch's inputs, in place of the batch's targets.

    References:
        Kim and Rush, 2016, "Sequence-Level Knowledge Distillation".
    """

    def __init__(self, task: Task, teacher: nn.Module, beams: int) -> None:
        method = getattr(teacher, "generate", None)
        if not callable(method):
            raise InfeasibleError(
                f"plan.distillation: sequence level needs a dense network with a method "
                f"generate(inputs, *, beams) -> (inputs, targets), {type(teacher).__name__} has none; "
                "add it, or use response"
            )
        self.task, self.beams = task, beams
        self.generate = cast("Callable[..., tuple[Any, Tensor]]", method)

    def __call__(self, student: nn.Module, inputs: Inputs, targets: Tensor) -> Tensor:
        with torch.no_grad():
            decoded, answers = self.generate(inputs, beams=self.beams)
        return self.task.loss(output_of(run(student, decoded)), answers)

    def parameters(self) -> Sequence[nn.Parameter]:
        return []


def _regressor(own: int, teacher: int) -> nn.Linear:
    regressor = nn.Linear(own, teacher)
    if own == teacher:
        nn.init.eye_(regressor.weight)
        nn.init.zeros_(regressor.bias)
    return regressor


def _pooled(features: Tensor) -> Tensor:
    """Mean over positions; (n, positions..., channels) -> (n, channels)."""
    return features.flatten(1, -2).mean(dim=1)


def _resized(own: Tensor, like: Tensor) -> Tensor:
    """A student's map at the positions of a teacher's, again of norm 1; both of shape (n, positions...)."""
    if own.shape == like.shape:
        return own
    if own.ndim == like.ndim:
        mode = "linear" if own.ndim == 2 else "bilinear" if own.ndim == 3 else "trilinear"
        own = functional.interpolate(own.unsqueeze(1), size=like.shape[1:], mode=mode).squeeze(1)
    else:  # one network's positions are an image's, the other's a sequence's
        own = functional.interpolate(own.flatten(1).unsqueeze(1), size=like[0].numel(), mode="linear").squeeze(1)
    return functional.normalize(own.flatten(1), dim=1).view(like.shape)
