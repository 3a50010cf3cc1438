"""Sensitivity: how much the network suffers when one group, layer or block alone is compressed.

References:
    Li et al., 2017, "Pruning Filters for Efficient ConvNets" (loss per layer and level);
    Dong et al., 2019, "HAWQ: Hessian AWare Quantization of Neural Networks with Mixed-Precision" (layers at low bits).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext

from torch import nn

from autocompress.compress.activations import output_axis
from autocompress.compress.coupling import trace
from autocompress.compress.prune import cut_channels, drop_blocks
from autocompress.compress.reference import Guard, Reference
from autocompress.compress.rounding import round_weights
from autocompress.compress.statistics import Statistics
from autocompress.compress.train import recalibrate_bn
from autocompress.errors import CompressionError
from autocompress.records import BlockDrop, ChannelCut, Criterion, Group, Layer, Reconstruction, Record, Structure
from autocompress.rng import derive_seed
from autocompress.space.criteria import check_criteria
from autocompress.space.grid import allowed_widths
from autocompress.task import Task, size

#: Shares of a group's units that are kept, by default.
LEVELS = (0.75, 0.5, 0.25)
#: Examples for each one that a rounding is judged on, where sensitivity is fast.
_FEWER = 4
#: Divergence, in nats, that is as good as none: roundings that lose no more together are not told apart.
_NOTHING = 0.002
#: Examples whose own statistics are good enough to normalize by.
_ENOUGH = 32


class GroupSensitivity(Record):
    """Effect of cutting one group alone.

    Attributes:
        group: its name.
        width, keep: units before and after.
        loss: increase of the task's validation loss; negative if the cut network is better.
        kl: mean KL divergence from the dense model's predictions, in nats; 0 is no change. None where outputs are no
            class scores.
    """

    group: str
    width: int
    keep: int
    loss: float
    kl: float | None = None

    @property
    def name(self) -> str:
        """Of what is compressed."""
        return self.group

    @property
    def level(self) -> int:
        """Units kept."""
        return self.keep

    @property
    def full(self) -> int:
        """The level without compression, at which nothing changes."""
        return self.width


class LayerSensitivity(Record):
    """Effect of rounding one layer's weights alone; `loss` and `kl` as in `GroupSensitivity`."""

    layer: str
    bits: int
    loss: float
    kl: float | None = None

    @property
    def name(self) -> str:
        """Of what is compressed."""
        return self.layer

    @property
    def level(self) -> int:
        """Bits per weight."""
        return self.bits

    @property
    def full(self) -> int:
        """The level without compression, at which nothing changes."""
        return 32


class BlockSensitivity(Record):
    """Effect of leaving one block out; `loss` and `kl` as in `GroupSensitivity`."""

    block: str
    loss: float
    kl: float | None = None

    @property
    def name(self) -> str:
        """Of what is compressed."""
        return self.block

    @property
    def level(self) -> int:
        """0: the block is left out."""
        return 0

    @property
    def full(self) -> int:
        """The level without compression, at which nothing changes."""
        return 1


class PairSensitivity(Record):
    """Effect of leaving two blocks out together; `loss` and `kl` as in `GroupSensitivity`."""

    blocks: tuple[str, str]
    loss: float
    kl: float | None = None


class Sensitivity(Record):
    """What every single compression of a network costs, measured on the same examples.

    Attributes:
        loss: of the dense network.
        criterion: by which units were chosen.
        groups: one entry per group and level.
        layers: one per layer and number of bits.
        blocks: one per block.
        pairs: one per two blocks that follow one another: leaving both out may cost far more than the sum.
    """

    loss: float
    criterion: Criterion = "magnitude"
    groups: tuple[GroupSensitivity, ...] = ()
    layers: tuple[LayerSensitivity, ...] = ()
    blocks: tuple[BlockSensitivity, ...] = ()
    pairs: tuple[PairSensitivity, ...] = ()


def measure_sensitivity(
    task: Task,
    dense: nn.Module,
    structure: Structure,
    statistics: Statistics,
    *,
    round_to: int,
    levels: Sequence[float] = LEVELS,
    groups: Collection[str] | None = None,
    bits: Sequence[int] | Mapping[str, Sequence[int]] = (),
    blocks: bool | Collection[str] = False,
    pairs: bool = False,
    criterion: Criterion = "magnitude",
    reconstruction: Reconstruction = "least-squares",
    examples: int = 512,
    batches: int = 8,
    fast: bool = False,
    seed: int,
    guard: Guard = nullcontext,
    on_done: Callable[[int, int], None] | None = None,
) -> Sensitivity:
    r"""Compress one thing at a time, recalibrate BN, and compare with the dense model on validation examples.

    Two numbers tell the change: the increase of the task's loss, and :math:`KL(p \Vert q) = \sum_c p_c (\log p_c -
    \log q_c)`, p the dense model's class probabilities and q the compressed one's, averaged over examples (and
    positions). Accuracy is too coarse to order groups by.

    Fast, BN takes the statistics of the very examples that are compared on, for the dense model as well, so that
    recalibration and comparison are one pass; and cut networks compute as in training, in bfloat16 where the processor
    has it. Rounding changes less than that would, and stays in float32 on a quarter of the examples; where all layers
    together lose no more than 0.002 nats at a number of bits, each gets an equal share of that. It is for the order of
    groups and levels; values differ from the exact ones.

    Args:
        task: its validation split is compared on, its training split recalibrates.
        dense: in eval or train mode; never changed.
        structure: groups, layers and blocks.
        statistics: of the dense model, for the criterion.
        round_to: the target's multiple of channels. Levels that are the same width after rounding (to the nearest, of
            two the larger) are measured once; a group too narrow to be cut is left out.
        levels: shares of a group's units to keep, in (0, 1).
        groups: names of those that are cut; None for all.
        bits: also round each layer's weights to these, see `round_weights`; 16 is half precision. Or layer -> bits.
        blocks: also leave out each block; or their names.
        pairs: also leave out each two of these that follow one another.
        criterion: which units go; a group that it cannot score is cut by magnitude.
        reconstruction: whether what stays behind a cut is refitted.
        examples: how many validation examples, at most, the first ones.
        batches: of training data for the recalibration.
        fast: see above; `batches` has no effect then.
        seed: of the random criterion.
        guard: entered around each piece of work.
        on_done: called with (done, in all) after each entry.

    Raises:
        CompressionError: an argument is out of range, a cut fails, or the dense model's loss is not finite.
    """
    asked_bits = bits if isinstance(bits, Mapping) else {layer.name: tuple(bits) for layer in structure.layers}
    _check_arguments(levels, [number for numbers in asked_bits.values() for number in numbers], examples, batches)
    example = task.example_input()
    fast = fast and min(examples, size(task.validation)) >= _ENOUGH
    reference = Reference(task, dense, examples, guard, fast=fast)
    cut = [group for group in structure.groups if groups is None or group.name in groups]
    keeps = [(group, keep) for group in cut for keep in _widths(group, levels, round_to)]
    left_out = [block.name for block in structure.blocks if blocks is True or (blocks and block.name in blocks)]
    together = _neighbours(left_out) if pairs else []
    rounded = [(layer, asked_bits[layer.name]) for layer in structure.layers if asked_bits.get(layer.name)]
    total = len(keeps) + sum(len(numbers) for _, numbers in rounded) + len(left_out) + len(together)
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        if on_done is not None:
            on_done(done, total)

    def change(module: nn.Module) -> tuple[float, float | None]:
        if fast:
            return reference.change(module)
        return reference.change(recalibrate_bn(module, task, batches=batches, guard=guard))

    units = trace(dense, example).groups if keeps else {}
    found_groups = []
    for group, keep in keeps:
        try:
            check_criteria(["structured"], [criterion], group)
            score: Criterion = criterion
        except ValueError:
            score = "magnitude"
        request = ChannelCut(group=group.name, keep=keep, criterion=score)
        with guard():
            module = cut_channels(
                dense,
                (request,),
                structure,
                statistics,
                example=example,
                seed=derive_seed(seed, "sensitivity"),
                units=units,
                reconstruction=reconstruction,
            )
        loss, kl = change(module)
        found_groups.append(GroupSensitivity(group=group.name, width=group.width, keep=keep, loss=loss, kl=kl))
        step()
    exact = reference
    if fast and rounded:
        exact = Reference(task, dense, max(1, examples // _FEWER), guard)
    layers = _roundings(dense, rounded, exact, screen=fast, step=step)

    def without(*names: str) -> tuple[float, float | None]:
        with guard():
            module = drop_blocks(dense, [BlockDrop(block=name) for name in names], structure, example=example)
        found = change(module)
        step()
        return found

    dropped, both = [], []
    for name in left_out:
        loss, kl = without(name)
        dropped.append(BlockSensitivity(block=name, loss=loss, kl=kl))
    for pair in together:
        loss, kl = without(*pair)
        both.append(PairSensitivity(blocks=pair, loss=loss, kl=kl))
    return Sensitivity(
        loss=reference.loss,
        criterion=criterion,
        groups=tuple(found_groups),
        layers=layers,
        blocks=tuple(dropped),
        pairs=tuple(both),
    )


def _roundings(
    dense: nn.Module,
    rounded: Sequence[tuple[Layer, Sequence[int]]],
    reference: Reference,
    *,
    screen: bool,
    step: Callable[[], None],
) -> tuple[LayerSensitivity, ...]:
    """Of each layer and number of bits, in their order.

    Args:
        dense: left alone.
        rounded: layers, and what each is rounded to.
        reference: tells what changes.
        screen: where all layers of so many bits together lose as good as nothing, each gets an equal share of that.
        step: called for each.
    """
    probe = copy.deepcopy(dense)
    weights = {layer.name: probe.get_parameter(layer.parameter).data for layer, _ in rounded}
    kept = {name: weight.clone() for name, weight in weights.items()}
    axes = {
        layer.name: 0 if layer.kind == "recurrent" else output_axis(probe.get_submodule(layer.name))
        for layer, _ in rounded
    }

    def change(names: Sequence[str], number: int) -> tuple[float, float | None]:
        for name in names:
            weights[name].copy_(round_weights(kept[name], number, axes[name]))
        # Activation statistics are left alone, as they are when a network is quantized after its training.
        found = reference.change(probe)
        for name in names:
            weights[name].copy_(kept[name])
        return found

    shares: dict[int, tuple[float, float | None]] = {}
    for number in sorted({number for _, numbers in rounded for number in numbers} if screen else ()):
        names = [layer.name for layer, numbers in rounded if number in numbers]
        loss, kl = change(names, number)
        if kl is not None and kl <= _NOTHING:
            shares[number] = loss / len(names), kl / len(names)
    found = []
    for layer, numbers in rounded:
        for number in numbers:
            loss, kl = shares[number] if number in shares else change([layer.name], number)
            found.append(LayerSensitivity(layer=layer.name, bits=number, loss=loss, kl=kl))
            step()
    return tuple(found)


def _neighbours(blocks: Sequence[str]) -> list[tuple[str, str]]:
    """Each block with the next one that does not lie in it."""
    found = []
    for at, name in enumerate(blocks):
        after = (other for other in blocks[at + 1 :] if not other.startswith(f"{name}."))
        following = next(after, None)
        if following is not None and not name.startswith(f"{following}."):
            found.append((name, following))
    return found


def _widths(group: Group, levels: Sequence[float], round_to: int) -> list[int]:
    """Widths that the levels mean for a group, falling, without its own."""
    allowed = allowed_widths(group.width, group.multiple(round_to))
    wanted = {min(allowed, key=lambda keep: (abs(keep - level * group.width), -keep)) for level in levels}
    return sorted(wanted - {group.width}, reverse=True)


def _check_arguments(levels: Sequence[float], bits: Sequence[int], examples: int, batches: int) -> None:
    bad = [level for level in levels if not 0.0 < level < 1.0]
    if bad:
        raise CompressionError(f"sensitivity: levels: expected shares to keep in (0, 1), got {bad[0]}")
    wrong = [number for number in bits if number != 16 and not 2 <= number <= 8]
    if wrong:
        raise CompressionError(f"sensitivity: bits: expected 16, or 2 to 8, got {wrong[0]}")
    if examples < 1 or batches < 1:
        raise CompressionError(f"sensitivity: expected examples and batches >= 1, got {examples} and {batches}")
