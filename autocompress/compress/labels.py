"""Labels: which indices of which weights the channels of an activation belong to.

Every index of every axis of every parameter is an *atom*. An activation carries *slots*: integer tensors that broadcast
to its shape and name, for every element, the atom that it lives and dies with. Operators say which atoms can only be
removed together; `Atoms` keeps these classes as a union-find forest.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

#: The label of an element that belongs to no atom, such as a padded zero.
NONE = -1


@dataclass(frozen=True, eq=False)
class Slot:
    """Labels along some axes of a tensor.

    Attributes:
        labels: int64, as many axes as the tensor; of size 1 where the labels do not vary.
        strong: the labels are of a layer's outputs, rather than only of a parameter that is added or multiplied.
    """

    labels: Tensor
    strong: bool

    @property
    def axes(self) -> frozenset[int]:
        """The axes along which labels vary."""
        return frozenset(axis for axis, size in enumerate(self.labels.shape) if size > 1)

    def __getitem__(self, axis: int) -> bool:
        """True if labels vary along `axis`."""
        return self.labels.shape[axis] > 1


@dataclass
class Value:
    """What is known of one tensor.

    Attributes:
        slots: independent of each other: no two vary along the same axis.
        weight: it is a parameter, or computed from parameters only.
        slices: per axis, the (start, stop, step) that were taken of it.
    """

    slots: tuple[Slot, ...]
    weight: bool = False
    slices: dict[int, list[tuple[int, int, int]]] = field(default_factory=dict)

    def along(self, axis: int) -> list[Slot]:
        """Slots that vary along `axis`."""
        return [slot for slot in self.slots if slot[axis]]


class Atoms:
    """Atoms, the classes that they form, and what is known of classes."""

    def __init__(self) -> None:
        self._parent = np.zeros(0, dtype=np.int64)
        self._frozen: list[tuple[np.ndarray, str]] = []
        self._mixed: list[np.ndarray] = []
        self._heads: list[np.ndarray] = []
        self._contracted: list[np.ndarray] = []
        self._splits: list[tuple[Tensor, tuple[int, ...]]] = []

    def new(self, count: int) -> Tensor:
        """Labels of `count` fresh atoms."""
        first = len(self._parent)
        self._parent = np.concatenate([self._parent, np.arange(first, first + count, dtype=np.int64)])
        return torch.arange(first, first + count)

    def find(self, labels: Tensor) -> Tensor:
        """The representative of every label's class, in the shape of `labels`; `NONE` stays."""
        return torch.from_numpy(self._find(labels.numpy()))

    def _find(self, labels: np.ndarray) -> np.ndarray:
        if not len(self._parent):
            return labels
        safe = np.where(labels < 0, 0, labels)
        root = self._parent[safe]
        while True:
            above = self._parent[root]
            if (above == root).all():
                break
            root = above
        self._parent[safe] = root
        found: np.ndarray = np.where(labels < 0, NONE, root)
        return found

    def union(self, left: Tensor, right: Tensor) -> None:
        """Tie the elements of two label tensors that broadcast to each other, where both have a label."""
        pair = _broadcast(left, right)
        a, b = (tensor.reshape(-1).numpy() for tensor in pair)
        both = (a >= 0) & (b >= 0)
        a, b = a[both], b[both]
        while len(a):
            a, b = self._find(a), self._find(b)
            differ = a != b
            a, b = a[differ], b[differ]
            # Roots always point down, so that no cycle can arise; of several wishes the lowest wins, others come again.
            np.minimum.at(self._parent, np.maximum(a, b), np.minimum(a, b))

    def tie(self, slot: Slot, axis: int) -> Slot:
        """Tie all labels along `axis`; what remains of the slot along its other axes."""
        labels = slot.labels
        first = labels.amax(dim=axis, keepdim=True)
        self.union(labels, first)
        return Slot(first, slot.strong)

    def freeze(self, labels: Tensor, reason: str) -> None:
        """Say why these atoms cannot be removed."""
        ids = np.unique(labels.numpy())
        self._frozen.append((ids[ids >= 0], reason))

    def mix(self, labels: Tensor) -> None:
        """Say that these atoms enter a mean over all of them: removing some changes the others' values."""
        self._mixed.append(_ids(labels))

    def head(self, labels: Tensor) -> None:
        """Say that these atoms are channels of an attention head."""
        self._heads.append(_ids(labels))

    def contract(self, labels: Tensor) -> None:
        """Say that these atoms are summed over by a product of two activations: no weight reads them."""
        self._contracted.append(_ids(labels))

    def split(self, labels: Tensor, axes: Sequence[int]) -> None:
        """Say that labels that varied along one axis vary along several after a reshape; see `settle`."""
        self._splits.append((labels, tuple(axes)))

    def settle(self) -> None:
        """Tie what a reshape into several axes requires: what is left must fill a box again.

        Classes that are whole slices of the box across one axis leave a box whichever are removed. Others are tied
        along the first axis, so that a channel shuffle of g groups loses one channel of every group.
        """
        for _ in range(8):
            changed = False
            for labels, axes in self._splits:
                box = labels.movedim(axes, tuple(range(len(axes)))).flatten(len(axes))
                classes = self.find(box)
                if any(_is_slice(classes, axis, len(axes)) for axis in range(len(axes))):
                    continue
                for axis in range(len(axes)):
                    if bool((classes != classes.narrow(axis, 0, 1)).any()):
                        self.union(box, box.amax(dim=axis, keepdim=True))
                        changed = True
                        break
            if not changed:
                return

    def reasons(self) -> dict[int, str]:
        """Representative of a frozen class -> the first reason given."""
        found: dict[int, str] = {}
        for ids, reason in self._frozen:
            for root in np.unique(self._find(ids)).tolist():
                found.setdefault(root, reason)
        return found

    def mixed(self) -> frozenset[int]:
        """Representatives of classes with an atom that `mix` named."""
        return self._roots(self._mixed)

    def heads(self) -> frozenset[int]:
        """Representatives of classes with an atom that `head` named."""
        return self._roots(self._heads)

    def contracted(self) -> frozenset[int]:
        """Representatives of classes with an atom that `contract` named."""
        return self._roots(self._contracted)

    def _roots(self, ids: Iterable[np.ndarray]) -> frozenset[int]:
        listed = list(ids)
        return frozenset(np.unique(self._find(np.concatenate(listed))).tolist()) if listed else frozenset()

    # --- slots ------------------------------------------------------------------------------------------------------

    def compact(self, slot: Slot) -> Slot | None:
        """The slot without axes along which its classes do not vary; None if nothing varies."""
        labels = slot.labels
        for axis, stride in enumerate(labels.stride()):
            if labels.shape[axis] > 1 and stride == 0:
                labels = labels.narrow(axis, 0, 1)
        if labels.numel() > 1:
            classes = self.find(labels)
            for axis in range(labels.ndim):
                if labels.shape[axis] > 1 and bool((classes == classes.narrow(axis, 0, 1)).all()):
                    classes, labels = classes.narrow(axis, 0, 1), labels.narrow(axis, 0, 1)
        return Slot(labels.contiguous(), slot.strong) if labels.numel() > 1 else None

    def compacted(self, slots: Iterable[Slot]) -> list[Slot]:
        """`compact` of each, without those of which nothing is left."""
        return [found for slot in slots if (found := self.compact(slot)) is not None]

    def merge(self, slots: Iterable[Slot]) -> tuple[Slot, ...]:
        """Tie slots that vary along a common axis, elementwise, into one; all with the same number of axes."""
        merged: list[Slot] = []
        for slot in slots:
            for other in [m for m in merged if m.axes & slot.axes]:
                merged.remove(other)
                slot = self._join(other, slot)
            merged.append(slot)
        return tuple(self.compacted(merged))

    def _join(self, left: Slot, right: Slot) -> Slot:
        for few, many in ((left, right), (right, left)):
            if not few.strong and many.strong and few.axes < many.axes:
                # One scale or position for all heads: heads can be removed without it, it cannot be removed at all.
                self.freeze(few.labels, "it is shared by several heads")
                return many
        self.union(left.labels, right.labels)
        a, b = _broadcast(left.labels, right.labels)
        return Slot(torch.where(a >= 0, a, b), left.strong or right.strong)

    def separate(self, slots: Iterable[Slot]) -> tuple[Slot, ...]:
        """Slots of one tensor after a reshape that may have joined their axes.

        Positions of a parameter that is only added give way to the channels that they are flattened with.
        """
        strong = [slot for slot in slots if slot.strong]
        taken = frozenset[int]().union(*(slot.axes for slot in strong))
        weak = [slot for slot in slots if not slot.strong]
        for slot in weak:
            if slot.axes & taken:
                self.freeze(slot.labels, "its positions are flattened together with channels")
        return self.merge([*strong, *(slot for slot in weak if not slot.axes & taken)])


def _broadcast(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    # Not torch.broadcast_shapes, which imports a compiler on its first call.
    shape = np.broadcast_shapes(tuple(left.shape), tuple(right.shape))
    return left.expand(shape), right.expand(shape)


def _ids(labels: Tensor) -> np.ndarray:
    ids = np.unique(labels.numpy())
    found: np.ndarray = ids[ids >= 0]
    return found


def _is_slice(classes: Tensor, axis: int, axes: int) -> bool:
    """True if classes do not vary along any of the first `axes` axes but `axis`."""
    return all(bool((classes == classes.narrow(other, 0, 1)).all()) for other in range(axes) if other != axis)
