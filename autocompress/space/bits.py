"""Bits of the layers' numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from autocompress.errors import ConfigError, InfeasibleError
from autocompress.records import Layer, LayerBits, ParamValue, Plan, Structure
from autocompress.space.config import SpaceConfig
from autocompress.space.draft import Draft
from autocompress.space.knob import Uniform, plural
from autocompress.space.names import Unit, units
from autocompress.space.options import Override, WeightsChoice
from autocompress.space.params import Params, Suggester, read_choice

#: Bit widths at which weights may be quantized alone.
WEIGHTS_ONLY = (8, 4)


@dataclass(frozen=True)
class BitsOffer:
    """What is open for layers that share one choice.

    Attributes:
        choices: bit widths.
        weights: what is quantized in linear layers at the widths of `WEIGHTS_ONLY`.
    """

    choices: tuple[int, ...]
    weights: tuple[WeightsChoice, ...] = ("both",)


@dataclass(frozen=True)
class BitsUnit:
    """Layers that share one choice of bits.

    Attributes:
        unit: their names, and what is open.
    """

    unit: Unit[BitsOffer]

    @property
    def key(self) -> str:
        """The parameter, ``"bits/<name>"`` or ``"bits"``."""
        return self.unit.key

    @property
    def weights_key(self) -> str:
        """The parameter for what is quantized."""
        return f"weights{self.unit.suffix}"

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers."""
        return self.unit.names

    @property
    def choices(self) -> tuple[int, ...]:
        """Bit widths, never empty."""
        return self.unit.offer.choices

    @property
    def weights(self) -> tuple[WeightsChoice, ...]:
        """What may be quantized; no choice without linear layers or without a width that allows it."""
        alone = set(WEIGHTS_ONLY).intersection(self.choices)
        return self.unit.offer.weights if alone and any(x.kind == "linear" for x in self.unit.layers) else ("both",)

    @property
    def settings(self) -> tuple[tuple[int, WeightsChoice], ...]:
        """All pairs that mean different things, the largest bit width first."""
        pairs: list[tuple[int, WeightsChoice]] = []
        for bits in sorted(self.choices, reverse=True):
            pairs += [(bits, weights) for weights in (self.weights if bits in WEIGHTS_ONLY else self.weights[:1])]
        return tuple(pairs)

    def entries(self, bits: int, weights: WeightsChoice, draft: Draft) -> frozenset[LayerBits]:
        """What the pair means for the layers that are left and have no codebook."""
        return frozenset(
            LayerBits(
                layer=layer.name,
                bits=bits,
                weights_only=weights == "only" and layer.kind == "linear" and bits in WEIGHTS_ONLY,
            )
            for layer in self.free(draft)
            if bits < 32
        )

    def free(self, draft: Draft) -> Iterator[Layer]:
        """Layers that are left and have no codebook."""
        shared = {entry.layer for entry in draft.codebooks}
        return (x for x in self.unit.layers if x.name not in draft.gone and x.name not in shared)


@dataclass(frozen=True)
class BitsKnob:
    """``bits/<layer>`` (or of a group, or ``bits``), and ``weights/<layer>``: ``both`` or ``only``.

    Attributes:
        units: layers with one choice; never only 32.
    """

    units: tuple[BitsUnit, ...]

    def keys(self) -> frozenset[str]:
        """Names of all parameters."""
        return frozenset(key for unit in self.units for key in (unit.key, unit.weights_key))

    def suggest(self, trial: Suggester, draft: Draft) -> Params:
        """A unit is asked for only if a layer of it is left and has no codebook."""
        params: Params = {}
        for unit in self.units:
            layers = list(unit.free(draft))
            if not layers:
                continue
            bits = unit.choices[0]
            if len(unit.choices) > 1:
                bits = params[unit.key] = int(trial.suggest_categorical(unit.key, list(unit.choices)))
            if self._asks_weights(unit, bits, layers):
                params[unit.weights_key] = str(trial.suggest_categorical(unit.weights_key, list(unit.weights)))
        return params

    @staticmethod
    def _asks_weights(unit: BitsUnit, bits: int, layers: list[Layer]) -> bool:
        return len(unit.weights) > 1 and bits in WEIGHTS_ONLY and any(layer.kind == "linear" for layer in layers)

    def apply(self, params: Mapping[str, ParamValue], draft: Draft) -> Draft:
        """Adds bits."""
        found: list[LayerBits] = []
        for unit in self.units:
            layers = list(unit.free(draft))
            if not layers:
                continue
            bits = read_choice(params, unit.key, unit.choices)
            weights = unit.weights[0]
            if self._asks_weights(unit, bits, layers):
                weights = read_choice(params, unit.weights_key, unit.weights)
            found += sorted(unit.entries(bits, weights, draft), key=lambda entry: entry.layer)
        return replace(draft, bits=draft.bits + tuple(found))

    def invert(self, plan: Plan, draft: Draft) -> Params:
        """The first setting, most bits first, that gives every layer of a unit what the plan has."""
        known = {name for unit in self.units for name in unit.layers}
        for entry in plan.bits:
            if entry.layer not in known:
                raise InfeasibleError(f"plan.bits: expected a name that this space searches, got {entry.layer!r}")
        params: Params = {}
        for unit in self.units:
            layers = list(unit.free(draft))
            if not layers:
                continue
            wanted = {entry for entry in plan.bits if entry.layer in unit.layers}
            fitting = [pair for pair in unit.settings if unit.entries(*pair, draft) == wanted]
            if not fitting:
                raise InfeasibleError(
                    f"{unit.key}: expected one bit width out of {list(unit.choices)} for {list(unit.layers)}, "
                    f"got {sorted({entry.bits for entry in wanted}) or 32}"
                )
            params[unit.key] = fitting[0][0]
            if self._asks_weights(unit, fitting[0][0], layers):
                params[unit.weights_key] = fitting[0][1]
        return params

    def uniform(self, request: Uniform) -> Params:
        """The nearest bit width; weights and activations, where that is open."""
        params: Params = {}
        for unit in self.units:
            params[unit.key] = min(unit.choices, key=lambda offered: abs(offered - request.bits))
            if len(unit.weights) > 1:
                params[unit.weights_key] = "both"
        return params

    def mild(self) -> list[tuple[str, Params]]:
        """Weights alone at the fewest bits, in every linear layer that may have it."""
        params: Params = {}
        lowest = 0
        for unit in self.units:
            alone = [bits for bits in unit.choices if bits in WEIGHTS_ONLY]
            if "only" in unit.weights and alone:
                lowest = min(alone)
                params |= {unit.key: lowest, unit.weights_key: "only"}
        return [(f"weights-only-{lowest}bit", params)] if params else []

    def log10_size(self) -> float:
        """log10 of the number of settings."""
        return sum(math.log10(len(unit.settings)) for unit in self.units)

    def describe(self) -> list[str]:
        """Units with the same choices together."""
        kinds: dict[str, int] = {}
        for unit in self.units:
            words = f"{'/'.join(map(str, unit.choices))} bits"
            if unit.weights != ("both",):
                words += f", weights {'/'.join(unit.weights)}"
            kinds[words] = kinds.get(words, 0) + len(unit.layers)
        return [f"{plural(count, 'layer')}: {words}" for words, count in kinds.items()]


def bits_knob(config: SpaceConfig, structure: Structure, supported: tuple[int, ...]) -> BitsKnob:
    """The knob for a network.

    Args:
        config: the space.
        structure: the network.
        supported: bit widths of the target.

    Raises:
        ConfigError: a bit width that the target lacks.
    """
    part = config.layers.bits
    default = BitsOffer(part.choices, part.weights) if part else BitsOffer((32,))

    def change(override: Override, offer: BitsOffer) -> BitsOffer:
        return BitsOffer(override.bits or offer.choices, override.weights or offer.weights)

    found = units(config, structure.layers, "bits", part.per if part else "layer", default, change)
    for unit in found:
        for bits in unit.offer.choices:
            if bits not in supported:
                raise ConfigError(f"space: {unit.key}: expected bits out of {list(supported)}, got {bits}")
    return BitsKnob(tuple(BitsUnit(unit) for unit in found if unit.offer.choices != (32,)))
