"""Which names of a network a space's patterns choose, and which names share a choice."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Generic, TypeVar

from autocompress.errors import ConfigError
from autocompress.records import Layer, Structure
from autocompress.space.config import SpaceConfig
from autocompress.space.explain import nearest
from autocompress.space.options import Override, Per

OfferT = TypeVar("OfferT")


@dataclass(frozen=True)
class Unit(Generic[OfferT]):
    """Layers that share one choice.

    Attributes:
        key: the parameter: ``"<kind>/<name>"``, or ``"<kind>"`` for one choice of the whole model.
        layers: never empty, in the structure's order.
        offer: what is open.
    """

    key: str
    layers: tuple[Layer, ...]
    offer: OfferT

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the layers."""
        return tuple(layer.name for layer in self.layers)

    @property
    def suffix(self) -> str:
        """The key without its kind: ``"/<name>"`` or nothing."""
        return self.key[self.key.index("/") :] if "/" in self.key else ""


def units(
    config: SpaceConfig,
    layers: Iterable[Layer],
    kind: str,
    per: Per,
    default: OfferT,
    change: Callable[[Override, OfferT], OfferT],
) -> tuple[Unit[OfferT], ...]:
    """The sets of layers that share one choice, in the structure's order.

    Args:
        config: the space, for its patterns and overrides.
        layers: those that may have the choice.
        kind: of choice, which parameters are named after.
        per: what shares one.
        default: what is open without overrides.
        change: what an override that matches makes of an offer.
    """
    members: dict[str, list[Layer]] = {}
    offers: dict[str, OfferT] = {}
    for layer in layers:
        if not selected(config, layer.name):
            continue
        name = shared_name(layer, per)
        offer = default
        for override in config.overrides:
            if fnmatchcase(name, override.match):
                offer = change(override, offer)
        key = kind if per == "model" and offer == default else f"{kind}/{name}"
        members.setdefault(key, []).append(layer)
        offers[key] = offer
    return tuple(Unit(key, tuple(found), offers[key]) for key, found in members.items())


def shared_name(layer: Layer, per: Per) -> str:
    """The name that a choice of the layer goes by: of its group where groups share, else its own."""
    return (layer.group or layer.name) if per == "group" else layer.name


def selected(config: SpaceConfig, name: str) -> bool:
    """Whether a name is included and not excluded."""

    def matches(patterns: tuple[str, ...]) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in patterns)

    return matches(config.include) and not matches(config.exclude)


def check_patterns(config: SpaceConfig, structure: Structure) -> None:
    """Refuse a pattern that matches nothing: most likely it is misspelt.

    Raises:
        ConfigError: naming the pattern, and the nearest name.
    """
    groups = [group.name for group in structure.groups]
    layers = [layer.name for layer in structure.layers]
    blocks = [block.name for block in structure.blocks]
    names = list(dict.fromkeys([*groups, *layers, *blocks]))
    everything = "group, layer or block" if blocks else "group or layer"
    checks = [(f"include[{i}]", p, names, everything) for i, p in enumerate(config.include)]
    checks += [(f"exclude[{i}]", p, names, everything) for i, p in enumerate(config.exclude)]
    for i, override in enumerate(config.overrides):
        checks.append((f"overrides[{i}].match", override.match, *_overridable(config, override, structure)))
    for key, pattern, known, what in checks:
        if not any(fnmatchcase(name, pattern) for name in known):
            raise ConfigError(f"space: {key}: {unmatched(pattern, known, what)}")


def unmatched(pattern: str, known: list[str], what: str) -> str:
    """``"expected a pattern that matches a layer of the network (a, b), got 'c'"``."""
    shown = ", ".join(known[:8]) + (", ..." if len(known) > 8 else "")
    return (
        f"expected a pattern that matches a {what} of the network ({shown or 'it has none'}), "
        f"got {pattern!r}{nearest(pattern, known)}"
    )


def _overridable(config: SpaceConfig, override: Override, structure: Structure) -> tuple[list[str], str]:
    """Names that an override may match by what it changes, and what they are."""
    names: dict[str, None] = {}
    kinds = []
    if override.changes_groups:
        names |= dict.fromkeys(group.name for group in structure.groups)
        kinds.append("group")
    layers = config.layers
    for changed, part in (
        (override.bits or override.weights, layers.bits),
        (override.rank, layers.rank),
        (override.clusters, layers.codebook),
    ):
        if changed:
            names |= dict.fromkeys(shared_name(layer, part.per if part else "layer") for layer in structure.layers)
            kinds.append("layer")
    if override.block:
        names |= dict.fromkeys(block.name for block in structure.blocks)
        kinds.append("block")
    return list(names), " or ".join(dict.fromkeys(kinds))
