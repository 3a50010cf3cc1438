"""Hooks that are at a network's layers inside a block, and nowhere afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

from torch.utils.hooks import RemovableHandle


@contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Remove hooks at the end of the block, whatever happens in it.

    Args:
        handles: as torch returns them where a hook is registered. Of a generator each is registered as it is taken, so
            that what raises on the way leaves none behind.
    """
    with ExitStack() as stack:
        for handle in handles:
            stack.enter_context(handle)
        yield
