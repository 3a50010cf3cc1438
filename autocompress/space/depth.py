"""Depth: which blocks are left out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from autocompress.errors import ConfigError, InfeasibleError
from autocompress.records import BlockDrop, ParamValue, Plan, Structure
from autocompress.space.config import SpaceConfig
from autocompress.space.draft import Draft, outermost
from autocompress.space.knob import Uniform, plural
from autocompress.space.names import selected
from autocompress.space.options import BlockChoice
from autocompress.space.params import Params, Suggester, read_choice


@dataclass(frozen=True)
class DepthKnob:
    """``block/<name>``, ``keep`` or ``drop``; and ``blocks``, how many may go, where that has a limit.

    With a limit, the number is asked for first and blocks only until it is reached, so that every answer is feasible
    and few blocks are as likely as many.

    Attributes:
        choices: pairs of a block's name and what is open for it, in the structure's order.
        limit: blocks that may be left out at most; None if all may.
    """

    choices: tuple[tuple[str, tuple[BlockChoice, ...]], ...]
    limit: int | None = None

    def keys(self) -> frozenset[str]:
        """Names of all parameters."""
        return frozenset({f"block/{name}" for name, _ in self.choices} | ({"blocks"} if self._limited else set()))

    @property
    def forced(self) -> tuple[str, ...]:
        """Blocks that are always left out."""
        return tuple(name for name, offered in self.choices if offered == ("drop",))

    @property
    def droppable(self) -> tuple[str, ...]:
        """Blocks that may be left out."""
        return tuple(name for name, offered in self.choices if "drop" in offered)

    @property
    def _limited(self) -> bool:
        return self.limit is not None and self.limit < len(self.droppable)

    def suggest(self, trial: Suggester, draft: Draft) -> Params:
        """Blocks inside one that is left out are not asked for."""
        params: Params = {}
        allowed = len(self.choices)
        if self._limited and self.limit is not None:
            allowed = self.limit
            if allowed > len(self.forced):
                allowed = int(trial.suggest_int("blocks", len(self.forced), allowed))
                params["blocks"] = allowed
        dropped = list(self.forced)
        for name, offered in self.choices:
            if len(offered) == 1 or len(dropped) >= allowed or _inside(name, dropped):
                continue
            value = str(trial.suggest_categorical(f"block/{name}", list(offered)))
            params[f"block/{name}"] = value
            if value == "drop":
                dropped.append(name)
        return params

    def apply(self, params: Mapping[str, ParamValue], draft: Draft) -> Draft:
        """Adds drops."""
        dropped = [*self.forced, *(n for n, o in self.choices if len(o) > 1 and params.get(f"block/{n}") == "drop")]
        allowed = self._allowed(params)
        if len(outermost(dropped)) > allowed:
            raise InfeasibleError(
                f"blocks: expected at most {allowed} blocks left out, got {len(dropped)} ({', '.join(dropped)})"
            )
        for name, offered in self.choices:
            key = f"block/{name}"
            unasked = len(dropped) >= allowed or _inside(name, dropped)
            if key in params or not unasked:
                read_choice(params, key, offered)
        return replace(draft, drops=draft.drops + tuple(BlockDrop(block=name) for name in sorted(set(dropped))))

    def _allowed(self, params: Mapping[str, ParamValue]) -> int:
        if not self._limited or self.limit is None:
            return len(self.choices)
        counts = tuple(range(len(self.forced), self.limit + 1))
        return int(read_choice(params, "blocks", counts))

    def invert(self, plan: Plan, draft: Draft) -> Params:
        """The names of the plan's drops."""
        wanted = {drop.block for drop in plan.drops}
        unknown = sorted(wanted.difference(self.droppable))
        if unknown:
            raise InfeasibleError(f"plan.drops: expected a block that this space may leave out, got {unknown[0]!r}")
        params: Params = {}
        if self._limited and self.limit is not None:
            if len(wanted) > self.limit:
                raise InfeasibleError(f"plan.drops: expected at most {self.limit} blocks left out, got {len(wanted)}")
            params["blocks"] = max(len(wanted), len(self.forced))
        for name, offered in self.choices:
            if len(offered) > 1:
                params[f"block/{name}"] = "drop" if name in wanted else "keep"
        return params

    def uniform(self, request: Uniform) -> Params:
        """Every block that may stay stays."""
        params: Params = {f"block/{name}": "keep" for name, offered in self.choices if len(offered) > 1}
        return params | ({"blocks": len(self.forced)} if self._limited else {})

    def mild(self) -> list[tuple[str, Params]]:
        """Half of the blocks that may be left out: every second one, as far as the limit allows."""
        names = sorted(outermost(self.droppable), key=self.droppable.index)
        free = [name for name in names[1::2] or names if name not in self.forced]
        if self._limited and self.limit is not None:
            free = free[: self.limit - len(self.forced)]
        if not free:
            return []
        params: Params = {f"block/{name}": "drop" for name in free}
        if self._limited:
            params["blocks"] = len(free) + len(self.forced)
        return [("depth-half", params)]

    def log10_size(self) -> float:
        """log10 of the number of settings."""
        free = len(self.droppable) - len(self.forced)
        most = free if self.limit is None else min(free, self.limit - len(self.forced))
        return math.log10(sum(math.comb(free, count) for count in range(most + 1)))

    def describe(self) -> list[str]:
        """How many may be left out."""
        if not self.droppable:
            return []
        limit = f", at most {self.limit}" if self._limited else ""
        always = f", {len(self.forced)} always" if self.forced else ""
        return [f"{plural(len(self.droppable), 'block')}: may be left out{limit}{always}"]


def depth_knob(config: SpaceConfig, structure: Structure) -> DepthKnob:
    """The knob for a network.

    Raises:
        ConfigError: blocks are searched in a network that has none, or more are left out for good than may be.
    """
    default: tuple[BlockChoice, ...] = config.blocks.choices if config.blocks else ("keep",)
    if config.blocks is not None and not structure.blocks:
        raise ConfigError(
            "space: blocks: expected a network with blocks whose output has the shape of their input, got one without; "
            "remove the key"
        )
    choices = []
    for block in structure.blocks:
        if not selected(config, block.name):
            continue
        offered = default
        for override in config.overrides:
            if override.block is not None and fnmatchcase(block.name, override.match):
                offered = override.block
        if offered != ("keep",):
            choices.append((block.name, offered))
    knob = DepthKnob(tuple(choices), config.blocks.max if config.blocks else None)
    if knob.limit is not None and len(knob.forced) > knob.limit:
        raise ConfigError(
            f"space: blocks.max: expected at least the {len(knob.forced)} blocks that overrides always leave out, "
            f"got {knob.limit}"
        )
    return knob


def _inside(name: str, blocks: list[str]) -> bool:
    return any(name.startswith(f"{block}.") for block in blocks)
