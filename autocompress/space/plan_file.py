"""A plan as a YAML file: what a person wants of a network, by patterns over its names.

::

    cuts: [{match: "*", sparsity: 0.5, criterion: taylor}, {match: "body.0.*", keep: 16}]
    masks: [{match: "fc", pattern: "2:4"}]
    bits: [{match: "*", bits: 8}]
    schedule: {kind: gradual, end: 0.9}

or, of a network that the task builds instead of the dense one::

    architecture: {width: 0.5, depth: 0.5, bits: 8}

Of several entries that match one name, the last counts, as a whole. Which requests exclude each other, and which have
no effect, is the same as in a search; see `Draft.plan`.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

from autocompress.errors import ConfigError, InfeasibleError
from autocompress.records import (
    Architecture,
    BlockDrop,
    ChannelCut,
    Codebook,
    Group,
    Layer,
    LayerBits,
    LowRank,
    Plan,
    Quantizer,
    Record,
    Structure,
    WeightMask,
)
from autocompress.space.criteria import check_criteria, effective_reduction
from autocompress.space.draft import DENSE, Draft
from autocompress.space.explain import validate
from autocompress.space.grid import allowed_widths, exact, keep_of
from autocompress.space.groups import share_of_zeros
from autocompress.space.names import unmatched
from autocompress.space.patterns import fits, fixed_sparsity
from autocompress.space.plan_entries import (
    ArchitectureEntry,
    CutEntry,
    Entry,
    MaskEntry,
    PlanFile,
    RankEntry,
)
from autocompress.space.ranks import factorizable, max_ranks, ranks_of, round_ranks, saves
from autocompress.space.yaml import Document, key_text, read_document

#: Every bit width that a plan can have.
ALL_BITS = (32, 16, 8, 7, 6, 5, 4, 3, 2)
EntryT = TypeVar("EntryT", bound="Entry")
#: (layer, share of the squared singular values) -> smallest ranks that hold it; only weights tell.
Energies = Callable[[str, float], tuple[int, ...]]


def load_plan(
    path: Path,
    structure: Structure,
    *,
    round_to: int = 1,
    bits: Sequence[int] = ALL_BITS,
    energies: Energies | None = None,
) -> Plan:
    """Read a plan for a network.

    Args:
        path: a YAML file.
        structure: what was found in the network.
        round_to: multiple that the target's channel counts and ranks are rounded to.
        bits: bit widths that the target supports.
        energies: the smallest ranks of a layer that hold a share of its weight's energy, as
            `autocompress.compress.factorize.rank_for_energy` finds them; without it no entry may ask for `energy`.

    Returns:
        The physical plan: what changes nothing is left out.

    Raises:
        ConfigError: file, line and key of what is wrong, or that the network or the target cannot have.
    """
    document = read_document(path)
    return _Builder(document, validate(PlanFile, document), structure, round_to, tuple(bits), energies).plan()


def dump_plan(plan: Plan) -> str:
    """The plan as YAML that `load_plan` reads back, one line for each entry; for the same network and any target.

    Sparsities come back as those of whole numbers of zeros, as plans of a search have them.
    """
    lines: list[str] = []
    if plan.architecture is not None:
        lines.append(f"architecture: {_flow(_changed(plan.architecture))}")
    sections: dict[str, Iterable[tuple[str, Record]]] = {
        "drops": [(entry.block, entry) for entry in plan.drops],
        "cuts": [(entry.group, entry) for entry in plan.cuts],
        "ranks": [(entry.layer, entry) for entry in plan.ranks],
        "masks": [(entry.layer, entry) for entry in plan.masks],
        "codebooks": [(entry.layer, entry) for entry in plan.codebooks],
        "bits": [(entry.layer, entry) for entry in plan.bits],
    }
    for section, entries in sections.items():
        rows = [_flow({"match": glob.escape(name)} | _changed(entry)) for name, entry in entries]
        lines += [f"{section}:", *(f"  - {row}" for row in rows)] if rows else []
    for name in ("order", "reconstruction"):
        if getattr(plan, name) != getattr(DENSE, name):
            lines.append(f"{name}: {getattr(plan, name)}")
    for field in ("schedule", "distillation", "quantizer"):
        setting = getattr(plan, field)
        if setting != getattr(DENSE, field):
            kind = {} if isinstance(setting, Quantizer) else {"kind": setting.kind}
            lines.append(f"{field}: {_flow(kind | _changed(setting))}")
    return "\n".join(lines or ["{}"]) + "\n"


def _changed(entry: Record) -> dict[str, Any]:
    """What an entry says beyond its name and its defaults."""
    names = ("block", "group", "layer", "kind")
    content = entry.model_dump(mode="json")
    return {
        key: content[key]
        for key, field in type(entry).model_fields.items()
        if key not in names and getattr(entry, key) != field.default
    }


def _flow(content: dict[str, Any]) -> str:
    return "{" + ", ".join(f"{key}: {json.dumps(value)}" for key, value in content.items()) + "}"


@dataclass(frozen=True)
class _Asked(Generic[EntryT]):
    """The entry that counts for a name, and its position among its section's."""

    index: int
    entry: EntryT


@dataclass(frozen=True)
class _Builder:
    document: Document
    file: PlanFile
    structure: Structure
    round_to: int
    supported: tuple[int, ...]
    energies: Energies | None

    def plan(self) -> Plan:
        file, layers = self.file, self.structure.layers
        draft = Draft(self.structure, self.round_to)
        if file.architecture is not None:
            draft = replace(draft, architecture=self._architecture(file.architecture))
        blocks = self._asked("drops", file.drops, [b.name for b in self.structure.blocks], "block")
        draft = replace(draft, drops=tuple(BlockDrop(block=name) for name in blocks))
        groups = self._asked("cuts", file.cuts, [g.name for g in self.structure.groups], "group")
        cuts = [self._cut(self.structure.group(name), asked) for name, asked in groups.items()]
        draft = replace(draft, cuts=tuple(cut for cut in cuts if cut is not None))
        possible = [layer.name for layer in layers if factorizable(layer)]
        what = "linear layer or ungrouped convolution with a weight of its own"
        for name, asked in self._asked("ranks", file.ranks, possible, what).items():
            draft = replace(draft, ranks=draft.ranks + self._ranks(self.structure.layer(name), asked, draft))
        names = [layer.name for layer in layers]
        gone = draft.gone.union(entry.layer for entry in draft.ranks)
        for name, mask in self._asked("masks", file.masks, names, "layer").items():
            if name not in gone:
                draft = replace(draft, masks=draft.masks + self._mask(self.structure.layer(name), mask, draft))
        for name, codebook in self._asked("codebooks", file.codebooks, names, "layer").items():
            clusters, weights = codebook.entry.clusters, self.structure.weights((c.group, c.keep) for c in draft.cuts)
            if isinstance(clusters, int) and clusters < weights[name]:
                draft = replace(draft, codebooks=(*draft.codebooks, Codebook(layer=name, clusters=clusters)))
        return replace(
            draft,
            bits=self._bits(),
            order=file.order,
            reconstruction=file.reconstruction,
            schedule=file.schedule,
            distillation=file.distillation,
            quantizer=file.quantizer,
        ).plan()

    def _architecture(self, entry: ArchitectureEntry) -> Architecture:
        self._check_bits(entry.bits, ("architecture", "bits"))
        return Architecture(**entry.model_dump())

    def _check_bits(self, bits: int, path: tuple[str | int, ...]) -> None:
        if bits not in self.supported:
            self._refuse(path, f"expected bits out of {list(self.supported)}, which the target has, got {bits}")

    def _asked(self, section: str, entries: Sequence[EntryT], names: list[str], what: str) -> dict[str, _Asked[EntryT]]:
        """Name -> the last entry that matches it.

        Raises:
            ConfigError: an entry matches nothing.
        """
        found: dict[str, _Asked[EntryT]] = {}
        for i, entry in enumerate(entries):
            matched = [name for name in names if fnmatchcase(name, entry.match)]
            if not matched:
                self._refuse((section, i, "match"), unmatched(entry.match, names, what))
            found |= {name: _Asked(i, entry) for name in matched}
        return found

    def _refuse(self, path: tuple[str | int, ...], problem: str) -> NoReturn:
        raise ConfigError(f"{self.document.place(path)}: {key_text(path)}: {problem}")

    def _cut(self, group: Group, asked: _Asked[CutEntry]) -> ChannelCut | None:
        entry, multiple = asked.entry, group.multiple(self.round_to)
        try:
            check_criteria(["structured"], [entry.criterion], group)
        except ValueError as error:
            self._refuse(("cuts", asked.index, "criterion"), f"group {group.name!r}: {error}")
        if entry.keep is not None:
            keep = entry.keep
            if keep not in allowed_widths(group.width, multiple):
                steps = f"a multiple of {multiple} below {group.width}" if multiple > 1 else f"1 to {group.width}"
                self._refuse(
                    ("cuts", asked.index, "keep"),
                    f"expected {steps} for group {group.name!r} with {group.width} units, got {keep}",
                )
        else:
            keep = keep_of(group.width, 1 - exact(entry.sparsity or 0.0), multiple)
        if keep == group.width:
            return None
        reduction = effective_reduction(group, entry.criterion, entry.reduction)
        return ChannelCut(group=group.name, keep=keep, criterion=entry.criterion, reduction=reduction)

    def _ranks(self, layer: Layer, asked: _Asked[RankEntry], draft: Draft) -> tuple[LowRank, ...]:
        if layer.name in draft.gone:
            return ()
        shape, entry = draft.shapes[layer.name], asked.entry
        if entry.energy is not None:
            held = self._held(layer, entry.energy, ("ranks", asked.index, "energy"))
            # Of the dense weight: after cuts the largest rank may be lower.
            lower = tuple(map(min, held, max_ranks(shape)))
            ranks = round_ranks(shape, lower, self.round_to)
            return (LowRank(layer=layer.name, ranks=ranks),) if saves(shape, ranks) else ()
        if entry.ranks is None:
            found = ranks_of(shape, exact(entry.share or 1.0), self.round_to)
            return () if found is None else (LowRank(layer=layer.name, ranks=found),)
        limits = max_ranks(shape)
        if len(entry.ranks) != len(limits) or any(r > n for r, n in zip(entry.ranks, limits, strict=True)):
            wanted = "one rank" if len(limits) == 1 else "two ranks, of output and input,"
            self._refuse(
                ("ranks", asked.index, "ranks"),
                f"expected {wanted} of at most {list(limits)} for {layer.name!r} with weights of shape {list(shape)}, "
                f"got {list(entry.ranks)}",
            )
        return (LowRank(layer=layer.name, ranks=entry.ranks),) if saves(shape, entry.ranks) else ()

    def _held(self, layer: Layer, energy: float, path: tuple[str | int, ...]) -> tuple[int, ...]:
        if self.energies is None:
            self._refuse(path, f"expected share or ranks where no weights are at hand, got energy {energy:g}")
        try:
            return self.energies(layer.name, energy)
        except InfeasibleError as error:
            self._refuse(path, str(error))

    def _mask(self, layer: Layer, asked: _Asked[MaskEntry], draft: Draft) -> tuple[WeightMask, ...]:
        shape, entry = draft.shapes[layer.name], asked.entry
        if not fits(entry.pattern, shape, layer.kind):
            needed = "inputs in multiples of m" if fixed_sparsity(entry.pattern) is not None else "whole blocks"
            self._refuse(
                ("masks", asked.index, "pattern"),
                f"expected a pattern that divides {layer.name!r} with weights of shape {list(shape)} ({needed}), got "
                f"{entry.pattern!r}; give that layer an entry of its own",
            )
        sparsity = share_of_zeros(entry.pattern, exact(entry.sparsity or 0.0), shape, layer.kind)
        if sparsity == 0.0:
            return ()
        return (WeightMask(layer=layer.name, sparsity=sparsity, criterion=entry.criterion, pattern=entry.pattern),)

    def _bits(self) -> tuple[LayerBits, ...]:
        found: dict[str, LayerBits | None] = {}
        names = [layer.name for layer in self.structure.layers]
        linear = [layer.name for layer in self.structure.layers if layer.kind == "linear"]
        for i, entry in enumerate(self.file.bits):
            self._check_bits(entry.bits, ("bits", i, "bits"))
            offered, what = (linear, "linear layer") if entry.weights_only else (names, "layer")
            matched = [name for name in offered if fnmatchcase(name, entry.match)]
            if not matched:
                self._refuse(("bits", i, "match"), unmatched(entry.match, offered, what))
            for name in matched:
                found[name] = (
                    None
                    if entry.bits == 32
                    else LayerBits(layer=name, bits=entry.bits, weights_only=entry.weights_only)
                )
        return tuple(entry for entry in found.values() if entry is not None)
