"""Networks that a task builds, for a latency model: each size is built and exported once, untrained.

The time of an operation does not depend on its weights, so that the file of a fresh network tells the operations of
every trained one of its size, at any bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from autocompress.compress.architecture import layer_bits, own_layers
from autocompress.compress.export import export_onnx
from autocompress.compress.quantize import quantize
from autocompress.compress.skeleton import Skeleton, learn_skeleton
from autocompress.compress.statistics import Statistics
from autocompress.errors import InfeasibleError
from autocompress.inputs import Arrays, Inputs
from autocompress.pipeline.latency_outline import Outlines, learn_outlines
from autocompress.records import Architecture, Plan, Quantizer, Record, Structure
from autocompress.records.outline import Operation
from autocompress.task import Task, fixed_randomness

#: Sizes that are exported at most: each takes a second or two.
MOST_SIZES = 32


class BuiltOutline(Record):
    """The operations of a network that is built, at any bits.

    Attributes:
        width: what the builder got; None if it was not asked.
        depth: likewise.
        structure: its layers.
        outlines: tell the operations.
    """

    width: float | None
    depth: float | None
    structure: Structure
    outlines: Outlines

    def of(self, architecture: Architecture) -> tuple[Operation, ...]:
        """The operations of the file that an architecture of this size becomes."""
        return self.outlines.of(Plan(bits=layer_bits(architecture, self.structure)))


@dataclass(frozen=True)
class BuiltFile:
    """A network that was built, with its file.

    Attributes:
        outline: its operations.
        model: the file, untrained and in floats.
        example: one training example, from which ranges of activations are taken.
    """

    outline: BuiltOutline
    model: bytes
    example: Inputs

    def at(self, architecture: Architecture) -> bytes:
        """The file at the architecture's bits."""
        return quantize(self.model, layer_bits(architecture, self.outline.structure), Quantizer(), self.example)


@dataclass(frozen=True)
class Files:
    """Makes the file of any plan, with arbitrary weights: see `Skeleton.model`.

    Attributes:
        skeleton: of plans for the dense network.
        built: of those that build another.
    """

    skeleton: Skeleton
    built: tuple[BuiltFile, ...]

    def model(self, plan: Plan) -> bytes:
        """The file.

        Raises:
            InfeasibleError: as `Skeleton.model`, or the size is none of those that were exported.
        """
        asked = plan.architecture
        if asked is None:
            return self.skeleton.model(plan)
        place = _place([file.outline for file in self.built], asked)
        return self.built[place].at(asked)


@dataclass(frozen=True)
class PlanOutlines:
    """The operations of any plan's file, whichever network it is of.

    Attributes:
        dense: of plans for the dense network.
        built: of those that build another.
    """

    dense: Outlines
    built: tuple[BuiltOutline, ...] = ()

    def of(self, plan: Plan) -> tuple[Operation, ...]:
        """The operations.

        Raises:
            InfeasibleError: as `Outlines.of`, or the size is none of those that were exported.
        """
        asked = plan.architecture
        return self.dense.of(plan) if asked is None else self.built[_place(self.built, asked)].of(asked)


def built_files(
    task: Task,
    architectures: Sequence[Architecture],
    inputs: Arrays,
    *,
    seed: int,
    on_step: Callable[[str], None] = lambda _: None,
) -> tuple[BuiltFile, ...]:
    """Build and export every size once; of more than `MOST_SIZES` as many, spread evenly.

    Args:
        task: builds the networks.
        architectures: what a space offers, from large to small.
        inputs: the batch that is timed.
        seed: of what is tried.
        on_step: told what is done.

    Raises:
        TaskError: the builder cannot.
        ExportError: a network cannot be written.
    """
    sizes = list(dict.fromkeys((asked.width, asked.depth) for asked in architectures))
    if len(sizes) > MOST_SIZES:
        sizes = [sizes[place] for place in np.linspace(0, len(sizes) - 1, MOST_SIZES).round().astype(int)]
    example, found = task.example_input(), []
    for number, (width, depth) in enumerate(sizes, start=1):
        on_step(f"networks that are built, {number} of {len(sizes)}")
        asked = Architecture(width=width, depth=depth)
        with fixed_randomness(0):
            module = task.build(width=asked.sizes.get("width"), depth=asked.sizes.get("depth")).eval()
        structure = own_layers(module, example)
        model = export_onnx(module, example).model
        # Nothing of it is cut: neither statistics nor the target's multiple matter.
        skeleton = learn_skeleton(module, model, structure, Statistics({}), example, round_to=1, seed=seed)
        outlines = learn_outlines(skeleton, model, inputs, round_to=1, seed=seed)
        outline = BuiltOutline(width=width, depth=depth, structure=structure, outlines=outlines)
        found.append(BuiltFile(outline, model, skeleton.example))
    return tuple(found)


def _place(built: Sequence[BuiltOutline], asked: Architecture) -> int:
    for place, known in enumerate(built):
        if (known.width, known.depth) == (asked.width, asked.depth):
            return place
    words = ", ".join(f"{name} {size:g}" for name, size in asked.sizes.items())
    raise InfeasibleError(f"outline: expected a size of which a network was built, got {words}")
