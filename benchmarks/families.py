"""What is found and cut in every family of networks: the table of docs/families.md.

For each network: which groups are found, which weights can shrink, what stays dense and why; that cutting nothing
changes nothing; and that cutting half of every group together keeps the output's shape and computes what the dense
network computes with the removed units masked. Multiply-adds are torch's own count, not ours.

    python benchmarks/families.py --write docs/families.md
    python benchmarks/families.py --only LSTM --json families.json
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from autocompress.compress.coupling import Units, find_units
from autocompress.compress.prune import cut_channels, drop_blocks, origin
from autocompress.compress.statistics import Statistics
from autocompress.compress.structure import find_structure
from autocompress.inputs import Inputs, apply, forward
from autocompress.records import BlockDrop, ChannelCut, Structure
from autocompress.references import load_object

# By path, so that this file also works where its folder is no place to import from.
CASES: tuple[Any, ...] = load_object(f"{Path(__file__).resolve().with_name('family_cases.py')}:CASES")
#: Largest difference from the masked network, relative to its largest output, both in double precision.
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Row:
    """What was found in one network.

    Attributes:
        name, size: of the case.
        groups: kind of group -> how many.
        blocks, layers: how many.
        share: of the parameters, those that shrink with some group.
        left_dense: reason -> names of the layers.
        unchanged: largest difference of the output after cutting nothing.
        dropped: largest difference from the network whose blocks return their input, after leaving out all of them,
            relative to the largest output; None if there are none.
        mixing: groups for which removing is not masking.
        shape_kept: the output's shape after cutting half of every group.
        parity: largest difference from the masked network after cutting half of every group that does not mix,
            relative to the largest output; None if all mix.
        effect: the same between the dense and the masked network: what parity is to be judged by.
        macs, parameters: shares that are left after cutting half of every group.
        seconds: for finding the structure.
        problem: what is not as it must be; empty if all is.
    """

    name: str
    size: str
    groups: dict[str, int] = field(default_factory=dict)
    blocks: int = 0
    layers: int = 0
    share: float = 0.0
    left_dense: dict[str, list[str]] = field(default_factory=dict)
    unchanged: float | None = None
    dropped: float | None = None
    mixing: int = 0
    shape_kept: bool = False
    parity: float | None = None
    effect: float | None = None
    macs: float = 1.0
    parameters: float = 1.0
    seconds: float = 0.0
    problem: str = ""


def check(case: Any) -> Row:
    """Find, cut and compare one network; whatever goes wrong is in `Row.problem`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = case.build().eval()
        _randomize(module)
    example = case.example()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    began = time.perf_counter()
    structure = find_structure(module, example)
    seconds = time.perf_counter() - began
    units = find_units(module, example)
    mixing = {group.name for group in structure.groups if units[group.name].mixes}
    # Differences are to be those of the networks, not of rounding.
    inputs = apply(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor, example)
    double = copy.deepcopy(module).double()
    dense, dense_macs = run_counted(double, inputs)

    same = _cut(module, structure, example, {group.name: group.width for group in structure.groups})
    unchanged = float((run_counted(copy.deepcopy(same).double(), inputs)[0] - dense).abs().max())
    halves = {group.name: max(1, group.width // 2) for group in structure.groups}
    half = _cut(module, structure, example, halves)
    after, macs = run_counted(copy.deepcopy(half).double(), inputs)
    parity = effect = None
    if len(mixing) < len(halves):
        plain = {name: keep for name, keep in halves.items() if name not in mixing}
        cut = _cut(module, structure, example, plain) if mixing else half
        expected, _ = run_counted(_masked(double, cut, [units[name] for name in plain]), inputs)
        scale = float(expected.abs().max())
        got = run_counted(copy.deepcopy(cut).double(), inputs)[0] if mixing else after
        parity = float((got - expected).abs().max()) / scale
        effect = float((dense - expected).abs().max()) / scale
    if any(not torch.equal(before[name], tensor) for name, tensor in module.state_dict().items()):
        raise RuntimeError(f"{case.name}: the module was changed")
    row = Row(
        name=case.name,
        size=case.size,
        groups=dict(sorted(Counter(group.kind for group in structure.groups).items())),
        blocks=len(structure.blocks),
        layers=len(structure.layers),
        share=_share(module, structure),
        left_dense=_reasons(structure),
        unchanged=unchanged,
        dropped=_dropped(module, double, structure, example, inputs),
        mixing=len(mixing),
        shape_kept=after.shape == dense.shape,
        parity=parity,
        effect=effect,
        macs=macs / dense_macs,
        parameters=_size(half) / _size(module),
        seconds=seconds,
    )
    return Row(**{**asdict(row), "problem": _problem(row, _expected(case))})


def _expected(case: Any) -> dict[str, int]:
    counts = {kind: getattr(case, kind) for kind in ("channels", "heads", "hidden")}
    return {kind: count for kind, count in counts.items() if count}


def _problem(row: Row, expected: dict[str, int]) -> str:
    found = []
    if row.groups != expected:
        found.append(f"groups: expected {expected}, got {row.groups}")
    if row.unchanged != 0.0:
        found.append(f"cutting nothing changes the output by {row.unchanged:.1e}")
    if row.dropped is not None and not row.dropped <= TOLERANCE:
        found.append(f"leaving out the blocks differs by {row.dropped:.1e} from their returning their input")
    if not row.shape_kept:
        found.append("the output's shape changes")
    if row.parity is not None and not row.parity <= TOLERANCE:
        found.append(f"removing is not masking: {row.parity:.1e} where masking changes {row.effect:.1e}")
    if row.effect is not None and not row.effect > 1e-3:
        found.append(f"masking changes nothing ({row.effect:.1e}), so that parity says nothing")
    if not row.macs < 1.0 or not row.parameters < 1.0:
        found.append(f"nothing is saved: {row.macs:.2f} of the multiply-adds, {row.parameters:.2f} of the parameters")
    return "; ".join(found)


def _cut(module: nn.Module, structure: Structure, example: Inputs, keep: dict[str, int]) -> nn.Module:
    cuts = [ChannelCut(group=name, keep=kept, criterion="magnitude") for name, kept in sorted(keep.items())]
    return cut_channels(module, cuts, structure, Statistics({}), example=example, seed=0)


def _dropped(
    module: nn.Module, double: nn.Module, structure: Structure, example: Inputs, inputs: Inputs
) -> float | None:
    """See `Row.dropped`; `double` and `inputs` are the network and the example in double precision."""
    if not structure.blocks:
        return None
    names = sorted(block.name for block in structure.blocks)
    dropped = drop_blocks(module, [BlockDrop(block=name) for name in names], structure, example=example)
    passing = copy.deepcopy(double)
    for name in names:
        passing.get_submodule(name).register_forward_hook(lambda _, args, __: args[0])
    expected, _ = run_counted(passing, inputs)
    return float((run_counted(dropped.double(), inputs)[0] - expected).abs().max() / expected.abs().max())


def _masked(module: nn.Module, cut: nn.Module, groups: Sequence[Units]) -> nn.Module:
    """A copy of the dense network in which nothing reads the units that `cut` has lost."""
    masked = copy.deepcopy(module)
    reading = _reading(masked)
    with torch.no_grad():
        for units in groups:
            lost = _lost(module, cut, units)
            for (name, axis), positions in units.positions.items():
                if reading.get(id(_tensor(masked, name))) == axis:
                    _tensor(masked, name).index_fill_(axis, positions[lost].flatten(), 0.0)
    return masked


def _lost(module: nn.Module, cut: nn.Module, units: Units) -> Tensor:
    """The group's units that `cut` lacks, by where the weights that it has come from."""
    kept_positions = origin(cut).positions
    for (name, axis), positions in units.positions.items():
        if name in kept_positions:
            shape = module.get_parameter(name).shape
            kept = (kept_positions[name] // shape[axis + 1 :].numel() % shape[axis]).unique()
            return (~torch.isin(positions, kept).all(dim=1)).nonzero().flatten()
    return torch.zeros(0, dtype=torch.int64)


def _reading(module: nn.Module) -> dict[int, int]:
    """Identity of every weight with which some layer reads its input -> the axis along which it does."""
    axes = {}
    for path, owner in module.named_modules():
        for name, parameter in owner.named_parameters(path, recurse=False):
            if "weight" in name.rpartition(".")[2] and parameter.ndim > 1 and not isinstance(owner, nn.Embedding):
                axes[id(parameter)] = 0 if isinstance(owner, nn.ConvTranspose1d | nn.ConvTranspose2d) else 1
    return axes


def _tensor(module: nn.Module, name: str) -> Tensor:
    path, _, last = name.rpartition(".")
    found: Tensor = getattr(module.get_submodule(path), last)
    return found


@torch.no_grad()
def _randomize(module: nn.Module) -> None:
    """Weights that hide nothing: attention that looks somewhere, no zero shift, statistics that differ by channel."""
    for name, parameter in module.named_parameters():
        if parameter.ndim > 1:
            parameter.copy_(torch.randn(parameter.shape) * (2.0 / parameter[0].numel()) ** 0.5)
        elif name.endswith("bias"):
            parameter.copy_(torch.randn(parameter.shape) * 0.1)
        else:
            parameter.copy_(torch.rand(parameter.shape) + 0.5)
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(torch.randn(buffer.shape) * 0.1)
        elif name.endswith("running_var"):
            buffer.copy_(torch.rand(buffer.shape) + 0.5)


@torch.no_grad()
def run_counted(double: nn.Module, inputs: Inputs) -> tuple[Tensor, int]:
    """Output in double precision, and multiply-adds as torch counts them, attention's own products included."""
    default, fused = torch.get_default_dtype(), torch.backends.mha.get_fastpath_enabled()
    # What a forward pass makes itself, such as a first state, has the default precision. Nothing is counted inside
    # fused kernels; for recurrent layers in double precision there are none.
    torch.set_default_dtype(torch.float64)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with FlopCounterMode(display=False) as counter:
            output = forward(double, inputs)
    finally:
        torch.set_default_dtype(default)
        torch.backends.mha.set_fastpath_enabled(fused)
    return output, int(counter.get_total_flops()) // 2


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _share(module: nn.Module, structure: Structure) -> float:
    """Of all parameters, those in tensors that some group shrinks; buffers do not count."""
    shrinking = {id(_tensor(module, use.parameter)) for group in structure.groups for use in group.uses}
    return sum(p.numel() for p in module.parameters() if id(p) in shrinking) / _size(module)


def _reasons(structure: Structure) -> dict[str, list[str]]:
    reasons: dict[str, list[str]] = {}
    for entry in structure.left_dense:
        reasons.setdefault(entry.reason, []).append(entry.name)
    return reasons


def page(rows: Sequence[Row]) -> str:
    """The document, in Markdown."""
    found, cut, dense = [], [], []
    for row in rows:
        groups = ", ".join(f"{kind} {count}" for kind, count in row.groups.items()) or "none"
        found.append(
            f"| {row.name} | {row.size} | {groups} | {row.blocks} | {row.layers} | {row.share:.0%} "
            f"| {row.seconds:.1f} |"
        )
        parity = (
            "mixes" if row.parity is None else f"{row.parity:.0e}" + (f", {row.mixing} mixes" if row.mixing else "")
        )
        unchanged = "failed" if row.unchanged is None else f"{row.unchanged:g}"
        effect = "" if row.effect is None else f"{row.effect:.1g}"
        dropped = "" if row.dropped is None else f"{row.dropped:.0e}"
        cut.append(
            f"| {row.name} | {unchanged} | {'kept' if row.shape_kept else 'changed'} | {parity} | {effect} "
            f"| {dropped} | {row.macs:.0%} | {row.parameters:.0%} | {row.problem or 'none'} |"
        )
        for reason, names in row.left_dense.items():
            shown = ", ".join(f"`{name}`" for name in names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")
            dense.append(f"| {row.name} | {shown} | {reason.replace('|', '/')} |")
    return PAGE.format(found="\n".join(found), cut="\n".join(cut), dense="\n".join(dense), count=len(rows))


PAGE = """# Families of networks

Written by `python benchmarks/families.py --write docs/families.md`; do not edit. {count} networks, each with random
weights and a batch of two. Sizes are reduced where the full size would be slow, as the second column says. Each
number of groups is the one that was counted by hand from the architecture, else it is a problem.

## What is found

Groups are sets of units that can only be cut together: channels, attention heads, hidden units of recurrent layers.
Blocks can be left out whole. "Can shrink" is the share of all parameters that lie in weights which some group shrinks.
Seconds are those of finding all this, on two shared CPU cores.

| family | size | groups | blocks | layers | can shrink | seconds |
|---|---|---|---|---|---|---|
{found}

## What is cut

"Nothing cut" is the largest difference of the output after a cut that keeps every unit; it must be 0. Then half of
every group is cut together. "Parity" is the largest difference from the dense network in which nothing reads the
removed units, relative to the largest output, in double precision; "effect" is what that masking changes. Where a
LayerNorm or GroupNorm sees all units of a group, removing is not masking: such a group "mixes", is left out of the
comparison, and only the output's shape is checked with it. "Blocks" is the same difference between the network without
all of its blocks and one whose blocks return their input. Multiply-adds are torch's own count.

| family | nothing cut | output's shape | parity | effect | blocks | multiply-adds left | parameters left | problems |
|---|---|---|---|---|---|---|---|---|
{cut}

## What is left dense, and why

Masks, quantization and factorization still apply where a layer is listed among the layers.

| family | layers | reason |
|---|---|---|
{dense}
"""


def main() -> int:
    """Check all networks, or some; 1 if something is not as it must be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="networks whose name contains this")
    parser.add_argument("--write", type=Path, help="Markdown file")
    parser.add_argument("--json", type=Path, help="the same with every name, as JSON")
    options = parser.parse_args()
    rows, failed = [], 0
    for case in CASES:
        if options.only.lower() not in case.name.lower():
            continue
        # The table has to show every network, also one that breaks something.
        try:
            row = check(case)
        except Exception as error:  # noqa: BLE001
            text = " ".join(str(error).split())[:200]
            row = Row(name=case.name, size=case.size, problem=f"{type(error).__name__}: {text}")
        rows.append(row)
        failed += bool(row.problem)
        print(f"{row.name:36} {row.seconds:5.1f} s  {row.groups}  {row.problem or 'as it must be'}", flush=True)
    if options.write:
        options.write.write_text(page(rows))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
