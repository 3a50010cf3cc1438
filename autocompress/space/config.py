"""The YAML form of a search space: which choices are open for groups and layers, without any network in sight."""

from __future__ import annotations

import importlib.resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from autocompress.errors import ConfigError
from autocompress.records import Bits, Criterion, Strategy
from autocompress.space.explain import nearest, validate
from autocompress.space.grid import grid_of
from autocompress.space.yaml import Document, parse_document, read_document

NON_EMPTY = Field(min_length=1)
ItemT = TypeVar("ItemT")
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Pattern = Annotated[str, Field(min_length=1)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SparsityRange(_Part):
    """Shares that may be removed: ``low, low + step, ..., high``.

    Attributes:
        low, high: shares in [0, 1); `high` is on the grid.
        step: distance of two neighbours.
    """

    low: Annotated[Number, Field(ge=0.0, lt=1.0)]
    high: Annotated[Number, Field(ge=0.0, lt=1.0)]
    step: Annotated[Number, Field(gt=0.0, lt=1.0)]

    @model_validator(mode="after")
    def _on_grid(self) -> SparsityRange:
        grid_of(self.low, self.high, self.step)
        return self


class WidthRange(_Part):
    """Global width multipliers: ``low, low + step, ..., high``.

    Attributes:
        low, high: multipliers in (0, 1]; `high` is on the grid.
        step: distance of two neighbours.
    """

    low: Annotated[Number, Field(gt=0.0, le=1.0)]
    high: Annotated[Number, Field(gt=0.0, le=1.0)]
    step: Annotated[Number, Field(gt=0.0, lt=1.0)]

    @model_validator(mode="after")
    def _on_grid(self) -> WidthRange:
        grid_of(self.low, self.high, self.step)
        return self


def _distinct(values: tuple[ItemT, ...]) -> tuple[ItemT, ...]:
    if len(set(values)) != len(values):
        raise ValueError(f"expected distinct choices, got {list(values)}")
    return values


class GroupChoices(_Part):
    """What is open for every group of coupled channels.

    Attributes:
        strategy: how a group may be pruned.
        criterion: how its channels or weights may be scored.
        sparsity: which shares may go; needed as soon as a strategy other than ``none`` is open.
    """

    strategy: Annotated[tuple[Strategy, ...], NON_EMPTY] = ("none",)
    criterion: Annotated[tuple[Criterion, ...], NON_EMPTY] = ("magnitude",)
    sparsity: SparsityRange | None = None

    _distinct = field_validator("strategy", "criterion")(_distinct)

    @model_validator(mode="after")
    def _sparsity_is_there(self) -> GroupChoices:
        if self.sparsity is None and any(strategy != "none" for strategy in self.strategy):
            raise ValueError(
                f"expected the key sparsity with low, high and step, because strategy offers {list(self.strategy)}, "
                "got none"
            )
        return self


class BitsChoices(_Part):
    """Bit widths that are open.

    Attributes:
        choices: 32 is a float, 8 a quantized layer.
        per: what shares one choice: each layer, the layers of each group, or the whole model.
    """

    choices: Annotated[tuple[Bits, ...], NON_EMPTY]
    per: Literal["layer", "group", "model"] = "layer"

    _distinct = field_validator("choices")(_distinct)


class LayerChoices(_Part):
    """What is open for every layer with weights."""

    bits: BitsChoices | None = None


class Override(_Part):
    """Other choices for the names that match; a later override wins. What is not given stays as it was.

    Attributes:
        match: pattern, as of a shell, for names of groups (strategy, criterion, sparsity) and of layers (bits; of
            groups where bits are chosen per group).
    """

    match: Pattern
    strategy: Annotated[tuple[Strategy, ...], NON_EMPTY] | None = None
    criterion: Annotated[tuple[Criterion, ...], NON_EMPTY] | None = None
    sparsity: SparsityRange | None = None
    bits: Annotated[tuple[Bits, ...], NON_EMPTY] | None = None

    @field_validator("strategy", "criterion", "bits")
    @classmethod
    def _distinct(cls, values: tuple[ItemT, ...] | None) -> tuple[ItemT, ...] | None:
        return None if values is None else _distinct(values)

    @property
    def changes_groups(self) -> bool:
        """Something other than bits is given."""
        return not (self.strategy is None and self.criterion is None and self.sparsity is None)

    @model_validator(mode="after")
    def _changes_something(self) -> Override:
        if not self.changes_groups and self.bits is None:
            raise ValueError(f"expected strategy, criterion, sparsity or bits for {self.match!r}, got none of them")
        return self


class SpaceConfig(_Part):
    """A search space before it meets a network.

    Attributes:
        width: multiplier on the width of every group that is searched; 1 if absent.
        groups: choices for each group of coupled channels.
        layers: choices for each layer with weights.
        include, exclude: patterns, as of a shell, for names of groups and layers; `exclude` wins.
        overrides: other choices for some names.
    """

    width: WidthRange | None = None
    groups: GroupChoices = GroupChoices()
    layers: LayerChoices = LayerChoices()
    include: Annotated[tuple[Pattern, ...], NON_EMPTY] = ("*",)
    exclude: tuple[Pattern, ...] = ()
    overrides: tuple[Override, ...] = ()

    @model_validator(mode="after")
    def _something_is_open(self) -> SpaceConfig:
        settings = [
            *[(o.strategy, o.bits) for o in self.overrides],
            (self.groups.strategy, self.layers.bits.choices if self.layers.bits else None),
        ]
        prunes = any(strategy not in (None, ("none",)) for strategy, _ in settings)
        quantizes = any(bits not in (None, (32,)) for _, bits in settings)
        if self.width is None and not prunes and not quantizes:
            raise ValueError(
                "expected a choice of width, groups.strategy or layers.bits, got a space in which only the dense "
                "network exists"
            )
        return self


def packaged_spaces() -> tuple[str, ...]:
    """Names of the spaces that ship with autocompress, sorted."""
    names = (item.name for item in _folder().iterdir())
    return tuple(sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml")))


def load_space(ref: str, base: Path | None = None) -> SpaceConfig:
    """Read a search space.

    Args:
        ref: name of a packaged space, or the path of a YAML file (with a ``/`` or ending in ``.yaml`` or ``.yml``).
        base: folder that a relative path starts from; the working directory by default.

    Raises:
        ConfigError: no such space, or a line for each problem in it.
    """
    return validate(SpaceConfig, read_space(ref, base))


def read_space(ref: str, base: Path | None = None) -> Document:
    """Parse a search space's file without judging its content; arguments as for `load_space`.

    Raises:
        ConfigError: there is no such space, or its file is not YAML.
    """
    if "/" in ref or ref.endswith((".yaml", ".yml")):
        # The path as the user would type it from here, so that an error can be clicked.
        path = Path(ref).expanduser()
        return read_document(path if base is None or path.is_absolute() else base / path)
    known = packaged_spaces()
    if ref not in known:
        raise ConfigError(
            f"expected a packaged space ({', '.join(known)}) or the path of a .yaml file, got {ref!r}"
            f"{nearest(ref, known)}"
        )
    return parse_document((_folder() / f"{ref}.yaml").read_text(encoding="utf-8"), f"{ref}.yaml")


def _folder() -> Traversable:
    return importlib.resources.files("autocompress.search_spaces")
