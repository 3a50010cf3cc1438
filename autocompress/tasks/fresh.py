"""Where the weights of a built-in task's network come from: the task's seed, or whoever asks for another size."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from autocompress.rng import derive_seed


def is_dense(width: float, depth: float) -> bool:
    """Whether the sizes are the dense network's, which alone may have trained weights."""
    return width == 1.0 and depth == 1.0


@contextlib.contextmanager
def initial_weights(seed: int, *, dense: bool) -> Iterator[None]:
    """Inside the block, torch draws from a stream of the task's own seed; for another size from the caller's."""
    if not dense:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "initial weights"))
        yield
