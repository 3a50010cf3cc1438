"""The layers of a network: weights that can be masked, factorized, shared or quantized, and what they cost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_leaves

from autocompress.compress.hooked import hooked
from autocompress.errors import TaskError
from autocompress.inputs import Inputs, batch_size, call, named
from autocompress.records.structure import LayerKind

_KINDS: tuple[tuple[type[nn.Module], LayerKind], ...] = (
    (nn.Conv1d, "conv1d"),
    (nn.Conv2d, "conv2d"),
    (nn.ConvTranspose2d, "conv_transpose2d"),
    (nn.Linear, "linear"),
    (nn.Embedding, "embedding"),
)
#: Layers of one matrix or kernel each.
PLAIN = tuple(kind for kind, _ in _KINDS)
#: Layers of several matrices.
RECURRENT = (nn.RNNBase, nn.RNNCellBase)


@dataclass(frozen=True)
class Found:
    """A layer of a network.

    Attributes:
        name: as in `Layer`.
        kind: what it is.
        module: qualified name of the module that it is, or belongs to.
        parameter: qualified name of its weight.
        macs: multiply-adds for one example.
    """

    name: str
    kind: LayerKind
    module: str
    parameter: str
    macs: int

    @property
    def output_axis(self) -> int:
        """The axis of the weight that its outputs are along."""
        return 1 if self.kind in ("embedding", "conv_transpose2d") else 0

    @property
    def input_axis(self) -> int | None:
        """The axis of the weight that its inputs are along; None if its inputs are not channels."""
        return None if self.kind == "embedding" else 1 - self.output_axis


def kind_of(part: nn.Module) -> LayerKind | None:
    """What kind of layer of one weight a module is; None if it is none."""
    return next((kind for cls, kind in _KINDS if isinstance(part, cls)), None)


def has_own_weight(layer: nn.Module) -> bool:
    """False if the weight is computed from other tensors, as by weight_norm."""
    return not parametrize.is_parametrized(layer) and isinstance(layer._parameters.get("weight"), nn.Parameter)


def matrices(part: nn.Module) -> list[str]:
    """Names of the matrices of a recurrent module, inside it."""
    return [name for name, tensor in part.named_parameters(recurse=False) if tensor.ndim == 2]


def run_layers(module: nn.Module, inputs: Inputs) -> tuple[list[Tensor], list[Found]]:
    """The tensors that a network returns, and its layers that run as modules, in the order of the forward pass.

    Raises:
        TaskError: the module does not run on the inputs, or does not return a tensor.
    """
    names: dict[nn.Module, str] = {}
    for name, part in module.named_modules():
        if kind_of(part) is not None or isinstance(part, RECURRENT):
            names.setdefault(part, name)
    examples = batch_size(inputs)
    macs: dict[str, int] = {}

    def count(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> None:
        given = _first(args, kwargs)
        for weight, made in _counts(part, given, output):
            name = f"{names[part]}.{weight}" if names[part] else weight
            macs[name] = macs.get(name, 0) + made // examples

    try:
        with hooked(part.register_forward_hook(count, with_kwargs=True) for part in names):
            returned = outputs(module, inputs)
    except TaskError:
        raise
    except Exception as error:
        shapes = {name: tuple(tensor.shape) for name, tensor in named(inputs).items()}
        shown = str(next(iter(shapes.values()))) if isinstance(inputs, Tensor) else str(shapes)
        raise TaskError(
            f"{type(module).__name__} does not run on an input of shape {shown}: {type(error).__name__}: {error}"
            + ("; it must take any batch size: look for one in a view or reshape" if examples > 1 else "")
        ) from error
    parts = {name: part for part, name in names.items()}
    return returned, [_found(parts, parameter, cost) for parameter, cost in macs.items()]


def _found(parts: dict[str, nn.Module], parameter: str, macs: int) -> Found:
    owner = parameter.rpartition(".")[0]
    kind = kind_of(parts[owner])
    if kind is None:
        return Found(parameter, "recurrent", owner, parameter, macs)
    return Found(owner, kind, owner, parameter, macs)


def _counts(part: nn.Module, given: Tensor, output: object) -> Iterator[tuple[str, int]]:
    """Names of a module's weights, and multiply-adds of this call of it."""
    if isinstance(part, RECURRENT):
        steps = given.numel() // given.shape[-1]
        for name in matrices(part):
            yield name, steps * part.get_parameter(name).numel()
    elif isinstance(part.weight, Tensor):
        made = next(leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
        if isinstance(part, nn.Embedding):
            yield "weight", 0
        elif isinstance(part, nn.modules.conv._ConvTransposeNd):
            yield "weight", given.numel() * part.weight[0].numel()
        else:
            yield "weight", made.numel() * part.weight[0].numel()


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    for leaf in (*args, *kwargs.values()):
        if isinstance(leaf, PackedSequence):
            return leaf.data
        if isinstance(leaf, Tensor):
            return leaf
    raise TaskError("expected layers that are called with a tensor")


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every part's mode and the random state are put back."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        for part, training in modes:
            part.training = training


def outputs(module: nn.Module, inputs: Inputs) -> list[Tensor]:
    """All tensors that the module returns in evaluation mode, without gradients, in the order of its output.

    Raises:
        TaskError: there is none.
    """
    with evaluating(module):
        returned = call(module, inputs)
    found = [leaf for leaf in tree_leaves(returned) if isinstance(leaf, Tensor)]
    if not found:
        raise TaskError(f"{type(module).__name__}: expected it to return a tensor, got {type(returned).__name__}")
    return found
