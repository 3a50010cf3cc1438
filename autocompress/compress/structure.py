"""What can be compressed in a network, found by tracing it and by trying every cut once."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from autocompress.compress.coupling import ChannelGraph, Coupling, has_own_weight
from autocompress.errors import CompressionError, TaskError
from autocompress.records import Group, Layer, LeftDense, Structure
from autocompress.rng import derive_seed

IS_OUTPUT = "its channels are the model's output"
#: Modules with parameters that follow a cut of their neighbours, and need no entry of their own.
_QUIET = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.PReLU,
)


def find_structure(module: nn.Module, example: Tensor) -> Structure:
    """Find the groups of coupled channels and the layers of a network.

    Every group is tried on a deep copy with random weights: half of its channels are removed, and the copy must still
    run, keep its output's shape, need fewer multiply-adds, and compute what the dense copy computes with those channels
    masked (this last check is left out where a LayerNorm or GroupNorm over all channels follows, because removing is
    not masking there). What fails is named in `Structure.left_dense` with the reason, and stays as it is.

    Args:
        module: left alone; its parameters may be frozen.
        example: one input batch, shape (n, ...).

    Returns:
        Groups and layers in the order of the forward pass.

    Raises:
        TaskError: the module does not run on the example, or does not return one tensor.
    """
    calls = layer_calls(module, example)
    usable = [name for name in calls if has_own_weight(module.get_submodule(name))]
    left = _unsupported(module, calls)
    groups: list[Group] = []
    try:
        # Weights computed from other tensors are part of the order too, so that what they touch is seen and named.
        couplings = list(ChannelGraph(module, example, list(calls)).couplings())
        probe = _Probe(module, example, list(calls))
    except CompressionError as error:
        couplings = []
        left += [LeftDense(name=name, reason=str(error)) for name in usable]
    for coupling in couplings:
        reason = coupling.problem or probe.why_not(coupling)
        if reason:
            left += [LeftDense(name=name, reason=reason) for name in coupling.layers]
            continue
        consumers = tuple(dict.fromkeys(c.layer for c in coupling.consumers))
        groups.append(
            Group(
                name=coupling.name,
                width=coupling.width,
                layers=coupling.layers,
                consumers=consumers,
                norms=coupling.norms,
            )
        )
    owner = {name: group.name for group in groups for name in group.layers}
    seen = owner.keys() | {entry.name for entry in left}
    left += [
        LeftDense(name=name, reason="torch-pruning does not follow its channels") for name in usable if name not in seen
    ]
    layers = tuple(_layer(name, module.get_submodule(name), calls[name], owner.get(name)) for name in usable)
    # A layer may be named twice, for itself and for its group: the first reason is the closer one.
    unique = {entry.name: entry for entry in reversed(left)}
    return Structure(groups=tuple(groups), layers=layers, left_dense=tuple(unique[name] for name in sorted(unique)))


def layer_calls(module: nn.Module, example: Tensor) -> dict[str, int]:
    """Multiply-adds for one example of every Conv2d and Linear that runs, in the order of the forward pass.

    Args:
        module: left alone.
        example: shape (n, ...).

    Raises:
        TaskError: the module does not run on the example, or does not return one tensor.
    """
    return _run(module, example)[1]


def _run(module: nn.Module, inputs: Tensor) -> tuple[Tensor, dict[str, int]]:
    """Output, and multiply-adds by layer."""
    names: dict[nn.Module, str] = {
        part: name for name, part in module.named_modules() if isinstance(part, nn.Conv2d | nn.Linear)
    }
    macs: dict[str, int] = {}

    def count(part: nn.Module, _: object, output: Tensor) -> None:
        weight = part.weight
        if isinstance(weight, Tensor):
            macs[names[part]] = macs.get(names[part], 0) + output.numel() // len(inputs) * weight[0].numel()

    handles = [part.register_forward_hook(count) for part in names]
    try:
        output = evaluate(module, inputs)
    except TaskError:
        raise
    except Exception as error:
        raise TaskError(
            f"{type(module).__name__} does not run on an input of shape {tuple(inputs.shape)}: "
            f"{type(error).__name__}: {error}"
            + ("; it must take any batch size: look for one in a view or reshape" if len(inputs) > 1 else "")
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return output, macs


def evaluate(module: nn.Module, inputs: Tensor) -> Tensor:
    """The module's output in evaluation mode, without gradients; every part's mode is put back.

    Raises:
        TaskError: the output is not one tensor.
    """
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            output = module(inputs)
    finally:
        for part, training in modes:
            part.training = training
    if not isinstance(output, Tensor):
        raise TaskError(f"{type(module).__name__}: expected it to return one tensor, got {type(output).__name__}")
    return output


def _layer(name: str, part: nn.Module, macs: int, group: str | None) -> Layer:
    return Layer(
        name=name,
        kind="linear" if isinstance(part, nn.Linear) else "conv2d",
        shape=tuple(part.get_parameter("weight").shape),
        macs=macs,
        group=group,
    )


def _unsupported(module: nn.Module, calls: dict[str, int]) -> list[LeftDense]:
    """Modules with parameters of their own that nothing here compresses."""
    left: list[LeftDense] = []
    for name, part in module.named_modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            if name not in calls:
                left.append(LeftDense(name=name, reason="it does not run as a module in the forward pass"))
            elif not has_own_weight(part):
                left.append(
                    LeftDense(name=name, reason="its weight is computed from other tensors (a parametrization)")
                )
        elif list(part.parameters(recurse=False)) and not isinstance(part, _QUIET):
            left.append(LeftDense(name=name or type(part).__name__, reason=f"{type(part).__name__} is not compressed"))
    return left


class _Probe:
    """A copy of the network with random weights, on which every cut is tried."""

    def __init__(self, module: nn.Module, example: Tensor, order: list[str]) -> None:
        generator = torch.Generator().manual_seed(derive_seed(0, "probe"))
        self._dense = copy.deepcopy(module)
        _randomize(self._dense, generator)
        self._inputs = _probe_inputs(example, generator)
        self._order = order
        self._before, macs = _run(self._dense, self._inputs)
        self._macs = sum(macs.values())

    def why_not(self, coupling: Coupling) -> str:
        """Why removing half of the coupling's channels does not work; empty if it does."""
        if coupling.width < 2:
            return "it has a single channel"
        try:
            return self._try_cut(coupling)
        # Whatever a foreign network raises when it is cut, the answer is the same: this group stays dense, and why.
        except Exception as error:  # noqa: BLE001
            text = " ".join(str(error).split())
            return f"cutting it fails: {type(error).__name__}: {text[:200]}"

    def _try_cut(self, coupling: Coupling) -> str:
        generator = torch.Generator().manual_seed(derive_seed(0, "probe", coupling.name))
        shuffled = torch.randperm(coupling.width, generator=generator)
        removed = sorted(shuffled[: coupling.width // 2].tolist())
        before = self._before
        graph = ChannelGraph(self._dense, self._inputs, self._order)
        consumers = graph.consumers(coupling.name, removed)
        graph.remove(coupling.name, removed)
        after, macs = _run(graph.module, self._inputs)
        if after.shape != before.shape:
            if after.ndim == before.ndim and len(after) == len(before):
                return IS_OUTPUT
            return (
                f"cutting it changes the output's shape from {tuple(before.shape)} to {tuple(after.shape)}: "
                "a reshape with a fixed number of channels follows"
            )
        if sum(macs.values()) >= self._macs:
            return "cutting it saves no multiply-adds"
        if coupling.mixes_channels:
            return ""
        # What the consumers do not read is masked, whatever the activations and normalizations between make of it.
        masked = copy.deepcopy(self._dense)
        with torch.no_grad():
            for consumer in consumers:
                masked.get_submodule(consumer.layer).get_parameter("weight")[:, list(consumer.indices)] = 0.0
        expected = evaluate(masked, self._inputs)
        effect = float((expected - before).abs().max())
        scale = float(before.abs().max())
        if not float((after - expected).abs().max()) <= 1e-3 * effect + 1e-4 * scale:
            return "removing its channels is not the same as masking them: they are mixed, moved or counted elsewhere"
        return ""


def _probe_inputs(example: Tensor, generator: torch.Generator) -> Tensor:
    """At least two examples, so that a reshape that takes channels for examples is seen."""
    inputs = example if len(example) > 1 else torch.cat([example, example])
    if not inputs.is_floating_point():
        return inputs
    return torch.randn(inputs.shape, generator=generator, dtype=inputs.dtype)


@torch.no_grad()
def _randomize(module: nn.Module, generator: torch.Generator) -> None:
    """Weights that hide nothing: a trained or zero-initialized branch may not react to a wrong cut."""
    for parameter in module.parameters():
        if not parameter.is_floating_point():
            continue
        if parameter.ndim > 1:
            scale = (2.0 / parameter[0].numel()) ** 0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
        else:
            parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(torch.randn(buffer.shape, generator=generator) * 0.1)
        elif name.endswith("running_var"):
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
