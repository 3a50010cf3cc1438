"""Folding batch normalization into the convolution or linear layer before it, found by running the module once."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import fusion
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from autocompress.compress.hooked import hooked
from autocompress.inputs import Inputs, call

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def fold_batch_norm(module: nn.Module, example: Inputs) -> nn.Module:
    r"""A copy of `module` where each foldable normalization is an identity and its layer computes both.

    With :math:`s = \gamma / \sqrt{\sigma^2 + \epsilon}` per output channel, :math:`W' = s W` and
    :math:`b' = s (b - \mu) + \beta`. Zeros in W stay zeros. A pair is folded if each of the two modules runs once
    and nothing but the normalization reads the layer's output; every other normalization stays as it is.

    Args:
        module: in evaluation mode.
        example: tensors of shape (batch, ...), run once to see what follows what.

    Returns:
        A new module; `module` itself if nothing can be folded.
    """
    pairs = _pairs(module, example)
    if not pairs:
        return module
    folded = copy.deepcopy(module)
    for layer_name, norm_name in pairs:
        layer, norm = folded.get_submodule(layer_name), folded.get_submodule(norm_name)
        fuse = fusion.fuse_linear_bn_eval if isinstance(layer, nn.Linear) else fusion.fuse_conv_bn_eval
        folded.set_submodule(layer_name, fuse(layer, norm))  # type: ignore[type-var, arg-type]
        folded.set_submodule(norm_name, nn.Identity())
    return folded


class _Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts how many operators read each tensor; keeps the tensors alive, so that ids stay theirs."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count: Counter[int] = Counter()
        self.kept: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = {id(leaf): leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        self.count.update(inputs.keys())
        self.kept.extend(inputs.values())
        return func(*args, **(kwargs or {}))


def _pairs(module: nn.Module, example: Inputs) -> list[tuple[str, str]]:
    made: dict[int, str] = {}  # id of a layer's output -> the layer
    found: list[tuple[str, str, Tensor]] = []
    calls: Counter[str] = Counter()
    outputs: list[Tensor] = []

    def on_layer(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Tensor) -> None:
            calls[name] += 1
            outputs.append(output)
            made[id(output)] = name

        return hook

    def on_norm(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            calls[name] += 1
            if inputs and id(inputs[0]) in made:
                found.append((made[id(inputs[0])], name, inputs[0]))

        return hook

    def hooks() -> Iterator[RemovableHandle]:
        for name, part in module.named_modules():
            if isinstance(part, _LAYERS):
                yield part.register_forward_hook(on_layer(name))
            elif isinstance(part, _BatchNorm) and part.running_mean is not None:
                yield part.register_forward_pre_hook(on_norm(name))

    with hooked(hooks()), torch.no_grad(), _Reads() as reads:
        result = call(module, example)
    returned = {id(leaf) for leaf in tree_leaves(result)}
    shared = _shared_weights(module)
    return [
        (layer, norm)
        for layer, norm, tensor in found
        if calls[layer] == calls[norm] == 1
        and reads.count[id(tensor)] == 1
        and id(tensor) not in returned
        and layer not in shared
        and _channels_fit(module.get_submodule(layer), module.get_submodule(norm))
    ]


def _shared_weights(module: nn.Module) -> set[str]:
    """Layers one of whose parameters also belongs to another module."""
    owners: dict[int, list[str]] = {}
    for name, part in module.named_modules():
        for parameter in _own(part):
            owners.setdefault(id(parameter), []).append(name)
    return {name for names in owners.values() if len(names) > 1 for name in names}


def _own(part: nn.Module) -> Iterable[nn.Parameter]:
    return part.parameters(recurse=False)


def _channels_fit(layer: nn.Module, norm: nn.Module) -> bool:
    """False for a linear layer over a sequence, whose normalized axis is not its output axis."""
    width = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    return bool(width == norm.num_features)
