"""Training: the base model, the recovery of a compressed one, and its normalization statistics.

No function changes the module it is given, nor torch's global random state.

References:
    Smith and Topin, 2019, "Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates".
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from autocompress.compress.distil import lesson
from autocompress.compress.fast import as_fast, fast_layout, plain_layout, run
from autocompress.errors import CompressionError
from autocompress.inputs import Inputs, call, output_of
from autocompress.records import Distillation, Response
from autocompress.rng import derive_seed
from autocompress.task import Task, fetch

if TYPE_CHECKING:
    from torch.utils.data import Dataset

Guard = Callable[[], AbstractContextManager[None]]
_MOMENTUM = 0.9
_WARMUP = 0.2
#: Of the learning rate under SGD. Without its normalization layers a network diverges at the usual one: of a small
#: residual network on digits, 98.4% accurate, training through 4- and 8-bit grids left 10 to 92% at 1 and 0.3 times
#: it, 97.6 to 98.4% at 0.1; sharing values ended in NaN at 1.
_FOLDED = 0.1
_BatchNorm = nn.modules.batchnorm._BatchNorm


class Hook(Protocol):
    """Acts, in place, on the network that is being trained: a copy, which nobody else sees before training ends.

    In every step the hooks are called in their order, at each of the three points::

        before_forward, forward and backward, before_update, the optimizer's step, after_update
    """

    def before_forward(self, module: nn.Module, step: int, steps: int) -> None:
        """Before step `step`, counted from 0, of `steps`."""

    def before_update(self, module: nn.Module, step: int, steps: int) -> None:
        """Gradients are there, weights are not yet changed. Gradients are clipped after it."""

    def after_update(self, module: nn.Module, step: int, steps: int) -> None:
        """The optimizer has changed the weights."""

    def finish(self, module: nn.Module) -> None:
        """After the last step; also called where there are no steps at all."""


@runtime_checkable
class StateHook(Protocol):
    """A hook that also wants to know the optimizer, such as to clear the momentum of a weight that starts anew."""

    def begin(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Before the first step."""


def batches(dataset: Dataset[Any], batch_size: int, *, shuffle: bool, seed: int) -> Iterator[tuple[Inputs, Tensor]]:
    """One pass over a dataset.

    Args:
        dataset: map-style.
        batch_size: examples per batch; the last batch may be smaller.
        shuffle: in an order drawn from `seed`; otherwise in the dataset's own.
        seed: of the order. What the dataset itself draws (augmentation) comes from torch's global generator.

    Yields:
        Inputs, tensors of shape (n, ...), and targets of shape (n, ...).

    Raises:
        ValueError: batch_size < 1, or a dataset without length.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    if not isinstance(dataset, Sized):
        raise ValueError(f"dataset: expected one with a length, got {type(dataset).__name__}")
    size = len(dataset)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed)) if shuffle else torch.arange(size)
    for indices in torch.split(order, batch_size):
        yield fetch(dataset, indices)


def one_cycle(step: int, steps: int, peak: float) -> float:
    """Learning rate at a step: a linear rise over the first fifth, then a cosine fall that ends just above zero.

    Args:
        step: from 0 to steps - 1.
        steps: in all, at least 1.
        peak: the highest rate.

    Returns:
        In (0, peak].
    """
    rise = max(1, round(_WARMUP * steps))
    if step < rise:
        return peak * (step + 1) / rise
    return peak * 0.5 * (1.0 + math.cos(math.pi * (step + 1 - rise) / (steps + 1 - rise)))


def train_base(
    task: Task, module: nn.Module, *, seed: int, on_epoch: Callable[[int, float], None] | None = None
) -> nn.Module:
    """Train a fresh module by the task's recipe.

    Args:
        task: gives the training split, the loss and the recipe.
        module: left alone.
        seed: of the order of examples, of augmentation and of dropout.
        on_epoch: called with the number of epochs done and the epoch's mean loss.

    Returns:
        A new module in evaluation mode.

    Raises:
        CompressionError: the loss is not finite.
    """
    recipe = task.recipe

    def loss(student: nn.Module, inputs: Inputs, targets: Tensor) -> Tensor:
        return task.loss(output_of(run(student, inputs)), targets)

    steps = recipe.epochs * _steps_per_epoch(task)
    return _fit(
        task, module, loss, steps=steps, peak=recipe.learning_rate, seed=derive_seed(seed, "base"), on_epoch=on_epoch
    )


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """Everything that the recovery of a candidate needs.

    Attributes:
        task: gives the training split, the loss, the recipe and the peak learning rate of recovery.
        teacher: the dense network; left alone.
        distillation: what the teacher teaches.
        epochs: passes over the training split, may be a fraction; 0 trains nothing.
        seed: of the order of examples, of augmentation and of dropout.
        guard: every optimizer step runs inside ``with guard():``.

    Raises:
        CompressionError: `epochs` is negative or not finite.
    """

    task: Task
    teacher: nn.Module
    distillation: Distillation = field(default_factory=Response)
    epochs: float
    seed: int
    guard: Guard = nullcontext

    def __post_init__(self) -> None:
        """Refuse what is no number of epochs."""
        if not (math.isfinite(self.epochs) and self.epochs >= 0.0):
            raise CompressionError(f"recovery epochs: expected a number >= 0, got {self.epochs}")

    @property
    def folded_peak(self) -> float:
        """Highest learning rate for a network whose normalization is folded into its layers: a tenth under SGD."""
        return self.task.recovery_learning_rate * (_FOLDED if self.task.recipe.optimizer == "sgd" else 1.0)

    def scaled(self, share: float) -> Trainer:
        """The same trainer with `share` of the epochs."""
        return replace(self, epochs=self.epochs * share)

    def steps(self, share: float = 1.0) -> int:
        """Optimizer steps in `share` of the epochs: at least one, unless there are no epochs."""
        epochs = self.epochs * share
        return max(1, round(epochs * _steps_per_epoch(self.task))) if epochs > 0.0 else 0

    def train(
        self,
        module: nn.Module,
        *,
        key: str,
        share: float = 1.0,
        hooks: Sequence[Hook] = (),
        peak: float | None = None,
    ) -> nn.Module:
        """Train a compressed network by one cycle of the task's optimizer, taught by the dense one.

        Args:
            module: left alone; parameters that need no gradient are trained too, and are frozen again at the end.
            key: what this training is for; another key gives another order of examples.
            share: of `epochs`.
            hooks: called around every step, in this order.
            peak: highest learning rate; the task's for recovery where None.

        Returns:
            A new module in evaluation mode; a copy, finished by the hooks, if there are no steps.

        Raises:
            CompressionError: the loss is not finite.
            InfeasibleError: the teacher cannot teach as `distillation` asks.
        """
        steps = self.steps(share)
        seed = derive_seed(self.seed, "recover", key)
        example = self.task.example_input()
        loss = lesson(self.distillation, self.task, self.teacher, module, example, seed=derive_seed(seed, "lesson"))
        return _fit(
            self.task,
            module,
            loss,
            steps=steps,
            peak=self.task.recovery_learning_rate if peak is None else peak,
            seed=seed,
            helpers=loss.parameters(),
            hooks=hooks,
            guard=self.guard,
        )


def recalibrate_bn(
    module: nn.Module, task: Task, *, batches: int = 16, batch_size: int = 128, guard: Guard = nullcontext
) -> nn.Module:
    """Replace every BatchNorm's running statistics by their plain average over training batches.

    The batches are the same on every call, so a second pass changes nothing but rounding. Weights stay as they are.

    Args:
        module: left alone.
        task: gives the training split.
        batches: how many batches; fewer if the split is smaller.
        batch_size: examples per batch.
        guard: every batch runs inside ``with guard():``.

    Returns:
        A new module in evaluation mode; a plain copy if there is no BatchNorm.
    """
    result = copy.deepcopy(module).eval()
    norms = [part for part in result.modules() if isinstance(part, _BatchNorm) and part.track_running_stats]
    if not norms:
        return result
    momenta = [part.momentum for part in norms]
    for part in norms:
        part.reset_running_stats()
        part.momentum = None  # torch's word for a cumulative average
        part.train()
    fast_layout(result)
    source = _full_batches(task, batch_size, seed=derive_seed(0, "recalibrate"))
    # Float32 throughout: these statistics are folded into the weights that ship.
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(derive_seed(0, "recalibrate", "augment"))
        for _ in range(min(batches, max(1, _size(task) // batch_size))):
            with guard():
                inputs, _targets = next(source)
                call(result, as_fast(inputs))
    for part, momentum in zip(norms, momenta, strict=True):
        part.momentum = momentum
    return plain_layout(result.eval())


def _fit(
    task: Task,
    module: nn.Module,
    loss: Callable[[nn.Module, Inputs, Tensor], Tensor],
    *,
    steps: int,
    peak: float,
    seed: int,
    helpers: Sequence[nn.Parameter] = (),
    hooks: Sequence[Hook] = (),
    guard: Guard = nullcontext,
    on_epoch: Callable[[int, float], None] | None = None,
) -> nn.Module:
    """One cycle of `steps` steps on a copy of `module`, and on what helps the loss."""
    student = copy.deepcopy(module)
    if steps:
        frozen = [parameter for parameter in student.parameters() if not parameter.requires_grad]
        fast_layout(student.train())
        for parameter in frozen:
            parameter.requires_grad_(parameter.is_floating_point())
        own = [parameter for parameter in student.parameters() if parameter.requires_grad]
        optimizer = _optimizer(task, own, helpers, peak)
        for hook in hooks:
            if isinstance(hook, StateHook):
                hook.begin(student, optimizer)
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(derive_seed(seed, "global"))
            per_epoch = _steps_per_epoch(task)
            total = 0.0
            source = _endless(task, seed)
            for step in range(steps):
                with guard():
                    inputs, targets = next(source)
                    for group in optimizer.param_groups:
                        group["lr"] = one_cycle(step, steps, peak)
                    optimizer.zero_grad(set_to_none=True)
                    for hook in hooks:
                        hook.before_forward(student, step, steps)
                    value = loss(student, inputs, targets)
                    if not torch.isfinite(value):
                        raise CompressionError(
                            f"training of {task.name!r}: expected a finite loss, got {value.item()} at step {step + 1} "
                            f"of {steps}; lower the learning rate (its peak is {peak})"
                        )
                    torch.autograd.backward(value)
                    for hook in hooks:
                        hook.before_update(student, step, steps)
                    if task.recipe.clip is not None:
                        nn.utils.clip_grad_norm_(own, task.recipe.clip)
                    optimizer.step()
                    for hook in hooks:
                        hook.after_update(student, step, steps)
                total += value.item()
                if on_epoch is not None and (step + 1) % per_epoch == 0:
                    on_epoch((step + 1) // per_epoch, total / per_epoch)
                    total = 0.0
        student.zero_grad(set_to_none=True)
        for parameter in frozen:
            parameter.requires_grad_(False)
    for hook in hooks:
        hook.finish(student)
    return plain_layout(student.eval())


def _optimizer(
    task: Task, own: Sequence[nn.Parameter], helpers: Sequence[nn.Parameter], peak: float
) -> torch.optim.Optimizer:
    """The recipe's optimizer for the network's parameters and for those that only help to train it."""
    groups: list[dict[str, Any]] = [{"params": own, "weight_decay": task.recipe.weight_decay}]
    if helpers:
        groups.append({"params": helpers, "weight_decay": 0.0})
    if task.recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=peak)
    return torch.optim.SGD(groups, lr=peak, momentum=_MOMENTUM, nesterov=True)


def _steps_per_epoch(task: Task) -> int:
    """Full batches in the training split; one if it is smaller than a batch."""
    return max(1, _size(task) // task.recipe.batch_size)


def _size(task: Task) -> int:
    return len(task.train) if isinstance(task.train, Sized) else 0


def _full_batches(task: Task, batch_size: int, seed: int) -> Iterator[tuple[Inputs, Tensor]]:
    """One shuffled pass without the smaller last batch, on which BatchNorm's statistics would be poor or undefined."""
    count = max(1, _size(task) // batch_size)
    return islice(batches(task.train, batch_size, shuffle=True, seed=seed), count)


def _endless(task: Task, seed: int) -> Iterator[tuple[Inputs, Tensor]]:
    """Epoch after epoch, each in its own order."""
    epoch = 0
    while True:
        yield from _full_batches(task, task.recipe.batch_size, derive_seed(seed, "epoch", epoch))
        epoch += 1
