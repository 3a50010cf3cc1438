"""Strict reading of weights from safetensors files. Pickles are never opened."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from autocompress.errors import TaskError

#: A counter that changes no output; older checkpoints lack it.
_COUNTER = "num_batches_tracked"


def load_weights(module: nn.Module, path: str | Path) -> nn.Module:
    """Fill `module` with the weights in a safetensors file; every name and shape must match.

    Args:
        module: filled in place. A file may lack the batch counters of BatchNorm, which change no output.
        path: a ``.safetensors`` file.

    Returns:
        The same module.

    Raises:
        TaskError: there is no such file, it is no safetensors file, or names, shapes or kinds of number differ.
    """
    path = Path(path)
    if not path.is_file():
        raise TaskError(f"weights: expected a safetensors file, got {path}, which does not exist")
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise TaskError(
            f"weights: {path} is no safetensors file ({error}); write it with safetensors.torch.save_file "
            "(pickled .pt files are never opened)"
        ) from error
    return fill(module, weights, str(path))


def fill(module: nn.Module, weights: Mapping[str, Tensor], source: str) -> nn.Module:
    """Copy named tensors into `module`, in place; every name and shape must match.

    Args:
        module: filled in place.
        weights: name -> tensor, as in a state dict; may lack BatchNorm's batch counters.
        source: where they come from, for the message.

    Returns:
        The same module.

    Raises:
        TaskError: names, shapes or kinds of number differ, or a value is not finite.
    """
    expected = module.state_dict()
    problems = _mismatches(expected, weights)
    if problems:
        shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise TaskError(f"weights: {source} does not fit {type(module).__name__}: {shown}")
    counters = {name: value for name, value in expected.items() if name.endswith(_COUNTER) and name not in weights}
    module.load_state_dict({**weights, **counters}, strict=True)
    return module


def _mismatches(expected: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> list[str]:
    """What differs, in words, sorted by name."""
    problems = [f"{n} is missing" for n in sorted(expected.keys() - got.keys()) if not n.endswith(_COUNTER)]
    problems += [f"{name} is not part of the module" for name in sorted(got.keys() - expected.keys())]
    for name in sorted(expected.keys() & got.keys()):
        want, have = expected[name], got[name]
        if want.shape != have.shape:
            problems.append(f"{name}: expected shape {tuple(want.shape)}, got {tuple(have.shape)}")
        elif want.dtype != have.dtype:
            problems.append(f"{name}: expected {want.dtype}, got {have.dtype}")
        elif torch.is_floating_point(have) and not torch.isfinite(have).all():
            problems.append(f"{name}: expected finite values, got NaN or infinity")
    return problems
