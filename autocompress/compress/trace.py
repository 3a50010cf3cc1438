"""One forward pass that watches every operator and writes down which indices of which weights belong together."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from autocompress.compress.labels import Atoms, Slot, Value

_NOTHING = Value(())


@dataclass(frozen=True)
class Call:
    """One operator at work.

    Attributes:
        func: the overload.
        args: positional arguments as given.
        kwargs: keyword arguments as given.
        named: all arguments by their names in the schema, defaults included.
        out: what it returned.
    """

    func: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    named: Mapping[str, Any]
    out: Any

    @property
    def first(self) -> Tensor:
        """The first argument, a tensor."""
        tensor = self.args[0]
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{self.func}: expected a tensor first")
        return tensor

    @property
    def outputs(self) -> list[Tensor]:
        """The tensors that it returned."""
        return [leaf for leaf in tree_leaves(self.out) if isinstance(leaf, Tensor)]

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors that it took."""
        return [leaf for leaf in tree_leaves((self.args, dict(self.kwargs))) if isinstance(leaf, Tensor)]


@dataclass(frozen=True)
class Axis:
    """Atoms of one axis.

    Attributes:
        name: of the parameter or buffer; for a `virtual` axis, of the module.
        axis: of the tensor; of a virtual axis, of its activations, counted from the end.
        size: number of atoms.
        start: first atom.
        virtual: no tensor has this axis: a normalization without parameters only counts its channels.
    """

    name: str
    axis: int
    size: int
    start: int
    virtual: bool = False


class Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows labels through every operator while it is active.

    Attributes:
        atoms: the forest of classes.
        axes: where atoms come from, by rising first atom.
        produced: indices of `axes` whose atoms are a layer's outputs, in the order of the forward pass.
        read: indices of `axes` that are summed over with an activation.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.atoms = Atoms()
        self.axes: list[Axis] = []
        self.produced: dict[int, None] = {}
        self.read: set[int] = set()
        self._starts: list[int] = []
        self._values: Any = WeakTensorKeyDictionary()
        self._sliced: list[Value] = []
        self._paused = 0
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if tensor.is_floating_point() and tensor.ndim:
                self._adopt(name, tensor)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here; saying so keeps torch from importing its compiler, which takes seconds."""
        return False

    def _adopt(self, name: str, tensor: Tensor) -> None:
        slots = []
        for axis, size in enumerate(tensor.shape):
            if size > 1:
                shape = [1] * tensor.ndim
                shape[axis] = size
                slots.append(Slot(self.new_axis(name, axis, size).view(shape), strong=False))
        self._values[tensor] = Value(tuple(slots), weight=True)

    def new_axis(self, name: str, axis: int, size: int, *, virtual: bool = False) -> Tensor:
        """Labels of a new axis, shape (size,)."""
        labels = self.atoms.new(size)
        start = int(labels[0])
        self.axes.append(Axis(name, axis, size, start, virtual))
        self._starts.append(start)
        return labels

    def axis_of(self, atom: int) -> int:
        """Index into `axes` of the axis that an atom belongs to."""
        return bisect_right(self._starts, atom) - 1

    def value(self, tensor: object) -> Value:
        """What is known of a tensor; nothing of anything else."""
        if not isinstance(tensor, Tensor):
            return _NOTHING
        found: Value = self._values.get(tensor, _NOTHING)
        return found

    def put(self, tensor: Tensor, slots: Sequence[Slot], *, weight: bool = False) -> None:
        """Say what a tensor's labels are."""
        if slots:
            self._values[tensor] = Value(tuple(slots), weight)
        else:
            self._values.pop(tensor, None)

    def note_slice(self, value: Value, axis: int, taken: tuple[int, int, int]) -> None:
        """Remember that a part of a labelled axis was taken; see `finish`."""
        if not value.slices:
            self._sliced.append(value)
        value.slices.setdefault(axis, []).append(taken)

    def produce(self, labels: Tensor) -> None:
        """Say that these atoms are outputs of a layer."""
        for index in self._axes_of(labels):
            self.produced.setdefault(index)

    def consume(self, labels: Tensor) -> None:
        """Say that these atoms are read by a layer."""
        self.read.update(self._axes_of(labels))

    def _axes_of(self, labels: Tensor) -> list[int]:
        starts = torch.tensor(self._starts)
        found: list[int] = torch.unique(torch.searchsorted(starts, labels[labels >= 0], right=True) - 1).tolist()
        return found

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Operators inside are not followed."""
        self._paused += 1
        try:
            yield
        finally:
            self._paused -= 1

    def pause(self) -> None:
        """Stop following operators until `resume`."""
        self._paused += 1

    def resume(self) -> None:
        """Follow operators again."""
        self._paused -= 1

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Compute as always, then label the result."""
        out = func(*args, **(kwargs or {}))
        if not self._paused:
            call = Call(func, args, kwargs or {}, _named(func, args, kwargs or {}), out)
            if any(self.value(tensor).slots for tensor in call.tensors):
                _rule(func)(self, call)
        return out

    def finish(self, output: Any, reason: str) -> None:
        """Freeze what is returned, and tie what slices and reshapes require."""
        for leaf in tree_leaves(output):
            for slot in self.value(leaf).slots:
                self.atoms.freeze(slot.labels, reason)
        for value in self._sliced:
            for axis, slices in value.slices.items():
                for slot in value.along(axis):
                    self._tie_parts(slot, axis, sorted(set(slices)))
        self.atoms.settle()

    def _tie_parts(self, slot: Slot, axis: int, slices: list[tuple[int, int, int]]) -> None:
        """Parts of equal size that make up the whole axis lose the same positions, as of a chunk."""
        parts = [torch.arange(start, stop, step) for start, stop, step in slices]
        whole = torch.cat(parts).sort().values
        if len({len(part) for part in parts}) == 1 and whole.equal(torch.arange(slot.labels.shape[axis])):
            for part in parts[1:]:
                self.atoms.union(slot.labels.index_select(axis, parts[0]), slot.labels.index_select(axis, part))


Rule: TypeAlias = Callable[[Tracer, Call], None]


def _named(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    arguments = func._schema.arguments
    named = {a.name: a.default_value for a in arguments if a.has_default_value()}
    return named | {a.name: value for a, value in zip(arguments, args, strict=False)} | dict(kwargs)


def _rule(func: Any) -> Rule:
    # The rules need the classes above, so they are looked up when the first operator comes by.
    from autocompress.compress.rules import rule_of

    return rule_of(func)


@contextmanager
def plain_operators() -> Iterator[None]:
    """Attention and transformer layers run as products and softmax, not as one fused operator."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
