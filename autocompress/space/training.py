"""How what is removed and training alternate, what the dense model teaches, and how grids are found."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from autocompress.errors import InfeasibleError
from autocompress.records import FromScratch, Iterative, ParamValue, Plan, Quantizer, Record
from autocompress.space.config import SpaceConfig
from autocompress.space.draft import Draft
from autocompress.space.explain import alternatives
from autocompress.space.knob import Uniform
from autocompress.space.params import Params, Suggester, read_choice

Field = Literal["order", "reconstruction", "quantizer", "schedule", "distillation"]
#: The order in which they are turned: whether the last two matter depends on the quantizer and the schedule.
FIELDS: tuple[Field, ...] = ("order", "quantizer", "schedule", "reconstruction", "distillation")
_NEEDS: dict[Field, str] = {
    "order": "needs both cuts and masks",
    "reconstruction": "needs channels that are cut, and weights that are not drawn anew",
    "quantizer": "needs integers: bits of 8 and below",
    "schedule": "needs weights set to zero, iterative also channels that are cut",
    "distillation": "needs something that is trained for: more than bits, or a quantizer that trains",
}


@dataclass(frozen=True)
class SettingKnob:
    """``schedule``, ``distillation``, ``quantizer``, ``reconstruction`` or ``order``: one of a few settings.

    A word is the kind, with whatever is not the default behind it: ``"gradual"``, ``"gradual(end=0.9)"``.

    Attributes:
        field: of the plan.
        settings: what is open, never empty.
        possible: whether any plan of the space is changed by it.
    """

    field: Field
    settings: tuple[Any, ...]
    possible: bool

    @property
    def words(self) -> tuple[str, ...]:
        """The settings' names."""
        return tuple(setting_words(setting) for setting in self.settings)

    def keys(self) -> frozenset[str]:
        """The field's name."""
        return frozenset({self.field})

    def suggest(self, trial: Suggester, draft: Draft) -> Params:
        """Asked for only if it makes a difference."""
        if self._without_effect(draft):
            return {}
        return {self.field: str(trial.suggest_categorical(self.field, list(self.words)))}

    def _without_effect(self, draft: Draft) -> bool:
        return len({self._reached(draft, setting) for setting in self.settings}) == 1

    def _reached(self, draft: Draft, setting: Any) -> Any:
        return getattr(self._set(draft, setting).plan(), self.field)

    def _set(self, draft: Draft, setting: Any) -> Draft:
        return replace(draft, **{self.field: setting})

    def apply(self, params: Mapping[str, ParamValue], draft: Draft) -> Draft:
        """Sets the field."""
        setting = self.settings[0]
        if self.field in params or not self._without_effect(draft):
            setting = self.settings[self.words.index(read_choice(params, self.field, self.words))]
        return self._set(draft, setting)

    def invert(self, plan: Plan, draft: Draft) -> Params:
        """The first setting that gives what the plan has; none is needed if all do."""
        wanted = getattr(plan, self.field)
        fitting = [s for s in self.settings if self._reached(draft, s) == wanted]
        if not fitting:
            raise InfeasibleError(
                f"plan.{self.field}: expected {alternatives(self.words)}, got {setting_words(wanted)!r}"
            )
        return {} if len(fitting) == len(self.settings) else {self.field: setting_words(fitting[0])}

    def uniform(self, request: Uniform) -> Params:
        """The first setting."""
        return {self.field: self.words[0]} if len(self.settings) > 1 else {}

    def mild(self) -> list[tuple[str, Params]]:
        """None: training is searched, never a place to start from."""
        return []

    def log10_size(self) -> float:
        """log10 of the number of settings, if they can differ."""
        return math.log10(len(self.settings)) if self.possible else 0.0

    def describe(self) -> list[str]:
        """The settings, and whether they can have an effect at all."""
        without = "" if self.possible else f", without effect in this space: it {_NEEDS[self.field]}"
        return [f"{self.field}: {'/'.join(self.words)}{without}"]


@dataclass(frozen=True)
class Possible:
    """What a plan of the space can ask for at all."""

    drops: bool
    cuts: bool
    ranks: bool
    masks: bool
    codebooks: bool
    integers: bool
    built: bool = False

    @property
    def changes_weights(self) -> bool:
        """Whether the network may have to recover."""
        return self.drops or self.cuts or self.ranks or self.masks or self.codebooks or self.built


def setting_knobs(config: SpaceConfig, possible: Possible) -> tuple[SettingKnob, ...]:
    """The knobs for those settings that the file names."""
    aware = any(setting.training == "aware" for setting in config.quantizer or ())
    trains = possible.changes_weights or (possible.integers and aware)
    scheduled = possible.masks
    for schedule in config.schedule or ():
        scheduled |= isinstance(schedule, Iterative) and possible.cuts
        scheduled |= isinstance(schedule, FromScratch) and trains
    effects: dict[Field, bool] = {
        "order": possible.cuts and possible.masks,
        "reconstruction": possible.cuts,
        "quantizer": possible.integers,
        "schedule": scheduled,
        "distillation": trains,
    }
    return tuple(
        SettingKnob(field, settings, effects[field])
        for field in FIELDS
        if (settings := getattr(config, field)) is not None
    )


def setting_words(setting: str | Record) -> str:
    """A setting in one word, with what is not the default in brackets.

    Examples:
        >>> setting_words(Iterative()), setting_words(Quantizer(training="aware", calibrator="entropy"))
        ('iterative', 'aware(calibrator=entropy)')
    """
    if isinstance(setting, str):
        return setting
    word = "training" if isinstance(setting, Quantizer) else "kind"
    changed = [
        f"{name}={getattr(setting, name)}"
        for name, field in type(setting).model_fields.items()
        if name != word and getattr(setting, name) != field.default
    ]
    return f"{getattr(setting, word)}({','.join(changed)})" if changed else str(getattr(setting, word))
