"""The joint space of one network: from sampled parameters to a physical plan, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

from autocompress.errors import ConfigError, InfeasibleError
from autocompress.records import (
    ChannelCut,
    Criterion,
    LayerBits,
    ParamValue,
    Plan,
    Strategy,
    Structure,
    WeightMask,
)
from autocompress.space.choices import (
    BitsUnit,
    GroupChoice,
    bits_units,
    check_patterns,
    group_choices,
    log10_size,
)
from autocompress.space.config import SpaceConfig
from autocompress.space.explain import alternatives, nearest
from autocompress.space.grid import exact, grid_of, keep_of, nearest_value, zeros_of
from autocompress.space.inverse import Inverse, weights_after

Params = dict[str, ParamValue]

#: Uniform sparsities that a search starts from; each is moved to the nearest that the space has.
SEED_SPARSITIES = (0.0, 0.25, 0.5, 0.75)


class Suggester(Protocol):
    """What proposes values one by one; Optuna's ``Trial`` is one."""

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None) -> float:
        """A value of ``low, low + step, ..., high``."""

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:
        """A value of ``low, low + step, ..., high``."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of the choices."""


@dataclass(frozen=True)
class Space:
    """What may be searched in one network; made by `resolve`.

    Parameters are ``width``, and ``strategy/<group>``, ``criterion/<group>``, ``sparsity/<group>``, ``bits/<layer>``
    (``bits/<group>`` or ``bits`` if shared). A parameter with one choice is neither suggested nor needed.

    Attributes:
        config: the space's file.
        structure: the network.
        round_to: the target's multiple for channel counts.
        widths: global width multipliers, ascending; empty if width is not searched.
        groups: what is open for each group.
        units: what is open for each set of layers that share their bits.
    """

    config: SpaceConfig
    structure: Structure
    round_to: int
    widths: tuple[Fraction, ...]
    groups: tuple[GroupChoice, ...]
    units: tuple[BitsUnit, ...]

    def suggest(self, trial: Suggester) -> Params:
        """One point of the space. A group's criterion and sparsity are asked for only if its strategy prunes.

        Args:
            trial: proposes each value.
        """
        params: Params = {}
        width = self.config.width
        if width is not None and len(self.widths) > 1:
            params["width"] = float(trial.suggest_float("width", width.low, width.high, step=width.step))
        for choice in self.groups:
            strategy = choice.strategy[0]
            if len(choice.strategy) > 1:
                strategy = trial.suggest_categorical(f"strategy/{choice.name}", list(choice.strategy))
                params[f"strategy/{choice.name}"] = strategy
            if strategy == "none" or choice.sparsity is None:
                continue
            if len(choice.criterion) > 1:
                key = f"criterion/{choice.name}"
                params[key] = trial.suggest_categorical(key, list(choice.criterion))
            if len(choice.grid) > 1:
                key, bounds = f"sparsity/{choice.name}", choice.sparsity
                params[key] = float(trial.suggest_float(key, bounds.low, bounds.high, step=bounds.step))
        for unit in self.units:
            if len(unit.choices) > 1:
                params[unit.key] = int(trial.suggest_categorical(unit.key, list(unit.choices)))
        return params

    def plan(self, params: Mapping[str, ParamValue]) -> Plan:
        """The physical request that parameters stand for; whatever has no effect is left out.

        A group keeps the allowed channel count nearest to ``dense width * width * (1 - sparsity)``, where sparsity
        counts only if the strategy is ``structured``. Allowed are the multiples of the target's `round_to` and the
        dense width; of two equally near, the larger. A group that only the global width cuts is cut by magnitude.
        ``unstructured`` zeroes the share ``round(sparsity * n) / n`` of the n weights that each layer of the group
        has left after the cuts.

        Args:
            params: as `suggest` returns them. A sparsity may be any number in [0, 1), a width any in (0, 1].

        Raises:
            InfeasibleError: a parameter is missing, unknown or out of range.
        """
        self._check_keys(params)
        width = Fraction(1)
        if self.widths:
            width = self._number(params, "width", self.widths, zero=False)
        cuts: list[ChannelCut] = []
        masked: list[tuple[GroupChoice, Fraction, Criterion]] = []
        for choice in self.groups:
            strategy, criterion, sparsity = self._group(params, choice)
            share = width * (1 - sparsity) if strategy == "structured" else width
            keep = keep_of(choice.group.width, share, self.round_to)
            if keep < choice.group.width:
                by: Criterion = criterion if strategy == "structured" else "magnitude"
                cuts.append(ChannelCut(group=choice.name, keep=keep, criterion=by))
            if strategy == "unstructured":
                masked.append((choice, sparsity, criterion))
        weights = weights_after(self.structure, cuts)
        masks = [
            WeightMask(layer=layer.name, sparsity=zeros / weights[layer.name], criterion=criterion)
            for choice, sparsity, criterion in masked
            for layer in choice.layers
            if (zeros := zeros_of(weights[layer.name], sparsity)) > 0
        ]
        bits = [
            LayerBits(layer=layer, bits=8)
            for unit in self.units
            if self._choice(params, unit.key, unit.choices) == 8
            for layer in unit.layers
        ]
        return Plan(
            cuts=tuple(sorted(cuts, key=lambda cut: cut.group)),
            masks=tuple(sorted(masks, key=lambda mask: mask.layer)),
            bits=tuple(sorted(bits, key=lambda entry: entry.layer)),
        )

    def params(self, plan: Plan) -> Params:
        """Parameters that mean `plan`: ``space.plan(space.params(plan)) == plan``.

        Values on the space's own grid are preferred; otherwise the simplest fraction is taken.

        Raises:
            InfeasibleError: the plan is not one of this space.
        """
        params = Inverse(self.structure, self.round_to, self.widths, self.groups, self.units).params(plan)
        if self.plan(params) != plan:
            raise InfeasibleError(f"plan {plan.key}: expected a plan of this space, got one that it cannot express")
        return params

    def dense(self) -> Params:
        """The dense network, or what is nearest to it in a space that always compresses."""
        return self.uniform(sparsity=0.0, bits=32)

    def uniform(
        self, *, sparsity: float, bits: int, strategy: Strategy = "structured", criterion: Criterion = "magnitude"
    ) -> Params:
        """The same request for every group and layer, moved to the nearest that each may have.

        In a space that searches the global width alone, `sparsity` is taken off the width.

        Args:
            sparsity: share to remove, in [0, 1).
            bits: 32 or 8.
            strategy: preferred one; the first that is open replaces one that is not.
            criterion: likewise.

        Returns:
            Parameters on the space's grid.
        """
        params: Params = {}
        prunes = any(choice.pruning for choice in self.groups)
        if self.widths:
            params["width"] = float(nearest_value(1.0 if prunes else 1.0 - sparsity, self.widths))
        for choice in self.groups:
            params |= self._uniform_group(choice, sparsity, strategy, criterion)
        for unit in self.units:
            params[unit.key] = min(unit.choices, key=lambda offered: abs(offered - bits))
        return params

    def seeds(self) -> list[tuple[str, Params]]:
        """Points to start from, with distinct plans, the most useful first: dense, uniform at 8 bits, then at 32.

        Returns:
            Pairs of a name, such as ``"uniform-0.50-8bit"``, and parameters. Names say what was asked of every group.
        """
        offered = sorted({bits for unit in self.units for bits in unit.choices} or {32})
        dense = self.dense()
        found = {self.plan(dense): ("dense" if self.plan(dense).is_dense else "lightest", dense)}
        for bits in offered:
            for asked in SEED_SPARSITIES:
                sparsity = self._typical(asked)
                point = self.uniform(sparsity=sparsity, bits=bits)
                found.setdefault(self.plan(point), (f"uniform-{sparsity:.2f}-{bits}bit", point))
        return list(found.values())

    def size(self) -> float:
        """log10 of the number of configurations, before those that mean the same plan are counted once."""
        return log10_size(max(1, len(self.widths)), self.groups, self.units)

    def describe(self) -> str:
        """The space in words, one line for each kind of choice."""
        lines = [f"about 10^{self.size():.1f} configurations, channels in multiples of {self.round_to}"]
        if self.widths:
            lines.append(f"width: {float(self.widths[0]):g} to {float(self.widths[-1]):g}, {len(self.widths)} values")
        kinds: dict[str, int] = {}
        for choice in self.groups:
            words = "/".join(choice.strategy)
            if choice.sparsity is not None:
                words += (
                    f" by {'/'.join(choice.criterion)}, sparsity {choice.sparsity.low:g} to {choice.sparsity.high:g}"
                )
            kinds[words] = kinds.get(words, 0) + 1
        lines += [f"{count} group{'s' * (count != 1)}: {words}" for words, count in kinds.items()]
        layers = {unit.choices: 0 for unit in self.units}
        for unit in self.units:
            layers[unit.choices] += len(unit.layers)
        lines += [f"{n} layer{'s' * (n != 1)}: {'/'.join(map(str, bits))} bits" for bits, n in layers.items()]
        return "\n".join(lines)

    def _group(self, params: Mapping[str, ParamValue], choice: GroupChoice) -> tuple[Strategy, Criterion, Fraction]:
        strategy: Strategy = self._choice(params, f"strategy/{choice.name}", choice.strategy)
        if strategy == "none":
            return strategy, "magnitude", Fraction(0)
        criterion: Criterion = self._choice(params, f"criterion/{choice.name}", choice.criterion)
        return strategy, criterion, self._number(params, f"sparsity/{choice.name}", choice.grid, zero=True)

    def _uniform_group(self, choice: GroupChoice, sparsity: float, strategy: Strategy, criterion: Criterion) -> Params:
        shares = {*choice.grid, Fraction(0)} if "none" in choice.strategy else set(choice.grid)
        share = nearest_value(sparsity, shares) if shares else Fraction(0)
        if not choice.pruning or ("none" in choice.strategy and (share == 0 or strategy == "none")):
            return {f"strategy/{choice.name}": "none"}
        return {
            f"strategy/{choice.name}": strategy if strategy in choice.pruning else choice.pruning[0],
            f"criterion/{choice.name}": criterion if criterion in choice.criterion else choice.criterion[0],
            f"sparsity/{choice.name}": float(share),
        }

    def _typical(self, sparsity: float) -> float:
        """What most groups make of a uniform sparsity."""
        grids = [choice.grid for choice in self.groups if choice.pruning]
        if grids:
            return float(nearest_value(sparsity, {*max(grids, key=grids.count), Fraction(0)}))
        return float(1 - nearest_value(1.0 - sparsity, self.widths)) if self.widths and self.groups else 0.0

    def _check_keys(self, params: Mapping[str, ParamValue]) -> None:
        known = {"width"} if self.widths else set()
        for choice in self.groups:
            known |= {f"{part}/{choice.name}" for part in ("strategy", "criterion", "sparsity")}
        known |= {unit.key for unit in self.units}
        for key in params:
            if key not in known:
                raise InfeasibleError(
                    f"{key}: expected a parameter of this space, got an unknown one{nearest(key, known)}"
                )

    @staticmethod
    def _choice(params: Mapping[str, ParamValue], key: str, choices: tuple[Any, ...]) -> Any:
        if key not in params and len(choices) == 1:
            return choices[0]
        if params.get(key) not in choices:
            raise InfeasibleError(f"{key}: expected {alternatives(choices)}, got {params.get(key, 'nothing')!r}")
        return params[key]

    @staticmethod
    def _number(params: Mapping[str, ParamValue], key: str, grid: tuple[Fraction, ...], *, zero: bool) -> Fraction:
        if key not in params and len(grid) == 1:
            return grid[0]
        value = params.get(key)
        accepted = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not accepted or not (0 <= float(value) < 1 if zero else 0 < float(value) <= 1):  # type: ignore[arg-type]
            expected = "a number >= 0 and < 1" if zero else "a number > 0 and <= 1"
            raise InfeasibleError(f"{key}: expected {expected}, got {'nothing' if value is None else repr(value)}")
        return exact(float(value))  # type: ignore[arg-type]


def resolve(config: SpaceConfig, structure: Structure, *, round_to: int, bits: tuple[int, ...]) -> Space:
    """Lay a space over a network.

    Args:
        config: the space's file.
        structure: what was found in the network.
        round_to: multiple that the target's channel counts are rounded to, >= 1.
        bits: bit widths that the target supports.

    Raises:
        ConfigError: nothing can be searched, a bit width that the target lacks, or a pattern that matches nothing.
    """
    if round_to < 1:
        raise ConfigError(f"space: round_to: expected an integer >= 1, got {round_to}")
    check_patterns(config, structure)
    width = config.width
    widths = grid_of(width.low, width.high, width.step) if width is not None else ()
    groups = group_choices(config, structure)
    space = Space(
        config=config,
        structure=structure,
        round_to=round_to,
        widths=widths if groups else (),
        groups=groups,
        units=bits_units(config, structure, bits),
    )
    if space.size() == 0:
        raise ConfigError(
            "space: expected at least two configurations for this network, got one; it has "
            f"{len(structure.groups)} prunable groups and {len(structure.layers)} layers with weights: "
            "open more choices"
        )
    return space
