"""Weights that share values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod

from autocompress.errors import InfeasibleError
from autocompress.records import Codebook, ParamValue, Plan, Structure
from autocompress.space.config import SpaceConfig
from autocompress.space.draft import Draft
from autocompress.space.knob import Uniform, plural
from autocompress.space.names import Unit, units
from autocompress.space.params import Params, Suggester, read_choice

Clusters = tuple[int | str, ...]


@dataclass(frozen=True)
class CodebookKnob:
    """``codebook/<layer>`` (or of a group, or ``codebook``): how many values the weights share, or ``none``.

    Attributes:
        units: layers with one choice; never only ``none``.
    """

    units: tuple[Unit[Clusters], ...]

    def keys(self) -> frozenset[str]:
        """Names of all parameters."""
        return frozenset(unit.key for unit in self.units)

    def suggest(self, trial: Suggester, draft: Draft) -> Params:
        """A unit is asked for only if a layer of it is left and not factorized."""
        params: Params = {}
        for unit in self.units:
            if len(unit.offer) > 1 and _live(unit, draft):
                params[unit.key] = trial.suggest_categorical(unit.key, list(unit.offer))
        return params

    def apply(self, params: Mapping[str, ParamValue], draft: Draft) -> Draft:
        """Adds codebooks, where a layer has more weights than values."""
        found = [
            entry
            for unit in self.units
            if _live(unit, draft)
            for entry in _entries(unit, read_choice(params, unit.key, unit.offer), draft)
        ]
        return replace(draft, codebooks=draft.codebooks + tuple(found))

    def invert(self, plan: Plan, draft: Draft) -> Params:
        """The first choice, ``none`` before others, that gives every layer of a unit what the plan has."""
        known = {name for unit in self.units for name in unit.names}
        for entry in plan.codebooks:
            if entry.layer not in known:
                raise InfeasibleError(f"plan.codebooks: expected a layer that this space searches, got {entry.layer!r}")
        params: Params = {}
        for unit in self.units:
            if not _live(unit, draft):
                continue
            wanted = {entry for entry in plan.codebooks if entry.layer in unit.names}
            offered = sorted(unit.offer, key=lambda clusters: clusters != "none")
            fitting = [c for c in offered if set(_entries(unit, c, draft)) == wanted]
            if not fitting:
                raise InfeasibleError(
                    f"{unit.key}: expected one number of clusters out of {list(unit.offer)} for {list(unit.names)}, "
                    f"got {sorted({entry.clusters for entry in wanted}) or 'none'}"
                )
            params[unit.key] = fitting[0]
        return params

    def uniform(self, request: Uniform) -> Params:
        """No codebook, else as many values as may be."""
        return {unit.key: "none" if "none" in unit.offer else max(_numbers(unit)) for unit in self.units}

    def mild(self) -> list[tuple[str, Params]]:
        """As many values as may be, in every layer."""
        most = [max(_numbers(unit)) for unit in self.units]
        if not most:
            return []
        return [(f"codebook-{max(most)}", {u.key: n for u, n in zip(self.units, most, strict=True)})]

    def log10_size(self) -> float:
        """log10 of the number of settings."""
        return sum(math.log10(len(unit.offer)) for unit in self.units)

    def describe(self) -> list[str]:
        """Units with the same choices together."""
        kinds: dict[Clusters, int] = {}
        for unit in self.units:
            kinds[unit.offer] = kinds.get(unit.offer, 0) + len(unit.layers)
        return [f"{plural(n, 'layer')}: codebook of {'/'.join(map(str, offer))}" for offer, n in kinds.items()]


def codebook_knob(config: SpaceConfig, structure: Structure) -> CodebookKnob:
    """The knob for a network."""
    part = config.layers.codebook
    found = units(
        config,
        structure.layers,
        "codebook",
        part.per if part else "layer",
        part.clusters if part else ("none",),
        lambda override, offer: override.clusters or offer,
    )
    return CodebookKnob(tuple(unit for unit in found if unit.offer != ("none",)))


def _numbers(unit: Unit[Clusters]) -> list[int]:
    return [clusters for clusters in unit.offer if isinstance(clusters, int)]


def _free(unit: Unit[Clusters], draft: Draft) -> list[str]:
    factorized = {entry.layer for entry in draft.ranks}
    return [name for name in unit.names if name not in draft.gone and name not in factorized]


def _live(unit: Unit[Clusters], draft: Draft) -> bool:
    return bool(_free(unit, draft))


def _entries(unit: Unit[Clusters], clusters: int | str, draft: Draft) -> list[Codebook]:
    if not isinstance(clusters, int):
        return []
    names = [name for name in _free(unit, draft) if prod(draft.shapes[name]) > clusters]
    return [Codebook(layer=name, clusters=clusters) for name in names]
