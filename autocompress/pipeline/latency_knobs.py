"""Which choices of a space cannot change an objective: found by turning each alone and looking at the plan."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from autocompress.errors import InfeasibleError
from autocompress.pipeline.latency_built import PlanOutlines
from autocompress.pipeline.latency_outline import Outlines
from autocompress.records import ParamValue, Plan
from autocompress.rng import derive_seed
from autocompress.space.draws import Tilted
from autocompress.space.params import Params
from autocompress.space.space import Space

#: What an objective sees of a plan: two plans of which it sees the same have the same value.
View = Callable[[Plan], Hashable]
#: Networks in which each choice is turned.
_SAMPLES = 24


class _Turned(Tilted):
    """Answers as before, but for one kind of parameter, which is drawn anew or has one value replaced by another."""

    def __init__(
        self,
        rng: np.random.Generator,
        before: Mapping[str, ParamValue],
        kind: str,
        swap: tuple[ParamValue, ParamValue] | None = None,
    ) -> None:
        super().__init__(rng)
        self._before, self._kind, self._swap = before, kind, swap

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None) -> float:
        """As before, or drawn."""
        return float(self._kept(name, lambda: super(_Turned, self).suggest_float(name, low, high, step=step)))

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:
        """As before, replaced, or drawn."""
        value = int(self._kept(name, lambda: super(_Turned, self).suggest_int(name, low, high, step=step)))
        return int(self._swapped(name, value, range(low, high + 1, step)))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """As before, replaced, or drawn."""
        value = self._kept(name, lambda: super(_Turned, self).suggest_categorical(name, choices))
        value = self._swapped(name, value, choices)
        return value if value in choices else super().suggest_categorical(name, choices)

    def _swapped(self, name: str, value: Any, choices: Sequence[Any]) -> Any:
        swaps = self._swap and name.partition("/")[0] == self._kind and value == self._swap[0]
        return self._swap[1] if self._swap and swaps and self._swap[1] in choices else value

    def _kept(self, name: str, draw: Callable[[], Any]) -> Any:
        turned = name.partition("/")[0] == self._kind and self._swap is None
        return self._before[name] if name in self._before and not turned else draw()


def views(outlines: Outlines | PlanOutlines | None) -> dict[str, View]:
    """Objective -> what it sees of a plan; only objectives for which that is known without building the network.

    Args:
        outlines: tell the operations that a plan runs; without them nothing is known of the latency.
    """
    found: dict[str, View] = {"macs": _shape, "parameters": _shape, "size_bytes": _file}
    if outlines is not None:
        found["latency_ms"] = outlines.of
    return found


def ineffective(
    space: Space, objectives: Sequence[str], outlines: Outlines | PlanOutlines | None, *, seed: int
) -> dict[str, tuple[str, ...]]:
    """Objective -> the choices that cannot change it, as ``"schedule"``, or ``"bits=4 (as 8)"`` for one of several.

    Args:
        space: what may be searched.
        objectives: what is asked about.
        outlines: see `views`.
        seed: of the networks in which each choice is turned.
    """
    rng = np.random.default_rng(derive_seed(seed, "ineffective"))
    samples = [space.suggest(Tilted(rng)) for _ in range(_SAMPLES)]
    values: dict[str, dict[ParamValue, None]] = {}
    for params in samples:
        for key, value in params.items():
            values.setdefault(key.partition("/")[0], {}).setdefault(value)
    known = views(outlines)
    found: dict[str, tuple[str, ...]] = {}
    for objective in (name for name in objectives if name in known):
        view, names = known[objective], []
        for kind, seen in values.items():
            if not _matters(space, samples, view, partial(_Turned, rng, kind=kind)):
                names.append(kind)
                continue
            words = [value for value in seen if not isinstance(value, float)]
            names += _equal(space, samples, view, kind, words, rng)
        if names:
            found[objective] = tuple(names)
    return found


def ineffective_words(found: Mapping[str, Sequence[str]]) -> list[str]:
    """One sentence for each objective."""
    return [f"Without effect on {objective}: {', '.join(names)}." for objective, names in found.items()]


def _equal(
    space: Space,
    samples: Sequence[Params],
    view: View,
    kind: str,
    words: Sequence[ParamValue],
    rng: np.random.Generator,
) -> list[str]:
    """Choices that are like one before them."""
    names: list[str] = []
    distinct: list[ParamValue] = []
    # Dense first: what is as good as nothing is said to be so.
    for word in sorted(words, key=lambda w: (w not in ("none", "keep"), -w if isinstance(w, int) else 0, str(w))):
        for other in distinct:
            if not _matters(space, samples, view, partial(_Turned, rng, kind=kind, swap=(word, other))):
                names.append(f"{kind}={word} (as {other})")
                break
        else:
            distinct.append(word)
    return names


def _matters(space: Space, samples: Sequence[Params], view: View, turned: Callable[[Params], _Turned]) -> bool:
    """Whether the objective sees another network in any of the samples."""
    for params in samples:
        try:
            if view(space.plan(params)) != view(space.plan(space.suggest(turned(params)))):
                return True
        except InfeasibleError:
            return True  # unknown counts as an effect
    return False


def _shape(plan: Plan) -> Hashable:
    built = plan.architecture
    sizes = (built.width, built.depth) if built is not None else None
    return plan.drops, tuple((cut.group, cut.keep) for cut in plan.cuts), plan.ranks, sizes


def _file(plan: Plan) -> Hashable:
    """Shapes, and the bits that the file spends on each weight: integers below 8 bits are stored in 8."""
    stored: tuple[tuple[str, int, bool], ...] = tuple(
        (entry.layer, entry.bits if entry.weights_only or entry.bits == 16 else 8, entry.weights_only)
        for entry in plan.bits
    )
    built = plan.architecture
    if built is not None:
        whole = built.bits if built.weights_only or built.bits >= 16 else 8
        stored = (("", whole, built.weights_only),)
    return _shape(plan), stored
