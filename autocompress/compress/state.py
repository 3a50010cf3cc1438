"""Weights and statistics on disk: safetensors, written whole or not at all, bound to their content by sha256."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from autocompress.errors import CompressionError, TaskError
from autocompress.files import write_bytes
from autocompress.models.weights import fill

_HASH = "sha256"


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256, in hex, of names, kinds of number, shapes and values, whatever their order in the mapping."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name}\x1f{tensor.dtype}\x1f{tuple(tensor.shape)}\x1e".encode())
        total.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def _digest(tensors: Mapping[str, Tensor], notes: Mapping[str, str]) -> str:
    """That of the tensors alone where there are no notes."""
    content = tensors_digest(tensors)
    if not notes:
        return content
    return hashlib.sha256(json.dumps([content, sorted(notes.items())]).encode()).hexdigest()


def module_digest(module: nn.Module) -> str:
    """sha256, in hex, of all weights and buffers that the module keeps."""
    return tensors_digest(module.state_dict())


def save_tensors(tensors: Mapping[str, Tensor], path: str | Path, notes: Mapping[str, str] | None = None) -> None:
    """Write named tensors to a safetensors file that carries its own content hash.

    The file appears under its name only when it is complete.

    Args:
        tensors: name -> tensor; tied tensors are written once per name.
        path: the file; its folder must exist: one that was removed, as a finished candidate's is, stays so.
        notes: what the tensors are, name -> text; under the hash too. `load_noted` gives them back.

    Raises:
        OSError: the folder is missing or the disk is full; what was under `path` is unchanged.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: expected a folder {path.parent} to write to, got none")
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    told = dict(notes or {})
    write_bytes(path, save(plain, metadata={**told, _HASH: _digest(plain, told)}))


def load_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read a file that `save_tensors` wrote.

    Raises:
        CompressionError: the file is missing, is no safetensors file, or its content does not fit its hash.
    """
    return load_noted(path)[0]


def load_noted(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a file that `save_tensors` wrote, and its notes.

    Raises:
        CompressionError: the file is missing, is no safetensors file, or its content does not fit its hash.
    """
    path = Path(path)
    if not path.is_file():
        raise CompressionError(f"expected a safetensors file, got {path}, which does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            notes = dict(file.metadata() or {})
            expected = notes.pop(_HASH, None)
    except (SafetensorError, OSError) as error:
        raise CompressionError(
            f"{path} cannot be read as safetensors ({error}); delete it to have it made anew"
        ) from error
    got = _digest(tensors, notes)
    if got != expected:
        raise CompressionError(
            f"{path}: expected content with sha256 {expected}, got {got}; the file was changed after it was written; "
            "delete it to have it made anew"
        )
    return tensors, notes


def save_module(module: nn.Module, path: str | Path) -> None:
    """Write a module's weights and buffers; see `save_tensors`."""
    save_tensors(module.state_dict(), path)


def load_module(module: nn.Module, path: str | Path) -> nn.Module:
    """Fill `module`, in place, with what `save_module` wrote; every name and shape must match.

    Returns:
        The same module.

    Raises:
        CompressionError: the file is missing, damaged, or belongs to another architecture.
    """
    tensors = load_tensors(path)
    try:
        return fill(module, tensors, str(path))
    except TaskError as error:
        raise CompressionError(str(error)) from error
