"""The YAML form of a search space: which choices are open for groups and layers, without any network in sight."""

from __future__ import annotations

import importlib.resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from autocompress.errors import ConfigError
from autocompress.space.explain import nearest, validate
from autocompress.space.options import (
    AllocationChoices,
    ArchitectureChoices,
    BlockChoices,
    Distillations,
    GroupChoices,
    LayerChoices,
    NamePattern,
    Orders,
    Override,
    Part,
    Quantizers,
    Reconstructions,
    Schedules,
    ShareRange,
)
from autocompress.space.yaml import Document, parse_document, read_document


class SpaceConfig(Part):
    """A search space before it meets a network.

    Attributes:
        width: multiplier on the width of every group that is searched; 1 if absent.
        groups: choices for each group of coupled channels.
        allocation: one share for all groups, divided among them by a ranking. It settles every group's width, so that
            neither `width` nor the strategy ``structured`` may be open beside it.
        layers: choices for each layer with weights.
        blocks: which blocks may be left out; none if absent.
        architecture: sizes of a smaller network that may be built and trained instead; none if absent.
        schedule: how removal and training may alternate; a kind, or a mapping with its settings.
        distillation: what the dense model may teach; likewise.
        quantizer: how integer grids may be found; ``post``, ``aware``, or a mapping with the settings.
        order: whether channels are cut before masks are chosen, or after.
        reconstruction: whether the layers behind a cut are refitted to the inputs that stay; they are if absent.
        include, exclude: patterns, as of a shell, for names of groups, layers and blocks; `exclude` wins.
        overrides: other choices for some names.
    """

    width: ShareRange | None = None
    groups: GroupChoices = GroupChoices()
    allocation: AllocationChoices | None = None
    layers: LayerChoices = LayerChoices()
    blocks: BlockChoices | None = None
    architecture: ArchitectureChoices | None = None
    schedule: Schedules | None = None
    distillation: Distillations | None = None
    quantizer: Quantizers | None = None
    order: Orders | None = None
    reconstruction: Reconstructions | None = None
    include: Annotated[tuple[NamePattern, ...], Field(min_length=1)] = ("*",)
    exclude: tuple[NamePattern, ...] = ()
    overrides: tuple[Override, ...] = ()

    @model_validator(mode="after")
    def _one_says_widths(self) -> SpaceConfig:
        if self.allocation is None:
            return self
        others = ["width"] if self.width is not None else []
        others += ["groups.strategy"] if "structured" in self.groups.strategy else []
        for i, override in enumerate(self.overrides):
            others += [f"overrides[{i}].strategy"] if "structured" in (override.strategy or ()) else []
        if others:
            raise ValueError(
                f"expected either allocation, which settles the width of every group, or {others[0]}, got both; "
                + ("leave width out" if others[0] == "width" else f"take structured out of {others[0]}")
            )
        return self

    @model_validator(mode="after")
    def _something_is_open(self) -> SpaceConfig:
        bits = self.layers.bits
        opened = (
            self.width is not None,
            self.allocation is not None,
            self.layers.rank is not None,
            self.layers.codebook is not None and self.layers.codebook.clusters != ("none",),
            self.blocks is not None and self.blocks.choices != ("keep",),
            self.architecture is not None,
            self.groups.strategy != ("none",),
            bits is not None and bits.choices != (32,),
            *(o.strategy not in (None, ("none",)) for o in self.overrides),
            *(o.bits not in (None, (32,)) for o in self.overrides),
            *(o.clusters not in (None, ("none",)) for o in self.overrides),
            *(o.block not in (None, ("keep",)) for o in self.overrides),
            *(o.rank is not None for o in self.overrides),
        )
        if not any(opened):
            raise ValueError(
                "expected a choice of width, groups.strategy, allocation, blocks, architecture, layers.bits, "
                "layers.rank or layers.codebook, got a space in which only the dense network exists"
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
