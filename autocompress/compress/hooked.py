"""Hooks that are at a network's layers inside a context, and nowhere afterwards."""

from __future__ import annotations

from types import TracebackType

from torch.utils.hooks import RemovableHandle


class Hooked:
    """What is in `handles` when the context ends is removed; a subclass fills it when it is entered."""

    def __init__(self) -> None:
        self.handles: list[RemovableHandle] = []

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self.handles:
            handle.remove()
