"""A smaller network by the task's own builder, with fresh weights, in place of the dense one.

It goes the way of every candidate: trained beside the dense network as teacher, exported, quantized, and proven from
its bytes; but its layers are its own, so that the plan's bits are spelt out for them, and the proof is against them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

from torch import nn

from autocompress.compress.factorize import factorizable
from autocompress.compress.fresh import redrawn
from autocompress.compress.layers import run_layers
from autocompress.errors import InfeasibleError, TaskError
from autocompress.inputs import Inputs
from autocompress.records import Architecture, Layer, LayerBits, Plan, Structure
from autocompress.rng import derive_seed
from autocompress.task import Task, fixed_randomness


@dataclass(frozen=True)
class Built:
    """A network that was built, and what the plan means for it.

    Attributes:
        module: with fresh weights.
        structure: its layers; it is not compressed further, so that it has no groups and no blocks.
        plan: the bits of each of its layers, and how it is trained.
        warnings: what a reader should know, in words.
    """

    module: nn.Module
    structure: Structure
    plan: Plan
    warnings: tuple[str, ...] = ()


def build_network(task: Task, plan: Plan, dense: Structure, *, seed: int) -> Built:
    """Build what the plan asks for, untrained.

    Args:
        task: its builder makes the network.
        plan: asks for an architecture.
        dense: the dense network, of which the result should differ.
        seed: of the weights, as far as the builder draws them from the global generators.

    Raises:
        InfeasibleError: the plan asks for none.
        TaskError: the builder does not take what is asked for, or makes something else; see `Task.build`.
    """
    if plan.architecture is None:
        raise InfeasibleError("plan.architecture: expected a network to build, got none")
    asked = plan.architecture
    with fixed_randomness(derive_seed(seed, "fresh")):
        module = task.build(width=asked.sizes.get("width"), depth=asked.sizes.get("depth"))
    structure = own_layers(module, task.example_input())
    warnings: tuple[str, ...] = ()
    if _shapes(structure) == _shapes(dense):
        words = ", ".join(f"{name} {size:g}" for name, size in asked.sizes.items())
        warnings = (f"built at {words} the network has the dense one's layers, with weights drawn anew",)
        # A builder may bring trained weights for the dense network's own size.
        module = redrawn(module, seed=derive_seed(seed, "fresh"))
    settled = Plan(
        bits=layer_bits(asked, structure),
        distillation=plan.distillation,
        quantizer=plan.quantizer,
    )
    return Built(module, structure, settled, warnings)


def check_builder(task: Task, dense: Structure, *, widths: Sequence[float] = (), depths: Sequence[float] = ()) -> None:
    """Refuse a task that cannot build what a space offers, before anything is trained.

    The width and the depth that differ most from the dense network's are built, each alone: that has to work, and to
    make another network.

    Args:
        task: its builder makes the networks.
        dense: the dense network's structure.
        widths: what the space offers; empty if it does not ask.
        depths: likewise.

    Raises:
        TaskError: the builder does not take what is asked for, makes something else, or makes the dense network of it.
    """
    for name, sizes in (("width", widths), ("depth", depths)):
        if not sizes:
            continue
        task.check_sizes([name])
        own = task.sizes[name]
        size = max(sizes, key=lambda asked: abs(log(asked / task.sizes[name])))
        if size == own:
            continue  # nothing but the dense network's own size
        with fixed_randomness(0):
            module = task.build(**{name: int(size) if size == int(size) else size})
        if _shapes(own_layers(module, task.example_input())) == _shapes(dense):
            raise TaskError(
                f"task {task.name!r}: expected its model function to make another network of {name}={size:g}, got "
                f"the dense one's layers; leave architecture.{name} out of the space, or offer sizes that make a "
                "difference"
            )


def own_layers(module: nn.Module, example: Inputs) -> Structure:
    """The layers of a network that is left whole, in the order of the forward pass.

    Raises:
        TaskError: the module does not run on the example, or returns no tensor.
    """
    parameters = dict(module.named_parameters(remove_duplicate=False))
    _, layers = run_layers(module, example)
    return Structure(
        groups=(),
        layers=tuple(
            Layer(
                name=layer.name,
                kind=layer.kind,
                shape=tuple(parameters[layer.parameter].shape),
                macs=layer.macs,
                factorizable=not factorizable(module, layer.name),
            )
            for layer in layers
            if layer.parameter in parameters
        ),
    )


def layer_bits(architecture: Architecture, structure: Structure) -> tuple[LayerBits, ...]:
    """What the one choice of bits means for every layer, sorted by name; nothing at 32 bits."""
    bits = architecture.bits
    if bits == 32:
        return ()
    return tuple(
        LayerBits(layer=layer.name, bits=bits, weights_only=architecture.weights_only and layer.kind == "linear")
        for layer in sorted(structure.layers, key=lambda layer: layer.name)
    )


def _shapes(structure: Structure) -> dict[str, tuple[int, ...]]:
    return {layer.name: layer.shape for layer in structure.layers}
