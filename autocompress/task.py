"""What a person brings: a module and data in four roles.

Examples:
    A task is one function, named in the study file as ``package.module:function`` or ``path/file.py:function``::

        def my_task(seed: int = 0) -> Task:
            return Task(
                name="mine",
                model=lambda: MyNet(),
                train=train_set, validation=validation_set, selection=selection_set, test=test_set,
            )
"""

from __future__ import annotations

import contextlib
import inspect
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from autocompress.errors import TaskError
from autocompress.inputs import Inputs, apply, forward, stack
from autocompress.references import load_object

if TYPE_CHECKING:
    from torch.utils.data import Dataset

MetricFunction = Callable[[np.ndarray, np.ndarray], float]


def top1(outputs: np.ndarray, targets: np.ndarray) -> float:
    """Share of examples whose largest output is the target.

    Args:
        outputs: shape (n, classes), scores in any unit.
        targets: shape (n,), class indices.

    Returns:
        In [0, 1].
    """
    return float(np.mean(outputs.argmax(axis=-1) == targets))


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the base model is trained when the task brings no trained weights, and with which steps others recover.

    The learning rate rises and falls in one cycle. ``"sgd"`` has a Nesterov momentum of 0.9 and adds the weight decay
    to the gradient; ``"adamw"``, which transformers and recurrent networks need, has torch's betas (0.9, 0.999) and
    shrinks the weights apart from the gradient.

    Attributes:
        epochs: passes over the training split.
        learning_rate: peak of the cycle.
        batch_size: examples per step.
        weight_decay: L2 penalty.
        optimizer: what turns gradients into steps, in base training as well as in recovery.
        clip: largest 2-norm of all gradients together, longer ones are scaled down to it; None leaves them.
    """

    epochs: int = 20
    learning_rate: float = 0.1
    batch_size: int = 64
    weight_decay: float = 5e-4
    optimizer: Literal["sgd", "adamw"] = "sgd"
    clip: float | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot train."""
        if self.optimizer not in ("sgd", "adamw"):
            raise TaskError(f"recipe.optimizer: expected 'sgd' or 'adamw', got {self.optimizer!r}")
        if self.clip is not None and not self.clip > 0.0:
            raise TaskError(f"recipe.clip: expected a norm > 0, or None for no limit, got {self.clip}")


@dataclass(frozen=True, kw_only=True)
class Task:
    """A model, its data in four roles, and how it is judged.

    The roles are kept apart by code: *train* trains, recovers and calibrates; *validation* guides the search;
    *selection* judges the finalists; *test* is opened once, for the models that are registered.

    Attributes:
        name: letters, digits, ``-`` and ``_``.
        model: builds a fresh module; may be called several times. Trained weights may already be in it (`trained`).
            So that a search can also build smaller networks and train them from fresh weights, it may take the keyword
            arguments ``width``, a multiplier of the channels with the default 1, and ``depth``, a number with a
            default of its own, such as a multiplier of the blocks or a number of layers. Without arguments it builds
            the dense network; with either of them a network with fresh weights and the same inputs and outputs.
        train, validation, selection, test: map-style datasets of ``(input, target)``; the input is a tensor, a tuple
            of tensors (positional arguments of the module) or a dict of tensors (keyword arguments). A dataset may
            also offer ``batch(indices: Tensor) -> (inputs, targets)``, which is used instead of item by item.
        loss: ``(outputs, targets) -> scalar tensor``; cross entropy by default. `outputs` is the first tensor that
            the module returns.
        metric: ``(outputs (n, ...), targets (n, ...)) -> value in [0, 1]``, larger is better; top-1 by default.
        trained: the module comes with trained weights, and is not trained again.
        recipe: how to train it otherwise.
        recovery_learning_rate: peak learning rate while a compressed module recovers.
    """

    name: str
    model: Callable[..., nn.Module]
    train: Dataset[Any]
    validation: Dataset[Any]
    selection: Dataset[Any]
    test: Dataset[Any]
    loss: Callable[[Tensor, Tensor], Tensor] = functional.cross_entropy
    metric: MetricFunction = top1
    trained: bool = False
    recipe: Recipe = field(default_factory=Recipe)
    recovery_learning_rate: float = 0.02

    def __post_init__(self) -> None:
        """Check what can be checked without building the module."""
        if not self.name or not all(c.isalnum() or c in "-_" for c in self.name):
            raise TaskError(f"task.name: expected letters, digits, '-' or '_', got {self.name!r}")
        if not callable(self.model):
            raise TaskError(f"task.model: expected a function that builds a module, got {type(self.model).__name__}")
        for role in ("train", "validation", "selection", "test"):
            data = getattr(self, role)
            if not isinstance(data, Sized) or len(data) == 0:
                raise TaskError(f"task.{role}: expected a dataset with at least one example, got {data!r}")

    def build(self, *, width: float | None = None, depth: float | None = None) -> nn.Module:
        """A fresh module from `model`: the dense network, or one of another size.

        Args:
            width: what `model` gets under this name; None: it is not asked for.
            depth: likewise.

        Raises:
            TaskError: the function raised, or did not return a module; it does not take what is asked for; or, of
                another size, the module has a layer without units, does not take an example, or gives outputs of
                another shape than the dense one.
        """
        sizes = {name: size for name, size in (("width", width), ("depth", depth)) if size is not None}
        if not sizes:
            return self._made({})
        self.check_sizes(sizes)
        module = self._made(sizes)
        empty = next((name for name, weight in module.named_parameters() if weight.numel() == 0), None)
        if empty is not None:
            raise TaskError(
                f"task {self.name!r}: its model function with {_words(sizes)}: expected layers with one unit at least, "
                f"got {empty} of shape {tuple(module.get_parameter(empty).shape)}; let it round up"
            )
        found = self._output_shape(module, sizes)
        if found != self._dense_output:
            raise TaskError(
                f"task {self.name!r}: its model function with {_words(sizes)}: expected outputs of the dense model's "
                f"shape {self._dense_output} for one example, got {found}"
            )
        return module

    @cached_property
    def sizes(self) -> dict[str, float]:
        """The arguments among ``width`` and ``depth`` that `model` takes, with its defaults: the dense network's.

        An argument without a number as default, or a ``width`` that is no multiplier, is none of them: see
        `check_sizes`, which says so.
        """
        return {name: float(size) for name, size in self._defaults.items() if _is_default(name, size)}

    def check_sizes(self, names: Iterable[str]) -> None:
        """Refuse what `model` cannot be asked for, without calling it.

        Args:
            names: of ``width`` and ``depth``.

        Raises:
            TaskError: naming the argument and what to do.
        """
        for name in names:
            wanted = "a multiplier, 1.0 for the dense network" if name == "width" else "a number, the dense network's"
            if name not in self._defaults:
                raise TaskError(
                    f"task {self.name!r}: expected a model function that takes {name!r} ({wanted}), got one that takes "
                    f"{', '.join(self._defaults) or 'neither width nor depth'}; write it as "
                    f"'def model({name}=1.0)', or leave architecture.{name} out"
                )
            if not _is_default(name, self._defaults[name]):
                got = "no default" if self._defaults[name] is None else f"the default {self._defaults[name]!r}"
                raise TaskError(
                    f"task {self.name!r}: the argument {name!r} of its model function: expected the default of {wanted}"
                    f", got {got}; wrap it: 'def model({name}=1.0)'"
                )

    @cached_property
    def _defaults(self) -> dict[str, Any]:
        """Arguments of `model` among width and depth, with their defaults; None for one without."""
        try:
            parameters = inspect.signature(self.model).parameters
        except (TypeError, ValueError):  # of a built-in
            return {}
        found = {name: parameters[name] for name in ("width", "depth") if name in parameters}
        return {
            name: None if parameter.default is inspect.Parameter.empty else parameter.default
            for name, parameter in found.items()
            if parameter.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        }

    def _made(self, sizes: Mapping[str, float]) -> nn.Module:
        asked = f" with {_words(sizes)}" if sizes else ""
        try:
            module = self.model(**sizes)
        except Exception as error:
            raise TaskError(
                f"task {self.name!r}: its model function{asked} raised {type(error).__name__}: {error}"
            ) from error
        if not isinstance(module, nn.Module):
            raise TaskError(
                f"task {self.name!r}: expected its model function{asked} to return a torch.nn.Module, "
                f"got {type(module).__name__}"
            )
        return module

    @cached_property
    def _dense_output(self) -> tuple[int, ...]:
        with fixed_randomness(0):
            return self._output_shape(self._made({}), {})

    def _output_shape(self, module: nn.Module, sizes: Mapping[str, float]) -> tuple[int, ...]:
        """Shape of the output for one example; the module's modes and the random state stay as they are."""
        modes = [(part, part.training) for part in module.modules()]
        asked = f" with {_words(sizes)}" if sizes else ""
        module.eval()
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                return tuple(forward(module, self.example_input()).shape)
        except Exception as error:
            raise TaskError(
                f"task {self.name!r}: the module that its model function returns{asked} does not take an example: "
                f"{type(error).__name__}: {error}"
            ) from error
        finally:
            for part, training in modes:
                part.training = training

    def example_input(self) -> Inputs:
        """One training input with a batch axis, tensors of shape (1, ...)."""
        with fixed_randomness(0):
            first: Inputs = plain(self.train)[0][0]
        return apply(lambda tensor: tensor.unsqueeze(0), first)


def _is_default(name: str, size: Any) -> bool:
    number = isinstance(size, int | float) and not isinstance(size, bool) and size > 0
    return number and (name == "depth" or size == 1)


def _words(sizes: Mapping[str, float]) -> str:
    return ", ".join(f"{name}={size:g}" for name, size in sizes.items())


def load_task(reference: str, arguments: Mapping[str, Any] | None = None) -> Task:
    """Import the function that `reference` names and call it.

    The function runs with its own copy of the global random state, so that it cannot change the study's.

    Args:
        reference: ``package.module:function`` or ``path/file.py:function``.
        arguments: keyword arguments from the study file.

    Raises:
        TaskError: the module or function is missing, it raised or exited, or it returned no `Task`.
    """
    try:
        with fixed_randomness(0):
            task = load_object(reference)(**(arguments or {}))
    except TaskError:
        raise
    except (Exception, SystemExit) as error:
        raise TaskError(f"task function {reference!r} raised {type(error).__name__}: {error}") from error
    if not isinstance(task, Task):
        raise TaskError(
            f"task function {reference!r}: expected it to return an autocompress.Task, got {type(task).__name__}"
        )
    return task


def plain(dataset: Dataset[Any]) -> Dataset[Any]:
    """The dataset without augmentation: its own ``plain()`` if it has one, else itself."""
    method = getattr(dataset, "plain", None)
    found: Dataset[Any] = method() if method is not None else dataset
    return found


def size(dataset: Dataset[Any]) -> int:
    """Number of examples; `Task` has checked that the dataset knows it."""
    if not isinstance(dataset, Sized):
        raise TaskError(f"expected a dataset with a length, got {type(dataset).__name__}")
    return len(dataset)


@contextlib.contextmanager
def fixed_randomness(seed: int) -> Iterator[None]:
    """Global random streams of torch, numpy and `random` at `seed` inside the block, and as they were after it."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


def fetch(dataset: Dataset[Any], indices: Tensor) -> tuple[Inputs, Tensor]:
    """The examples at `indices` as one batch.

    Args:
        dataset: map-style; its own ``batch(indices)`` is used if it has one.
        indices: shape (n,), integers.

    Returns:
        Inputs, tensors of shape (n, ...), and targets of shape (n, ...).
    """
    batch = getattr(dataset, "batch", None)
    if batch is not None:
        inputs, targets = batch(indices)
        return inputs, targets
    items = [dataset[int(i)] for i in indices]
    return stack([x for x, _ in items]), torch.stack([torch.as_tensor(y) for _, y in items])
