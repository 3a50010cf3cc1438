"""The joint space of one network: from sampled parameters to a physical plan, and back."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from autocompress.errors import ConfigError, InfeasibleError
from autocompress.records import Allocation, Criterion, ParamValue, Plan, Strategy, Structure
from autocompress.space.allocation import AllocationKnob, allocation_knob
from autocompress.space.architecture import ArchitectureKnob, architecture_knob
from autocompress.space.bits import BitsKnob, BitsUnit, bits_knob
from autocompress.space.choices import GroupChoice, group_choices
from autocompress.space.codebooks import CodebookKnob, codebook_knob
from autocompress.space.config import SpaceConfig
from autocompress.space.depth import DepthKnob, depth_knob
from autocompress.space.draft import Draft
from autocompress.space.explain import nearest
from autocompress.space.grid import grid_of
from autocompress.space.groups import GroupKnob
from autocompress.space.knob import Knob, Uniform
from autocompress.space.names import check_patterns
from autocompress.space.params import Params, Suggester
from autocompress.space.ranks import RankKnob, rank_knob
from autocompress.space.training import Possible, SettingKnob, setting_knobs

__all__ = ["Params", "Space", "Suggester", "resolve"]

#: Uniform sparsities that a search starts from; each is moved to the nearest that the space has.
SEED_SPARSITIES = (0.0, 0.25, 0.5, 0.75)
#: Seeds at most.
MAX_SEEDS = 16


@dataclass(frozen=True)
class Space:
    """What may be searched in one network; made by `resolve`.

    It is made of knobs, one for each kind of choice, which are turned in order: another architecture, blocks, the
    allocation, the groups' channels and masks, ranks, codebooks, bits, then the settings of training. Each knob's class
    documents its parameters. A parameter with one choice is neither suggested nor needed, nor is one that has no effect
    after those before it.

    Attributes:
        config: the space's file.
        structure: the network.
        round_to: the target's multiple for channel counts and ranks.
        depth: blocks that may be left out.
        allocation: widths of all groups by one share.
        pruning: global width, channels and masks of groups.
        ranks: factorized layers.
        codebooks: weights that share values.
        quantization: bits.
        settings: schedule, distillation, quantizer, reconstruction and order, as far as they are searched.
        architecture: a smaller network that may be built instead.
    """

    config: SpaceConfig
    structure: Structure
    round_to: int
    depth: DepthKnob
    allocation: AllocationKnob
    pruning: GroupKnob
    ranks: RankKnob
    codebooks: CodebookKnob
    quantization: BitsKnob
    settings: tuple[SettingKnob, ...]
    architecture: ArchitectureKnob = field(default_factory=ArchitectureKnob)

    @property
    def knobs(self) -> tuple[Knob, ...]:
        """In the order in which they are turned."""
        kinds = (self.depth, self.allocation, self.pruning, self.ranks, self.codebooks, self.quantization)
        return (self.architecture, *kinds, *self.settings)

    def _left(self, draft: Draft) -> Iterator[Knob]:
        """The knobs behind the first that can have an effect: of a network that is built, the settings of training."""
        yield from self.settings if draft.architecture is not None else self.knobs[1:]

    @property
    def groups(self) -> tuple[GroupChoice, ...]:
        """What is open for each group."""
        return self.pruning.choices

    @property
    def units(self) -> tuple[BitsUnit, ...]:
        """What is open for each set of layers that share their bits."""
        return self.quantization.units

    def suggest(self, trial: Suggester) -> Params:
        """One point of the space. A parameter is asked for only if what was chosen before leaves it an effect.

        Args:
            trial: proposes each value.
        """
        params = self.architecture.suggest(trial, self._empty)
        draft = self.architecture.apply(params, self._empty)
        for knob in self._left(draft):
            params |= knob.suggest(trial, draft)
            draft = knob.apply(params, draft)
        return params

    def plan(self, params: Mapping[str, ParamValue]) -> Plan:
        """The physical request that parameters stand for; whatever has no effect is left out.

        What knobs ask for on the way to it is said in their classes, what excludes what in `Draft.plan`.

        Args:
            params: as `suggest` returns them. A sparsity may be any number in [0, 1), a width or rank any in (0, 1].

        Raises:
            InfeasibleError: a parameter is missing, unknown or out of range.
        """
        known = frozenset[str]().union(*(knob.keys() for knob in self.knobs))
        for key in params:
            if key not in known:
                raise InfeasibleError(
                    f"{key}: expected a parameter of this space, got an unknown one{nearest(key, known)}"
                )
        draft = self.architecture.apply(params, self._empty)
        for knob in self._left(draft):
            draft = knob.apply(params, draft)
        return draft.plan()

    def params(self, plan: Plan) -> Params:
        """Parameters that mean `plan`: ``space.plan(space.params(plan)) == plan``.

        Values on the space's own grid are preferred; otherwise the simplest fraction is taken.

        Raises:
            InfeasibleError: the plan is not one of this space.
        """
        params = self.architecture.invert(plan, self._empty)
        draft = self.architecture.apply(params, self._empty)
        try:
            for knob in self._left(draft):
                params |= knob.invert(plan, draft)
                draft = knob.apply(params, draft)
        except KeyError as error:
            raise InfeasibleError(f"plan {plan.key}: expected a plan of this network, got one with {error}") from error
        if draft.plan() != plan:
            raise InfeasibleError(f"plan {plan.key}: expected a plan of this space, got one that it cannot express")
        return params

    def dense(self) -> Params:
        """The dense network, or what is nearest to it in a space that always compresses."""
        return self.uniform(sparsity=0.0, bits=32)

    def uniform(
        self, *, sparsity: float, bits: int, strategy: Strategy = "structured", criterion: Criterion = "magnitude"
    ) -> Params:
        """The same request for every group and layer, moved to the nearest that each may have; the rest stays dense.

        In a space that searches the global width alone, `sparsity` is taken off the width.

        Args:
            sparsity: share to remove, in [0, 1).
            bits: bit width.
            strategy: preferred one; the first that is open replaces one that is not.
            criterion: likewise.

        Returns:
            Parameters on the space's grid.
        """
        request = Uniform(sparsity, bits, strategy, criterion)
        params: Params = {}
        for knob in self.knobs:
            params |= knob.uniform(request)
        return params

    def seeds(self) -> list[tuple[str, Params]]:
        """At most `MAX_SEEDS` points to start from, with distinct plans, the most useful first.

        Dense; uniform ones at 8 bits; a mild setting of each other kind of choice, as half of the blocks or half of the
        rank; uniform ones at the most bits; then every other bit width without anything else.

        Returns:
            Pairs of a name, such as ``"uniform-0.50-8bit"``, and parameters. Names say what was asked of every group.
        """
        dense = self.dense()
        points = [("dense" if self.plan(dense).is_dense else "lightest", dense)]
        offered = sorted({bits for unit in self.units for bits in unit.choices} or {32})
        first = min(offered, key=lambda bits: (abs(bits - 8), bits))
        mild = [(name, dense | change) for knob in self.knobs for name, change in knob.mild()]
        points += [*self._uniforms(first), *mild, *self._uniforms(offered[-1])]
        points += [point for bits in offered for point in self._uniforms(bits)[:1]]
        found: dict[Plan, tuple[str, Params]] = {}
        for name, params in points:
            found.setdefault(self.plan(params), (name, params))
        return list(found.values())[:MAX_SEEDS]

    def _uniforms(self, bits: int) -> list[tuple[str, Params]]:
        found = []
        for asked in SEED_SPARSITIES:
            sparsity = self.allocation.typical(asked) if self.allocation.rows else self.pruning.typical(asked)
            found.append((f"uniform-{sparsity:.2f}-{bits}bit", self.uniform(sparsity=sparsity, bits=bits)))
        return found

    def size(self) -> float:
        """log10 of the number of configurations, before those that mean the same plan are counted once."""
        dense = sum(knob.log10_size() for knob in self.knobs[1:])
        built = len(self.architecture.architectures) * math.prod(10 ** knob.log10_size() for knob in self.settings)
        return dense + math.log10(1 + built * 10**-dense)

    def describe(self) -> str:
        """The space in words, one line for each kind of choice."""
        lines = [f"about 10^{self.size():.1f} configurations, channels in multiples of {self.round_to}"]
        return "\n".join(lines + [line for knob in self.knobs for line in knob.describe()])

    @property
    def _empty(self) -> Draft:
        return Draft(self.structure, self.round_to)


def resolve(
    config: SpaceConfig,
    structure: Structure,
    *,
    round_to: int,
    bits: tuple[int, ...],
    allocations: Sequence[Allocation] = (),
) -> Space:
    """Lay a space over a network.

    Args:
        config: the space's file.
        structure: what was found in the network.
        round_to: multiple that the target's channel counts are rounded to, >= 1.
        bits: bit widths that the target supports.
        allocations: what the shares of the space's `allocation` give in this network; weights tell, so that whoever
            has the network computes them. A share without one is left out.

    Raises:
        ConfigError: nothing can be searched, a bit width that the target lacks, a pattern that matches nothing, or a
            choice that the network cannot have.
    """
    if round_to < 1:
        raise ConfigError(f"space: round_to: expected an integer >= 1, got {round_to}")
    check_patterns(config, structure)
    width = config.width
    groups = group_choices(config, structure)
    widths = grid_of(width.low, width.high, width.step) if width is not None and groups else ()
    pruning = GroupKnob(width if groups else None, widths, groups)
    depth = depth_knob(config, structure)
    allocation = allocation_knob(config, structure, allocations)
    ranks = rank_knob(config, structure)
    codebooks = codebook_knob(config, structure)
    quantization = bits_knob(config, structure, bits)
    architecture = architecture_knob(config, structure, bits)
    possible = Possible(
        drops=bool(depth.droppable),
        cuts=bool(widths or allocation.rows) or any("structured" in choice.strategy for choice in groups),
        ranks=bool(ranks.units),
        masks=any("unstructured" in choice.strategy for choice in groups),
        codebooks=bool(codebooks.units),
        integers=any(b < 16 for unit in quantization.units for b in unit.choices),
        built=architecture.open,
    )
    settings = setting_knobs(config, possible)
    space = Space(
        config, structure, round_to, depth, allocation, pruning, ranks, codebooks, quantization, settings, architecture
    )
    if space.size() == 0:
        raise ConfigError(
            "space: expected at least two configurations for this network, got one; it has "
            f"{len(structure.groups)} prunable groups and {len(structure.layers)} layers with weights: "
            "open more choices"
        )
    return space
