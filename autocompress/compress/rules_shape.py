"""How labels follow operators that move data: reshapes, slices, joins, gathers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from autocompress.compress.labels import NONE, Slot

if TYPE_CHECKING:
    from autocompress.compress.trace import Call, Tracer

_PICKED = "single channels are picked by their index"


def keep(tracer: Tracer, call: Call) -> None:
    """The output has the input's labels: a copy, or a tensor of the same size."""
    value = tracer.value(call.first)
    for out in call.outputs:
        tracer.put(out, value.slots, weight=value.weight)


def restride(tracer: Tracer, call: Call) -> None:
    """The same tensor with other strides, as pooling to a single position gives it; any other use is not followed."""
    for slot in tracer.value(call.first).slots:
        if any(size not in (1, full) for size, full in zip(slot.labels.shape, call.out.shape, strict=False)):
            tracer.atoms.freeze(slot.labels, "aten.as_strided_ is not followed")


def replay(tracer: Tracer, call: Call) -> None:
    """Labels move as data do: the operator itself is run on them."""
    value = tracer.value(call.first)
    results: list[list[Slot]] = [[] for _ in call.outputs]
    for slot in value.slots:
        moved = call.func(slot.labels.expand(call.first.shape), *call.args[1:], **call.kwargs)
        for found, labels in zip(results, tree_leaves(moved), strict=True):
            found += tracer.atoms.compacted([Slot(labels, slot.strong)])
    for out, found in zip(call.outputs, results, strict=True):
        tracer.put(out, tracer.atoms.separate(found), weight=value.weight)


def select(tracer: Tracer, call: Call) -> None:
    """One index of an axis, or every one by itself."""
    axis = call.named["dim"] % call.first.ndim
    for slot in tracer.value(call.first).along(axis):
        if slot.axes == {axis}:
            tracer.atoms.freeze(slot.labels, _PICKED)
    replay(tracer, call)


def cut(tracer: Tracer, call: Call) -> None:
    """A slice: parts of equal size that make up the whole are tied when the pass is over."""
    value, size = tracer.value(call.first), call.first.shape
    axis = call.named["dim"] % call.first.ndim
    taken = slice(call.named["start"], call.named["end"], call.named["step"]).indices(size[axis])
    if taken != (0, size[axis], 1):
        for slot in value.along(axis):
            if call.out.shape[axis] == 1 and slot.axes == {axis}:
                tracer.atoms.freeze(slot.labels, _PICKED)
        if value.along(axis):
            tracer.note_slice(value, axis, taken)
    replay(tracer, call)


def split(tracer: Tracer, call: Call) -> None:
    """Parts of equal size lose the same positions."""
    axis = call.named["dim"] % call.first.ndim
    sizes = [out.shape[axis] for out in call.outputs]
    for slot in tracer.value(call.first).along(axis):
        if set(sizes) == {1} and slot.axes == {axis}:
            tracer.atoms.freeze(slot.labels, _PICKED)
        elif len(set(sizes)) == 1:
            for part in torch.split(slot.labels, sizes[0], dim=axis):
                tracer.atoms.union(slot.labels.narrow(axis, 0, sizes[0]), part)
    replay(tracer, call)


def glu(tracer: Tracer, call: Call) -> None:
    """One half of the channels gates the other."""
    value, axis = tracer.value(call.first), call.named["dim"] % call.first.ndim
    half = call.first.shape[axis] // 2
    found = []
    for slot in value.slots:
        labels = slot.labels
        if slot[axis]:
            tracer.atoms.union(labels.narrow(axis, 0, half), labels.narrow(axis, half, half))
            labels = labels.narrow(axis, 0, half)
        found.append(Slot(labels, slot.strong))
    tracer.put(call.out, tracer.atoms.compacted(found))


def reshape(tracer: Tracer, call: Call) -> None:
    """A view: axes are joined, or one is split into several."""
    value = tracer.value(call.first)
    found = [_reshaped(tracer, slot, call.first.shape, call.out.shape) for slot in value.slots]
    slots = tracer.atoms.separate([slot for slot in found if slot is not None])
    tracer.put(call.out, slots, weight=value.weight)


def _reshaped(tracer: Tracer, slot: Slot, before: Sequence[int], after: Sequence[int]) -> Slot | None:
    full = [1] * len(before)
    target = [1] * len(after)
    opened: list[list[int]] = []
    for old, new in _blocks(before, after):
        if any(slot[axis] for axis in old):
            for axis in old:
                full[axis] = before[axis]
            for axis in new:
                target[axis] = after[axis]
            opened.append(new)
    moved = tracer.atoms.compact(Slot(slot.labels.expand(full).reshape(target), slot.strong))
    if moved is not None:
        for new in opened:
            varied = [axis for axis in new if moved[axis]]
            if len(varied) > 1:
                tracer.atoms.split(moved.labels, varied)
    return moved


def _blocks(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The smallest runs of axes that hold the same number of elements before and after a reshape."""
    blocks: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        old: list[int] = []
        new: list[int] = []
        left = right = 1
        while True:
            if i < len(before) and (not old or left < right):
                left *= before[i]
                old.append(i)
                i += 1
            elif j < len(after) and (not new or right < left):
                right *= after[j]
                new.append(j)
                j += 1
            else:
                break
        blocks.append((old, new))
    return blocks


def cat(tracer: Tracer, call: Call) -> None:
    """Labels one after another; along the other axes the parts are tied."""
    parts = [part for part in call.named["tensors"] if part.shape != (0,)]
    axis = call.named["dim"] % call.out.ndim
    values = [tracer.value(part) for part in parts]
    others = [slot for value in values for slot in value.slots if not slot[axis]]
    along = [tracer.atoms.merge(value.along(axis)) for value in values]
    found = list(others)
    if any(along):
        # A part of size 1, or without labels, leaves a gap.
        wide = [max(1, *(s.labels.shape[d] for slots in along for s in slots)) for d in range(call.out.ndim)]
        labels = []
        for part, slots in zip(parts, along, strict=True):
            shape = [part.shape[axis] if d == axis else size for d, size in enumerate(wide)]
            labels.append(slots[0].labels.expand(shape) if slots else torch.full(shape, NONE))
        found.append(Slot(torch.cat(labels, dim=axis), any(s.strong for slots in along for s in slots)))
    weight = all(value.weight for value in values)
    tracer.put(call.out, tracer.atoms.merge(tracer.atoms.compacted(found)), weight=weight)


def stack(tracer: Tracer, call: Call) -> None:
    """Parts side by side along a new axis: they must stay equally large."""
    axis = call.named["dim"] % call.out.ndim
    values = [tracer.value(part) for part in call.named["tensors"]]
    slots = [Slot(s.labels.unsqueeze(axis), s.strong) for value in values for s in value.slots]
    tracer.put(call.out, tracer.atoms.merge(slots), weight=all(value.weight for value in values))


def pad(tracer: Tracer, call: Call) -> None:
    """Constant padding: what is added along a labelled axis has no label."""
    value, amounts = tracer.value(call.first), list(call.named["pad"])
    found = []
    for slot in value.slots:
        widths: list[int] = []
        for axis, at in zip(reversed(range(call.first.ndim)), range(0, len(amounts), 2), strict=False):
            widths += amounts[at : at + 2] if slot[axis] else [0, 0]
        found.append(Slot(torch.nn.functional.pad(slot.labels, widths, value=NONE), slot.strong))
    tracer.put(call.out, tracer.atoms.compacted(found), weight=value.weight)


def pixel_shuffle(tracer: Tracer, call: Call) -> None:
    """r² neighbouring channels become one, r times as high and wide."""
    _regroup_channels(tracer, call, int(call.named["upscale_factor"]) ** 2, 1)


def pixel_unshuffle(tracer: Tracer, call: Call) -> None:
    """Every channel becomes r² neighbouring ones."""
    _regroup_channels(tracer, call, 1, int(call.named["downscale_factor"]) ** 2)


def im2col(tracer: Tracer, call: Call) -> None:
    """Every channel becomes as many as the window has positions; positions become one axis."""
    value = tracer.value(call.first)
    height, width = call.named["kernel_size"]
    found = []
    for slot in value.along(call.first.ndim - 3):
        labels = _only(tracer, slot, call.first.ndim - 3).repeat_interleave(height * width)
        found.append(Slot(labels.view(*[1] * (call.out.ndim - 2), -1, 1), slot.strong))
    tracer.put(call.out, found)


def _regroup_channels(tracer: Tracer, call: Call, joined: int, repeated: int) -> None:
    axis = call.first.ndim - 3
    found = []
    for slot in tracer.value(call.first).along(axis):
        boxes = _only(tracer, slot, axis).view(-1, joined)
        tracer.atoms.union(boxes, boxes[:, :1])
        labels = boxes[:, 0].repeat_interleave(repeated)
        found.append(Slot(labels.view(*[1] * axis, -1, 1, 1), slot.strong))
    tracer.put(call.out, tracer.atoms.compacted(found))


def _only(tracer: Tracer, slot: Slot, axis: int) -> Tensor:
    """Labels along one axis, shape (size,), tied along all others."""
    for other in slot.axes - {axis}:
        slot = tracer.atoms.tie(slot, other)
    return slot.labels.flatten()


def channel_shuffle(tracer: Tracer, call: Call) -> None:
    """Channel g c/groups + i becomes channel i groups + g."""
    groups, found = int(call.named["groups"]), []
    for slot in tracer.value(call.first).slots:
        labels = slot.labels
        if slot[1]:
            box = torch.unflatten(labels.movedim(1, 0), 0, (groups, -1))
            tracer.atoms.split(box, (0, 1))
            labels = box.transpose(0, 1).flatten(0, 1).movedim(0, 1)
        found.append(Slot(labels, slot.strong))
    tracer.put(call.out, found)


def index(tracer: Tracer, call: Call) -> None:
    """Advanced indexing: axes that are indexed cannot be cut, the others stay labelled."""
    value = tracer.value(call.first)
    indices = tree_map(lambda leaf: leaf.cpu() if isinstance(leaf, Tensor) else leaf, call.named["indices"])
    indexed = _indexed_axes(indices)
    found = []
    for slot in value.slots:
        left = _without(tracer, slot, indexed, _PICKED)
        if left is not None:
            found.append(Slot(torch.ops.aten.index(left.labels.expand(call.first.shape), indices), left.strong))
    tracer.put(call.out, tracer.atoms.separate(tracer.atoms.compacted(found)), weight=value.weight)


def _indexed_axes(indices: Sequence[Tensor | None]) -> frozenset[int]:
    axes: set[int] = set()
    at = 0
    for part in indices:
        width = part.ndim if part is not None and part.dtype in (torch.bool, torch.uint8) else 1
        if part is not None:
            axes.update(range(at, at + width))
        at += width
    return frozenset(axes)


def _without(tracer: Tracer, slot: Slot, axes: frozenset[int], reason: str) -> Slot | None:
    """What is left of a slot when its labels cannot be told apart along `axes`."""
    if not slot.axes & axes:
        return slot
    if slot.axes <= axes:
        tracer.atoms.freeze(slot.labels, reason)
        return None
    for axis in slot.axes & axes:
        slot = tracer.atoms.tie(slot, axis)
    return slot


def gather(tracer: Tracer, call: Call) -> None:
    """Picking along one axis, as gather and index_select do."""
    value, axis = tracer.value(call.first), call.named["dim"] % max(1, call.first.ndim)
    found = []
    for slot in value.slots:
        left = _without(tracer, slot, frozenset({axis}), _PICKED)
        if left is None:
            continue
        if all(call.out.shape[a] == call.first.shape[a] for a in left.axes):
            found.append(left)
        else:
            tracer.atoms.freeze(left.labels, _PICKED)
    tracer.put(call.out, found, weight=value.weight)


def embedding(tracer: Tracer, call: Call) -> None:
    """Rows of a table: the rows cannot be cut, the columns are outputs."""
    table, found = tracer.value(call.named["weight"]), []
    for slot in table.slots:
        if slot[0]:
            tracer.atoms.freeze(slot.labels, "its rows are a vocabulary")
        if slot.axes == {1}:
            tracer.produce(slot.labels)
            found.append(Slot(slot.labels.view(*[1] * (call.outputs[0].ndim - 1), -1), strong=True))
    tracer.put(call.outputs[0], found)


def pack(tracer: Tracer, call: Call) -> None:
    """Sequences of several lengths one after another, or apart again: features stay the last axis."""
    out, found = call.outputs[0], []
    for slot in tracer.value(call.first).slots:
        left = _without(tracer, slot, frozenset(range(call.first.ndim - 1)), "sequences are packed along it")
        if left is not None:
            found.append(Slot(left.labels.reshape(*[1] * (out.ndim - 1), -1), left.strong))
    tracer.put(out, found)
