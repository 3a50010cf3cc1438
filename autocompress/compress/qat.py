"""Quantization-aware training: the network trains through the grids that it will be exported with."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autocompress.compress.calibrate import Observer, check_calibration, passes
from autocompress.compress.fake_quantize import Blocks, Grids, Step, input_step, unwrap, weight_step, wrap
from autocompress.compress.fit import Hook
from autocompress.compress.grids import (
    Grid,
    activation_grid,
    bias_scale,
    from_integers,
    smallest_scales,
    weight_scales,
)
from autocompress.compress.hooked import hooked
from autocompress.compress.layers import evaluating
from autocompress.compress.train import Trainer
from autocompress.errors import CompressionError, InfeasibleError
from autocompress.inputs import Inputs, apply, batch_size, call
from autocompress.records import LayerBits, Quantizer

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d)
#: Examples per run for the ranges of activations.
_BATCH = 64


@dataclass
class _Target:
    """A weight to be quantized.

    Attributes:
        entry: the request, for this very layer.
        owner: name of the module that applies the weight.
        parameter: its name in that module.
        axis: of the output channels.
        reads: the module's input is an activation that is quantized.
    """

    entry: LayerBits
    owner: str
    parameter: str
    axis: int
    reads: bool


@dataclass
class _Observed:
    """Ranges of layers' inputs; layers that read the same tensor share one."""

    representative: dict[str, str] = field(default_factory=dict)
    observers: dict[str, Observer] = field(default_factory=dict)
    called: set[str] = field(default_factory=set)

    def find(self, layer: str) -> str:
        """The layer whose observer `layer` shares."""
        while (above := self.representative.get(layer, layer)) != layer:
            layer = above
        return layer


def train_quantized(
    module: nn.Module,
    bits: Sequence[LayerBits],
    quantizer: Quantizer,
    trainer: Trainer,
    *,
    calibration: Inputs,
    share: float,
    seed: int,
    hooks: Sequence[Hook] = (),
) -> tuple[nn.Module, dict[str, Grid]]:
    """Train a network whose weights and activations are rounded to integer grids in every forward pass.

    Weights are rounded per output channel, inputs of layers to 8 bits; gradients pass through the rounding and, outside
    a grid, stop. With `quantizer.ranges` ``"learnt"`` the steps of both are trained as well; with ``"calibrated"`` they
    are found once, before training. Layers that read the same tensor share its grid. Zero points stay as calibrated, so
    that a grid that begins at zero (behind a ReLU) still does. Weights of layers with `weights_only` follow the blocks
    of the runtime's packed product. 16-bit weights, weights that several layers share, matrices of
    single recurrent cells, and layers that are never called as modules are left to quantization after training.

    Args:
        module: its batch normalization folded (`fold_batch_norm`): the weights that are trained are those that ship.
            Left alone.
        bits: what is asked; entries of factorized layers mean all their parts.
        quantizer: how ranges are found.
        trainer: trains; its number of epochs may be 0.
        calibration: tensors of shape (n, ...), training inputs that the first ranges are taken from.
        share: of the trainer's epochs.
        seed: of the order of examples.
        hooks: see `Trainer.train`; those that keep masked weights at zero work as without quantization.

    Returns:
        A plain module in evaluation mode, its weights exactly on their grids and its biases rounded as the file will
        have them; and the grids by layer name.

    Raises:
        InfeasibleError: a layer is not in the module, or of a kind that cannot be quantized.
        CompressionError: the calibration inputs are empty or not finite, or training failed.

    References:
        Jacob et al., 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
        Inference"; Esser et al., 2020, "Learned Step Size Quantization".
    """
    check_calibration(calibration)
    wrapped = copy.deepcopy(module).cpu()
    targets = _targets(wrapped, bits)
    observed = _observe(wrapped, [t.owner for t in targets if t.reads], calibration, quantizer)
    targets = [target for target in targets if target.owner in observed.called or not target.reads]
    learnt = quantizer.ranges == "learnt"
    normalizes = trainer.task.recipe.optimizer == "adamw"
    inputs: dict[str, Step] = {}
    for target in targets:
        if target.reads and not target.entry.weights_only:
            first = observed.find(target.owner)
            scale, zero = activation_grid(*observed.observers[first].range())
            inputs.setdefault(first, input_step(float(scale), zero, learnt=learnt, normalizes=normalizes))
    for owner in dict.fromkeys(target.owner for target in targets):
        own = [target for target in targets if target.owner == owner]
        layer = wrapped.get_submodule(owner)
        rules = {t.parameter: _rule(layer, t, learnt=learnt, normalizes=normalizes) for t in own}
        wrap(layer, Grids(rules, inputs.get(observed.find(owner)) if own[0].reads else None))
    trained = trainer.train(wrapped, key=f"aware-{seed}", share=share, hooks=hooks, peak=trainer.folded_peak)
    return trained, _settle(trained, targets)


def _targets(module: nn.Module, bits: Sequence[LayerBits]) -> list[_Target]:
    owners = Counter(id(p) for part in module.modules() for p in part.parameters(recurse=False))
    names = {name for name, _ in module.named_modules()}
    found: list[_Target] = []
    for asked in bits:
        parts = [asked]
        if asked.layer in names and isinstance(module.get_submodule(asked.layer), nn.Sequential):
            count = len(list(module.get_submodule(asked.layer).children()))
            parts = [asked.model_copy(update={"layer": f"{asked.layer}.{index}"}) for index in range(count)]
        for entry in parts:
            target = _target(module, entry, names)
            if target is None:
                continue
            weight = module.get_submodule(target.owner)._parameters[target.parameter]
            if entry.bits < 16 and owners[id(weight)] == 1:
                found.append(target)
    return found


def _target(module: nn.Module, entry: LayerBits, names: set[str]) -> _Target | None:
    if entry.layer not in names:
        owner, _, parameter = entry.layer.rpartition(".")
        part = module.get_submodule(owner) if owner in names else None
        if isinstance(part, nn.RNNBase) and parameter in dict(part.named_parameters()):
            return _Target(entry, owner, parameter, 0, reads=False)
        if isinstance(part, nn.RNNCellBase) and parameter in dict(part.named_parameters()):
            return None
        raise InfeasibleError(f"plan.bits: expected a layer of the network, got {entry.layer!r}")
    layer = module.get_submodule(entry.layer)
    if isinstance(layer, nn.Embedding):
        return _Target(entry.model_copy(update={"weights_only": False}), entry.layer, "weight", 1, reads=False)
    if isinstance(layer, (*_CONVOLUTIONS, *_TRANSPOSED, nn.Linear)):
        if entry.weights_only and not isinstance(layer, nn.Linear):
            raise InfeasibleError(
                f"plan.bits: layer {entry.layer!r}: expected a linear layer or an embedding for weights_only, got "
                f"{type(layer).__name__}; possible without weights_only: 16, 8, 7, 6, 5, 4, 3, 2 bits"
            )
        return _Target(entry, entry.layer, "weight", 1 if isinstance(layer, _TRANSPOSED) else 0, reads=True)
    raise InfeasibleError(
        f"plan.bits: layer {entry.layer!r}: expected a convolution, linear layer, embedding or matrix of a recurrent "
        f"layer, got {type(layer).__name__}"
    )


def _rule(layer: nn.Module, target: _Target, *, learnt: bool, normalizes: bool) -> nn.Module:
    weight = layer.get_parameter(target.parameter)
    if target.entry.weights_only and isinstance(layer, nn.Linear):
        return Blocks(target.entry.bits)
    scale = weight_scales(_channels_first(weight, target.axis), target.entry.bits)
    return weight_step(scale, target.entry.bits, target.axis, learnt=learnt, normalizes=normalizes)


def _channels_first(weight: Tensor, axis: int) -> np.ndarray:
    return np.ascontiguousarray(weight.detach().movedim(axis, 0).numpy())


def _observe(module: nn.Module, layers: Sequence[str], calibration: Inputs, quantizer: Quantizer) -> _Observed:
    """Run the calibration set and look at the layers' inputs."""
    found = _Observed()
    readers: dict[tuple[int, int], str] = {}
    alive: list[Tensor] = []

    def look(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            tensor = inputs[0]
            key = (id(tensor), tensor._version)  # what an operator changed in place is another tensor
            found.called.add(name)
            first, own = found.find(readers.setdefault(key, name)), found.find(name)
            if first != own:
                found.representative[own] = first
            if readers[key] == name:
                alive.append(tensor)
                batches.setdefault(name, []).append(tensor.detach().clone())

        return hook

    batches: dict[str, list[Tensor]] = {}
    hooks = (module.get_submodule(name).register_forward_pre_hook(look(name)) for name in dict.fromkeys(layers))
    with hooked(hooks), evaluating(module), _plain_attention():
        for number in range(passes(quantizer.calibrator)):
            for start in range(0, batch_size(calibration), _BATCH):
                call(module, apply(lambda tensor, start=start: tensor[start : start + _BATCH], calibration))  # type: ignore[misc]
                for name, tensors in batches.items():
                    observer = found.observers.setdefault(found.find(name), Observer(quantizer.calibrator))
                    for tensor in tensors:
                        observer.see(tensor.float().numpy(), f"input of {name}", number)
                for state in (readers, alive, batches):
                    state.clear()
    return found


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Torch's fused encoder layers read their parts' weights without calling them; not in here."""
    was = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was)


def _settle(module: nn.Module, targets: Sequence[_Target]) -> dict[str, Grid]:
    """Move the weights onto their grids and give the layers their own classes back, in place."""
    grids: dict[str, Grid] = {}
    for owner in dict.fromkeys(target.owner for target in targets):
        layer = module.get_submodule(owner)
        rules = unwrap(layer)
        for target in (entry for entry in targets if entry.owner == owner):
            weight, rule = layer.get_parameter(target.parameter), rules.weights[target.parameter]
            with torch.no_grad():
                if isinstance(rule, Blocks):
                    weight.copy_(rule(weight))
                    continue
                assert isinstance(rule, Step)  # noqa: S101
                grid = _grid(layer, target, rule, rules.inputs)
                values = from_integers(grid.integers(_channels_first(weight, target.axis)), grid.weight_scale)
                weight.copy_(torch.from_numpy(values).movedim(0, target.axis))
                _settle_bias(layer, grid)
            grids[target.entry.layer] = grid
    return grids


def _settle_bias(layer: nn.Module, grid: Grid) -> None:
    """Round the bias to a multiple of s · s_x, as an integer kernel keeps it: module and file are one network."""
    bias = getattr(layer, "bias", None)
    if grid.input_scale is None or not isinstance(bias, Tensor) or isinstance(layer, _TRANSPOSED):
        return
    unit = torch.from_numpy(bias_scale(grid.weight_scale, grid.input_scale))
    bias.copy_((bias.double() / unit).round() * unit)


def _grid(layer: nn.Module, target: _Target, rule: Step, inputs: Step | None) -> Grid:
    scale = rule.scale().detach().numpy().astype(np.float32)
    input_scale = None if inputs is None else np.float32(inputs.scale().item())
    finite = bool(np.all(np.isfinite(scale)) and np.all(scale > 0))
    if not finite or (input_scale is not None and not (np.isfinite(input_scale) and input_scale > 0)):
        raise CompressionError(
            f"quantization-aware training: layer {target.entry.layer!r}: expected positive, finite steps, got weights' "
            f"{float(scale.min()):.3g} to {float(scale.max()):.3g} and input's {input_scale}; lower the learning rate"
        )
    bias = getattr(layer, "bias", None)
    if input_scale is not None and isinstance(bias, Tensor):
        # A channel whose weights have all but vanished: its bias still has to fit into 32 bits.
        scale = np.maximum(scale, smallest_scales(bias.detach().numpy(), float(input_scale)))
    zero = 0 if inputs is None else inputs.zero
    return Grid(target.entry.bits, scale, input_scale, zero)
