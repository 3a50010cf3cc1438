"""Training: the base model, the recovery of a compressed one, and its normalization statistics.

No function changes the module it is given, nor torch's global random state.

References:
    Hinton et al., 2015, "Distilling the Knowledge in a Neural Network";
    Smith and Topin, 2019, "Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates".
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sized
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from autocompress.compress.masks import Masks
from autocompress.errors import CompressionError
from autocompress.rng import derive_seed
from autocompress.task import Task, fetch

if TYPE_CHECKING:
    from torch.utils.data import Dataset

Guard = Callable[[], AbstractContextManager[None]]
#: Hinton's temperature, and the share of the teacher's term.
TEMPERATURE = 3.0
ALPHA = 0.9
_MOMENTUM = 0.9
_WARMUP = 0.2
_BatchNorm = nn.modules.batchnorm._BatchNorm


def batches(dataset: Dataset[Any], batch_size: int, *, shuffle: bool, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """One pass over a dataset.

    Args:
        dataset: map-style.
        batch_size: examples per batch; the last batch may be smaller.
        shuffle: in an order drawn from `seed`; otherwise in the dataset's own.
        seed: of the order. What the dataset itself draws (augmentation) comes from torch's global generator.

    Yields:
        Inputs of shape (n, ...) and targets of shape (n, ...).

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


def distillation_loss(outputs: Tensor, teacher: Tensor, hard: Tensor) -> Tensor:
    r""":math:`(1 - \alpha) L + \alpha T^2 \, KL(p_t^T \Vert p_s^T)` with T = 3 and alpha = 0.9.

    Args:
        outputs: the student's logits, shape (n, classes).
        teacher: the teacher's logits, same shape.
        hard: the task's own loss on the student's outputs, a scalar.

    Returns:
        A scalar. Outputs of another shape than (n, at least 2 classes) are no logits: their mean squared difference
        takes the place of the second term.
    """
    if outputs.ndim == 2 and outputs.shape[1] > 1:
        soft = TEMPERATURE**2 * functional.kl_div(
            functional.log_softmax(outputs / TEMPERATURE, dim=1),
            functional.log_softmax(teacher / TEMPERATURE, dim=1),
            reduction="batchmean",
            log_target=True,
        )
    else:
        soft = functional.mse_loss(outputs, teacher)
    return (1.0 - ALPHA) * hard + ALPHA * soft


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

    def loss(student: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        return task.loss(_forward(student, inputs), targets)

    steps = recipe.epochs * _steps_per_epoch(task)
    return _fit(
        task, module, loss, steps=steps, peak=recipe.learning_rate, seed=derive_seed(seed, "base"), on_epoch=on_epoch
    )


def recover(
    module: nn.Module,
    teacher: nn.Module,
    task: Task,
    *,
    epochs: float,
    seed: int,
    masks: Masks | None = None,
    guard: Guard = nullcontext,
) -> nn.Module:
    """Train a compressed module to answer as the dense one does; see `distillation_loss`.

    Args:
        module: the compressed network; left alone.
        teacher: the dense network; left alone.
        task: gives the training split, the loss, the batch size and the peak learning rate.
        epochs: passes over the training split, may be a fraction; 0 gives an untrained copy.
        seed: of the order of examples, of augmentation and of dropout.
        masks: weights that stay zero through every step.
        guard: every optimizer step runs inside ``with guard():``.

    Returns:
        A new module in evaluation mode.

    Raises:
        CompressionError: the loss is not finite, or `epochs` is negative.
    """
    if not (math.isfinite(epochs) and epochs >= 0.0):
        raise CompressionError(f"recovery epochs: expected a number >= 0, got {epochs}")
    wise = _fast_layout(copy.deepcopy(teacher).eval().requires_grad_(False))

    def loss(student: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        with torch.no_grad():
            answers = _forward(wise, inputs)
        outputs = _forward(student, inputs)
        return distillation_loss(outputs, answers, task.loss(outputs, targets))

    steps = max(1, round(epochs * _steps_per_epoch(task))) if epochs > 0.0 else 0
    return _fit(
        task,
        module,
        loss,
        steps=steps,
        peak=task.recovery_learning_rate,
        seed=derive_seed(seed, "recover"),
        masks=masks,
        guard=guard,
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
    _fast_layout(result)
    source = _full_batches(task, batch_size, seed=derive_seed(0, "recalibrate"))
    # Float32 throughout: these statistics are folded into the weights that ship.
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(derive_seed(0, "recalibrate", "augment"))
        for _ in range(min(batches, max(1, _size(task) // batch_size))):
            with guard():
                inputs, _targets = next(source)
                result(_as_fast(inputs))
    for part, momentum in zip(norms, momenta, strict=True):
        part.momentum = momentum
    return _plain_layout(result.eval())


def _fit(
    task: Task,
    module: nn.Module,
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor],
    *,
    steps: int,
    peak: float,
    seed: int,
    masks: Masks | None = None,
    guard: Guard = nullcontext,
    on_epoch: Callable[[int, float], None] | None = None,
) -> nn.Module:
    """SGD with Nesterov momentum on a copy of `module`, one cycle of `steps` steps."""
    student = copy.deepcopy(module)
    frozen = [parameter for parameter in student.parameters() if not parameter.requires_grad]
    if masks is not None:
        masks.apply(student)
    if steps == 0:
        return student.eval()
    _fast_layout(student.requires_grad_(True).train())
    optimizer = torch.optim.SGD(
        student.parameters(), lr=peak, momentum=_MOMENTUM, weight_decay=task.recipe.weight_decay, nesterov=True
    )
    per_epoch = _steps_per_epoch(task)
    total = 0.0
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(derive_seed(seed, "global"))
        source = _endless(task, seed)
        for step in range(steps):
            with guard():
                inputs, targets = next(source)
                optimizer.param_groups[0]["lr"] = one_cycle(step, steps, peak)
                optimizer.zero_grad(set_to_none=True)
                value = loss(student, inputs, targets)
                if not torch.isfinite(value):
                    raise CompressionError(
                        f"training of {task.name!r}: expected a finite loss, got {value.item()} at step {step + 1} "
                        f"of {steps}; lower the learning rate (its peak is {peak})"
                    )
                torch.autograd.backward(value)
                optimizer.step()
                if masks is not None:
                    masks.apply(student)
            total += value.item()
            if on_epoch is not None and (step + 1) % per_epoch == 0:
                on_epoch((step + 1) // per_epoch, total / per_epoch)
                total = 0.0
    student.zero_grad(set_to_none=True)
    for parameter in frozen:
        parameter.requires_grad_(False)
    return _plain_layout(student.eval())


def _steps_per_epoch(task: Task) -> int:
    """Full batches in the training split; one if it is smaller than a batch."""
    return max(1, _size(task) // task.recipe.batch_size)


def _size(task: Task) -> int:
    return len(task.train) if isinstance(task.train, Sized) else 0


def _full_batches(task: Task, batch_size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """One shuffled pass without the smaller last batch, on which BatchNorm's statistics would be poor or undefined."""
    count = max(1, _size(task) // batch_size)
    return islice(batches(task.train, batch_size, shuffle=True, seed=seed), count)


def _endless(task: Task, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Epoch after epoch, each in its own order."""
    epoch = 0
    while True:
        yield from _full_batches(task, task.recipe.batch_size, derive_seed(seed, "epoch", epoch))
        epoch += 1


def _forward(module: nn.Module, inputs: Tensor) -> Tensor:
    """Outputs in float32; images run in bfloat16 where the processor computes with it."""
    if inputs.ndim != 4 or not _has_bfloat16():
        outputs: Tensor = module(_as_fast(inputs))
        return outputs
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = module(_as_fast(inputs))
    return outputs.float()


def _has_bfloat16() -> bool:
    # Emulated bfloat16 is slower than float32. Measured with it in hardware, one thread, images per second of training
    # in float32 / channels last / both: 150 / 177 / 326 at widths 32-64-128, 484 / 566 / 913 at 16-32-64, 961 / 1253 /
    # 1510 at 8-16-32.
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _as_fast(inputs: Tensor) -> Tensor:
    return inputs.contiguous(memory_format=torch.channels_last) if inputs.ndim == 4 else inputs


def _fast_layout(module: nn.Module) -> nn.Module:
    if any(parameter.ndim == 5 for parameter in module.parameters()):
        return module  # torch refuses this layout for volumes
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def _plain_layout(module: nn.Module) -> nn.Module:
    return module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload,no-any-return]
