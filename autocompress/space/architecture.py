"""A smaller network by the task's own builder, in place of the dense one: its width, depth and bits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from autocompress.errors import ConfigError, InfeasibleError
from autocompress.records import Architecture, ParamValue, Plan, Structure
from autocompress.space.bits import WEIGHTS_ONLY
from autocompress.space.config import SpaceConfig
from autocompress.space.draft import Draft
from autocompress.space.explain import alternatives
from autocompress.space.grid import exact
from autocompress.space.knob import Uniform
from autocompress.space.options import WeightsChoice
from autocompress.space.params import Params, Suggester, read_choice

#: What a plan keeps: the dense network, to be compressed, or another that is built.
_KINDS = ("dense", "built")
#: Sizes are floats of a grid; two that differ by less are the same.
_SAME = 1e-9


@dataclass(frozen=True)
class ArchitectureKnob:
    """``architecture``, ``dense`` or ``built``; and ``architecture/width``, ``/depth``, ``/bits`` and ``/weights``.

    A network that is built has layers of its own, so that no choice that speaks of the dense network's groups, layers
    and blocks has an effect on it.

    Attributes:
        widths: sizes that the builder may get as ``width``, ascending; empty if it is not asked for.
        depths: as ``depth``, likewise.
        bits: bit widths of all its layers.
        weights: what is quantized in its linear layers at the widths of `WEIGHTS_ONLY`.
    """

    widths: tuple[float, ...] = ()
    depths: tuple[float, ...] = ()
    bits: tuple[int, ...] = (32,)
    weights: tuple[WeightsChoice, ...] = ("both",)

    @property
    def open(self) -> bool:
        """Whether a network may be built at all."""
        return bool(self.widths or self.depths)

    @property
    def architectures(self) -> tuple[Architecture, ...]:
        """All networks that may be built, from large to small, each with every setting of its bits."""
        if not self.open:
            return ()
        return tuple(
            Architecture(width=width, depth=depth, bits=bits, weights_only=weights == "only")
            for width in sorted(self.widths, reverse=True) or (None,)
            for depth in sorted(self.depths, reverse=True) or (None,)
            for bits in sorted(self.bits, reverse=True)
            for weights in (self.weights if bits in WEIGHTS_ONLY else ("both",))
        )

    def keys(self) -> frozenset[str]:
        """Names of all parameters."""
        names = ("architecture", *(f"architecture/{part}" for part in ("width", "depth", "bits", "weights")))
        return frozenset(names if self.open else ())

    def suggest(self, trial: Suggester, draft: Draft) -> Params:
        """Sizes and bits are asked for only if a network is built."""
        if not self.open:
            return {}
        params: Params = {"architecture": str(trial.suggest_categorical("architecture", list(_KINDS)))}
        if params["architecture"] == "dense":
            return params
        for key, offered in self._sizes():
            if len(offered) > 1:
                params[key] = _proposed(trial, key, offered)
        bits = self.bits[0]
        if len(self.bits) > 1:
            bits = params["architecture/bits"] = int(trial.suggest_categorical("architecture/bits", list(self.bits)))
        if self._asks_weights(bits):
            weights = trial.suggest_categorical("architecture/weights", list(self.weights))
            params["architecture/weights"] = str(weights)
        return params

    def apply(self, params: Mapping[str, ParamValue], draft: Draft) -> Draft:
        """Puts a network in the place of the dense one, or none."""
        if not self.open or read_choice(params, "architecture", _KINDS) == "dense":
            return draft
        sizes = {key.partition("/")[2]: _read(params, key, offered) for key, offered in self._sizes()}
        bits = read_choice(params, "architecture/bits", self.bits)
        weights = self.weights[0] if bits in WEIGHTS_ONLY else "both"
        if self._asks_weights(bits):
            weights = read_choice(params, "architecture/weights", self.weights)
        content: dict[str, Any] = {**sizes, "bits": bits, "weights_only": weights == "only"}
        return replace(draft, architecture=Architecture(**content))

    def invert(self, plan: Plan, draft: Draft) -> Params:
        """The plan's own sizes and bits."""
        asked = plan.architecture
        if asked is None:
            return {"architecture": "dense"} if self.open else {}
        if not self.open:
            raise InfeasibleError("plan.architecture: expected none, as this space builds no network, got one")
        params: Params = {"architecture": "built"}
        for key, offered in (("width", self.widths), ("depth", self.depths)):
            size = getattr(asked, key)
            if (size is None) == bool(offered):
                wanted = f"one of {_list(offered)}" if offered else "none in this space"
                got = "none" if size is None else f"{size:g}"
                raise InfeasibleError(f"plan.architecture.{key}: expected {wanted}, got {got}")
            if size is not None:
                params[f"architecture/{key}"] = _same(f"plan.architecture.{key}", size, offered)
        weights: WeightsChoice = "only" if asked.weights_only else "both"
        if asked.bits not in self.bits:
            raise InfeasibleError(f"plan.architecture.bits: expected {alternatives(self.bits)}, got {asked.bits}")
        if asked.bits in WEIGHTS_ONLY and weights not in self.weights:
            raise InfeasibleError(
                f"plan.architecture.weights_only: expected weights out of {list(self.weights)}, got {weights!r}"
            )
        params["architecture/bits"] = asked.bits
        if self._asks_weights(asked.bits):
            params["architecture/weights"] = weights
        return params

    def uniform(self, request: Uniform) -> Params:
        """The dense network."""
        return {"architecture": "dense"} if self.open else {}

    def mild(self) -> list[tuple[str, Params]]:
        """Networks that are built near half of the width, half of the depth and half of both, at 8 bits if open."""
        if not self.open:
            return []
        bits = min(self.bits, key=lambda offered: (abs(offered - 8), offered))
        found: dict[tuple[float | None, float | None], tuple[str, Params]] = {}
        for wide, deep in ((0.5, 1.0), (1.0, 0.5), (0.5, 0.5)):
            width, depth = _towards(self.widths, wide), _towards(self.depths, deep)
            params: Params = {"architecture": "built", "architecture/bits": bits}
            params |= {} if width is None else {"architecture/width": width}
            params |= {} if depth is None else {"architecture/depth": depth}
            if self._asks_weights(bits):
                params["architecture/weights"] = self.weights[0]
            words = [f"{name}-{size:g}" for name, size in (("width", width), ("depth", depth)) if size is not None]
            found.setdefault((width, depth), (f"built-{'-'.join(words)}-{bits}bit", params))
        return list(found.values())

    def log10_size(self) -> float:
        """log10 of the number of networks that may be built, and one for the dense one; 0 if there is no choice."""
        return math.log10(1 + len(self.architectures))

    def describe(self) -> list[str]:
        """Sizes and bits."""
        if not self.open:
            return []
        sizes = [f"{key.partition('/')[2]} {_list(offered)}" for key, offered in self._sizes()]
        words = f"{'/'.join(map(str, self.bits))} bits"
        if self.weights != ("both",):
            words += f", weights {'/'.join(self.weights)}"
        return [f"or a smaller network, built and trained from fresh weights: {', '.join(sizes)}; {words}"]

    def _sizes(self) -> list[tuple[str, tuple[float, ...]]]:
        named = (("architecture/width", self.widths), ("architecture/depth", self.depths))
        return [(key, offered) for key, offered in named if offered]

    def _asks_weights(self, bits: int) -> bool:
        return len(self.weights) > 1 and bits in WEIGHTS_ONLY


def architecture_knob(config: SpaceConfig, structure: Structure, supported: tuple[int, ...]) -> ArchitectureKnob:
    """The knob for a network.

    Args:
        config: the space; the bits that it offers for layers are offered for a whole network here.
        structure: the dense network, whose kinds of layers a built one has as well.
        supported: bit widths of the target.

    Raises:
        ConfigError: a bit width that the target lacks.
    """
    part, bits = config.architecture, config.layers.bits
    if part is None:
        return ArchitectureKnob()
    choices = bits.choices if bits is not None else (32,)
    for offered in choices:
        if offered not in supported:
            raise ConfigError(f"space: architecture: expected bits out of {list(supported)}, got {offered}")
    linear = any(layer.kind == "linear" for layer in structure.layers)
    alone = bits is not None and linear and not set(WEIGHTS_ONLY).isdisjoint(choices)
    return ArchitectureKnob(
        widths=tuple(sorted(part.width or ())),
        depths=tuple(sorted(part.depth or ())),
        bits=choices,
        weights=bits.weights if bits is not None and alone else ("both",),
    )


def _proposed(trial: Suggester, key: str, offered: tuple[float, ...]) -> float:
    """A size: as a number, if all have the same distance, so that a sampler knows that they have an order."""
    steps = {exact(b) - exact(a) for a, b in pairwise(offered)}
    if len(steps) > 1:
        return float(trial.suggest_categorical(key, list(offered)))
    value = trial.suggest_float(key, offered[0], offered[-1], step=float(steps.pop()))
    return _same(key, value, offered)


def _read(params: Mapping[str, ParamValue], key: str, offered: tuple[float, ...]) -> float:
    if key not in params and len(offered) == 1:
        return offered[0]
    value = params.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        got = "nothing" if value is None else repr(value)
        raise InfeasibleError(f"{key}: expected one of {_list(offered)}, got {got}")
    return _same(key, float(value), offered)


def _same(key: str, value: float, offered: tuple[float, ...]) -> float:
    """The size that is offered and equals the value but for rounding."""
    nearest = min(offered, key=lambda size: abs(size - value))
    if not abs(nearest - value) <= _SAME * max(1.0, abs(nearest)):
        raise InfeasibleError(f"{key}: expected one of {_list(offered)}, got {value:g}")
    return nearest


def _towards(offered: tuple[float, ...], share: float) -> float | None:
    """The size nearest to a share of the largest; None if none is offered."""
    return min(offered, key=lambda size: abs(size - share * max(offered))) if offered else None


def _list(sizes: tuple[float, ...]) -> str:
    return "/".join(f"{size:g}" for size in sizes)
