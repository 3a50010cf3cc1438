"""What a network computed once on fixed inputs, so that a copy with one change computes from the change on only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from autocompress.compress.hooked import hooked

#: Bytes that are kept at most, by default.
LIMIT = 1 << 30


class _Call(NamedTuple):
    """One call of a part: what went in and came out, and how often each tensor that came out had been written to."""

    given: tuple[list[Any], Any]
    returned: Any
    versions: tuple[int, ...]


class Recall:
    """Calls of a network's parts, on several batches, answered again where the same part is given the same.

    Parts are the network's children and those of its `nn.Sequential` and `nn.ModuleList`: blocks, not every layer, as
    each output is kept. Values are those of the first computation, bit by bit. What is random has to be off, as dropout
    is in evaluation mode.

    Args:
        module: the network, in the modes that it is called in. Its weights must stay as they are.
        limit: bytes of outputs that are kept; the first parts' are.

    Attributes:
        batch: number of the inputs that a network is called with next; set it before each call.
    """

    def __init__(self, module: nn.Module, limit: int = LIMIT) -> None:
        self.batch = 0
        self._module = module
        self._parts = {name: _state(part) for name, part in _parts(module)}
        self._left = limit
        self._calls: dict[tuple[int, str], list[_Call]] = {}

    @contextmanager
    def learn(self) -> Iterator[None]:
        """Keep what the parts compute in the block."""
        seen: set[int] = set()

        def keep(name: str) -> Any:
            def hook(part: nn.Module, args: Any, kwargs: Any, returned: Any) -> None:
                tensors = _tensors(returned)
                size = sum(t.numel() * t.element_size() for t in tensors if id(t) not in seen)
                if size <= self._left:
                    self._left -= size
                    seen.update(id(t) for t in tensors)
                    call = _Call(tree_flatten((args, kwargs)), returned, tuple(t._version for t in tensors))
                    self._calls.setdefault((self.batch, name), []).append(call)

            return hook

        with hooked(
            part.register_forward_hook(keep(name), with_kwargs=True)
            for name, part in self._module.named_modules()
            if name in self._parts
        ):
            yield

    @contextmanager
    def use(self, module: nn.Module) -> Iterator[None]:
        """Answer calls of parts that are as they were, in the block.

        Args:
            module: of the same form, compressed somewhere; its weights must not change in the block.
        """
        same = [
            (name, part)
            for name, part in module.named_modules()
            if name in self._parts and _alike(self._parts[name], _state(part))
        ]
        own = [part.__dict__.get("forward") for _, part in same]
        for name, part in same:
            part.forward = self._answering(name, part.forward)
        try:
            yield
        finally:
            for (_, part), before in zip(same, own, strict=True):
                if before is None:
                    del part.forward
                else:
                    part.forward = before

    def _answering(self, name: str, forward: Any) -> Any:
        def answer(*args: Any, **kwargs: Any) -> Any:
            given = tree_flatten((args, kwargs))
            for call in self._calls.get((self.batch, name), ()):
                # What was written to since, in place, is no longer what the part had returned.
                fresh = tuple(t._version for t in _tensors(call.returned)) == call.versions
                if fresh and given[1] == call.given[1] and all(map(_equal, given[0], call.given[0])):
                    return call.returned
            return forward(*args, **kwargs)

        return answer


def _parts(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    holders = (nn.Sequential, nn.ModuleList)
    for name, holder in module.named_modules():
        if name and not isinstance(holder, holders):
            continue
        for child, part in holder.named_children():
            if not isinstance(part, nn.ModuleList):
                yield f"{name}.{child}" if name else child, part


def _state(part: nn.Module) -> dict[str, Any]:
    """Kinds of all modules in it, parameters and buffers, but for statistics that are only written in training."""
    found: dict[str, Any] = {}
    for name, inner in part.named_modules():
        written = isinstance(inner, nn.modules.batchnorm._BatchNorm) and inner.training
        own = inner.named_parameters(recurse=False) if written else _own_tensors(inner)
        found[name] = (type(inner), inner.training)
        found |= {f"{name}:{key}": tensor for key, tensor in own}
    return found


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(recurse=False)
    yield from module.named_buffers(recurse=False)


def _alike(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return first.keys() == second.keys() and all(_equal(value, second[name]) for name, value in first.items())


def _equal(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        if first is second:
            return True
        return first.shape == second.shape and first.dtype == second.dtype and torch.equal(first, second)
    return type(first) is type(second) and bool(first == second)


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(value)[0] if isinstance(leaf, Tensor)]
