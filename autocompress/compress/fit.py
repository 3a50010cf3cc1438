"""One training: its batches, its learning rate, its steps, and going on with it after it was cut short.

References:
    Smith and Topin, 2019, "Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates".
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from autocompress.compress.checkpoint import (
    Checkpoint,
    Progress,
    optimizer_tensors,
    restore,
    restore_optimizer,
    snapshot,
)
from autocompress.compress.fast import fast_layout, plain_layout
from autocompress.compress.patience import Patience
from autocompress.errors import CompressionError
from autocompress.inputs import Inputs
from autocompress.rng import derive_seed
from autocompress.task import Task, fetch

if TYPE_CHECKING:
    from torch.utils.data import Dataset

Guard = Callable[[], AbstractContextManager[None]]
_MOMENTUM = 0.9
_WARMUP = 0.2


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


def batches(
    dataset: Dataset[Any], batch_size: int, *, shuffle: bool, seed: int, skip: int = 0
) -> Iterator[tuple[Inputs, Tensor]]:
    """One pass over a dataset.

    Args:
        dataset: map-style.
        batch_size: examples per batch; the last batch may be smaller.
        shuffle: in an order drawn from `seed`; otherwise in the dataset's own.
        seed: of the order. What the dataset itself draws (augmentation) comes from torch's global generator.
        skip: batches that are passed over, unread.

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
    for indices in torch.split(order, batch_size)[skip:]:
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


@dataclass(frozen=True)
class Fitted:
    """What a training made.

    Attributes:
        module: in evaluation mode.
        taken: optimizer steps that made it, those before an interruption among them.
        stopped: it ended before its last planned step, because its losses fell no more.
    """

    module: nn.Module
    taken: int
    stopped: bool


@dataclass(frozen=True)
class Trail:
    """Where a training notes its progress, and looks for that of one which was cut short.

    Attributes:
        checkpoint: the candidate's.
        first: steps that the candidate had before this training.
        steps: those that it has after it.
    """

    checkpoint: Checkpoint
    first: int
    steps: int


def fit(
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
    trail: Trail | None = None,
    patience: Patience | None = None,
) -> Fitted:
    """One cycle of `steps` steps on a copy of `module`, and on what helps the loss.

    Args:
        task: gives the training split and the recipe.
        module: left alone; parameters that need no gradient are trained too, and are frozen again at the end.
        loss: ``(network, inputs, targets) -> scalar``.
        steps: planned; 0 trains nothing.
        peak: highest learning rate.
        seed: of the order of examples, of augmentation and of dropout.
        helpers: parameters of the loss, trained in place.
        hooks: called around every step, in this order.
        guard: every step runs inside ``with guard():``.
        on_epoch: called with the number of epochs done and the epoch's mean loss.
        trail: progress is noted in it; a training that finds its own goes on from there, and ends with the same bits as
            one that was never cut short, if all that is random in a step comes from torch's global generator and no
            hook keeps a state.
        patience: ends the cycle early, see `Patience`.

    Raises:
        CompressionError: the loss is not finite.
    """
    student = copy.deepcopy(module)
    losses: list[float] = []
    tail: int | None = None
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
            if trail is not None:
                losses = _resumed(trail, student, helpers, optimizer)
            per_epoch = steps_per_epoch(task)
            source = _endless(task, seed, start=len(losses))
            noted = time.monotonic()
            for step in range(len(losses), steps):
                if patience is not None and tail is None:
                    tail = patience.tail(losses, steps)
                if patience is not None and tail is not None and step >= tail + patience.tail_steps(steps):
                    break
                with guard():
                    inputs, targets = next(source)
                    rate = one_cycle(step, steps, peak)
                    if patience is not None and tail is not None:
                        rate = one_cycle(tail, steps, peak) * patience.fall(step - tail, steps)
                    for group in optimizer.param_groups:
                        group["lr"] = rate
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
                losses.append(value.item())
                if on_epoch is not None and (step + 1) % per_epoch == 0:
                    on_epoch((step + 1) // per_epoch, sum(losses[-per_epoch:]) / per_epoch)
                if trail is not None and time.monotonic() - noted >= trail.checkpoint.interval_s:
                    with guard():
                        _note(trail, student, helpers, optimizer, losses)
                    noted = time.monotonic()
        student.zero_grad(set_to_none=True)
        for parameter in frozen:
            parameter.requires_grad_(False)
    for hook in hooks:
        hook.finish(student)
    return Fitted(plain_layout(student.eval()), taken=len(losses), stopped=len(losses) < steps)


def _resumed(
    trail: Trail, student: nn.Module, helpers: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer
) -> list[float]:
    """Put everything as it was when the training was cut short; its losses until then, none if it starts here."""
    found = trail.checkpoint.progress(trail.first, trail.steps, snapshot(student, helpers))
    if found is None:
        return []
    restore(found.tensors, student, helpers)
    restore_optimizer(found.moments, optimizer)
    torch.set_rng_state(found.generator)
    return [float(loss) for loss in found.losses]


def _note(
    trail: Trail,
    student: nn.Module,
    helpers: Sequence[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    losses: Sequence[float],
) -> None:
    progress = Progress(
        step=len(losses),
        tensors=snapshot(student, helpers),
        moments=optimizer_tensors(optimizer),
        generator=torch.get_rng_state(),
        losses=torch.tensor(losses, dtype=torch.float64),
    )
    trail.checkpoint.note(progress, trail.first, trail.steps)


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


def steps_per_epoch(task: Task) -> int:
    """Full batches in the training split; one if it is smaller than a batch."""
    return max(1, _size(task) // task.recipe.batch_size)


def _size(task: Task) -> int:
    return len(task.train) if isinstance(task.train, Sized) else 0


def full_batches(task: Task, batch_size: int, seed: int, *, skip: int = 0) -> Iterator[tuple[Inputs, Tensor]]:
    """One shuffled pass without the smaller last batch, on which BatchNorm's statistics would be poor or undefined."""
    count = max(1, _size(task) // batch_size)
    return islice(batches(task.train, batch_size, shuffle=True, seed=seed, skip=skip), count - skip)


def _endless(task: Task, seed: int, *, start: int) -> Iterator[tuple[Inputs, Tensor]]:
    """Epoch after epoch, each in its own order, from batch `start` of all."""
    epoch, skip = divmod(start, steps_per_epoch(task))
    while True:
        yield from full_batches(task, task.recipe.batch_size, derive_seed(seed, "epoch", epoch), skip=skip)
        epoch, skip = epoch + 1, 0
