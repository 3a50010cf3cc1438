"""How labels follow operators that compute: pointwise, products, convolutions, reductions, normalizations."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from autocompress.compress.labels import Slot, Value

if TYPE_CHECKING:
    from autocompress.compress.trace import Call, Tracer

_FIXED = "its channels are multiplied with values that cannot be cut"
_WINDOW = "a window slides along it"


def pointwise(tracer: Tracer, call: Call) -> None:
    """Elements that meet are tied, under broadcasting."""
    tensors = [tensor for tensor in call.tensors if tensor.ndim]
    values = [tracer.value(tensor) for tensor in tensors]
    for out in call.outputs:
        slots = [slot for value in values for slot in _aligned(value.slots, out.ndim)]
        tracer.put(out, tracer.atoms.merge(slots), weight=all(value.weight for value in values))


def _aligned(slots: Iterable[Slot], ndim: int) -> list[Slot]:
    """Slots with leading axes of size 1."""
    return [Slot(s.labels.reshape(*[1] * (ndim - s.labels.ndim), *s.labels.shape), s.strong) for s in slots]


def mm(tracer: Tracer, call: Call) -> None:
    """(m, k) × (k, n)."""
    a, b = (tracer.value(call.named[name]) for name in ("self", "mat2"))
    tracer.put(call.out, _flat(product(tracer, _batched(a), _batched(b))), weight=a.weight and b.weight)


def addmm(tracer: Tracer, call: Call) -> None:
    """A bias + (m, k) × (k, n)."""
    a, b = (tracer.value(call.named[name]) for name in ("mat1", "mat2"))
    slots = _flat(product(tracer, _batched(a), _batched(b)))
    bias = _aligned(tracer.value(call.named["self"]).slots, 2)
    tracer.put(call.out, tracer.atoms.merge([*slots, *bias]))


def bmm(tracer: Tracer, call: Call) -> None:
    """(b, m, k) × (b, k, n)."""
    a, b = (tracer.value(call.named[name]) for name in ("self", "mat2"))
    tracer.put(call.out, product(tracer, a, b), weight=a.weight and b.weight)


def baddbmm(tracer: Tracer, call: Call) -> None:
    """A summand + (b, m, k) × (b, k, n)."""
    a, b = (tracer.value(call.named[name]) for name in ("batch1", "batch2"))
    added = _aligned(tracer.value(call.named["self"]).slots, 3)
    tracer.put(call.out, tracer.atoms.merge([*product(tracer, a, b), *added]))


def mv(tracer: Tracer, call: Call) -> None:
    """(m, k) × (k,)."""
    a, b = tracer.value(call.named["self"]), tracer.value(call.named["vec"])
    column = Value(tuple(Slot(s.labels.view(1, -1, 1), s.strong) for s in b.slots), b.weight)
    slots = product(tracer, _batched(a), column)
    tracer.put(call.out, [Slot(s.labels[0, :, 0], s.strong) for s in slots if s.axes == {1}])


def _batched(value: Value) -> Value:
    return Value(tuple(Slot(s.labels.unsqueeze(0), s.strong) for s in value.slots), value.weight)


def _flat(slots: Sequence[Slot]) -> tuple[Slot, ...]:
    return tuple(Slot(s.labels.squeeze(0), s.strong) for s in slots)


def product(tracer: Tracer, a: Value, b: Value) -> tuple[Slot, ...]:
    """Slots of (b, m, k) × (b, k, n): what meets along k is tied, what is left lives on.

    A slot that varies along k and another axis is of heads: each head's channels are summed over together, so that
    they can only be removed together.
    """
    left, right = a.along(2), b.along(1)
    for x in left:
        for y in right:
            tracer.atoms.union(x.labels.unsqueeze(3), y.labels.unsqueeze(1))
    if not (left and right):
        for slot in (*left, *right):
            tracer.atoms.freeze(slot.labels, _FIXED)
    activations = not a.weight and not b.weight
    found: list[Slot] = []
    for value, axis in ((a, 2), (b, 1)):
        for slot in value.slots:
            if activations and len(slot.axes) > 1:
                tracer.atoms.head(slot.labels)
            if slot[axis]:
                if value.weight:
                    tracer.consume(slot.labels)
                elif activations:
                    tracer.atoms.contract(slot.labels)
                if len(slot.axes) > 1:
                    found.append(tracer.atoms.tie(slot, axis))
            else:
                if value.weight:
                    tracer.produce(slot.labels)
                found.append(Slot(slot.labels, slot.strong or value.weight))
    return tracer.atoms.merge(found)


def convolution(tracer: Tracer, call: Call) -> None:
    """Input channels meet one axis of the weight, output channels are the other's; groups are cut whole."""
    data, weight = call.named["input"], call.named["weight"]
    groups, transposed = int(call.named["groups"]), bool(call.named["transposed"])
    channel = 1
    inputs = _channels(tracer, tracer.value(data), channel, _WINDOW)
    kernel = tracer.value(weight)
    rows = [slot.labels.flatten() for slot in kernel.along(0) if slot.axes == {0}]
    columns = [slot.labels.flatten() for slot in kernel.along(1) if slot.axes == {1}]
    # A transposed convolution keeps its input channels on the first axis.
    reads, makes = (rows, columns) if transposed else (columns, rows)
    for labels in makes if groups == 1 or not transposed else rows:
        tracer.produce(labels)
    if groups > 1:
        if transposed:
            makes = [labels.view(groups, -1)[:, :1].expand(-1, weight.shape[1]).flatten() for labels in rows]
            inputs_and_rows = [*inputs, *rows]
        else:
            inputs_and_rows = inputs
        _tie_groups(tracer, [*inputs_and_rows, *makes], groups)
        if not inputs:
            for labels in makes:
                tracer.atoms.freeze(labels, f"it is a convolution in {groups} groups of channels that cannot be cut")
    else:
        for labels in reads:
            tracer.consume(labels)
            for channels in inputs:
                tracer.atoms.union(channels, labels)
            if not inputs:
                tracer.atoms.freeze(labels, _FIXED)
        for channels in inputs if not reads and data.shape[channel] > 1 else []:
            tracer.atoms.freeze(channels, _FIXED)
    bias = [slot.labels.flatten() for slot in tracer.value(call.named["bias"]).slots]
    shape = [-1 if axis == channel else 1 for axis in range(call.out.ndim)]
    slots = [Slot(labels.reshape(shape), strong=True) for labels in (*makes, *bias) if labels.numel() > 1]
    tracer.put(call.out, tracer.atoms.merge(slots))


def _tie_groups(tracer: Tracer, channels: Sequence[Tensor], groups: int) -> None:
    boxes = [labels.view(groups, -1) for labels in channels]
    for box in boxes:
        tracer.atoms.union(box, box[:, :1])
        tracer.atoms.union(box[:, 0], boxes[0][:, 0])


def _channels(tracer: Tracer, value: Value, channel: int, reason: str) -> list[Tensor]:
    """Labels along the channel axis, shape (channels,); tied along all others, where nothing else can be cut."""
    found = []
    for slot in value.slots:
        if not slot[channel]:
            tracer.atoms.freeze(slot.labels, reason)
            continue
        for axis in slot.axes - {channel}:
            slot = tracer.atoms.tie(slot, axis)
        found.append(slot.labels.flatten())
    return found


def local(tracer: Tracer, call: Call) -> None:
    """Pooling and resampling: channels stay, positions cannot be cut."""
    last = int(re.findall(r"([123])d", str(call.func._schema.name))[-1])
    spatial = frozenset(range(call.first.ndim - last, call.first.ndim))
    found = []
    for slot in tracer.value(call.first).slots:
        if slot.axes <= spatial:
            tracer.atoms.freeze(slot.labels, _WINDOW)
            continue
        for axis in slot.axes & spatial:
            slot = tracer.atoms.tie(slot, axis)
        found.append(slot)
    for out in call.outputs:
        tracer.put(out, found)


def reduction(tracer: Tracer, call: Call) -> None:
    """A reduction, or a softmax: channels that enter one value together cannot be cut by themselves."""
    ndim = call.first.ndim
    given = call.named.get("dim", call.named.get("dims"))
    dims = [given] if isinstance(given, int) else list(given) if given else range(ndim)
    axes = frozenset(axis % ndim for axis in dims)
    for out in call.outputs:
        found = []
        for slot in tracer.value(call.first).slots:
            left = slot
            if slot.axes & axes:
                if slot.axes <= axes:
                    tracer.atoms.freeze(slot.labels, f"{_word(call)} over its channels")
                    if out.shape != call.first.shape:
                        continue
                else:
                    for axis in slot.axes & axes:
                        left = tracer.atoms.tie(left, axis)
            found.append(_dropped(left, axes) if out.ndim < ndim else left)
        tracer.put(out, tracer.atoms.compacted(found))


def mean(tracer: Tracer, call: Call) -> None:
    """A mean or variance: of channels it is what a normalization takes, which removing changes but does not break."""
    ndim = call.first.ndim
    given = call.named.get("dim")
    axes = frozenset(axis % ndim for axis in ([given] if isinstance(given, int) else given or range(ndim)))
    found = []
    for slot in tracer.value(call.first).slots:
        if slot.axes & axes and slot.axes <= axes:
            tracer.atoms.mix(slot.labels)
            continue
        for axis in slot.axes & axes:
            slot = tracer.atoms.tie(slot, axis)
        found.append(slot)
    for out in call.outputs:
        slots = [_dropped(slot, axes) for slot in found] if out.ndim < ndim else found
        tracer.put(out, tracer.atoms.compacted(slots))


def _dropped(slot: Slot, axes: frozenset[int]) -> Slot:
    """The slot without `axes`, along which it does not vary."""
    kept = [size for axis, size in enumerate(slot.labels.shape) if axis not in axes]
    return Slot(slot.labels.reshape(kept), slot.strong)


def _word(call: Call) -> str:
    return str(call.func._schema.name).partition("::")[2].strip("_").replace("_", " ")


def batch_norm(tracer: Tracer, call: Call) -> None:
    """Each channel by itself."""
    _affine(tracer, call, ("weight", "bias", "running_mean", "running_var"), tracer.value(call.first).slots)


def group_norm(tracer: Tracer, call: Call) -> None:
    """Groups of channels are normalized together: a group is cut whole; a single one is mixed."""
    groups = int(call.named["group"])
    for slot in tracer.value(call.first).along(1):
        if groups == 1:
            tracer.atoms.mix(slot.labels)
        else:
            box = torch.unflatten(slot.labels, 1, (groups, -1))
            tracer.atoms.union(box, box.narrow(2, 0, 1))
    _affine(tracer, call, ("weight", "bias"), tracer.value(call.first).slots)


def _affine(tracer: Tracer, call: Call, names: Sequence[str], slots: Sequence[Slot]) -> None:
    shape = [-1 if axis == 1 else 1 for axis in range(call.first.ndim)]
    found = [*slots]
    for name in names:
        found += [Slot(s.labels.reshape(shape), s.strong) for s in tracer.value(call.named.get(name)).slots]
    tracer.put(call.outputs[0], tracer.atoms.merge(found))


def layer_norm(tracer: Tracer, call: Call) -> None:
    """The last axes are normalized together: channels mix, except those of a head, which go together anyway."""
    ndim = call.first.ndim
    axes = frozenset(range(ndim - len(call.named["normalized_shape"]), ndim))
    found = []
    for slot in tracer.value(call.first).slots:
        if slot.axes & axes and slot.axes <= axes:
            tracer.atoms.mix(slot.labels)
        else:
            for axis in slot.axes & axes:
                slot = tracer.atoms.tie(slot, axis)
        found.append(slot)
    for name in ("weight", "bias"):
        found += _aligned(tracer.value(call.named.get(name)).slots, ndim)
    tracer.put(call.outputs[0], tracer.atoms.merge(found))


def unknown(tracer: Tracer, call: Call) -> None:
    """An operator without a rule: whatever enters it stays as it is."""
    for tensor in call.tensors:
        for slot in tracer.value(tensor).slots:
            tracer.atoms.freeze(slot.labels, f"{str(call.func._schema.name).replace('::', '.')} is not followed")
