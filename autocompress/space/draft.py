"""A plan that is being put together, knob by knob, and the rules that make it physical."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from autocompress.records import (
    Architecture,
    BlockDrop,
    ChannelCut,
    Codebook,
    Distillation,
    FromScratch,
    Group,
    Iterative,
    LayerBits,
    LowRank,
    Plan,
    Quantizer,
    Reconstruction,
    Schedule,
    Structure,
    WeightMask,
    starts_untrained,
)

Order = Literal["cut-mask", "mask-cut"]
#: Nothing asked for, and every setting its default.
DENSE = Plan()


@dataclass(frozen=True)
class Draft:
    """What was asked of a network so far, in any order of names; requests may still exclude each other.

    Attributes:
        structure: the dense network.
        round_to: the target's multiple for channel counts and ranks.
        drops, cuts, ranks, masks, codebooks, bits, order, reconstruction, schedule, distillation, quantizer,
            architecture: as of
            `Plan`.
    """

    structure: Structure
    round_to: int
    drops: tuple[BlockDrop, ...] = ()
    cuts: tuple[ChannelCut, ...] = ()
    ranks: tuple[LowRank, ...] = ()
    masks: tuple[WeightMask, ...] = ()
    codebooks: tuple[Codebook, ...] = ()
    bits: tuple[LayerBits, ...] = ()
    order: Order = "cut-mask"
    reconstruction: Reconstruction = DENSE.reconstruction
    schedule: Schedule = DENSE.schedule
    distillation: Distillation = DENSE.distillation
    quantizer: Quantizer = DENSE.quantizer
    architecture: Architecture | None = None

    @cached_property
    def gone(self) -> frozenset[str]:
        """Names of the layers inside the blocks that are left out; all, if another network is built."""
        if self.architecture is not None:
            return frozenset(layer.name for layer in self.structure.layers)
        return frozenset(name for drop in self.drops for name in self.structure.block(drop.block).layers)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Layer name -> shape of its weight after the cuts."""
        return self.structure.shapes((cut.group, cut.keep) for cut in self.cuts)

    def lives(self, group: Group) -> bool:
        """Whether a layer of the group is left; one without a record, as inside attention, is known by its name."""
        if self.architecture is not None:
            return False
        inside = tuple(f"{drop.block}." for drop in self.drops)
        return not all(name in self.gone or name.startswith(inside) for name in group.layers)

    def plan(self) -> Plan:
        """The physical plan.

        A block inside one that is left out is left out with it. Whatever is asked of layers that are gone has no
        effect. A factorized layer has neither mask nor codebook, for its weight is gone; a layer with a codebook stays
        at floats, for it is stored as indices into them. Of a network that is built instead nothing else is asked.
        Settings without effect become the defaults; see `effective`.
        """
        if self.architecture is not None:
            return effective(
                Plan(architecture=self.architecture, distillation=self.distillation, quantizer=self.quantizer)
            )
        factorized = {entry.layer for entry in self.ranks} - self.gone
        outer = outermost(drop.block for drop in self.drops)
        codebooks = [c for c in self.codebooks if c.layer not in factorized | self.gone]
        shared = {entry.layer for entry in codebooks}
        return effective(
            Plan(
                drops=tuple(BlockDrop(block=name) for name in sorted(outer)),
                cuts=tuple(sorted((c for c in self.cuts if self._cuttable(c)), key=lambda c: c.group)),
                ranks=tuple(sorted((r for r in self.ranks if r.layer not in self.gone), key=lambda r: r.layer)),
                masks=tuple(
                    sorted((m for m in self.masks if m.layer not in factorized | self.gone), key=lambda m: m.layer)
                ),
                codebooks=tuple(sorted(codebooks, key=lambda c: c.layer)),
                bits=tuple(sorted((b for b in self.bits if b.layer not in shared | self.gone), key=lambda b: b.layer)),
                order=self.order,
                reconstruction=self.reconstruction,
                schedule=self.schedule,
                distillation=self.distillation,
                quantizer=self.quantizer,
            )
        )

    def _cuttable(self, cut: ChannelCut) -> bool:
        return self.lives(self.structure.group(cut.group))


def outermost(blocks: Iterable[str]) -> frozenset[str]:
    """Names that lie in no other of the names.

    Examples:
        >>> sorted(outermost(["body", "body.1", "bodywork"]))
        ['body', 'bodywork']
    """
    names = frozenset(blocks)
    return frozenset(n for n in names if not any(n.startswith(f"{other}.") for other in names))


def effective(plan: Plan) -> Plan:
    """The plan with the default in place of each setting that changes nothing in it.

    - `order`: without both cuts and masks;
    - `reconstruction`: without cuts, or where the weights are drawn anew after them;
    - `quantizer`: without integers; its `ranges`, unless training is aware; its `calibrator`, if no activations are
      quantized;
    - `schedule`: without masks; an iterative one without masks and cuts, one from scratch without any training; of a
      network that is built, which always is from scratch;
    - `distillation`: without training.
    """
    built = plan.architecture
    quantized: list[LayerBits | Architecture] = [*plan.bits, *([built] if built is not None else [])]
    integer = [entry for entry in quantized if entry.bits < 16]
    quantizer = DENSE.quantizer
    if integer:
        quantizer = Quantizer(
            training=plan.quantizer.training,
            ranges=plan.quantizer.ranges if plan.quantizer.training == "aware" else quantizer.ranges,
            calibrator=quantizer.calibrator if all(e.weights_only for e in integer) else plan.quantizer.calibrator,
        )
    settled = plan.model_copy(update={"quantizer": quantizer})
    match plan.schedule:
        case FromScratch():
            scheduled = settled.trains and built is None
        case Iterative():
            scheduled = bool(plan.masks or plan.cuts)
        case _:
            scheduled = bool(plan.masks)
    anew = scheduled and starts_untrained(plan)
    return settled.model_copy(
        update={
            "order": plan.order if plan.cuts and plan.masks else "cut-mask",
            "reconstruction": plan.reconstruction if plan.cuts and not anew else DENSE.reconstruction,
            "schedule": plan.schedule if scheduled else DENSE.schedule,
            "distillation": plan.distillation if settled.trains else DENSE.distillation,
        }
    )
