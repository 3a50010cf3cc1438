"""Training: the base model, the recovery of a compressed one, and its normalization statistics.

No function changes the module it is given, nor torch's global random state.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from autocompress.compress.checkpoint import Checkpoint, Trained, restore, snapshot
from autocompress.compress.distil import lesson
from autocompress.compress.fast import as_fast, fast_layout, plain_layout, run
from autocompress.compress.fit import Guard, Hook, Trail, fit, full_batches, steps_per_epoch
from autocompress.compress.patience import Patience
from autocompress.errors import CompressionError
from autocompress.inputs import Inputs, call, output_of
from autocompress.records import Distillation, Response
from autocompress.rng import derive_seed
from autocompress.task import Task, size

#: Of the learning rate under SGD. Without its normalization layers a network diverges at the usual one: of a small
#: residual network on digits, 98.4% accurate, training through 4- and 8-bit grids left 10 to 92% at 1 and 0.3 times
#: it, 97.6 to 98.4% at 0.1; sharing values ended in NaN at 1.
_FOLDED = 0.1
_BatchNorm = nn.modules.batchnorm._BatchNorm


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

    steps = recipe.epochs * steps_per_epoch(task)
    return fit(
        task, module, loss, steps=steps, peak=recipe.learning_rate, seed=derive_seed(seed, "base"), on_epoch=on_epoch
    ).module


@dataclass(frozen=True)
class Training:
    """How a training went.

    Attributes:
        planned: optimizer steps that were asked for.
        taken: that were taken, now or before.
        reused: of those taken, the ones that an earlier training had taken.
        stopped: it ended early, because its losses fell no more.
    """

    planned: int
    taken: int
    reused: int
    stopped: bool


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
        checkpoint: what the candidate was trained before is taken up from it, and what it is trained now is kept in
            it. For a candidate that trains once, with hooks that keep no state.
        patience: ends a training when its losses fall no more; None trains to the end.
        report: called after every training.

    Raises:
        CompressionError: `epochs` is negative or not finite.
    """

    task: Task
    teacher: nn.Module
    distillation: Distillation = field(default_factory=Response)
    epochs: float
    seed: int
    guard: Guard = nullcontext
    checkpoint: Checkpoint | None = None
    patience: Patience | None = None
    report: Callable[[Training], None] | None = None

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
        return max(1, round(epochs * steps_per_epoch(self.task))) if epochs > 0.0 else 0

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
        helpers = loss.parameters()
        before = self.checkpoint.trained(steps, snapshot(module, helpers)) if self.checkpoint and steps else None
        done = 0 if before is None else before.steps
        if before is not None:
            module = copy.deepcopy(module)
            restore(before.tensors, module, helpers)
        fitted = fit(
            self.task,
            module,
            loss,
            steps=steps - done,
            peak=self.task.recovery_learning_rate if peak is None else peak,
            seed=derive_seed(seed, "from", done) if done else seed,
            helpers=helpers,
            hooks=hooks,
            guard=self.guard,
            trail=Trail(self.checkpoint, done, steps) if self.checkpoint else None,
            patience=self.patience,
        )
        reused = 0 if before is None else before.taken
        if self.checkpoint is not None and steps > done:
            self.checkpoint.keep(Trained(steps, reused + fitted.taken, snapshot(fitted.module, helpers)))
        if self.report is not None:
            self.report(Training(steps, reused + fitted.taken, reused, fitted.stopped))
        return fitted.module


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
    source = full_batches(task, batch_size, seed=derive_seed(0, "recalibrate"))
    # Float32 throughout: these statistics are folded into the weights that ship.
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(derive_seed(0, "recalibrate", "augment"))
        for _ in range(min(batches, max(1, size(task.train) // batch_size))):
            with guard():
                inputs, _targets = next(source)
                call(result, as_fast(inputs))
    for part, momentum in zip(norms, momenta, strict=True):
        part.momentum = momentum
    return plain_layout(result.eval())
